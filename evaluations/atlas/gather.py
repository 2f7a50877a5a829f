"""Gathers all that an atlas shows of one subject, in the form that its page reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoregressive.image_sampler import SamplerSettings
from engine.world import World
from evaluations.atlas.codebook import (
    MAX_PATCHES,
    PATCH_SIDE,
    Patches,
    map_codebook,
    patches_of,
    points_per_map,
)
from evaluations.atlas.counted_images import CountedImages, ImageChoice, count_images, decibels, reconstruct
from evaluations.atlas.guided_samples import GuidedSamples, sample_scales
from evaluations.atlas.notes import MAX_GROUPS_WITH_PATCHES, bits_per_image, notes_of, summary_of
from evaluations.atlas.replacement import (
    Replacements,
    most_used_tokens,
    other_codes,
    replace_in_all,
    replaced_positions,
)
from evaluations.atlas.sheets import Grade, Sheet, gray_sheet, picture_uri, sheet_of
from evaluations.atlas.subject import Subject

PATCH_GRADE = Grade(PATCH_SIDE, quality=70)


@dataclass(frozen=True)
class Sizes:
    """How much is shown, and how the generator draws."""

    tokens: int  # replaced per image
    codes: int  # per replaced token
    batch_size: int
    classes: int  # with samples; 0 = none
    per_class: int
    settings: Sequence[SamplerSettings]  # one per guidance scale


@dataclass
class SubjectPart:
    """All that the page shows of one subject; many pictures become sheets once the page knows how much room they have.

    `facts` is what the scripts of the page read.
    """

    facts: dict[str, Any]
    num_counted: int  # images whose codes are counted
    replacements: list[Replacements]  # per shown image; none where there is no other code
    samples: GuidedSamples | None

    def take_replacements(self, sheets: Sequence[Sheet]) -> None:
        """Stores the pictures of replaced tokens, one sheet per shown image."""
        for record, sheet in zip(self.facts["tokens"]["images"], sheets, strict=False):
            record["sheet"] = sheet.facts()
        if sheets and sheets[0].cell < self.facts["imageSize"]:
            self.facts["notes"].append(
                f"Images with a replaced token are stored at {sheets[0].cell} of {self.facts['imageSize']} pixels, so "
                "that the page stays small."
            )

    def take_samples(self, sheet: Sheet) -> None:
        """Stores the samples: number i of a class and scale is cell (scale * classes + class) * perClass + i."""
        self.facts["samples"] = {
            "scales": self.samples.scales,
            "classes": self.samples.class_names,
            "perClass": self.samples.images.shape[2],
            "sheet": sheet.facts(),
        }


def gather(subject: Subject, choice: ImageChoice, sizes: Sizes, world: World) -> SubjectPart:
    """Computes all that the page shows of a subject."""
    # What the networks do.
    tokenizer = subject.tokenizer
    images = count_images(tokenizer, choice, sizes.batch_size, world)
    tokens, replacements = gather_tokens(subject, images, choice.titles(), sizes, world)
    samples = None
    if subject.generator is not None and sizes.classes:
        samples = sample_scales(subject, sizes.settings, sizes.classes, sizes.per_class, sizes.batch_size, world)

    # In the form that the page reads; samples come with their pictures.
    facts = {
        "title": subject.place.title,
        "summary": summary_of(subject),
        "notes": notes_of(subject, tokens["positions"]),
        "imageSize": tokenizer.image_size,
        "numTokens": tokenizer.num_tokens,
        "numIndices": tokenizer.quantizer.num_groups,
        "bits": bits_per_image(tokenizer),
        "grid": tokenizer.token_grid,
        "tokens": tokens,
        "codebooks": gather_codebooks(subject, images),
        "samples": None,
    }
    return SubjectPart(facts, len(images.images), replacements, samples)


def gather_tokens(
    subject: Subject, images: CountedImages, titles: list[str], sizes: Sizes, world: World
) -> tuple[dict[str, Any], list[Replacements]]:
    """Originals, reconstructions and tokens of the shown images, and their replacements."""
    tokenizer = subject.tokenizer
    tokens = images.tokens[images.shown]
    originals = images.images[images.shown]
    reconstructions = reconstruct(tokenizer, tokens, sizes.batch_size)

    # What replaces a token, and how often each of them occurs. A codebook may have collapsed to fewer codes.
    candidates, counts = most_used_tokens(images.token_rows(), sizes.codes + 1)
    num_codes = min(sizes.codes, len(candidates) - 1)
    positions = replaced_positions(tokenizer.num_tokens, tokenizer.token_grid, sizes.tokens) if num_codes else []
    codes = [other_codes(image_tokens[positions], candidates, num_codes) for image_tokens in tokens if positions]
    replacements = replace_in_all(tokenizer, tokens, positions, codes, sizes.batch_size, world)

    # One record per image.
    records = []
    psnrs = decibels(reconstructions, originals)
    for number, title in enumerate(titles):
        record = {
            "title": title,
            "psnr": round(psnrs[number], 2),
            "original": picture_uri(originals[number]),
            "reconstruction": picture_uri(reconstructions[number]),
            "tokens": tokens[number].tolist(),
        }
        records.append(record | (influence_facts(replacements[number]) if replacements else {}))
    facts = {
        "images": records,
        "positions": positions,
        "tokenCounts": token_counts(candidates, counts),
        "numCounted": len(images.token_rows()),
        "numCountedImages": len(images.images),
    }
    return facts, replacements


def influence_facts(replacements: Replacements) -> dict[str, Any]:
    """The codes in the place of each token, the map of its influence, and how much it changes the image."""
    influence = replacements.influence
    strongest = influence.flatten(1).amax(1)
    scaled = influence / strongest.clamp_min(1e-6)[:, None, None] * 255
    return {
        "codes": replacements.codes.tolist(),
        "influence": gray_sheet(scaled.round().to(torch.uint8)).facts(),
        "strongest": [round(value, 1) for value in strongest.tolist()],
        "effect": [round(value, 3) for value in influence.flatten(1).mean(1).tolist()],
    }


def token_counts(candidates: Tensor, counts: Tensor) -> dict[str, int]:
    """How often the most used tokens occur, by their indices joined with commas."""
    return {",".join(map(str, token)): count for token, count in zip(candidates.tolist(), counts.tolist(), strict=True)}


def gather_codebooks(subject: Subject, images: CountedImages) -> list[dict[str, Any]]:
    """One record per codebook of a token."""
    # All maps share the room of a page, and so do the patches of the first groups.
    quantizer, grid = subject.tokenizer.quantizer, subject.tokenizer.token_grid
    limit = points_per_map(quantizer)
    groups_with_patches = min(quantizer.num_groups, MAX_GROUPS_WITH_PATCHES) if grid is not None else 0

    # Where the codes are on the map, and how often they occur.
    records = []
    for group in range(quantizer.num_groups):
        code_map = map_codebook(quantizer, group, images.token_rows(), limit)
        projection, typical = code_map.projection, code_map.typical_distance()
        record = {
            "size": code_map.size,
            "numUsed": code_map.num_used,
            "shares": [round(share, 4) for share in projection.shares],
            "ends": [[float(f"{end:.4g}") for end in ends] for ends in projection.ends],
            "typicalDistance": None if typical is None else float(f"{typical:.3g}"),
            "codes": code_map.codes.tolist(),
            "counts": code_map.counts.tolist(),
            "x": projection.places[:, 0].tolist(),
            "y": projection.places[:, 1].tolist(),
            "neighbors": code_map.neighbors.tolist(),
            "distances": [[float(f"{value:.3g}") for value in row] for row in code_map.distances.tolist()],
        }

        # Where they are in the images.
        if group < groups_with_patches:
            patches = patches_of(code_map, group, images, grid, MAX_PATCHES // groups_with_patches)
            record["patches"] = patch_facts(patches)
        records.append(record)
    return records


def patch_facts(patches: Patches) -> dict[str, Any] | None:
    """The patches as a sheet, and where those of each code begin; None without any."""
    if not patches.first:
        return None
    sheet = sheet_of(patches.pictures, PATCH_GRADE)
    return {"sheet": sheet.facts(), "first": patches.first, "count": patches.count}
