"""Looking at a folder of pictures: what is found, how it is read, what is held out, what a recipe would do with it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from engine.data.header import read_header
from engine.data.layout import CLASSES, FLAT, look_at_layout
from engine.messages import UserError
from evaluations import data
from evaluations.own_data.fit import CPU, GPU, fit_of, fit_of_recipe, suggestion_for
from evaluations.own_data.scan import scan_folder
from evaluations.own_data.split import held_out_names
from evaluations.own_data.survey import Survey, survey_values


def write_picture(path: Path, size: tuple[int, int] = (48, 40), seed: int = 0, **options) -> Path:
    """A random picture; `seed` decides its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def write_turned(path: Path, orientation: int, seed: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    write_picture(path, seed=seed, exif=exif)


def survey_of(folder: Path, layout: str | None = None) -> Survey:
    found = look_at_layout(folder, layout)
    return Survey(found, scan_folder(folder, found.images))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes: 30 cats and 10 dogs of many kinds, with everything that may be wrong."""
    root = tmp_path / "pictures"
    for n in range(30):
        write_picture(root / "cat" / f"{n:02d}.png", seed=n)
    for n in range(7):
        write_picture(root / "dog" / f"{n:02d}.jpg", (100 + n, 40), seed=100 + n, quality=95)
    write_turned(root / "dog" / "turned.jpg", 6, seed=200)
    Image.new("I;16", (64, 64), 30_000).save(root / "dog" / "deep.png")
    Image.new("CMYK", (64, 64)).save(root / "dog" / "print.jpg")

    # Copies, broken files, and what is no image.
    (root / "cat" / "copy.png").write_bytes((root / "cat" / "03.png").read_bytes())
    Image.open(root / "cat" / "04.png").save(root / "dog" / "04 as.bmp")
    (root / "cat" / "cut.png").write_bytes((root / "cat" / "00.png").read_bytes()[:60])
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "gone.png").symlink_to("nowhere")
    (root / "cat" / "notes.txt").write_text("x", encoding="utf-8")
    (root / ".cache").mkdir()
    return root


# ------------------------------------------------------------------------------------------------ what is found
def test_everything_that_is_in_a_folder_is_told(folder):
    values = survey_values(survey_of(folder))
    assert values["classes"] == {"cat": 33, "dog": 11} and values["images_read"] == 44
    assert values["modes"] == {"RGB": 40, "I;16": 1, "CMYK": 1}
    assert values["formats"] == {"PNG": 32, "JPEG": 9, "BMP": 1}
    assert values["sizes"]["short_side"] == {"min": 40, "median": 40, "max": 64}
    assert values["sizes"]["very_tall_or_wide"] == 7
    assert values["exif_orientations"] == {"6": 1}
    assert values["broken"].keys() == {"cat/cut.png", "cat/empty.png"}
    assert values["broken"]["cat/empty.png"] == "the file is empty"
    assert values["same_files"] == [["cat/03.png", "cat/copy.png"]]
    assert values["same_pictures"] == [["cat/04.png", "dog/04 as.bmp"]]
    unseen = values["not_seen"]
    assert unseen == {
        "images_of_another_depth": [], "other_files": 1, "hidden_names": 1, "dead_links": ["cat/gone.png"],
    }  # fmt: skip
    assert values["images_per_second_and_core"] > 0


def test_a_picture_that_is_stored_turned_is_the_same_picture(tmp_path):
    """By what is to be seen: its sizes are swapped, and an upright copy has the same pixels."""
    write_turned(tmp_path / "a.png", 6, seed=1)
    with Image.open(tmp_path / "a.png") as stored:
        stored.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "b.png")
    values = survey_values(survey_of(tmp_path))
    assert values["same_pictures"] == [["a.png", "b.png"]] and not values["same_files"]
    header = read_header((tmp_path / "a.png").read_bytes())
    assert (header.size("as_stored"), header.size("upright")) == ((48, 40), (40, 48))


def test_headers_tell_depth_and_animations(tmp_path):
    deep = np.full((8, 8), 40_000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_header((tmp_path / "deep.tif").read_bytes()).mode == "I;16"
    assert read_header((tmp_path / "moving.gif").read_bytes()).frames == 2
    assert survey_values(survey_of(tmp_path))["animations"] == ["moving.gif"]


def test_a_limit_reads_a_part(folder):
    found = look_at_layout(folder)
    scan = scan_folder(folder, found.images, limit=10)
    assert (scan.num_read, scan.num_images) == (10, 44)


# ------------------------------------------------------------------------------------------------ how it is read
LAYOUTS = {
    "flat": (["a.png", "b.png"], FLAT, "the images lie in one folder"),
    "classes": (["x/a.png", "y/b.png"], CLASSES, "2 classes: one per sub-folder"),
    "beside": (["a.png", "x/a.png", "y/b.png"], FLAT, "1 image lies beside the sub-folders"),
    "nested": (["x/a.png", "y/deep/b.png", "y/c.png"], FLAT, "1 image lies in folders of folders"),
    "empty class": (["x/a.png", "y/b.png", "z/notes.txt"], FLAT, "the sub-folder z holds no image itself"),
    "one class": (["x/a.png", "x/b.png"], FLAT, "a single sub-folder is no choice of classes"),
}


def write_files(folder: Path, names: list[str]) -> Path:
    for name in names:
        write_picture(folder / name) if name.endswith(".png") else (folder / name).parent.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("case", LAYOUTS)
def test_sub_folders_are_classes_where_nothing_is_lost(tmp_path, case):
    names, expected, reason = LAYOUTS[case]
    layout = look_at_layout(write_files(tmp_path / "p", names))
    assert (layout.layout, reason in layout.reason) == (expected, True), layout.reason
    assert layout.images == sorted(name for name in names if name.endswith(".png"))


def test_classes_that_are_asked_for_leave_out_what_lies_elsewhere(tmp_path):
    root = write_files(tmp_path / "p", ["a.png", "x/a.png", "y/b.png", "y/deep/c.png"])
    layout = look_at_layout(root, CLASSES)
    assert layout.images == ["x/a.png", "y/b.png"] and sorted(layout.left_out) == ["a.png", "y/deep/c.png"]
    assert [layout.class_of(name) for name in layout.images] == ["x", "y"]
    assert look_at_layout(root, FLAT).class_of("x/a.png") == "all"


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        ([], None, "holds no image files"),
        (["x/notes.txt"], None, "holds no image files"),
        (["a.png"], CLASSES, "cannot be read as classes: it has no sub-folders, or use --layout flat"),
        (["x/a.png", "z/notes.txt"], CLASSES, "z holds no image itself; fill or remove it, or use --layout flat"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, names, wanted, message):
    (tmp_path / "p").mkdir()
    with pytest.raises(UserError, match=message):
        look_at_layout(write_files(tmp_path / "p", names), wanted)


def test_images_of_another_kind_are_pointed_to_their_page(tmp_path):
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"it holds images of data\.name=parquet \(see docs/data\.md\)"):
        look_at_layout(tmp_path)


# ------------------------------------------------------------------------------------------------ what is held out
def test_no_held_out_image_has_a_copy_or_is_broken(folder):
    """Even where half of everything is held out; each class gives its share."""
    survey = survey_of(folder)
    names = held_out_names(survey, 0.5)
    assert not {"cat/03.png", "cat/copy.png", "cat/04.png", "dog/04 as.bmp", "cat/cut.png", "cat/empty.png"} & {*names}
    counts = [sum(name.startswith(f"{label}/") for name in names) for label in ("cat", "dog")]
    assert counts == [round(33 * 0.5), round(11 * 0.5)]
    assert len(held_out_names(survey)) == 3 + 1 and held_out_names(survey, 0) == []


def test_an_image_that_is_added_moves_few_others(folder):
    """The choice depends on each name alone."""
    before = held_out_names(survey_of(folder), 0.3)
    write_picture(folder / "dog" / "new.png", seed=999)
    after = held_out_names(survey_of(folder), 0.3)
    assert len({*before} - {*after}) <= 1


def test_names_that_no_line_can_hold_are_not_held_out(tmp_path):
    for n in range(20):
        write_picture(tmp_path / f"line\nbreak {n}.png", seed=n)
    write_picture(tmp_path / "plain.png", seed=30)
    assert held_out_names(survey_of(tmp_path), 0.5) == ["plain.png"]


# ------------------------------------------------------------------------------------------------ what suits it
def test_what_a_recipe_would_do(folder):
    """32 of 42 readable images are 48 x 40, 7 are 100..106 x 40, 2 are 64 x 64, and one lies on its side."""
    survey = survey_of(folder)
    upright, stored = (fit_of(survey, 64, orientation) for orientation in ("upright", "as_stored"))
    assert (upright.enlarged, upright.much_larger, fit_of(survey, 10, "upright").much_larger) == (40, 0, 42)
    assert (upright.on_their_side, stored.on_their_side) == (0, 1)
    wide = sum(40 / (100 + n) for n in range(7))
    assert upright.outside_of_crop == pytest.approx(1 - (33 * 40 / 48 + wide + 2) / 42, abs=1e-3)
    recipe = OmegaConf.create({"data": {"image_size": 256}})
    assert fit_of_recipe(survey, recipe, "x").on_their_side == 1
    with pytest.raises(UserError, match=r"x has no data\.image_size: it does not train on images"):
        fit_of_recipe(survey, OmegaConf.create({"data": {"codes": "y"}}), "x")


def test_suggestions_follow_sizes_and_numbers(folder, tmp_path):
    """The largest size that few images are enlarged for; a batch that the images fill; steps within limits."""
    small = suggestion_for(survey_of(folder), CPU, 40)
    assert (small.image_size.value, small.batch.value, small.generator_batch.value) == (32, 16, 32)
    assert "at 64 px it would be 40" in small.image_size.reason
    assert small.generator_steps.value == CPU.generator_steps[0]
    for n in range(20):
        write_picture(tmp_path / "large" / f"{n}.png", (300, 300), seed=n)
    large = suggestion_for(survey_of(tmp_path / "large"), GPU, 100_000)
    assert (large.image_size.value, large.batch.value, large.steps.value) == (256, 128, 156_250)
    assert suggestion_for(survey_of(folder), CPU, 3, image_size=16).image_size.value == 16
    assert suggestion_for(survey_of(folder), CPU, 3).batch.value == 2


# ------------------------------------------------------------------------------------------------ the command
def test_the_command_prints_and_writes_everything(folder, entry, tmp_path):
    output = tmp_path / "new" / "survey.json"
    code, out, err = entry(data.main, folder, "--recipe", "vq/VQ_SS256", "--output", output)
    assert code == 0, err
    for text in (
        "44 images", "2 classes: one per sub-folder", "cat 33, dog 11", "cat/empty.png: the file is empty",
        "cat/03.png = cat/copy.png", "vq/VQ_SS256 (256 px): 42 of 42 images would be enlarged",
        "1 would be seen turned (data.orientation=as_stored)", "suggested for 2 CPU cores", "suggested for GPUs",
    ):  # fmt: skip
        assert text in out, text
    values = json.loads(output.read_text(encoding="utf-8"))
    assert values["recipes"]["vq/VQ_SS256"]["enlarged"] == 42
    assert values["suggested"]["2 CPU cores"]["image_size"]["value"] == 32
    assert values["broken"].keys() == {"cat/cut.png", "cat/empty.png"}

    code, _, err = entry(data.main, folder, "--output", output)
    assert code == 2 and "exists already" in err


def test_too_few_pictures_are_told(entry, tmp_path):
    """As `init` refuses them; of a part of a folder nothing is known."""
    for n in range(3):
        write_picture(tmp_path / f"{n}.png", (40, 40), seed=n)
    assert "too few to train on: init writes recipes for 20 readable images or more" in entry(data.main, tmp_path)[1]
    assert "too few" not in entry(data.main, tmp_path, "--limit", 2)[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "pictures: nowhere is not a folder"),
        (["{folder}", "--recipe", "gpt/GPT_B256"], "does not train on images"),
        (["{folder}", "--recipe", "no_such_recipe"], "is neither a YAML file nor the name of a recipe"),
        (["{folder}", "--output", "{folder}/x.txt"], "must be the name of a .json file"),
    ],
)
def test_wrong_flags_are_one_error(folder, entry, flags, message):
    code, _, err = entry(data.main, *(flag.format(folder=folder) for flag in flags))
    assert code == 2 and message in err and "Traceback" not in err


def test_a_folder_of_broken_images_is_told_and_refused(entry, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    code, _, err = entry(data.main, tmp_path)
    assert code == 2 and "a.png: the file is empty" in err and "none of the images can be read" in err


def test_names_that_are_not_utf8_are_shown(tmp_path, entry):
    write_picture(tmp_path / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / os.fsdecode(b"br\xe9ken.png")).write_bytes(b"")
    code, out, err = entry(data.main, tmp_path)
    assert code == 0 and "br\\xe9ken.png" in out, err
