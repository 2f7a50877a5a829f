"""What a user gets wrong: one clear message that names the key or file, what was found and what is accepted.

Every case goes through the real entry: exit code 2, no traceback, and the run folder stays as resumable as it was.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from ranks import on_ranks

import autoregressive.extract_codes
import autoregressive.train
import tokenizer.train
from engine.checkpoint import store as checkpoint
from engine.checkpoint import training_state
from engine.checkpoint.manifest import checkpoint_folders, find_damage, read_manifest
from engine.checkpoint.weights import find_weights, read_weights
from engine.messages import UserError
from engine.preflight import CHECKED_VARIABLE
from tokenizer import load_tokenizer

TOKENIZER, GPT, CODES = tokenizer.train.main, autoregressive.train.main, autoregressive.extract_codes.main


class Place:
    """A folder with images, a finished tokenizer run, its codes, and a GPT run."""

    def __init__(self, root: Path, images: Path, world) -> None:
        self.root, self.images = root, images
        (root / "tokenizer.yaml").write_text(tiny.TOKENIZER)
        (root / "gpt.yaml").write_text(tiny.GPT)
        tokenizer.train.train(tiny.tokenizer_config(root / "tokenizer", images, *tiny.GAN, "loop.save_every=3"), world)
        self.fingerprint = load_tokenizer(root / "tokenizer").provenance.fingerprint
        tiny.write_codes(root / "codes", self.fingerprint)
        autoregressive.train.train(tiny.gpt_config(root / "gpt", root / "codes", root / "tokenizer"), world)

    def tokenizer(self, run: Path | str, *options: str) -> list[str]:
        """The command line that made the tokenizer run, changed by `options`."""
        data = tiny.folder_data(self.images)
        given = [*data, *tiny.GAN, "loop.save_every=3", f"loop.run_dir={run}", *options]
        return ["--config", str(self.root / "tokenizer.yaml"), *given]

    def gpt(self, run: Path | str, *options: str) -> list[str]:
        given = [f"data.codes={self.root / 'codes'}", f"data.tokenizer={self.root / 'tokenizer'}"]
        return ["--config", str(self.root / "gpt.yaml"), *given, f"loop.run_dir={run}", *options]


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_folder, world):
    return Place(tmp_path_factory.mktemp("place"), image_folder, world)


@pytest.fixture
def refused(entry):
    """`refused(main, arguments, *parts)`: the command ends with code 2 and one message that has all `parts`."""

    def check(main, arguments, *parts):
        code, out, err = entry(main, *arguments)
        assert code == 2, err
        assert "Traceback" not in out + err and err.count("error: ") == 1
        message = err[err.index("error: ") :]
        missing = [part for part in parts if part not in message]
        assert not missing, f"{missing} not in: {message}"
        assert len(message) < 1200
        return message

    return check


# ---------------------------------------------------------------------------------------------- configs
CONFIGS = {
    "misspelt key": (["optim.lrr=1"], ["command line: optim.lrr", "accepted here: betas", "lr"]),
    "unknown section": (["optimizer.lr=1"], ["optimizer", "accepted here: assets, data", "optim"]),
    "wrong type": (["optim.lr=fast"], ["optim.lr='fast' must be a number"]),
    "wrong type in a list": (["model.hybrid.cnn.channel_multipliers=[1,two]"], ["channel_multipliers", "'two'"]),
    "wrong pair": (["optim.betas=[0.9]"], ["optim.betas=[0.9]", "list of 2 numbers"]),
    "a value for a section": (["model.hybrid=small"], ["model.hybrid='small' must be a section with", "cnn, decoder"]),
    "null": (["loop.steps=null"], ["loop.steps=null must be a whole number"]),
    "unknown literal": (["model.hybrid.layout=3d"], ["model.hybrid.layout", "'3d'", "1d"]),
    "unknown model": (["model.name=hybird"], ["model.name='hybird' must be one of: hybrid, "]),
    "unknown quantizer": (["model.quantizer.name=vg"], ["model.quantizer.name='vg' must be one of: ", "vq"]),
    "unknown data": (["data.name=mnist"], ["data.name='mnist' must be one of: folder, loose, mnist5k"]),
    "unknown discriminator": (["loss.discriminator.name=gan"], ["loss.discriminator.name='gan'", "none, patchgan"]),
    "unknown perceptual": (["loss.perceptual=vgg"], ["loss.perceptual='vgg'", "efficientnet_lite0, lpips"]),
    "unknown teacher": (["semantic.teacher=dino"], ["semantic.teacher='dino'", "dinov2_b", "efficientnet_lite0"]),
    "unknown schedule": (["optim.schedule=step"], ["optim.schedule='step'", "constant, cosine, linear, wsd"]),
    "unknown size": (["model.hybrid.encoder={size: tiny, width: null, layers: null, heads: null}"],
                     ["model.hybrid.encoder.size='tiny'", "small"]),
    "unknown device": (["loop.device=gpu"], ["device='gpu'", "auto, cpu, cuda"]),
    "unknown precision": (["loop.precision=fp16"], ["loop.precision='fp16'", "bf16, fp32"]),
    "image size": (["data.image_size=9"], ["data.image_size=9 does not fit the model", "multiple of 2"]),
    "number of tokens": (["model.hybrid.num_tokens=6"], ["model.hybrid.num_tokens=6", "power of 2"]),
    "more tokens than cells": (["model.hybrid.num_tokens=256"], ["num_tokens=256 does not fit", "4x4 grid"]),
    "small for the discriminator": (["loss.discriminator.patchgan.num_layers=4"],
                                    ["data.image_size=8 is too small",
                                     "needs 48 pixels; change loss.discriminator.patchgan"]),
    "norm groups": (["model.hybrid.cnn.norm_groups=3"], ["norm_groups=3", "[4, 8]"]),
    "micro-batches": (["loop.grad_accum=3"], ["data.global_batch_size=4", "loop.grad_accum=3", "multiple of 3"]),
    "no validation images": (["validation.num_images=0"], ["validation.num_images"]),
    "nothing to train": (["loss={l2_weight: 0, codebook_weight: 0, commitment_weight: 0, discriminator: {name: none}}"],
                         ["every loss weight is 0"]),
    "not key=value": (["loop.steps"], ["'loop.steps' is not of the form key=value"]),
    "sizes of the model at once": (["data.image_size=9", "model.hybrid.semantic_layer=9", "loop.steps=0"],
                                   ["data.image_size=9 does not fit", "semantic_layer=9 must lie in 1..1",
                                    "loop.steps=0 must be 1 or more", "the config has 3 problems"]),
    "tokens that would fit": (["data.image_size=12", "model.hybrid.num_tokens=32"],
                              ["this size fits num_tokens 1, 2, 4, 8;", "sizes that are a multiple of 8"]),
    "a file without --config": (["other.yaml"], ["'other.yaml' is not of the form key=value",
                                                 "read by --config other.yaml"]),
    "several at once": (["data.image_size=9", "model.quantizer.vq.warmup_steps=6"],
                        ["data.image_size=9", "warmup_steps=6 must be below loop.steps=6"]),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(CONFIGS))
def test_a_wrong_config_is_refused(case, place, refused, tmp_path):
    """Before anything is written: no run folder appears."""
    options, parts = CONFIGS[case]
    refused(TOKENIZER, place.tokenizer(tmp_path / "run", *options), *parts)
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_suggests_a_name(place, refused):
    refused(
        TOKENIZER, ["--config", str(place.root / "tokeniser.yaml")], "tokeniser.yaml", "did you mean", "tokenizer.yaml"
    )


def test_an_unset_variable_is_named(refused, monkeypatch):
    monkeypatch.delenv("IMGNET_ROOT", raising=False)
    recipe = Path(__file__).parents[1] / "configs" / "vq" / "VQ_SS256.yaml"
    refused(TOKENIZER, ["--config", str(recipe)], "data.root", "IMGNET_ROOT", "set_env_vars.sh")


def test_missing_weights_are_named(place, refused, tmp_path, monkeypatch):
    """The published losses need files; nothing is downloaded, nothing is replaced."""
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path / "weights"))
    monkeypatch.delenv("ALLOW_DOWNLOAD", raising=False)
    lpips = ["loss.perceptual_weight=1", "loss.perceptual=lpips"]
    parts = ("vgg16-397923af.pth", str(tmp_path / "weights"), "ALLOW_DOWNLOAD=1", "https://")
    refused(TOKENIZER, place.tokenizer(tmp_path / "run", *lpips), *parts)


def two_ranks(world, images, run_dir) -> None:
    try:
        tokenizer.train.train(tiny.tokenizer_config(run_dir, images, "data.global_batch_size=5"), world)
    except UserError as error:
        assert "data.global_batch_size=5 is not divisible by 2 ranks" in str(error) and "multiple of 2" in str(error)
    else:
        raise AssertionError("5 images were divided among 2 ranks")


def test_a_batch_that_ranks_cannot_share_is_refused(image_folder, tmp_path):
    on_ranks(2, tmp_path, two_ranks, image_folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file_is_named(place, refused, tmp_path):
    (tmp_path / "run").write_text("mine")
    refused(TOKENIZER, place.tokenizer(tmp_path / "run"), f"loop.run_dir: {tmp_path / 'run'} is a file")
    assert (tmp_path / "run").read_text() == "mine"


# ---------------------------------------------------------------------------------------------- images
def truncated(folder: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(folder / "dog" / "aaa.jpeg")
    (folder / "dog" / "aaa.jpeg").write_bytes((folder / "dog" / "aaa.jpeg").read_bytes()[:300])


def no_image(folder: Path) -> None:
    (folder / "dog" / "aaa.png").write_text("<html>Not found</html>")


def stranger(folder: Path) -> None:
    (folder / "dog" / "notes.txt").write_text("text")


def empty_class(folder: Path) -> None:
    (folder / "zebra").mkdir()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)


IMAGES = {
    truncated: ["dog/aaa.jpeg is not a readable image", "data.skip_broken=true"],
    no_image: ["dog/aaa.png is not a readable image", "data.skip_broken=true"],
    stranger: ["dog/notes.txt is not an image file", ".jpeg", "data.skip_broken=true"],
    empty_class: ["class folder", "zebra holds no images"],
    no_folder: ["is not a folder", "sub-folder per class"],
    no_classes: ["has no class folders", "sub-folder of images per class"],
}


@pytest.fixture
def own_images(image_folder, tmp_path):
    """A copy of the images that a test may break."""
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_images_are_named(split, place, refused, entry, own_images, tmp_path):
    """Key or file, in training and validation images; with the images mended, the same command trains."""
    roots = [f"data.root={own_images / 'train'}", f"data.val_root={own_images / 'val'}", "data.global_batch_size=24"]
    command = place.tokenizer(tmp_path / "run", *roots, "loop.steps=2", "model.quantizer.vq.warmup_steps=0")
    key = "data.root" if split == "train" else "data.val_root"
    for fault, parts in IMAGES.items():
        fault(own_images / split)
        refused(TOKENIZER, command, *parts, *([key] if fault in (no_folder, no_classes) else []))
        shutil.rmtree(own_images)
        shutil.copytree(place.images, own_images)
    assert entry(TOKENIZER, *command)[0] == 0


def test_an_image_that_breaks_in_a_loader_process_is_named(place, refused, own_images, tmp_path):
    """The same message where another process reads the file."""
    truncated(own_images / "train")
    roots = [f"data.root={own_images / 'train'}", "data.global_batch_size=24", "data.num_workers=1"]
    refused(TOKENIZER, place.tokenizer(tmp_path / "run", *roots), *IMAGES[truncated])


def test_broken_images_are_skipped_and_counted_by_option(place, entry, own_images, tmp_path):
    """With data.skip_broken=true the run trains; every file is named once it is met, and metrics count them."""
    truncated(own_images / "train")
    no_image(own_images / "train")
    stranger(own_images / "train")
    truncated(own_images / "val")
    roots = [f"data.root={own_images / 'train'}", f"data.val_root={own_images / 'val'}", "data.skip_broken=true"]
    options = ["data.global_batch_size=26", "loop.grad_accum=2", "loop.steps=3"]  # an epoch of 26 images is one step
    code, _, err = entry(TOKENIZER, *place.tokenizer(tmp_path / "run", *roots, *options))
    assert code == 0
    assert "left out 1 files that are not images" in err
    for name in ("train/dog/aaa.jpeg", "train/dog/aaa.png", "val/dog/aaa.jpeg"):
        assert f"skipped unreadable image {own_images / name}" in err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # aaa.jpeg gives way to aaa.png, which is broken as well: 2 files passed over at one place, 1 at the other
    assert [line["skipped_images"] for line in lines if "skipped_images" in line] == [3, 6, 9]


# ---------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture
def half_done(place, tmp_path):
    """The tokenizer run of `place` as it was after step 3."""
    shutil.copytree(place.root / "tokenizer", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step_00000006")
    return tmp_path / "half"


def assert_resumes(run: Path, place: Place, entry) -> None:
    """The unchanged command finishes the run, with the weights of the run that was never disturbed."""
    assert [read_manifest(f)["step"] for f in checkpoint_folders(run)] == [3]
    code, _, err = entry(TOKENIZER, *place.tokenizer(run))
    assert code == 0 and "resumed from step 3 of 6" in err
    a, b = (read_weights(find_weights(folder, "ema", "run").path) for folder in (run, place.root / "tokenizer"))
    assert all((a[name] == b[name]).all() for name in b)


CHANGES = {
    "another width": (["model.hybrid.encoder.width=32"], ["model.hybrid.encoder.width: checkpoint 16, now 32"]),
    "another codebook": (["model.quantizer.vq.codebook_size=32"], ["codebook_size: checkpoint 16, now 32"]),
    "another image size": (["data.image_size=16"], ["does not fit this run"]),
    "another discriminator": (
        ["loss.discriminator.patchgan.base_channels=8"],
        ["does not fit this run", "discriminator"],
    ),
}


def test_a_checkpoint_of_another_architecture_is_refused(half_done, place, refused, entry):
    """The keys that differ, with both values; the checkpoint is not touched."""
    for options, parts in CHANGES.values():
        refused(TOKENIZER, place.tokenizer(half_done, *options), "step_00000003", *parts)
    assert_resumes(half_done, place, entry)


def test_refused_commands_do_not_harm_a_run(half_done, place, refused, entry):
    before = (half_done / "config.yaml").read_bytes()
    for case in ("misspelt key", "unknown quantizer", "image size", "micro-batches", "wrong type"):
        refused(TOKENIZER, place.tokenizer(half_done, *CONFIGS[case][0]))
        assert (half_done / "config.yaml").read_bytes() == before, case
    assert_resumes(half_done, place, entry)


def test_folders_of_another_kind_are_refused(place, refused, tmp_path):
    """A GPT where a tokenizer is wanted, the other way round, an empty folder, a missing one."""
    out = ["--code-path", str(tmp_path / "codes"), "--device", "cpu"]
    gpt, tok = place.root / "gpt", place.root / "tokenizer"
    refused(CODES, ["--vq-ckpt", str(gpt), *out], str(gpt), "is not a tokenizer", "model.")
    refused(CODES, ["--vq-ckpt", str(tmp_path / "no"), *out], f"{tmp_path / 'no'}")
    refused(CODES, ["--vq-ckpt", str(tmp_path), *out], str(tmp_path), "model.safetensors")
    refused(GPT, place.gpt(tmp_path / "run", f"data.tokenizer={gpt}"), str(gpt), "is not a tokenizer")
    refused(TOKENIZER, place.tokenizer(gpt), "another architecture", "Use another loop.run_dir")
    assert find_damage(checkpoint_folders(gpt)[-1]) is None and find_damage(checkpoint_folders(tok)[-1]) is None
    assert not (tmp_path / "codes").exists() and not (tmp_path / "run").exists()


def test_damaged_weights_are_named(place, refused, tmp_path):
    shutil.copytree(place.root / "tokenizer", tmp_path / "run")
    path = checkpoint_folders(tmp_path / "run")[-1] / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    command = ["--vq-ckpt", str(tmp_path / "run"), "--code-path", str(tmp_path / "codes"), "--device", "cpu"]
    refused(CODES, command, str(path), "damaged")


# ---------------------------------------------------------------------------------------------- codes
def test_codes_of_another_tokenizer_are_refused(place, refused, tmp_path):
    """Both fingerprints and both places; then codes that are missing or unfinished, and a model of other sizes."""
    run = tmp_path / "run"
    tiny.write_codes(tmp_path / "foreign", "f" * 64)
    parts = ("codes of another tokenizer", "f" * 16, place.fingerprint[:16], str(place.root / "tokenizer"))
    refused(GPT, place.gpt(run, f"data.codes={tmp_path / 'foreign'}"), *parts)
    refused(GPT, place.gpt(run, f"data.codes={tmp_path / 'nothing'}"), f"{tmp_path / 'nothing'}", "no codes")
    (tmp_path / "foreign" / "train" / "manifest.json").rename(tmp_path / "foreign" / "train" / "progress.json")
    refused(GPT, place.gpt(run, f"data.codes={tmp_path / 'foreign'}"), "an unfinished extraction")
    refused(GPT, place.gpt(run, "model.gpt.vocab_size=32"), "codebook_sizes=[32]", "has [16]")
    refused(GPT, place.gpt(run, "model.gpt.num_classes=5", "model.gpt.num_tokens=8"), "num_tokens=8", "num_classes=5")
    refused(GPT, place.gpt(run, "data.codes=''"), "data.codes is empty; it names the folder that extract_codes wrote")
    refused(
        GPT,
        place.gpt(run, "data.global_batch_size=5", "loop.grad_accum=2"),
        "data.global_batch_size=5",
        "multiple of 2",
    )
    refused(GPT, place.gpt(run, "model.gpt.heads=3"), "model.gpt.width=16 must be divisible by", "heads=3")
    assert not run.exists()


def test_validation_codes_of_another_tokenizer_are_refused(place, refused, tmp_path):
    shutil.copytree(place.root / "codes", tmp_path / "codes")
    manifest = tmp_path / "codes" / "val" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "f" * 64}))
    refused(
        GPT, place.gpt(tmp_path / "run", f"data.codes={tmp_path / 'codes'}"), "val holds codes of another tokenizer"
    )


def test_damaged_codes_are_named(place, refused, tmp_path):
    for name, breaking in {
        "cut off": lambda f: (f / "codes.npy").write_bytes((f / "codes.npy").read_bytes()[:-20]),
        "no labels": lambda f: (f / "labels.npy").unlink(),
        "other shape": lambda f: np.save(f / "codes.npy", np.zeros((12, 2, 5), np.uint16)),
        "manifest": lambda f: (f / "manifest.json").write_text("{"),
    }.items():
        shutil.copytree(place.root / "codes", tmp_path / name)
        breaking(tmp_path / name / "train")
        refused(GPT, place.gpt(tmp_path / "run", f"data.codes={tmp_path / name}"), str(tmp_path / name / "train"))


def test_codes_are_not_overwritten_by_those_of_another_tokenizer(place, refused, tmp_path):
    """Extraction into a folder that holds other codes is refused, and changes nothing."""
    tiny.write_codes(tmp_path / "codes", "f" * 64)
    before = (tmp_path / "codes" / "train" / "codes.npy").read_bytes()
    command = ["--vq-ckpt", str(place.root / "tokenizer"), "--code-path", str(tmp_path / "codes"), "--device", "cpu"]
    refused(CODES, command, "holds other codes", "of another tokenizer", "use another --code-path")
    assert (tmp_path / "codes" / "train" / "codes.npy").read_bytes() == before


# ---------------------------------------------------------------------------------------------- a full disk
def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def full_for_metrics(path: Path, mode: str = "r", *args, real=Path.open, **kwargs):
    return full() if (path.name, mode) == ("metrics.jsonl", "a") else real(path, mode, *args, **kwargs)


def fill_the_disk(where: str, patched: pytest.MonkeyPatch) -> None:
    """From now on there is no space: when it is looked for, for the checkpoint, or for a line of metrics."""
    patched.setenv(CHECKED_VARIABLE, "1")  # the disk gets full after the pre-flight
    if where == "looked for":
        usage = shutil.disk_usage("/")
        patched.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=10))
    elif where == "checkpoint":
        patched.setattr(training_state.dcp, "save", full)
    else:
        patched.setattr(Path, "open", full_for_metrics)


def test_no_space_at_a_save(half_done, place, refused, entry, monkeypatch):
    """The message names the checkpoint and the remedy; the run is where it was, and goes on with the same command."""
    of_checkpoint = ["step_00000006 could not be written", "Older checkpoints are untouched"]
    for where, parts in {"looked for": of_checkpoint, "checkpoint": of_checkpoint, "metrics": []}.items():
        with monkeypatch.context() as patched:
            fill_the_disk(where, patched)
            remedy = ["ree some space", "start the same command again"]
            refused(TOKENIZER, place.tokenizer(half_done), *remedy, *parts)
        assert [read_manifest(folder)["step"] for folder in checkpoint_folders(half_done)] == [3], where
    assert_resumes(half_done, place, entry)
