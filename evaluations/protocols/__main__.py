"""Prints how the numbers of papers were measured: one row per published program, and which of them works here.

    python -m evaluations.protocols                    all presets of --protocol
    python -m evaluations.protocols adm                every fact of one
    python -m evaluations.protocols adm var            in which facts two of them differ
    python -m evaluations.protocols --json             all facts for programs

A preset is `unavailable` where a part of it is not computed here, or a file of weights is not in PRETRAINED_DIR. It is
never replaced by another one. `verified` says whether results were compared with those of the published program.
"""

from __future__ import annotations

import argparse

from engine.assets import AssetsConfig
from engine.cli import entry_parser, run_entry
from engine.config import load_config
from engine.json_text import to_json
from engine.messages import UserError
from engine.preflight import Preflight, require
from evaluations.protocols.preset import Preset, differences
from evaluations.protocols.presets import PRESETS, presets_named

HEAD = ("preset", "of", "extractor", "reference", "labels", "images", "verified", "here")


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="show one preset, or what is different between two")
    parser.add_argument("--json", action="store_true", help="print a JSON list with all facts")
    return parser.parse_args()


def cells(preset: Preset, assets: AssetsConfig) -> tuple[str, ...]:
    """The row of a preset, in the order of HEAD."""
    return (
        preset.name,
        preset.measured,
        preset.extractor,
        preset.reference_kind or "-",
        preset.label_rule or "-",
        f"{preset.count:,}" if preset.count is not None else "-",
        "yes" if preset.verified else "no",
        "unavailable" if preset.unavailable(assets) else "available",
    )


def images_text(preset: Preset) -> str:
    """How images are cropped, rounded and resized, as far as it is known."""
    parts = {
        "crop": preset.crop,
        "size": None if preset.image_size is None else f"{preset.image_size} px",
        "8 bits": preset.rounding,
        "to the extractor": preset.resize,
    }
    return "; ".join(f"{name}: {text}" for name, text in parts.items() if text is not None)


def table(presets: tuple[Preset, ...], assets: AssetsConfig) -> str:
    """All presets, with whose they are, and what is not available or not verified, below each row."""
    rows = [HEAD, *(cells(preset, assets) for preset in presets)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, preset in zip(rows, (None, *presets), strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if preset is None:
            continue
        lines += [f"    {preset.title}", f"    {images_text(preset)}"]
        if not preset.verified:
            lines.append(f"    not verified: {preset.reason}")
        reason = preset.unavailable(assets)
        if reason:
            lines.append(f"    unavailable: {reason}")
    return "\n".join(lines)


def details(preset: Preset, assets: AssetsConfig) -> str:
    """Every fact of a preset, one a line."""
    record = {name: value for name, value in preset.record(assets).items() if value not in (None, "")}
    width = max(map(len, record))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in record.items())


def compared(first: list[Preset], second: list[Preset]) -> str:
    """The facts in which the presets of two names differ, key by key: of one kind of images, where both have it."""
    pairs = [(a, b) for a in first for b in second if a.measured == b.measured] or [(first[0], second[0])]
    lines = []
    for a, b in pairs:
        lines.append(f"{a.title}, then {b.title}:")
        lines += [f"  {line}" for line in differences(a, b)] or ["  no difference in what is compared"]
    return "\n".join(lines)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the names."""
    for name in args.names:
        with preflight.collecting():
            preflight.ready.append(f"preset: {presets_named(name)[0].title}")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    assets = load_config(AssetsConfig)
    if len(args.names) > 2:
        raise UserError(f"name one preset to show, or two to compare; found {len(args.names)}")

    named = [presets_named(name) for name in args.names]
    chosen = tuple(preset for presets in named for preset in presets) if named else PRESETS
    if args.json:
        print(to_json([preset.record(assets) for preset in chosen], indent=1))
    elif len(named) == 2:
        print(compared(*named))
    elif named:
        print("\n\n".join(details(preset, assets) for preset in chosen))
    else:
        print(table(chosen, assets))
        print("\nFollow one: --protocol NAME of evaluations.measure, generation, search_cfg and reconstruction")


if __name__ == "__main__":
    run_entry(main)
