"""Recipes for one's own pictures: their text, the files that are written, and that they train."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from omegaconf import OmegaConf
from PIL import Image

import autoregressive.train as gpt_train
import tokenizer.train as tokenizer_train
from autoregressive import extract_codes, load_gpt
from engine.config import load_config
from engine.data.held_out import read_held_out
from engine.data.sources import open_source
from engine.messages import UserError
from engine.run_log import read_metrics
from evaluations import init
from evaluations.own_data import example
from evaluations.own_data.fit import CPU, Choice
from evaluations.own_data.recipe_text import fill_in, scalar
from evaluations.own_data.recipes import TEMPLATES
from tokenizer import load_tokenizer

WRITTEN = {"tokenizer.yaml", "gpt.yaml", "tokenizer_gpu.yaml", "gpt_gpu.yaml", "held_out.txt"}
SHORT = [  # a tokenizer of seconds
    "model.wetok.cnn.base_channels=4",
    "model.quantizer.gq.group_dim=2",
    "loop.device=cpu",
    "loop.steps=2",
    "loop.save_every=2",
    "loop.eval_every=0",
]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two classes of 15 pictures."""
    tiny.write_images(tmp_path / "pictures", 15, seed=0, size=40)
    return tmp_path / "pictures"


def configs_of(folder: Path):
    """The training configs of the CPU recipes that were written."""
    return (
        load_config(tokenizer_train.TokenizerTrainConfig, [folder / "tokenizer.yaml"]),
        load_config(gpt_train.GPTTrainConfig, [folder / "gpt.yaml"]),
    )


# ------------------------------------------------------------------------------------------------ the text
def test_values_are_put_into_their_lines_and_comments_stay():
    text = "# Old.\n# Older.\na:\n  name: x  # old reason\n  # kept\n  b: {name: 1}\nname: y\nlist: [1]\n"
    choices = {"a.name": Choice("it's: #1", "new\nreason"), "name": Choice(True, ""), "list": None}
    filled = fill_in(text, choices, ["New."])
    assert filled.splitlines()[0] == "# New." and "Old" not in filled and "# kept" in filled
    assert OmegaConf.to_container(OmegaConf.create(filled)) == {
        "a": {"name": "it's: #1", "b": {"name": 1}}, "name": True,
    }  # fmt: skip
    assert filled.splitlines()[2].endswith("# new reason")
    with pytest.raises(AssertionError, match="no line for"):
        fill_in(text, {"a.c": Choice(1, "")}, [])


@pytest.mark.parametrize("value", ["plain", "a: b # c", "quote\"s 'n' all", "\\", "yes", "\u00e4", 3, 0.5, False])
def test_a_value_comes_back_as_it_was(value):
    assert OmegaConf.create(f"key: {scalar(value)}").key == value


@pytest.mark.parametrize(("name", "message"), [("caf\udce9", "is not UTF-8"), ("${x}", "stands for another value")])
def test_a_name_that_no_recipe_can_hold_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        scalar(name)


# ------------------------------------------------------------------------------------------------ the files
@pytest.mark.parametrize("name", ["pictures", "my pictures", "#1: 'and' \"more\""])
def test_recipes_are_written_with_a_reason_beside_each_value(entry, tmp_path, pictures, name):
    """For folders of any name; both pass the checks of their trainers and read the same split."""
    folder = pictures.rename(tmp_path / name)
    code, out, err = entry(init.main, folder, "--output", tmp_path / "run")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "run").iterdir()} == WRITTEN

    config, gpt_config = configs_of(tmp_path / "run")
    assert (config.data.root, config.data.name, config.data.orientation) == (str(folder), "folder", "upright")
    gpu_config = load_config(tokenizer_train.TokenizerTrainConfig, [tmp_path / "run" / "tokenizer_gpu.yaml"])
    assert (config.data.image_size, gpu_config.data.image_size, gpu_config.model.hybrid.num_tokens) == (32, 64, 16)
    assert config.loop.run_dir == gpt_config.data.tokenizer
    assert gpt_config.model.gpt.num_classes is None and gpt_config.model.gpt.vocab_size is None
    assert len(open_source(config.data, "val")) == 2 * 2
    text = (tmp_path / "run" / "tokenizer.yaml").read_text(encoding="utf-8")
    for key in ("root", "held_out", "image_size", "steps", "skip_broken", "fast_decode", "num_workers"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{key}: ")]
        assert " # " in line, line
    assert "python -m tokenizer.train --config" in out and "GPUS=8 bash" in out


def test_the_same_command_again_changes_nothing(entry, tmp_path, pictures):
    """So that one with --run can go on."""
    flags = [pictures, "--output", tmp_path / "run"]
    assert entry(init.main, *flags)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    code, _, err = entry(init.main, *flags)
    assert code == 0 and err.count("is there already") == len(WRITTEN)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_a_flat_folder_has_one_class_and_no_trouble(entry, tmp_path, pictures):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in pictures.rglob("*.png"):
        shutil.copy(path, flat / f"{path.parent.name}_{path.name}")
    code, _, err = entry(init.main, flat, "--output", tmp_path / "run")
    assert code == 0, err
    config, _ = configs_of(tmp_path / "run")
    assert config.data.name == "loose" and not config.data.skip_broken
    assert open_source(config.data, "train").class_names == ["all"]
    assert len(read_held_out(tmp_path / "run" / "held_out.txt")) == 3


def test_nothing_held_out_is_a_choice(entry, tmp_path, pictures):
    code, out, err = entry(init.main, pictures, "--output", tmp_path / "run", "--held-out", "0")
    assert code == 0, err
    config, _ = configs_of(tmp_path / "run")
    assert not config.data.held_out and not (tmp_path / "run" / "held_out.txt").exists()
    assert "evaluations.reconstruction" not in out


def test_the_commands_are_those_of_vt_where_it_runs_the_entry(tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["vt init", str(pictures), "--output", str(tmp_path / "run")])
    init.main()
    out = capsys.readouterr().out
    assert "  vt train --config" in out and "  vt extract" in out and "  GPUS=8 vt train" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{pictures}", "--output", "{pictures}/run"], "lies in the folder of pictures"),
        (["{pictures}/nowhere", "--output", "{place}/run"], "is not a folder"),
        (["{few}", "--output", "{place}/run"], "holds 3 readable images (1 are broken); 20 or more are needed"),
        (["{pictures}", "--output", "{place}/run", "--image-size", "50"], "50"),
        (["{pictures}", "--output", "{place}/run", "--held-out", "0.7"], "is not a number from 0 to 0.5"),
        (["{pictures}", "--output", "{full}"], "holds gpt.yaml with another content; nothing is overwritten"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(entry, tmp_path, pictures, flags, message):
    (tmp_path / "few").mkdir()
    for path in sorted((pictures / "cat").iterdir())[:3]:
        shutil.copy(path, tmp_path / "few")
    (tmp_path / "few" / "broken.png").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "gpt.yaml").write_text("mine", encoding="utf-8")
    places = {"pictures": pictures, "place": tmp_path, "few": tmp_path / "few", "full": tmp_path / "full"}
    code, _, err = entry(init.main, *(flag.format(**places) for flag in flags))
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists() and not (pictures / "run").exists()
    assert (tmp_path / "full" / "gpt.yaml").read_text(encoding="utf-8") == "mine"


def test_large_jpeg_files_are_decoded_fast_and_ahead(entry, tmp_path):
    """Where most images are JPEG files of a camera."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for n in range(20):
        pixels = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        pixels.resize((1200, 900)).save(tmp_path / "photos" / f"{n}.jpg")
    code, _, err = entry(init.main, tmp_path / "photos", "--output", tmp_path / "run")
    assert code == 0, err
    config, _ = configs_of(tmp_path / "run")
    assert config.data.fast_decode and config.data.num_workers == 1 and config.data.image_size == CPU.image_sizes[-1]


def test_the_shipped_recipes_are_for_the_targets():
    assert {path.name for path in TEMPLATES.glob("*.yaml")} == WRITTEN - {"held_out.txt"}


# ------------------------------------------------------------------------------------------------ the worked example
def test_the_worked_example_trains_in_a_short_form(entry, tmp_path, world, monkeypatch):
    """docs/own_data.md: a folder of mixed pictures, recipes for it, a tokenizer, its codes, and a GPT that takes its
    sizes from them. The networks are smaller, and the steps fewer.
    """
    count = example.write_pictures(tmp_path / "my_pictures", 60)
    assert count == 60
    labels = {path.parent.name for path in (tmp_path / "my_pictures").glob("*/*")}
    code, _, err = entry(init.main, tmp_path / "my_pictures", "--output", tmp_path / "my_run", "--image-size", "32")
    assert code == 0, err

    # The tokenizer, with its anchors.
    files = [tmp_path / "my_run" / "tokenizer.yaml"]
    tokenizer_train.train(load_config(tokenizer_train.TokenizerTrainConfig, files, SHORT), world)
    run = tmp_path / "my_run" / "cpu"
    record = [record for record in read_metrics(run / "tokenizer") if "val/psnr" in record][-1]
    assert 0 < record["val/psnr_mean_color"] < record["val/psnr_shrunken"]

    # Codes of both splits, and the GPT.
    flags = ["--vq-ckpt", run / "tokenizer", "--code-path", run / "codes", "--ten-crop", "--device", "cpu"]
    assert entry(extract_codes.main, *flags)[0] == 0
    short = ["model.gpt.width=24", "loop.steps=2", "loop.save_every=2", "loop.device=cpu", "loop.eval_every=0"]
    gpt_train.train(load_config(gpt_train.GPTTrainConfig, [tmp_path / "my_run" / "gpt.yaml"], short), world)
    gpt, tokenizer = load_gpt(run / "gpt"), load_tokenizer(run / "tokenizer")
    assert (gpt.num_tokens, gpt.codebook_sizes, gpt.num_classes) == (tokenizer.num_tokens, (4, 4), len(labels))


def test_the_example_has_one_of_everything(tmp_path):
    """Sizes from 40 to 3,000 pixels and all kinds of files; the same for everybody."""
    tiles = list(example.tiles_of(300, 200, np.random.default_rng(0)))
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in tiles) == 300 * 200
    assert min(min(right - left, bottom - top) for left, top, right, bottom in tiles) >= example.SHORTEST_SIDE
    found = example.parts(np.random.default_rng(example.SEED))
    sides = [max(picture.size) for _, _, picture in found]
    assert max(sides) == 3000 and min(min(picture.size) for _, _, picture in found) == 40
    assert {label for label, _, _ in found} == {*example.CLASSES, example.REST}

    modes = set()
    for number, (_, name, picture) in enumerate(found[:12]):
        with Image.open(example.save_part(picture.resize((16, 16)), tmp_path / name, number)) as image:
            modes.add(image.mode)
    assert modes == {"L", "CMYK", "I;16", "RGBA", "P", "RGB"}
