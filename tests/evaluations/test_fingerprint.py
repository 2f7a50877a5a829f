"""The fingerprint: equal for equal runs, different for any change of state, step or data, and nothing else."""

import re
import shutil

import pytest
import tiny
import torch

import evaluations.fingerprint
import tokenizer.train
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders
from engine.data.order import FIRST_ORDER, NEWEST_ORDER, SampleOrder
from evaluations.fingerprint import Snapshot, digests, first_difference, next_ids, whole


@pytest.fixture(scope="module")
def run(tmp_path_factory, image_folder, world):
    root = tmp_path_factory.mktemp("fingerprint")
    tokenizer.train.train(tiny.tokenizer_config(root / "run", image_folder, *tiny.GAN, "loop.save_every=3"), world)
    return root / "run"


def trained(folder, image_folder, world, *options):
    tokenizer.train.train(tiny.tokenizer_config(folder, image_folder, *tiny.GAN, *options), world)
    return digests(folder)


def changed(one, other) -> set[str]:
    assert one.keys() == other.keys() and (whole(one) == whole(other)) == (one == other)
    return {name for name in one if one[name] != other[name]}


def test_it_covers_every_part(run):
    networks = {f"{n}.{p}" for n in ("tokenizer", "discriminator") for p in ("model", "optimizer", "counters")}
    assert set(digests(run)) == networks | {"tokenizer.ema", "step", "next 8 sample ids"}


def test_equal_runs_are_equal_wherever_they_lie(run, image_folder, tmp_path, world):
    """Another folder, other logging, a copy of the images, a resume in between: the same bits, the same digest."""
    shutil.copytree(image_folder, tmp_path / "elsewhere")
    assert changed(digests(run), trained(tmp_path / "a", tmp_path / "elsewhere", world, "loop.log_every=2")) == set()
    shutil.copytree(run, tmp_path / "b")
    shutil.rmtree(checkpoint_folders(tmp_path / "b")[-1])
    assert changed(digests(run), trained(tmp_path / "b", image_folder, world)) == set()


def test_what_differs_is_told_by_part(run, image_folder, tmp_path, world):
    """Another EMA changes the EMA alone; another seed everything but the step and the counters."""
    assert changed(digests(run), trained(tmp_path / "a", image_folder, world, "ema_decay=0.8")) == {"tokenizer.ema"}
    seeded = changed(digests(run), trained(tmp_path / "b", image_folder, world, "loop.seed=1"))
    assert seeded == set(digests(run)) - {"step", "tokenizer.counters", "discriminator.counters"}
    earlier = changed(digests(run), digests(checkpoint_folders(run)[0]))
    assert {"step", "next 8 sample ids", "tokenizer.model", "discriminator.optimizer"} <= earlier


def test_sample_ids_are_those_the_next_updates_see(run):
    config = evaluations.fingerprint.read_yaml(run / "config.yaml")
    for version in (FIRST_ORDER, NEWEST_ORDER):
        assert next_ids(config, 6, version) == SampleOrder(0, 24, version).indices(range(24, 32)).tolist()


def test_the_entry_prints_one_digest_and_on_request_the_parts(run, entry):
    code, out, _ = entry(evaluations.fingerprint.main, run)
    assert code == 0 and re.fullmatch(r"[0-9a-f]{64}\n", out) and out.strip() == whole(digests(run))
    lines = entry(evaluations.fingerprint.main, run, "--parts")[1].splitlines()
    assert lines[0] == out.strip() and len(lines) == 1 + len(digests(run))


def test_damage_and_absence_are_named(run, tmp_path, entry):
    assert entry(evaluations.fingerprint.main, tmp_path)[0] == 2
    shutil.copytree(run, tmp_path / "run")
    path = next((checkpoint_folders(tmp_path / "run")[-1] / "state").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"is damaged: state/.*bytes instead of"):
        digests(tmp_path / "run")


def test_two_runs_are_compared(run, image_folder, tmp_path, world, entry):
    """0 and "equal" for a copy; 1 with the first part and tensor for another EMA, another step, another order."""
    main = evaluations.fingerprint.main
    shutil.copytree(run, tmp_path / "copy")
    assert entry(main, run, tmp_path / "copy")[:2] == (0, "equal\n")
    trained(tmp_path / "a", image_folder, world, "ema_decay=0.8")
    code, out, _ = entry(main, run, tmp_path / "a")
    told = re.fullmatch(
        r"different, first in tokenizer\.ema: (tokenizer\.ema\.\S+): .* numbers differ, by up to (\S+)\n", out
    )
    assert code == 1 and told is not None, out
    one, other = (evaluations.fingerprint.snapshot_of(folder).state for folder in (run, tmp_path / "a"))
    first = next(
        name for name in sorted(one) if isinstance(one[name], torch.Tensor) and (one[name] != other[name]).any()
    )
    gap = (one[first] - other[first]).abs().max().item()
    assert told[1] == first and float(told[2]) == pytest.approx(gap, rel=1e-2)
    assert entry(main, run, checkpoint_folders(run)[0])[:2] == (1, "different, first in step: 6 against 3\n")
    assert entry(main, run, tmp_path / "absent")[0] == 2


def test_a_single_bit_is_a_difference():
    """Zeros of two signs are equal as numbers."""
    one, other = ({"a.b.c": torch.tensor([value])} for value in (0.0, -0.0))
    told = first_difference(Snapshot(1, one, []), Snapshot(1, other, []))
    assert told == "a.b: a.b.c: the numbers are equal, their bits are not (zeros of two signs)"
    assert first_difference(Snapshot(1, one, [1]), Snapshot(1, one, [2])) == "next 8 sample ids: [1] against [2]"
    assert first_difference(Snapshot(1, {}, []), Snapshot(1, one, [])) == "a.b: a.b.c is in the second only"
