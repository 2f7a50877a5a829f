"""A survey of a folder for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluations.own_data.fit import Fit, Suggestion, Target

NAME_WIDTH = 26
SHOWN = 5  # entries of a list


def survey_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """What `survey_values` says, as lines."""
    yield f"{values['pictures']}: {values['images']:,} images ({values['megabytes']:,.1f} MB were read)"
    if values["images_read"] < values["images"]:
        yield _row("read", f"{values['images_read']:,} of them, chosen at random; all of them without --limit")
    yield _row("layout", f"{values['layout']}: {values['reason']}")
    yield from _class_lines(values["classes"])
    if values["sizes"]:
        yield from _size_lines(values["sizes"])

    # Kinds of files.
    yield _row("formats", _counted(values["formats"]))
    yield _row("modes", _counted(values["modes"]))
    if values["exif_orientations"]:
        turned = sum(values["exif_orientations"].values())
        yield _row("EXIF orientation", f"{turned:,} images are stored turned (data.orientation=upright follows it)")
    if values["animations"]:
        yield _row("animations", f"{_listed(values['animations'])}: only the first frame is read")
    yield _row("decoding", f"{values['images_per_second_and_core']:,.0f} images per second on one core")
    yield from _trouble_lines(values)


def _class_lines(counts: Mapping[str, int]) -> Iterator[str]:
    """The classes, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[: 2 * SHOWN])
    more = f", and {len(ordered) - 2 * SHOWN:,} more" if len(ordered) > 2 * SHOWN else ""
    yield _row("images per class", f"{shown}{more}")
    if len(ordered) > 1 and ordered[0][1] >= 10 * ordered[-1][1]:
        yield _row("", f"{ordered[0][0]} has {ordered[0][1] / ordered[-1][1]:.0f} times as many as {ordered[-1][0]}")


def _size_lines(sizes: Mapping[str, Any]) -> Iterator[str]:
    """Sizes in pixels."""
    for name, title in (("short_side", "short side"), ("width", "width"), ("height", "height")):
        side = sizes[name]
        yield _row(f"{title} (px)", f"{side['min']:,} to {side['max']:,}, median {side['median']:,}")
    aspect = sizes["long_side_over_short_side"]
    tall = sizes["very_tall_or_wide"]
    yield _row("long : short side", f"median {aspect['median']}, at most {aspect['max']}; 2 or more: {tall:,} images")


def _trouble_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """What should be looked at."""
    broken = values["broken"]
    yield _row("broken", f"{len(broken):,}" if broken else "none")
    yield from _shown_lines([f"{name}: {reason}" for name, reason in broken.items()])
    for key, title in (("same_files", "same file"), ("same_pictures", "same picture")):
        groups = values[key]
        copies = sum(len(group) - 1 for group in groups)
        yield _row(title, f"{copies:,} more than one is enough" if groups else "no copies")
        yield from _shown_lines([" = ".join(group) for group in groups])

    # What is not read at all.
    unseen = values["not_seen"]
    nested = unseen["images_of_another_depth"]
    if nested:
        yield _row("not seen", f"{len(nested):,} images that lie beside or below the class folders: {_listed(nested)}")
    if unseen["dead_links"]:
        yield _row("links to nowhere", f"{len(unseen['dead_links']):,}: {_listed(unseen['dead_links'])}")
    others = {"files that are no images": unseen["other_files"], "hidden names": unseen["hidden_names"]}
    for title, count in others.items():
        if count:
            yield _row(title, f"{count:,}")


def fit_line(fit: Fit, count: int, name: str) -> str:
    """What a recipe would do with the images."""
    parts = [
        f"{fit.enlarged:,} of {count:,} images would be enlarged",
        f"{fit.much_larger:,} shrunk to a quarter or less",
        f"a center crop leaves out {fit.outside_of_crop:.0%} of the pixels",
    ]
    if fit.on_their_side:
        parts.append(f"{fit.on_their_side:,} would be seen turned (data.orientation={fit.orientation})")
    return f"{name} ({fit.image_size} px): {'; '.join(parts)}"


def suggestion_lines(suggestion: Suggestion, target: Target) -> Iterator[str]:
    """What is suggested for a kind of machine, with reasons."""
    yield f"suggested for {target.title}"
    titles = {
        "image_size": "image size (px)",
        "batch": "batch, tokenizer",
        "steps": "steps, tokenizer",
        "generator_batch": "batch, GPT",
        "generator_steps": "steps, GPT",
    }
    for key, title in titles.items():
        choice = getattr(suggestion, key)
        yield _row(title, f"{choice.value:,} ({choice.reason})")


def _row(title: str, text: str) -> str:
    return f"  {title:<{NAME_WIDTH}}{text}".rstrip()


def _shown_lines(lines: Sequence[str]) -> Iterator[str]:
    """The first lines of a list, below its row."""
    for line in lines[:SHOWN]:
        yield _row("", line)
    if len(lines) > SHOWN:
        yield _row("", f"and {len(lines) - SHOWN:,} more (--output FILE.json lists all)")


def _listed(names: Sequence[str]) -> str:
    """The first names of a list."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
