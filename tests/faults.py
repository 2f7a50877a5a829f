"""Runs inputs that once gave wrong results, one by one, through the commands, and says what was seen.

    PYTHONPATH=REPOSITORY python tests/faults.py FOLDER

FOLDER holds the inputs, a folder for each kind with a README, and the YAMLs and good weights of their tiny networks.
Only the command lines of the product are used, so that the same script shows an older version: PYTHONPATH says which
one. Exit code 1 if any row is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

THIN_LIMIT = 100  # MB that a thin image may take beyond an ordinary one; the interpreter's memory varies by 20
MAX_DIFFERENCE = 6.0  # mean difference of two 8 px crops of one image by different filters, in levels of 255


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    max_mb: float

    def says(self) -> str:
        """The code and the last lines, for the table."""
        if "Traceback" in self.output:
            return f"rc {self.code}, traceback: {self.output.strip().splitlines()[-1][:110]}"
        lines = [line for line in self.output.splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), max(0, len(lines) - 1))
        return f"rc {self.code}: {' '.join(line.strip() for line in lines[start:])[:170]}"

    @property
    def is_refusal(self) -> bool:
        """Whether the command ended with one clear error."""
        return self.code == 2 and self.output.count("error: ") == 1 and "Traceback" not in self.output


class Faults:
    """The inputs, a folder to work in, and the rows."""

    def __init__(self, inputs: Path, work: Path) -> None:
        self.inputs, self.work = inputs, work
        self.rows: list[tuple[str, str, str, bool]] = []
        self.number = 0

    def run(self, module: str, *arguments: str | Path) -> Ended:
        """Runs an entry in a process of its own, on one thread of the CPU."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        output_path = self.work / "output.txt"
        with output_path.open("wb") as output:
            command = [sys.executable, "-m", module, *map(str, arguments)]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=self.work, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        text = output_path.read_text(errors="replace")
        return Ended(process.returncode, text, usage.ru_maxrss / 1024)

    def new(self) -> Path:
        """A name that is not in use."""
        self.number += 1
        return self.work / f"out{self.number}"

    def row(self, name: str, expected: str, seen: str, is_right: bool) -> None:
        self.rows.append((name, expected, seen, is_right))
        print(
            f"{'ok   ' if is_right else 'WRONG'} {name}\n      expected: {expected}\n      seen:     {seen}", flush=True
        )

    def copied(self, *paths: Path) -> Path:
        """A folder with copies of files."""
        folder = self.new()
        folder.mkdir()
        for path in paths:
            shutil.copy(path, folder / path.name)
        return folder


# ---------------------------------------------------------------------------------------------- checkpoints
def convert_gpt(faults: Faults, path: Path, *options: str) -> tuple[Ended, dict[str, torch.Tensor]]:
    """How the conversion of a GPT ended, and the weights that it wrote."""
    output = faults.new()
    config = faults.inputs / "gpt.yaml"
    ended = faults.run(
        "autoregressive.convert", "--gpt-ckpt", path, "--gpt-config", config, "--output", output, *options
    )
    weights = output / "model.safetensors"
    return ended, load_file(weights) if weights.is_file() else {}


def checkpoints(faults: Faults) -> None:
    ended, good = convert_gpt(faults, faults.inputs / "gpt_good.pt")
    faults.row("gpt_good.pt", "loads", f"{ended.says()}; {len(good)} tensors", bool(good))
    loads = {
        "prefix_orig_mod_module": [],
        "prefix_compiled_layer": [],
        "key_module_weights_model": ["--weights", "model"],
        "object_numpy_scalar": [],
        "object_omegaconf": [],
    }
    for name, options in loads.items():
        ended, weights = convert_gpt(faults, faults.inputs / name / "gpt.pt", *options)
        is_same = bool(good) and weights.keys() == good.keys() and all(torch.equal(weights[k], good[k]) for k in good)
        seen = "equal to gpt_good.pt" if is_same else ended.says()
        faults.row(" ".join([name, *options]), "loads, equal to gpt_good.pt", seen, is_same)
    for name, part in {"prefix_collision": "twice", "nan_gpt": "output.weight"}.items():
        ended, weights = convert_gpt(faults, faults.inputs / name / "gpt.pt")
        is_right = ended.is_refusal and part in ended.output and not weights
        faults.row(name, f"refused, named: {part}", ended.says(), is_right)

    # The averages, without their counter.
    path = faults.inputs / "tok_ema_averagedmodel" / "tok.pt"
    output = faults.new()
    options = ["--tok-config", faults.inputs / "tok.yaml", "--weights", "ema", "--output", output]
    ended = faults.run("tokenizer.convert", "--vq-ckpt", path, *options)
    averages = torch.load(path, weights_only=True)["ema"]["module.encoder.conv_in.weight"]
    written = [load_file(file) for file in output.glob("*.safetensors")]
    is_right = any(torch.equal(state["encoder.conv_in.weight"], averages) for state in written)
    seen = "its averages, as ema" if is_right and "ema" in ended.output else ended.says()
    faults.row("tok_ema_averagedmodel --weights ema", "loads its averages", seen, is_right)


# ---------------------------------------------------------------------------------------------- images
def tokenizer_of(faults: Faults) -> Path:
    """A tokenizer of 8 px images, trained for two steps; the commands below need one."""
    run = faults.work / "tokenizer"
    ended = faults.run("tokenizer.train", "--config", faults.inputs / "tok.yaml", "loop.steps=2", f"loop.run_dir={run}")
    if ended.code != 0:
        raise SystemExit(f"no tokenizer could be trained:\n{ended.output}")
    return run


def seen_pixels(faults: Faults, tokenizer: Path, path: Path) -> tuple[Ended, np.ndarray | None]:
    """How an image looks to a command: the center crop (8,8,3) that a reconstruction writes beside its own."""
    pictures = faults.new()
    folder = faults.copied(path)
    options = ["--data-path", folder, "--sample-dir", pictures]
    ended = faults.run("tokenizer.reconstruct", "--vq-ckpt", tokenizer, *options)
    originals = sorted(pictures.rglob("*_gt*.png"))
    return ended, np.asarray(Image.open(originals[0]).convert("RGB"), dtype=float) if originals else None


def right_pixels(image: Image.Image) -> np.ndarray:
    """The center crop (8,8,3) of an image over white, with a plain box filter."""
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    white.alpha_composite(layered)
    size = min(white.size)
    left, top = (white.width - size) // 2, (white.height - size) // 2
    crop = white.convert("RGB").crop((left, top, left + size, top + size))
    return np.asarray(crop.resize((8, 8), Image.Resampling.BOX), dtype=float)


def images(faults: Faults, tokenizer: Path) -> None:
    folder = faults.inputs / "images"
    gray = np.asarray(Image.open(folder / "gray16.png"), dtype=np.int64)
    ramp = faults.inputs / "png_16bit"
    cases = {
        folder / "plain.png": ("unchanged", Image.open(folder / "plain.png")),
        folder / "gray16.png": ("(v + 128) // 257", Image.fromarray(((gray + 128) // 257).astype(np.uint8))),
        ramp / "ramp_16bit.png": ("as ramp_8bit.png", Image.open(ramp / "ramp_8bit.png")),
        folder / "rgba_hidden_noise.png": ("over white", Image.open(folder / "rgba_hidden_noise.png")),
        folder / "black_icon.png": ("over white", Image.open(folder / "black_icon.png")),
        folder / "palette_trns.png": ("over white", Image.open(folder / "palette_trns.png")),
        folder / "exif6.jpg": ("as stored", Image.open(folder / "exif6.jpg")),
    }
    for path, (expected, image) in cases.items():
        ended, pixels = seen_pixels(faults, tokenizer, path)
        if pixels is None:
            faults.row(path.name, expected, ended.says(), False)
            continue
        difference = float(np.abs(pixels - right_pixels(image)).mean())
        seen = f"mean {pixels.mean():.0f} (right: {right_pixels(image).mean():.0f}), mean difference {difference:.1f}"
        faults.row(path.name, expected, seen, difference < MAX_DIFFERENCE)

    ended, _ = seen_pixels(faults, tokenizer, folder / "bad_avif.jpg")
    is_right = ended.is_refusal and "bad_avif.jpg" in ended.output
    faults.row("bad_avif.jpg", "refused by its name", ended.says(), is_right)
    thin_image(faults)


def thin_image(faults: Faults) -> None:
    """Memory of a training step at 256 px on a thin image, beside that on an ordinary one."""
    used = {}
    for name in ("plain.png", "thin_1x10000.png"):
        root = faults.new()
        (root / "a").mkdir(parents=True)
        shutil.copy(faults.inputs / "images" / name, root / "a" / name)
        data = [f"data.root={root}", f"data.val_root={root}", "data.name=folder", "data.image_size=256"]
        sizes = ["data.global_batch_size=1", "validation.num_images=1", "validation.batch_size=1", "loop.steps=1"]
        run = f"loop.run_dir={faults.new()}"
        used[name] = faults.run("tokenizer.train", "--config", faults.inputs / "tok.yaml", *data, *sizes, run)
    more = used["thin_1x10000.png"].max_mb - used["plain.png"].max_mb
    thin = used["thin_1x10000.png"]
    is_right = used["plain.png"].code == 0 and more < THIN_LIMIT and (thin.code == 0 or thin.is_refusal)
    seen = f"rc {thin.code}, {more:+.0f} MB beside an ordinary image"
    faults.row("thin_1x10000.png at 256 px", "about 100 MB more at most", seen, is_right)


def class_names(faults: Faults) -> None:
    root = faults.inputs / "hidden_class" / "train"
    run = faults.new()
    data = [f"data.root={root}", f"data.val_root={root}", "data.name=folder", f"loop.run_dir={run}", "loop.steps=1"]
    small = ["data.global_batch_size=1", "validation.num_images=1", "validation.batch_size=1"]
    trained = faults.run("tokenizer.train", "--config", faults.inputs / "tok.yaml", *data, *small)
    codes = faults.new()
    ended = faults.run("autoregressive.extract_codes", "--vq-ckpt", run, "--code-path", codes)
    manifests = sorted(codes.rglob("manifest.json"))
    names = json.loads(manifests[0].read_text())["class_names"] if manifests else None
    seen = f"classes {names}" if names else f"{trained.says()}; {ended.says()}"
    faults.row("hidden_class", "classes cat, dog", seen, names == ["cat", "dog"])


def hard_links(faults: Faults) -> None:
    tar = faults.inputs / "hardlinks.tar"
    run = faults.new()
    data = [f"data.root={tar}", f"data.val_root={tar}", "data.name=shards", f"loop.run_dir={run}", "loop.steps=1"]
    small = ["data.global_batch_size=2", "validation.num_images=6", "validation.batch_size=1"]
    ended = faults.run("tokenizer.train", "--config", faults.inputs / "tok.yaml", *data, *small)
    counts = [line.strip() for line in ended.output.splitlines() if "training images" in line]
    is_right = "6 training images" in ended.output or (ended.is_refusal and "hard link" in ended.output)
    seen = f"rc 0: {'; '.join(counts)[:170]}" if ended.code == 0 else ended.says()
    faults.row("hardlinks.tar", "6 images, or refused as hard links", seen, is_right)


# ---------------------------------------------------------------------------------------------- evaluations
def distances(faults: Faults) -> None:
    """Four images: no distance without a remark, and no ranking of 32 px against 64 px."""
    folder = faults.inputs / "stats_only_reference"
    source = faults.new()
    source.mkdir()
    for index, pixels in enumerate(np.load(folder / "px64.npz")["arr_0"]):
        Image.fromarray(pixels).save(source / f"{index}.png")
    reference = faults.work / "VIRTUAL_imagenet256_labeled.npz"
    stand_in = ["--random-stand-in", "--device", "cpu"]
    options = [
        "--data-path",
        source,
        "--output",
        reference,
        "--image-size",
        "64",
        "--no-images",
        "--kind",
        "train",
        *stand_in,
    ]
    ended = faults.run("evaluations.make_reference", *options)
    if ended.code == 2:
        ended = faults.run("evaluations.make_reference", *options, "--force")
    if not reference.is_file():
        faults.row("stats_only_reference", "a reference is written", ended.says(), False)
        return

    results = {}
    for name in ("px32", "px64"):
        results[name] = faults.work / f"{name}.json"
        options = [
            "--samples",
            folder / f"{name}.npz",
            "--gt-npz-path",
            reference,
            "--output",
            results[name],
            *stand_in,
        ]
        ended = faults.run("evaluations.measure", *options)
        is_right = ended.is_refusal and not results[name].is_file() and "4 images" in ended.output
        faults.row(f"gFID of 4 images ({name}.npz)", "refused: too few images", ended.says(), is_right)
        if not results[name].is_file():
            forced = faults.run("evaluations.measure", *options, "--force")
            stamped = results[name].is_file() and "forced" in results[name].read_text()
            faults.row(f"the same with --force ({name}.npz)", "stamped as forced", forced.says(), stamped)
    ended = faults.run("evaluations.compare", *results.values())
    is_right = ended.code == 3 and "best" not in ended.output.lower().replace("* best; not", "")
    lines = [line.strip() for line in ended.output.splitlines() if "best" in line or "size" in line or "differ" in line]
    faults.row("32 px against 64 px", "not ranked", f"rc {ended.code}: {'; '.join(lines)[:170]}", is_right)


PARTS: tuple[Callable[[Faults], None], ...] = (checkpoints, class_names, hard_links, distances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the inputs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        faults = Faults(args.folder.resolve(), Path(work))
        for part in PARTS:
            part(faults)
        images(faults, tokenizer_of(faults))
    num_wrong = sum(not is_right for *_, is_right in faults.rows)
    print(f"{len(faults.rows)} rows, {num_wrong} wrong")
    raise SystemExit(1 if num_wrong else 0)


if __name__ == "__main__":
    main()
