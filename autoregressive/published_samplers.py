"""The flag --sampler: the settings with which published generators were sampled by their authors, by recipe.

A record sets flags of the sampler in the place of their defaults; what is typed wins. All values were read in the
released code, none was tried on released weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from engine.messages import logger

Flags = Mapping[str, Any]  # names as in the parsed flags -> values

VAR_SAMPLER: Flags = {
    "cfg_schedule": "linear",
    "cfg_scale": 2.5,
    "guidance_first_token": "schedule",
    "top_k": 900,
    "top_p": 0.96,
}

PUBLISHED_SAMPLERS: dict[str, Flags] = {
    # Open-MAGVIT2 (arXiv:2409.04410): a scale and a temperature for each index of a token.
    "open_magvit2/AR_256_B": {"cfg_scale": (1.9, 2.0)},
    "open_magvit2/AR_256_L": {"cfg_scale": (1.9, 1.9), "temperature": (1.1, 1.0)},
    "open_magvit2/AR_256_XL": {"cfg_scale": (1.75, 1.85), "temperature": (1.1, 1.0)},
    # IBQ (arXiv:2412.02692).
    "ibq/AR_256_B": {"cfg_scale": 2.25, "temperature": 1.1},
    "ibq/AR_256_L": {"cfg_scale": 2.0},
    "ibq/AR_256_XL": {"cfg_scale": 2.35, "temperature": 1.15},
    "ibq/AR_256_XXL": {"cfg_scale": 2.85, "temperature": 1.2},
    # RAR (arXiv:2411.00776).
    "rar/rar_b": {"cfg_schedule": "power_cosine", "cfg_scale": 16.0, "cfg_power": 2.75},
    "rar/rar_l": {"cfg_schedule": "power_cosine", "cfg_scale": 15.5, "cfg_power": 2.5, "temperature": 1.02},
    "rar/rar_xl": {"cfg_schedule": "power_cosine", "cfg_scale": 6.9, "cfg_power": 1.5, "temperature": 1.02},
    "rar/rar_xxl": {"cfg_schedule": "power_cosine", "cfg_scale": 8.0, "cfg_power": 1.2, "temperature": 1.02},
    # VAR (arXiv:2404.02905): its cfg of 1.5 counts from 0 at the first scale, ours from 1.
    "var/var_d16": VAR_SAMPLER,
    "var/var_d20": VAR_SAMPLER,
    "var/var_d24": VAR_SAMPLER,
    "var/var_d30": VAR_SAMPLER,
}


def add_published_sampler_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --sampler; to be parsed by `parse_with_sampler`."""
    parser.add_argument(
        "--sampler",
        choices=sorted(PUBLISHED_SAMPLERS),
        metavar="RECIPE",
        help="sample as the authors of a published generator did; other flags then change single settings "
        f"({', '.join(sorted(PUBLISHED_SAMPLERS))})",
    )


def parse_with_sampler(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, with those of the published sampler that they name in the place of defaults."""
    args = parser.parse_args()
    name = getattr(args, "sampler", None)
    if name is None:
        return args
    settings = PUBLISHED_SAMPLERS[name]
    parser.set_defaults(**settings)
    args = parser.parse_args()
    typed = {flag: getattr(args, flag) for flag, value in settings.items() if getattr(args, flag) != value}
    note = f"; {', '.join(f'{flag}={value}' for flag, value in typed.items())} as typed" if typed else ""
    logger.info("sampler %s: %s%s", name, ", ".join(f"{flag}={value}" for flag, value in settings.items()), note)
    return args
