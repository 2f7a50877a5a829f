"""The pictures of text_readback: drawn ones, which any tokenizer can be given, and folders of them.

A folder serves tokenizers of other code bases: `write_pictures` fills it, the other program reconstructs the files
under their names into a second folder, and `StoredPictures` reads the words that are in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.atomic_file import write_atomic
from engine.data.images import image_tensor, read_image
from engine.data.text_pictures import ALPHABET, MIN_CONTRAST, TextPicture, Word, draw_picture, font_facts, heights_of
from engine.json_text import to_json
from engine.messages import UserError
from engine.outputs import OutputFolder
from engine.progress import progress
from engine.world import World

WORDS_FILE = "words.json"  # in a folder of pictures
NAME = "{:06d}.png"
PER_HEIGHT = 100  # pictures per height of letters


class TextSet(Protocol):
    """Pictures of words, by number."""

    @property
    def heights(self) -> list[int]:
        """The height of the letters of each picture."""

    def picture(self, number: int) -> TextPicture:
        """A picture with its words."""

    def facts(self) -> dict[str, Any]:
        """What a protocol says of the pictures."""


class DrawnPictures:
    """Pictures of `side` pixels for an evaluation, `per_height` of each height of letters."""

    def __init__(self, side: int, per_height: int = PER_HEIGHT, seed: int = 0) -> None:
        self.side = side
        self.per_height = per_height
        self.seed = seed
        self.heights = list(heights_of(side)) * per_height  # as `height_of` deals them

    def picture(self, number: int) -> TextPicture:
        return draw_picture("evaluation", self.seed, number, self.side)

    def facts(self) -> dict[str, Any]:
        return {
            "image_size": self.side,
            "heights": list(heights_of(self.side)),
            "pictures_per_height": self.per_height,
            "seed": self.seed,
            "alphabet": ALPHABET,
            "least_contrast": MIN_CONTRAST,
            **font_facts(self.side),
        }


def write_pictures(pictures: DrawnPictures, folder: Path, flag: str, world: World) -> None:
    """Writes pictures as PNG files with their words. All ranks call this; `flag` names the folder in errors.

    Raises UserError where the folder holds something else.
    """
    facts = pictures.facts()
    output = OutputFolder(folder, flag, {"command": "evaluations.text_readback", **facts}, world)
    entries = []
    for number in progress(range(len(pictures.heights)), "pictures", world):
        picture = pictures.picture(number)
        name = NAME.format(number)
        if world.is_main:
            picture.image.save(folder / name)
        words = [{"word": word.text, "box": word.box} for word in picture.words]
        entries.append({"file": name, "height": picture.height, "words": words})
    if world.is_main:
        write_atomic(folder / WORDS_FILE, to_json({"facts": facts, "pictures": entries}, indent=None))
    output.finish([entry["file"] for entry in entries])


class StoredPictures:
    """The pictures that `write_pictures` put into a folder."""

    def __init__(self, folder: Path, flag: str) -> None:
        """`flag` names the folder in errors. Raises UserError unless it holds such pictures."""
        self.folder = folder
        try:
            content = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
            self._facts = dict(content["facts"])
            self.side = int(self._facts["image_size"])
            self.files = [str(entry["file"]) for entry in content["pictures"]]
            self.heights = [int(entry["height"]) for entry in content["pictures"]]
            self.words = [tuple(map(_word, entry["words"])) for entry in content["pictures"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{flag} {folder} holds no pictures of --draw with their {WORDS_FILE} ({type(error).__name__}: {error})"
            ) from error

    def picture(self, number: int) -> TextPicture:
        path = self.folder / self.files[number]
        image = read_image(path)
        if image.size != (self.side, self.side):
            raise UserError(f"{path} has {image.width}x{image.height} pixels, not {self.side}x{self.side} as drawn")
        return TextPicture(image, self.words[number], self.heights[number])

    def facts(self) -> dict[str, Any]:
        return self._facts


def _word(entry: Mapping[str, Any]) -> Word:
    left, top, right, bottom = (int(edge) for edge in entry["box"])
    if not (0 <= left < right and 0 <= top < bottom and set(entry["word"]) <= set(ALPHABET)):
        raise ValueError(f"a word {entry['word']!r} with the box {entry['box']}")
    return Word(str(entry["word"]), (left, top, right, bottom))


class ReconstructedFiles:
    """The files of a second folder, under the names of the first, as reconstructions of `StoredPictures`."""

    def __init__(self, pictures: StoredPictures, folder: Path, flag: str) -> None:
        """Raises UserError where a file is missing."""
        self.pictures = pictures
        self.folder = folder
        by_stem = {path.stem: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
        missing = [file for file in pictures.files if Path(file).stem not in by_stem]
        if missing:
            raise UserError(
                f"{flag} {folder} lacks {len(missing)} of {len(pictures.files)} pictures, such as {missing[0]}; it "
                f"must hold one for each of {pictures.folder}, under the same name"
            )
        self.paths = [by_stem[Path(file).stem] for file in pictures.files]

    def __call__(self, numbers: Tensor, originals: Tensor) -> Tensor:
        """The reconstructions of pictures `numbers` (B,), uint8 (B,3,S,S)."""
        images = []
        for number in numbers.tolist():
            image = image_tensor(read_image(self.paths[number]))
            if image.shape != originals.shape[1:]:
                size, expected = (f"{shape[2]}x{shape[1]}" for shape in (image.shape, originals.shape[1:]))
                raise UserError(f"{self.paths[number]} has {size} pixels, its original {expected}")
            images.append(image)
        return torch.stack(images)
