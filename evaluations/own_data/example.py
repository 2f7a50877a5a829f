"""Writes a folder of mixed pictures, as a user would have it: of all sizes and kinds, and not in good order.

    python -m evaluations.own_data.example --output my_pictures
    python -m evaluations.own_data.example --output my_pictures --count 80

The pictures are emoji and parts of photographs that packages ship (`bash env_install.sh --extras quickstart,dev`). No
two parts of a photograph overlap, so that held-out pictures show nothing that is trained on. Among them are gray,
transparent, CMYK, 16-bit and palette images, photographs that EXIF says to turn, copies under other names, broken
files, a link that leads nowhere, and a text file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from engine.cli import entry_parser, positive, run_entry
from engine.data.config import DataConfig
from engine.data.packaged import ArraySource, Photos, Twemoji, photographs
from engine.messages import UserError, logger
from engine.outputs import require_absent
from engine.preflight import Preflight, require

SEED = 20261127  # the same folder for everybody
SHORTEST_SIDE, LARGEST_TILE = 40, 200  # pixels of the parts of photographs
LARGE_SIDES = (1200, 2000, 3000)  # pixels, of a few that are enlarged
LARGE_EVERY = 60  # parts, of which one is enlarged
ORIENTATIONS = (3, 6, 8)  # of EXIF: upside down, and lying on either side
CLASSES = {  # class -> its photographs; the rest is a class of its own
    "animals": {"chelsea"},
    "surfaces": {"brick", "grass", "gravel"},
    "outdoors": {"rocket", "china", "motorcycle_left"},
    "closeups": {"coffee", "coins", "flower", "ihc"},
}
REST = "faces_and_stars"
EMOJI = "emoji"


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--output", required=True, type=Path, help="folder to write; it must not exist yet")
    parser.add_argument("--count", type=positive, default=1000, help="how many pictures at most (default 1000)")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ parts of photographs
def tiles_of(width: int, height: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int, int]]:
    """Cuts a picture into parts of random sizes that do not overlap: (left, top, right, bottom) of each."""
    waiting = [(0, 0, width, height)]
    while waiting:
        left, top, right, bottom = waiting.pop()
        sides = (right - left, bottom - top)
        axis = int(sides[1] > sides[0])
        is_small = max(sides) <= LARGEST_TILE and rng.random() < 0.7
        if is_small or sides[axis] < 2 * SHORTEST_SIDE:
            yield left, top, right, bottom
            continue
        cut = int(np.clip(sides[axis] * rng.uniform(0.3, 0.7), SHORTEST_SIDE, sides[axis] - SHORTEST_SIDE))
        if axis == 0:
            waiting += [(left, top, left + cut, bottom), (left + cut, top, right, bottom)]
        else:
            waiting += [(left, top, right, top + cut), (left, top + cut, right, bottom)]


def class_of_photograph(name: str) -> str:
    """The class of a photograph."""
    return next((label for label, names in CLASSES.items() if name in names), REST)


def parts(rng: np.random.Generator) -> list[tuple[str, str, Image.Image]]:
    """(class, name, picture) of all parts of all photographs, in random order; a few are enlarged."""
    found = []
    for file, photo in photographs():
        name = Path(file).stem
        boxes = [box for box in tiles_of(*photo.size, rng) if min(box[2] - box[0], box[3] - box[1]) >= SHORTEST_SIDE]
        found += [(class_of_photograph(name), f"{name}_{n:03d}", photo.crop(box)) for n, box in enumerate(boxes)]

    # Mixed, and one of many enlarged.
    order = rng.permutation(len(found))
    shuffled = [found[index] for index in order]
    for number in range(0, len(shuffled), LARGE_EVERY):
        label, name, picture = shuffled[number]
        scale = LARGE_SIDES[number // LARGE_EVERY % len(LARGE_SIDES)] / max(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        shuffled[number] = (label, name, picture.resize(size, Image.Resampling.BICUBIC))
    return shuffled


# ------------------------------------------------------------------------------------------------ kinds of files
def save_part(picture: Image.Image, stem: Path, number: int) -> Path:
    """Writes a picture as one of the kinds of files that people have; returns its path."""
    kind = number % 12

    # Images that are not RGB.
    if kind == 0:
        return _saved(picture.convert("L"), stem.with_suffix(".png"))
    if kind == 1:
        return _saved(picture.convert("CMYK"), stem.with_suffix(".jpg"), quality=95)
    if kind == 2:
        values = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return _saved(Image.fromarray(values), stem.with_suffix(".png"))
    if kind == 3:
        return _saved(_with_soft_edge(picture), stem.with_suffix(".png"))
    if kind == 4:
        return _saved(picture.convert("P", palette=Image.Palette.ADAPTIVE), stem.with_suffix(".gif"))

    # RGB, by several formats and cameras.
    if kind == 5:
        return _saved(picture, stem.with_suffix(".webp"), quality=95)
    if kind == 6:
        return _saved_turned(picture, stem.with_suffix(".jpg"), ORIENTATIONS[number // 12 % len(ORIENTATIONS)])
    return _saved(picture, stem.with_suffix(".JPG" if kind == 7 else ".jpg"), quality=95)


def _saved(picture: Image.Image, path: Path, **options: int) -> Path:
    picture.save(path, **options)
    return path


def _with_soft_edge(picture: Image.Image) -> Image.Image:
    """A picture that becomes transparent toward its lower edge."""
    alpha = np.linspace(255, 64, picture.height).astype(np.uint8)[:, None].repeat(picture.width, axis=1)
    picture = picture.convert("RGB")
    picture.putalpha(Image.fromarray(alpha))
    return picture


def _saved_turned(picture: Image.Image, path: Path, orientation: int) -> Path:
    """Writes a photograph as a camera that was held sideways does: turned, with a note of how it is to be seen."""
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.transpose(turn[orientation]).save(path, exif=exif, quality=95)
    return path


# ------------------------------------------------------------------------------------------------ the folder
def write_pictures(folder: Path, count: int) -> int:
    """Writes at most `count` good pictures, emoji at most a third of them; returns how many."""
    rng = np.random.default_rng(SEED)
    emoji = Twemoji.read("train")
    num_emoji = min(len(emoji), count // 3)
    chosen = parts(rng)[: count - num_emoji]
    for label in sorted({EMOJI, *(label for label, _, _ in chosen)}):
        (folder / label).mkdir(parents=True)

    written = [save_part(picture, folder / label / name, n) for n, (label, name, picture) in enumerate(chosen)]
    _write_emoji(emoji, folder / EMOJI, num_emoji, rng)
    _write_oddities(folder, written)
    return len(written) + num_emoji


def _write_emoji(emoji: ArraySource, folder: Path, count: int, rng: np.random.Generator) -> None:
    """Writes some of the emoji."""
    for index in sorted(rng.permutation(len(emoji))[:count].tolist()):
        emoji.image(index).save(folder / emoji.where(index))


def _write_oddities(folder: Path, written: list[Path]) -> None:
    """What is wrong in many folders: copies, broken files, a dead link, files that are no images."""
    # The same file under another name, and the same picture in another file.
    first, second, third = written[7], written[8], written[0]
    (first.parent / f"copy_of_{first.name}").write_bytes(first.read_bytes())
    (second.parent / f"Copy (2) {second.name}").write_bytes(second.read_bytes())
    with Image.open(third) as picture:
        picture.save(third.with_name(f"again_{third.stem}.bmp"))

    # Files that cannot be read.
    content = written[9].read_bytes()
    (written[9].parent / "cut_off.jpg").write_bytes(content[: len(content) // 2])
    (written[10].parent / "empty.png").write_bytes(b"")
    (written[11].parent / "not_a_picture.jpg").write_bytes(b"<html>not found</html>")

    # What is no image.
    (folder / "notes.txt").write_text("Pictures of all kinds.\n", encoding="utf-8")
    (folder / ".thumbnails").mkdir()
    (written[11].parent / "moved_away.jpg").symlink_to("nowhere.jpg")


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the packages that ship the pictures, and a place for the folder."""
    for kind in (Photos, Twemoji):
        with preflight.collecting():
            kind.survey(DataConfig(), "train")
            preflight.ready.append(f"pictures: {kind.attribution}")
    preflight.new_file(args.output, "--output")


def main() -> None:
    args = parse_args()
    if args.count < 36:
        raise UserError(f"--count {args.count}: 36 or more are needed for a picture of each kind")
    require(args, lambda preflight: needs(args, preflight))
    require_absent(args.output, "--output")
    count = write_pictures(args.output, args.count)
    logger.info("%s: %d pictures. %s. %s.", args.output, count, Photos.attribution, Twemoji.attribution)


if __name__ == "__main__":
    run_entry(main)
