"""Trainings in phases: WeTok's stage 1, stage 2 with the generative decoder, and later ones at lower rates."""

import hashlib
import logging
import shutil

import pytest
import tiny
import torch
from ranks import on_ranks
from safetensors.torch import load_file

import tokenizer.train
from engine.checkpoint.manifest import (
    ORDER_KEY,
    CheckpointError,
    checkpoint_folders,
    json_digest,
    order_version_of,
    read_manifest,
)
from engine.checkpoint.weights import find_weights, num_parameters
from engine.config import load_sections
from engine.data.order import FIRST_ORDER, NEWEST_ORDER, SampleOrder
from engine.json_text import to_json
from engine.messages import ConfigError
from engine.meters import METERS
from engine.preflight import Preflight, network_bytes
from engine.run_log import read_metrics
from evaluations.fingerprint import digests, steps_before
from tokenizer import load_tokenizer
from tokenizer.training.checks import validate
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.needs import training_needs
from tokenizer.training.phases import phases_of
from tokenizer.training.task import TokenizerTask

THREE = (
    "phases=[{steps: 3, lr: 1e-3}, {steps: 3, lr: 5e-4, generative_decoder: true}, "
    "{steps: 3, lr: 1e-4, generative_decoder: true}]"
)


def config_of(run_dir, images, *overrides) -> TokenizerTrainConfig:
    return tiny.tokenizer_config(run_dir, images, THREE, *overrides, base=tiny.WETOK)


def weights(run, phase: int, kind: str = "model") -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folders(run / f"phase_{phase}")[-1] / f"{kind}.safetensors")


def records(run, phase: int) -> list[dict]:
    clocks = ("time", *METERS)
    return [{k: v for k, v in record.items() if k not in clocks} for record in read_metrics(run / f"phase_{phase}")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, image_folder, world):
    """All three phases, without a stop."""
    folder = tmp_path_factory.mktemp("phases") / "run"
    seen: list[tuple] = []
    real = TokenizerTask.train_step

    def watched(self, batches, step):
        if step == 0:
            moments = next(iter(self.discriminator.optimizer.state.values()))["step"].item()
            seen.append((self.tokenizer.optimizer.param_groups[0]["lr"], moments, batches[0]["position"].tolist()))
            tokenizer_state = {k: v.clone() for k, v in self.tokenizer.module.state_dict().items()}
            averaged = {k: v.clone() for k, v in self.tokenizer.ema.state_dict().items()}
            seen[-1] += (tokenizer_state, averaged, self.lecam.averages.clone())
        return real(self, batches, step)

    TokenizerTask.train_step = watched
    try:
        tokenizer.train.train(config_of(folder, image_folder), world)
    finally:
        TokenizerTask.train_step = real
    return folder, seen


def test_every_phase_trains_at_its_own_rate(run):
    folder, _ = run
    rates = [[r["lr"] for r in records(folder, phase) if "lr" in r] for phase in (1, 2, 3)]
    assert rates == [[1e-3] * 3, [5e-4] * 3, [1e-4] * 3]


def test_the_order_of_the_images_goes_on(run):
    """Phase n starts at the position where the one before it ended."""
    assert [positions for _, _, positions, *_ in run[1]] == [[0, 1, 2, 3], [12, 13, 14, 15], [24, 25, 26, 27]]


def test_a_phase_goes_on_in_the_order_of_the_phase_before(run, image_folder, tmp_path, world, monkeypatch):
    """Also where an older program trained that one, which shuffled a table and did not say so."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    for phase in ("phase_2", "phase_3"):
        shutil.rmtree(folder / phase)
    checkpoint = checkpoint_folders(folder / "phase_1")[-1]
    manifest = read_manifest(checkpoint)
    assert manifest.pop(ORDER_KEY) == NEWEST_ORDER
    (checkpoint / "manifest.json").write_text(to_json(manifest | {"digest": json_digest(manifest)}))

    seen, real = [], TokenizerTask.train_step
    monkeypatch.setattr(
        TokenizerTask,
        "train_step",
        lambda self, batches, step: (seen.extend(batches[0]["index"].tolist()), real(self, batches, step))[1],
    )
    tokenizer.train.train(config_of(folder, image_folder), world)
    positions = range(3 * 4, 9 * 4)
    old, new = (SampleOrder(0, 24, version).indices(positions).tolist() for version in (FIRST_ORDER, NEWEST_ORDER))
    assert seen == old != new
    assert order_version_of(read_manifest(checkpoint_folders(folder / "phase_3")[-1])) == FIRST_ORDER


def test_an_early_end_counts_over_all_phases(run, image_folder, tmp_path, world, caplog):
    """`loop.stop_at` in a phase, at the end of one, and off: three commands give what one gives."""
    caplog.set_level(logging.INFO)

    def steps_of_phases() -> list[int]:
        newest = [checkpoint_folders(tmp_path / f"phase_{number}") for number in (1, 2, 3)]
        return [read_manifest(folders[-1])["step"] if folders else 0 for folders in newest]

    for stop_at, steps in ((4, [3, 1, 0]), (6, [3, 3, 0]), (0, [3, 3, 3])):
        tokenizer.train.train(config_of(tmp_path, image_folder, f"loop.stop_at={stop_at}"), world)
        assert steps_of_phases() == steps
    for phase in (1, 2, 3):
        assert digests(tmp_path / f"phase_{phase}") == digests(run[0] / f"phase_{phase}")
    assert "stopped after step 1 of 3 (loop.stop_at)" in (tmp_path / "phase_2" / "log.txt").read_text()
    assert "phase_2 (loop.stop_at); a larger loop.stop_at, or 0, continues" in caplog.text

    # The steps of the phases count, not those of `loop.steps`.
    config_of(tmp_path, image_folder, "loop={steps: 1, stop_at: 9}")
    with pytest.raises(ConfigError, match=r"loop\.stop_at=10 must be at most 9"):
        config_of(tmp_path, image_folder, "loop={steps: 99, stop_at: 10}")


def test_the_fingerprint_of_phases_is_that_of_the_last(run):
    """By the folder of the run, of a phase or of a checkpoint; the next sample ids follow on all phases before."""
    folder, last = run[0], checkpoint_folders(run[0] / "phase_3")[-1]
    assert digests(folder) == digests(folder / "phase_3") == digests(last) != digests(folder / "phase_2")
    assert [steps_before(folder / name) for name in (".", "phase_1", "phase_2", "phase_3")] == [0, 0, 3, 6]
    ids = SampleOrder(0, 24).indices(range(9 * 4, 9 * 4 + 8)).tolist()
    assert digests(folder)["next 8 sample ids"] == hashlib.sha256(str(ids).encode()).hexdigest()


def test_the_second_phase_starts_from_the_first_widened_by_zeros(run):
    """Raw weights from raw, the averaged decoder from the averaged one, with the raw encoder; a new discriminator."""
    folder, seen = run
    _, moments, _, start, averaged, lecam = seen[1]
    raw, ema, key = weights(folder, 1), weights(folder, 1, "ema"), "decoder.conv_in.weight"
    for state, decoder in ((start, raw), (averaged, ema)):
        assert torch.equal(state[key][:, :4], decoder[key]) and not state[key][:, 4:].any()
        assert all(torch.equal(state[k], decoder[k]) for k in state if k.startswith("decoder.") and k != key)
        assert all(torch.equal(state[k], raw[k]) for k in state if k.startswith("encoder."))
    assert moments == 0 and not lecam.any()
    plain, wide = load_tokenizer(folder / "phase_1", weights="model"), load_tokenizer(folder / "phase_2")
    wide.load_state_dict(start)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(wide(x).reconstructions, plain(x).reconstructions, atol=1e-5, rtol=0)


def test_the_encoder_is_frozen_from_the_second_phase_on(run):
    """In raw and averaged weights; the decoder trains, its noise channels too; no term of the quantizer is left."""
    folder, _ = run
    raw, last, averaged = weights(folder, 1), weights(folder, 3), weights(folder, 3, "ema")
    for name in (n for n in raw if n.startswith("encoder.")):
        assert torch.equal(raw[name], last[name]) and torch.equal(raw[name], averaged[name])
    assert last["decoder.conv_in.weight"].shape[1] == 8 and last["decoder.conv_in.weight"][:, 4:].abs().sum() > 0
    one, two = records(folder, 1)[0], records(folder, 2)[0]
    image_terms = [r["reconstruction_l1"] + 0.1 * r["adversarial"] for r in (one, two)]
    assert two["loss"] == pytest.approx(image_terms[1], rel=1e-5) and "entropy" not in two
    assert one["loss"] == pytest.approx(image_terms[0] + 0.1 * one["entropy"] + 0.25 * one["commitment"], rel=1e-5)


def test_the_third_phase_goes_on_with_everything(run):
    """Weights, averages, moments, discriminator and LeCam's averages are those that the second one ended with; nothing
    is widened twice.
    """
    folder, seen = run
    _, moments, _, start, averaged, lecam = seen[2]
    for state, kind in ((start, "model"), (averaged, "ema")):
        expected = weights(folder, 2, kind)
        assert state.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in state.items())
    assert moments == 3 and lecam.any()


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_restart_inside_any_phase_is_exact(run, phase, tmp_path, image_folder, world):
    """A run that lost everything after step 2 of a phase ends with the same bits: of weights, averages, moments, the
    discriminator, LeCam's averages and all records.
    """
    config = config_of(tmp_path / "run", image_folder, "loop.save_every=2")
    tokenizer.train.train(config, world)
    for later in range(phase + 1, 4):
        shutil.rmtree(tmp_path / "run" / f"phase_{later}")
    shutil.rmtree(tmp_path / "run" / f"phase_{phase}" / "checkpoints" / "step_00000003")
    torch.manual_seed(99)
    tokenizer.train.train(config, world)
    assert "lecam.averages" in digests(run[0]) and digests(run[0]) == digests(tmp_path / "run")
    assert records(run[0], 3) == records(tmp_path / "run", 3)


def test_changed_data_are_accepted_once(tmp_path, image_folder, world):
    """The checkpoint of phase 1 keeps the old facts; a phase 2 that goes on does not look at them again."""
    images = shutil.copytree(image_folder, tmp_path / "images")
    phases = ("phases=[{steps: 1, lr: 1e-3}, {steps: 2, lr: 1e-4}]", "loop.save_every=1")
    config = config_of(tmp_path / "run", images, *phases)
    tokenizer.train.train(config, world)
    shutil.rmtree(tmp_path / "run" / "phase_2" / "checkpoints" / "step_00000002")
    image = next(images.rglob("*.png"))
    shutil.copy(image, image.with_name("another.png"))
    with pytest.raises(CheckpointError, match="accept_changed"):
        tokenizer.train.train(config, world)
    tokenizer.train.train(config_of(tmp_path / "run", images, *phases, "data.accept_changed=true"), world)
    assert checkpoint_folders(tmp_path / "run" / "phase_2")[-1].name == "step_00000002"
    tokenizer.train.train(config, world)


def test_room_is_counted_phase_by_phase(run, tmp_path, image_folder, monkeypatch):
    """Nothing for a finished phase; for others what each still adds, by its own steps and in its own folder."""
    asked = []
    monkeypatch.setattr(Preflight, "output", lambda self, folder, name, num_bytes=0: asked.append(num_bytes))
    for name, finished in (("new", 0), ("half", 2), ("finished", 3)):
        for number in range(1, finished + 1):
            shutil.copytree(run[0] / f"phase_{number}", tmp_path / name / f"phase_{number}")
        config = config_of(tmp_path / name, image_folder, "loop.save_every=1", "loop.steps=1")
        training_needs(config, validate(config), Preflight())
    size = network_bytes(num_parameters(validate(config)), ema=True)
    assert asked == [3 * 3 * size, 3 * size, 0]  # two stay and a third is written, in each phase


# ---------------------------------------------------------------------------------------------- two processes
COMMON = [  # what can be equal in one process and in two
    "loss.discriminator.patchgan.norm=none",
    "model.quantizer.gq={num_groups: 2, group_dim: 2, entropy_statistics: global, entropy_temperature: 0.1}",
    "optim.eps=1e-3",
    "loop.save_every=2",
]
STRATEGIES = ("ddp", "fsdp")


def in_two(world, root, images) -> None:
    """Each strategy: all phases; then, in a copy that lost everything after step 2 of phase 2, the rest again."""
    for strategy in STRATEGIES:
        whole, cut = root / strategy, root / f"{strategy} restarted"
        tokenizer.train.train(config_of(whole, images, *COMMON, f"loop.strategy={strategy}"), world)
        if world.is_main:
            shutil.copytree(whole, cut)
            shutil.rmtree(cut / "phase_3")
            shutil.rmtree(cut / "phase_2" / "checkpoints" / "step_00000003")
        world.barrier()
        torch.manual_seed(world.rank + 99)
        tokenizer.train.train(config_of(cut, images, *COMMON, f"loop.strategy={strategy}"), world)


@pytest.fixture(scope="module")
def spread(tmp_path_factory, image_folder, world):
    """The phases in one process, and as `in_two` does."""
    root = tmp_path_factory.mktemp("spread")
    tokenizer.train.train(config_of(root / "one", image_folder, *COMMON), world)
    on_ranks(2, root / "ranks", in_two, root, image_folder)
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_phases_in_two_processes_are_those_of_one(strategy, spread):
    """The first phase number by number; the second from it, widened once, with an equal first step (later ones draw
    other noise); the third is not widened again. The encoder stays frozen.
    """
    one, two = spread / "one", spread / strategy
    noisy = {"grad_norm"}  # the noise has no weight in the images yet, but its weights have a gradient
    pairs = [(x, y, set()) for x, y in zip(records(one, 1), records(two, 1), strict=True)]
    for x, y, but in [*pairs, (records(one, 2)[0], records(two, 2)[0], noisy)]:
        assert x.keys() == y.keys()
        but = but | {k for k in x if "/" in k and k.endswith("entropy")}
        different = {k: (x[k], y[k]) for k in x.keys() - but if x[k] != pytest.approx(y[k], rel=1e-5, abs=1e-7)}
        assert not different, x["step"]
    first, last, key = weights(two, 1), weights(two, 3), "decoder.conv_in.weight"
    assert [weights(two, phase)[key].shape[1] for phase in (1, 2, 3)] == [4, 8, 8]
    assert last[key][:, 4:].abs().sum() > 0 and not torch.equal(last[key][:, :4], first[key])
    assert all(torch.equal(last[k], first[k]) for k in first if k.startswith("encoder."))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_restart_in_two_processes_is_exact(strategy, spread):
    """GAN, LeCam, averages and the noise of each process, from the middle of the second phase on: bit for bit."""
    straight, restarted = spread / strategy, spread / f"{strategy} restarted"
    assert "resumed from step 2 of 3" in (restarted / "phase_2" / "log.txt").read_text()
    assert digests(straight) == digests(restarted)
    assert all(records(straight, phase) == records(restarted, phase) for phase in (2, 3))


def test_a_run_of_phases_loads_as_its_last_one(run, tmp_path):
    """By the folder of the whole run; its config says that it has a generative decoder, and images repeat."""
    folder, _ = run
    assert find_weights(folder, "auto", "tokenizer").folder == checkpoint_folders(folder / "phase_3")[-1]
    saved = load_sections(TokenizerTrainConfig, checkpoint_folders(folder / "phase_3")[-1] / "config.yaml")
    assert saved.model.wetok.generative_decoder and not saved.phases
    network = load_tokenizer(folder)
    codes = network.encode(torch.rand(2, 3, 8, 8)).indices
    assert torch.equal(network.decode_indices(codes), load_tokenizer(folder).decode_indices(codes))


def test_a_second_stage_by_itself_starts_from_any_first_one(run, tmp_path, image_folder, world):
    """`init` names the first stage; its first step is that of the phases, except for the order of the images."""
    overrides = [f"init={run[0] / 'phase_1'}", "model.wetok.generative_decoder=true", "loop.steps=1"]
    config = tiny.tokenizer_config(tmp_path / "two", image_folder, *overrides, base=tiny.WETOK)
    validate(config)
    tokenizer.train.train(config, world)
    state = load_file(checkpoint_folders(tmp_path / "two")[-1] / "model.safetensors")
    first = weights(run[0], 1)
    assert all(torch.equal(v, first[k]) for k, v in state.items() if k.startswith("encoder."))
    assert read_manifest(checkpoint_folders(tmp_path / "two")[-1])["step"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.wetok.generative_decoder=true"], "must be false without init or phases"),
        (["phases=[{steps: 1, lr: 1, generative_decoder: true}]"], "must be false without init or"),
        (
            ["init=x", "phases=[{steps: 1, lr: 1, generative_decoder: true}, {steps: 1, lr: 1}]"],
            r"phases\[1\]\.generative_decoder=False with model\.name=wetok",
        ),
        (["phases=[{steps: 0, lr: 1}]"], "steps"),
        (["phases=[{steps: 1, lr: -1}]"], "lr"),
    ],
)
def test_phases_that_cannot_work_are_named(overrides, message, tmp_path, image_folder):
    with pytest.raises(ConfigError, match=message):
        validate(tiny.tokenizer_config(tmp_path, image_folder, *overrides, base=tiny.WETOK))


def test_problems_of_all_phases_are_told_together(tmp_path, image_folder):
    """Each with the first phase that has it; here the second trains no loss of its frozen quantizer, so it has none."""
    losses = ["loss.l1_weight=0", "loss.discriminator.name=none", "loss.quantizer_weights={nonsense: 1}"]
    with pytest.raises(ConfigError) as caught:
        validate(config_of(tmp_path, image_folder, *losses))
    assert caught.value.problems == [
        "phases[0]: loss.quantizer_weights.nonsense: gq has no such loss (accepted here: none)",
        "phases[1]: every loss weight is 0; there is nothing to train",
    ]


def test_phases_of_another_tokenizer_change_steps_and_rate_only(tmp_path, image_folder):
    config = tiny.tokenizer_config(tmp_path, image_folder, "phases=[{steps: 2, lr: 1}, {steps: 4, lr: 2}]")
    first, second = phases_of(config)
    assert (second.loop.steps, second.optim.lr, second.init) == (4, 2, first.loop.run_dir)
    config.phases[1].generative_decoder = True
    with pytest.raises(ConfigError, match=r"phases\[1\]\.generative_decoder=True with model\.name=hybrid"):
        phases_of(config)


def test_terms_begin_and_end_where_the_steps_of_all_phases_say(tmp_path, image_folder):
    """A discriminator from update 6 on: not in the first 5 of 4 + 4 updates. A shortcut up to 6 ends in the second."""
    own = ["phases=[{steps: 4, lr: 1}, {steps: 4, lr: 2}, {steps: 9, lr: 2}]", *tiny.GAN]
    own += ["loss.discriminator.start_step=6", "loss.shortcut.end_step=6"]
    phases = phases_of(tiny.tokenizer_config(tmp_path, image_folder, *own))
    assert [p.loss.discriminator.start_step for p in phases] == [6, 2, 1]
    assert [p.loss.shortcut.end_step for p in phases] == [6, 2, 0]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("[{steps: 5, lr: 1e-3}, {steps: 3, lr: 1e-4}]", "phase_1 ends at step 4, its phase has 5 steps, but"),
        ("[{steps: 3, lr: 1e-3}, {steps: 3, lr: 1e-4}]", "phase_1 ends at step 4, its phase has 3 steps, but"),
        ("[{steps: 4, lr: 1e-3}]", "phase_2 was trained, but the config has 1 phase;"),
        ("[]", "phase_2 was trained, but the config has 0 phases"),
    ],
)
def test_phases_that_were_trained_keep_their_length(phases, message, tmp_path, image_folder, world):
    """A config with other phases than those on disk is refused, and nothing is trained or removed."""
    config = tiny.tokenizer_config(tmp_path, image_folder, "phases=[{steps: 4, lr: 1e-3}, {steps: 3, lr: 1e-4}]")
    tokenizer.train.train(config, world)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        tokenizer.train.train(tiny.tokenizer_config(tmp_path, image_folder, f"phases={phases}"), world)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_warm_up_of_a_quantizer_is_in_the_first_phase_only(tmp_path, image_folder, world, monkeypatch):
    """The second phase goes on from the codebook that k-means made, and quantizes from its first step."""
    asked, real = [], TokenizerTask.requested_outputs

    def watched(self, step):
        asked.append(real(self, step)["quantize"])
        return real(self, step)

    monkeypatch.setattr(TokenizerTask, "requested_outputs", watched)
    own = "model.quantizer.vq={codebook_size: 16, codebook_dim: 4, warmup_steps: 7, init: kmeans}"
    phases = "phases=[{steps: 8, lr: 1e-3}, {steps: 1, lr: 1e-30}]"
    config = tiny.tokenizer_config(tmp_path / "run", image_folder, own, phases)
    tokenizer.train.train(config, world)
    assert asked == [False] * 7 + [True] * 8  # a step, two batches of validation and the image grid each
    first, second = (weights(tmp_path / "run", phase)["quantizer.codebook"] for phase in (1, 2))
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-6)
    alone = tiny.tokenizer_config(tmp_path / "alone", image_folder, own, f"init={tmp_path / 'run'}", "loop.steps=1")
    tokenizer.train.train(alone, world)
    assert asked[15:] == [True] * 4
