"""Broken files of every kind, in every command that reads images: named, or skipped and counted on request; under
names that are not UTF-8, which reach configs, manifests, JSON and logs.
"""

import json
import os
import tempfile
from pathlib import Path

import mini
import pytest
import tiny

import autoregressive.extract_codes
import autoregressive.train
import evaluations.classifier
import evaluations.generation
import evaluations.linear_probe
import evaluations.make_reference
import evaluations.measure
import evaluations.reconstruction
import evaluations.val_loss
import evaluations.visualize
import tokenizer.reconstruct
import tokenizer.train
from engine.checkpoint.manifest import checkpoint_folders
from engine.data.folders import FolderSource, LooseSource
from engine.data.images import ImageError
from engine.data.sources import kind_of, read_source
from engine.run_log import read_metrics

LATIN = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8
LITE0 = ["--extractor", "efficientnet_lite0"]  # the fast one; what reads images does not know it


def break_images(folder: Path) -> None:
    """A damaged AVIF under .jpg, a torn PNG, a file of zeros, a link that leads nowhere."""
    (folder / "001.jpg").write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + b"\xff" * 60)
    content = (folder / "000.png").read_bytes()
    (folder / "001b.png").write_bytes(content[: len(content) // 2])
    (folder / "001c.png").write_bytes(b"\0" * 50)
    (folder / "001d.png").symlink_to("/nowhere.png")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Images with broken ones among them, at a path that is not UTF-8, and networks for images of their size.

    Configs and weights are UTF-8: `images` leads to the same place.
    """
    place = tmp_path_factory.mktemp("given")
    root = place / LATIN
    root.mkdir()
    (place / "images").symlink_to(root)
    for split, count in (("train", 12), ("val", 6)):
        tiny.write_images(root / split, per_class=count, seed=count, size=20, classes=("a", LATIN))
        for name in ("a", LATIN):
            break_images(root / split / name)
            (root / split / name / "002.png").rename(root / split / name / os.fsdecode(b"\xfc.png"))
    tiny.write_images(root / "flat", per_class=6, seed=3, size=20, classes=("x",))
    break_images(root / "flat" / "x")
    mini.export_networks(place)
    return place


def data_of(given, batch=4):
    paths = [f"data.root={given / 'images' / 'train'}", f"data.val_root={given / 'images' / 'val'}"]
    return ["data.name=folder", *paths, "data.image_size=16", f"data.global_batch_size={batch}", "data.num_workers=0"]


def commands(given, out):
    """{name: (main, arguments, how broken files are skipped)}."""
    skip, skip_key = ["--skip-broken"], ["data.skip_broken=true"]
    vq, gpt, cpu = ["--vq-ckpt", given / "tokenizer"], ["--gpt-ckpt", given / "gpt"], ["--device", "cpu"]
    images = given / LATIN
    paths = ["--data", "folder", "--data-path", images / "train", "--val-path", images / "val"]
    held_out = ["--data", "folder", "--val-path", images / "val"]
    run = [f"loop.run_dir={out / 'run'}", "loop.device=cpu", "loop.steps=2"]
    network = f"network={{source: tokenizer, tokenizer: {given / 'tokenizer'}}}"
    probe = "probe={epochs: 1, warmup_epochs: 0, features: cached}"
    tiny_yaml = out / "tiny.yaml"
    tiny_yaml.write_text(tiny.TOKENIZER)
    few = ["--num-fid-samples", "4", "--extractor", "none"]
    return {
        "tokenizer.train": (tokenizer.train.main, ["--config", tiny_yaml, *data_of(given), *run], skip_key),
        "extract_codes": (autoregressive.extract_codes.main, [*vq, *paths, *cpu, "--code-path", out / "codes"], skip),
        "reconstruct": (
            tokenizer.reconstruct.main,
            [*vq, *cpu, "--data-path", images / "flat", "--sample-dir", out / "pictures"], skip,
        ),
        "reconstruction": (
            evaluations.reconstruction.main,
            [*vq, *held_out, *cpu, "--extractor", "none", "--output", out / "r.json"], skip,
        ),
        "generation": (
            evaluations.generation.main, [*vq, *gpt, *paths, *cpu, *few, "--output", out / "g.json"], skip,
        ),
        "visualize": (evaluations.visualize.main, [*vq, *held_out, *cpu, "--output", out / "pca.npz"], skip),
        "make_reference": (
            evaluations.make_reference.main,
            ["--data-path", images / "val", *cpu, *LITE0, "--force", "--image-size", "32", "--output", out / "ref.npz"],
            skip,
        ),
        "classifier": (
            evaluations.classifier.main,
            ["model={num_classes: 2, width: 4}", *data_of(given), *run], skip_key,
        ),
        "linear_probe": (
            evaluations.linear_probe.main,
            [network, probe, *data_of(given), f"loop.run_dir={out / 'run'}", "loop.device=cpu"], skip_key,
        ),
    }  # fmt: skip


NAMES = [
    "tokenizer.train", "extract_codes", "reconstruct", "reconstruction", "generation", "visualize", "make_reference",
    "classifier", "linear_probe",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*loss.backward.*")
@pytest.mark.parametrize("name", NAMES)
def test_broken_files_are_named_and_skipped_on_request_only(given, tmp_path, entry, name):
    main, arguments, skip = commands(given, tmp_path)[name]
    code, _, err = entry(main, *arguments)
    if name != "generation":  # examples for the report may fail: the numbers are safe
        assert code == 2 and "001" in err and "skip" in err, err
    assert "Traceback" not in err and "Logging error" not in err
    code, _, err = entry(main, *arguments, *skip)
    assert code == 0 and "Traceback" not in err and "Logging error" not in err, err
    for path in tmp_path.rglob("*.json*"):
        for line in path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]:
            json.loads(line)


def test_a_generator_on_codes_with_such_names(given, tmp_path, entry):
    """Class names and paths with other bytes go through codes, checkpoints and results."""
    extract = commands(given, tmp_path)["extract_codes"]
    assert entry(extract[0], *extract[1], "--skip-broken")[0] == 0
    codes, run = tmp_path / "codes", tmp_path / "run"
    sizes = "model.gpt={width: 16, layers: 1, heads: 2, vocab_size: 32, num_tokens: 8, num_classes: 2}"
    flags = [sizes, f"data.codes={codes}", f"data.tokenizer={given / 'tokenizer'}", f"loop.run_dir={run}"]
    more = ["data.global_batch_size=4", "data.num_workers=0", "loop.steps=2", "loop.device=cpu"]
    code, _, err = entry(autoregressive.train.main, *flags, *more)
    assert code == 0 and "Traceback" not in err and "Logging error" not in err, err
    manifest = json.loads((checkpoint_folders(run)[-1] / "manifest.json").read_text("utf-8"))
    assert manifest["stamp"]["classes"]["names"] == ["a", "caf\\xe9"] and read_metrics(run)

    both = ["--vq-ckpt", given / "tokenizer", "--gpt-ckpt", run, "--device", "cpu"]
    code, _, err = entry(evaluations.val_loss.main, *both, "--code-path", codes, "--output", tmp_path / "v.json")
    assert code == 0 and "Logging error" not in err, err
    measured = [
        "--val-path",
        given / LATIN / "val",
        "--data",
        "folder",
        "--skip-broken",
        "--output",
        tmp_path / "w.json",
    ]
    code, _, err = entry(evaluations.val_loss.main, *both, *measured)
    assert code == 0 and "Logging error" not in err, err


def test_a_folder_of_samples_with_broken_files_is_measured_on_request(given, tmp_path, entry):
    flags = [
        "--samples",
        given / "images" / "flat",
        "--gt-npz-path",
        given / "images" / "flat",
        "--reference-kind",
        "val",
    ]
    flags += ["--measured", "reconstruction", *LITE0, "--force", "--device", "cpu"]
    flat = given / "images" / "flat" / "x"
    for number in (1, 3, 5):
        (flat / f"{number:03d}.png").unlink()  # of another size: the pictures of a set of samples are square
    code, _, err = entry(evaluations.measure.main, *flags, "--output", tmp_path / "m.json")
    assert code == 2 and "remove it, or use --skip-broken" in err
    code, _, err = entry(evaluations.measure.main, *flags, "--output", tmp_path / "m.json", "--skip-broken")
    assert code == 0 and "could not be read; the next readable ones took their place" in err, err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_may_not_be_read_is_named_and_skipped_on_request():
    """A file, a class folder, and a folder above: as another user than root, who may read everything."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        tiny.write_images(root / "closed" / "set", per_class=3, seed=0)
        images = root / "closed" / "set"
        (images / "cat" / "001.png").chmod(0)
        os.seteuid(65534)
        try:
            source = FolderSource(images, "data.root")
            with pytest.raises(ImageError, match=r"cat/001\.png is not a readable image .*Permission denied"):
                read_source(source, 1, skip_broken=False)
            assert read_source(source, 1, skip_broken=True)[1:] == (2, 1) and source.replaced == {1}
            for closed in (images / "cat", root / "closed"):
                os.seteuid(0)
                closed.chmod(0)
                os.seteuid(65534)
                for kind in (FolderSource, LooseSource):
                    with pytest.raises(ImageError, match=f"{closed.name}.* cannot be read .Permission denied."):
                        kind(images, "data.root")
            with pytest.raises(ImageError, match="cannot be read"):
                kind_of(images)
        finally:
            os.seteuid(0)
