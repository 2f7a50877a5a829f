"""Converts a tokenizer between the published layout and ours, in both directions.

    python -m tokenizer.convert --vq-ckpt VQ_SS256_e100.pt \\
        --tok-config configs/vq/VQ_SS256.yaml --output converted/VQ_SS256
    python -m tokenizer.convert --vq-ckpt runs/VQ_SS256 --output VQ_SS256.pt
    python -m tokenizer.convert --vq-ckpt WeTok.ckpt --output converted/WeTok      (WeTok: no YAML, and .ckpt both ways)

A published file becomes a folder with config.yaml and model.safetensors (of WeTok also ema.safetensors, where the file
has both), which every command takes; a folder of ours becomes a file in the published layout. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from torch import Tensor, nn

from engine.cli import entry_parser, run_entry
from engine.messages import ConfigError, logger
from tokenizer import load_tokenizer
from tokenizer.models.registry import ModelConfig
from tokenizer.published.families import layout_rules
from tokenizer.published.files import add_conversion_flags, convert
from tokenizer.published.layout import export_state
from tokenizer.published.wetok import ema_key, wetok_config


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_conversion_flags(parser, "--vq-ckpt", "--tok-config", "--model-config")
    return parser.parse_args()


def _is_shown(config: ModelConfig, state: Mapping[str, Tensor]) -> bool:
    """Whether a file of WeTok without a YAML is read as the architecture that it has."""
    try:
        shown = wetok_config(state)
    except ConfigError:
        return False
    return (shown.quantizer, shown.wetok.cnn.norm_groups) == (config.quantizer, config.wetok.cnn.norm_groups)


def main() -> None:
    args = parse_args()

    def published(tokenizer: nn.Module) -> dict[str, dict[str, Tensor]]:
        config = tokenizer.provenance.config.model
        state = export_state(tokenizer.state_dict(), layout_rules(config))
        if config.name != "wetok":
            return {"model": state}
        if not _is_shown(config, state):
            logger.warning("%s: its shapes do not say all: name this tokenizer's YAML wherever it is read", args.output)
        if tokenizer.provenance.weights == "ema":  # raw and averaged weights in one state dict
            averaged = {ema_key(name): tensor for name, tensor in state.items()}
            state = export_state(load("model").state_dict(), layout_rules(config)) | averaged
        return {"state_dict": state}

    def ours(tokenizer: nn.Module) -> dict[str, dict[str, Tensor]]:
        facts = tokenizer.provenance
        if facts.config.model.name != "wetok" or args.weights != "auto" or facts.weights != "ema":
            return {"model": tokenizer.state_dict()}
        return {"model": load("model").state_dict(), "ema": tokenizer.state_dict()}

    def load(weights: str = args.weights) -> nn.Module:
        return load_tokenizer(args.vq_ckpt, config=args.tok_config, weights=weights)

    convert(args.vq_ckpt, args.output, load, published, ours)


if __name__ == "__main__":
    run_entry(main)
