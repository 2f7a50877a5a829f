"""Converts a GPT between the published layout and ours, in both directions.

    python -m autoregressive.convert --gpt-ckpt GPT_B256_e300_VQ_SS.pt \\
        --gpt-config configs/gpt/GPT_B256.yaml --output converted/GPT_B
    python -m autoregressive.convert --gpt-ckpt runs/GPT_B256 --output GPT_B256.pt
    python -m autoregressive.convert --gpt-ckpt runs/GPT_wetok_B --output GPT_wetok_B.ckpt

A published file becomes a folder with config.yaml and model.safetensors, which every command takes; a folder of ours
becomes a file in the published layout. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autoregressive.loading import load_gpt
from autoregressive.released import rules_of
from engine.checkpoint import CheckpointError, export_folder
from engine.config import UserError, logger, run_entry
from tokenizer.published import is_published, write_published
from tokenizer.released import GPT_PART, export_state


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt-ckpt", required=True, type=Path, help="a published file, or a folder of ours")
    parser.add_argument("--gpt-config", type=Path, help="YAML of the architecture, for a published file")
    parser.add_argument(
        "--output", required=True, type=Path, help="a folder for ours, a .pt or .ckpt file for the published layout"
    )
    parser.add_argument("--weights", default="auto", choices=["auto", "ema", "model"])
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    to_published = args.output.suffix in (".pt", ".ckpt")
    if to_published == is_published(args.gpt_ckpt):
        raise UserError("--gpt-ckpt and --output must be a published file and a folder of ours, in either order")
    if args.output.exists():
        raise CheckpointError(f"{args.output} exists already; give another --output")
    gpt = load_gpt(args.gpt_ckpt, config=args.gpt_config, weights=args.weights)
    facts = gpt.provenance
    if to_published:
        state = export_state(gpt.state_dict(), rules_of(gpt.config))
        if gpt.config.streams:
            write_published(args.output, {"state_dict": {GPT_PART + name: v for name, v in state.items()}})
        else:
            write_published(args.output, {"model": state})
    else:
        export_folder(args.output, facts.config, gpt.state_dict())
    logger.info(
        "%s (%s weights, fingerprint %s) -> %s", args.gpt_ckpt, facts.weights, facts.fingerprint[:16], args.output
    )


if __name__ == "__main__":
    run_entry(main)
