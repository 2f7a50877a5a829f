"""Converts a generator between the published file layout and the layout of this project, in both directions.

    python -m autoregressive.convert --gpt-ckpt GPT_B256_e300_VQ_SS.pt \\
        --gpt-config configs/gpt/GPT_B256.yaml --output converted/GPT_B
    python -m autoregressive.convert --gpt-ckpt runs/GPT_B256 --output GPT_B256.pt
    python -m autoregressive.convert --gpt-ckpt runs/GPT_wetok_B --output GPT_wetok_B.ckpt

A published file becomes a folder with config.yaml and model.safetensors, which every command accepts. A folder of this
project becomes a file in the published layout. Nothing is overwritten. WeTok's published files also contain the
tokenizer; this program writes only the generator.
"""

from __future__ import annotations

import argparse

from torch import Tensor

from autoregressive.loading import load_gpt, survey_gpt
from autoregressive.models.base import Generator
from autoregressive.published import layout_of
from engine.cli import entry_parser, run_entry
from engine.preflight import require
from tokenizer.published.files import add_conversion_flags, conversion_needs, convert


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_conversion_flags(parser, "--gpt-ckpt", "--gpt-config")
    return parser.parse_args()


def published(generator: Generator) -> dict[str, dict[str, Tensor]]:
    """The content of a file in the published layout."""
    return layout_of(generator.provenance.config.model).export(generator)


def main() -> None:
    args = parse_args()

    def survey() -> Generator:
        return survey_gpt(args.gpt_ckpt, config=args.gpt_config, weights=args.weights)

    require(args, lambda preflight: conversion_needs(preflight, survey, args.gpt_ckpt, args.output))

    def load() -> Generator:
        return load_gpt(args.gpt_ckpt, config=args.gpt_config, weights=args.weights)

    convert(args.gpt_ckpt, args.output, load, published)


if __name__ == "__main__":
    run_entry(main)
