"""The flag --protocol of commands that measure: a preset sets the other flags, and a result says what was changed."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from autoregressive.published_samplers import parse_with_sampler
from engine.messages import UserError
from evaluations.metrics.extractor import Extractor
from evaluations.protocols.preset import Measured, Preset, extractor_name, weights_fact
from evaluations.protocols.presets import presets_for
from evaluations.protocols.registry import PROTOCOLS

OF_FILES = ("crop", "rounding", "label_rule")  # facts of images that somebody else made: nobody knows them here


def add_protocol_flag(parser: argparse.ArgumentParser, measured: Measured | None, rules: str | None = None) -> None:
    """Adds --protocol with the presets of what is measured; with default `rules`, those of a reconstruction too."""
    names = {*presets_for(measured), *(PROTOCOLS if rules is not None else ())}
    default = f"; without it, the rules of {rules} with flags of your own" if rules is not None else ""
    parser.add_argument(
        "--protocol", choices=sorted(names), metavar="NAME",
        help=f"measure as a published program does; other flags then change single facts, which the result names "
        f"({', '.join(sorted(names))}; `python -m evaluations.protocols` explains them{default})",
    )  # fmt: skip


def parse_with_preset(
    parser: argparse.ArgumentParser, measured: Measured | None, rules: str | None = None
) -> argparse.Namespace:
    """The flags, with those of the preset in the place of defaults; `preset` is that, or None.

    What was typed wins over the preset. `rules` are the default ones of a reconstruction, and `protocol` is then the
    name of the rules. Raises UserError for a preset that is not computed here.
    """
    args = parse_with_sampler(parser)
    asked = measured or getattr(args, "measured", None)
    preset = presets_for(asked).get(args.protocol) or presets_for(measured).get(args.protocol)
    if preset is not None:
        if preset.missing:
            raise UserError(f"--protocol {preset.name} is unavailable: {preset.missing}")
        parser.set_defaults(**preset_defaults(preset, vars(args)))
        args = parser.parse_args()  # the defaults of a sampler, which has other flags, are still those of the parser
    args.preset = preset
    if rules is not None:
        args.protocol = rules_of(args.protocol, preset, rules)
    return args


def preset_defaults(preset: Preset, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a preset for those flags that a command has; whole images keep their size."""
    defaults = {name: value for name, value in preset.flags().items() if name in flags}
    if flags.get("original_resolution"):
        defaults.pop("image_size_eval", None)
    return defaults


def rules_of(name: str | None, preset: Preset | None, default: str) -> str:
    """The rules in PROTOCOLS that a reconstruction follows."""
    if name is None:
        return default
    return preset.rules or default if preset is not None else name


def preset_section(
    preset: Preset | None,
    protocol: Mapping[str, Any],
    extractor: Extractor | None,
    resize: str | None = None,
    not_known: Collection[str] = (),
) -> dict[str, Any]:
    """`{preset: ...}` for the protocol of a result, or nothing where no preset was asked for.

    `protocol` is the rest of it, `resize` the rule of a reconstruction in the place of the extractor's.
    """
    if preset is None:
        return {}
    run = {
        "measured": protocol["kind"],
        "image_size": protocol["image_size_eval"],
        "count": protocol["num_images"],
        "rounding": protocol["rounding"],
        "extractor": "none",
        "repeats": 1,
        # Of the images that were made or cropped here; a generation has a rule for labels, a reconstruction a crop.
        **{name: protocol[key] for name, key in (("crop", "crop"), ("label_rule", "labels")) if key in protocol},
    }
    if extractor is not None:
        run |= {
            "extractor": extractor_name(extractor),
            "weights": weights_fact(extractor),
            "resize": resize or extractor.input_resize,
            "reference_kind": protocol["reference"]["kind"],
        }
    return {"preset": preset.followed_by({name: fact for name, fact in run.items() if name not in not_known})}
