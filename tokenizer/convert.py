"""Converts a tokenizer between the published file layout and the layout of this project, in both directions.

    python -m tokenizer.convert --vq-ckpt VQ_SS256_e100.pt \\
        --tok-config configs/vq/VQ_SS256.yaml --output converted/VQ_SS256
    python -m tokenizer.convert --vq-ckpt runs/VQ_SS256 --output VQ_SS256.pt
    python -m tokenizer.convert --vq-ckpt WeTok.ckpt --output converted/WeTok      (WeTok: no YAML, and .ckpt both ways)

A published file becomes a folder with config.yaml and model.safetensors, which every command accepts. For WeTok, the
folder also holds ema.safetensors if the file has both. A folder of this project becomes a file in the published layout.
Nothing is overwritten.
"""

from __future__ import annotations

import argparse

from torch import Tensor

from engine.cli import entry_parser, run_entry
from engine.messages import logger
from engine.preflight import require
from tokenizer import load_tokenizer
from tokenizer.loading import survey_tokenizer
from tokenizer.models.base import Tokenizer
from tokenizer.published.files import add_conversion_flags, conversion_needs, convert
from tokenizer.published.registry import LAYOUTS, layout_of

States = dict[str, dict[str, Tensor]]  # {"model" or "ema": state dict}


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_conversion_flags(parser, "--vq-ckpt", "--tok-config", "--model-config")
    return parser.parse_args()


def load(args: argparse.Namespace, weights: str) -> Tokenizer:
    return load_tokenizer(args.vq_ckpt, config=args.tok_config, weights=weights)


def published_states(args: argparse.Namespace, tokenizer: Tokenizer) -> States:
    """The content of a file in the published layout. Raises ConfigError where the model has none."""
    config = tokenizer.provenance.config.model
    layout = layout_of(config)
    state = layout.export(tokenizer, lambda: load(args, "model"))
    if not layout.explains_itself(config, state):
        logger.warning("%s: its shapes do not say all: name this tokenizer's YAML wherever it is read", args.output)
    return {layout.file_key: state}


def folder_states(args: argparse.Namespace, tokenizer: Tokenizer) -> States:
    """The weights of a folder of ours: raw and EMA where the file has both and no choice was made, else the chosen."""
    provenance = tokenizer.provenance
    model = provenance.config.model
    has_both = model.name in LAYOUTS and layout_of(model).holds_both_weights and provenance.weights == "ema"
    if has_both and args.weights == "auto":
        return {"model": load(args, "model").state_dict(), "ema": tokenizer.state_dict()}
    return {"model": tokenizer.state_dict()}


def main() -> None:
    args = parse_args()

    def survey() -> Tokenizer:
        return survey_tokenizer(args.vq_ckpt, config=args.tok_config, weights=args.weights)

    require(args, lambda preflight: conversion_needs(preflight, survey, args.vq_ckpt, args.output))
    convert(
        args.vq_ckpt,
        args.output,
        load=lambda: load(args, args.weights),
        published_states=lambda tokenizer: published_states(args, tokenizer),
        folder_states=lambda tokenizer: folder_states(args, tokenizer),
    )


if __name__ == "__main__":
    run_entry(main)
