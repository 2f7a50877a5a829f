"""Converts a tokenizer between the published layout and ours, in both directions.

    python -m tokenizer.convert --vq-ckpt VQ_SS256_e100.pt \\
        --tok-config configs/vq/VQ_SS256.yaml --output converted/VQ_SS256
    python -m tokenizer.convert --vq-ckpt runs/VQ_SS256 --output VQ_SS256.pt
    python -m tokenizer.convert --vq-ckpt WeTok.ckpt --output converted/WeTok      (WeTok: no YAML, and .ckpt both ways)

A published file becomes a folder with config.yaml and model.safetensors, which every command takes; a folder of ours
becomes a file in the published layout. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.checkpoint import CheckpointError, export_folder
from engine.config import UserError, logger, run_entry
from tokenizer import load_tokenizer
from tokenizer.published import is_published, write_published
from tokenizer.released import export_state, flattened, rules_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vq-ckpt", required=True, type=Path, help="a published file, or a folder of ours")
    parser.add_argument(
        "--tok-config", "--model-config", type=Path, help="YAML of the architecture, for a published file"
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="a folder for ours, a .pt or .ckpt file for the published layout"
    )
    parser.add_argument(
        "--weights", default="auto", choices=["auto", "ema", "model"], help="auto: ema where there is one"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    to_published = args.output.suffix in (".pt", ".ckpt")
    if to_published == is_published(args.vq_ckpt):
        raise UserError("--vq-ckpt and --output must be a published file and a folder of ours, in either order")
    if args.output.exists():
        raise CheckpointError(f"{args.output} exists already; give another --output")
    tokenizer = load_tokenizer(args.vq_ckpt, config=args.tok_config, weights=args.weights)
    facts = tokenizer.provenance
    if to_published and facts.config.model.name == "wetok":  # raw and averaged weights in one state dict
        rules = rules_of(facts.config.model)
        averaged = export_state(tokenizer.state_dict(), rules) if facts.weights == "ema" else {}
        raw = export_state(load_tokenizer(args.vq_ckpt, weights="model").state_dict(), rules)
        write_published(args.output, {"state_dict": raw | {flattened(k): v for k, v in averaged.items()}})
    elif to_published:
        write_published(args.output, {"model": export_state(tokenizer.state_dict(), rules_of(facts.config.model))})
    else:
        export_folder(args.output, facts.config, tokenizer.state_dict())
    logger.info(
        "%s (%s weights, fingerprint %s) -> %s", args.vq_ckpt, facts.weights, facts.fingerprint[:16], args.output
    )


if __name__ == "__main__":
    run_entry(main)
