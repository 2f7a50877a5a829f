"""A probe of miniature networks: their images, their folders, the config of a run of six steps."""

from pathlib import Path

import mini
import torch

from engine.config import load_config
from evaluations.probes.config import LinearProbeConfig
from evaluations.probes.features import NetworkConfig, ProbedNetwork
from tokenizer.training.config import TokenizerTrainConfig

IMAGES = {"train": mini.image_source(24, seed=1), "val": mini.image_source(14, seed=2)}


def export_all(root: Path) -> Path:
    """Exports `mini.export_networks`, a 2D tokenizer, one without semantic layer, a plain CNN."""
    mini.export_networks(root)
    grid = mini.tokenizer_config("model.hybrid.layout=2d", "model.hybrid.block=vit", "model.hybrid.num_tokens=16")
    mini.export(root / "2d", grid, mini.tokenizer_of(grid))
    headless = mini.tokenizer_config("model.hybrid.semantic_layer=null")
    mini.export(root / "headless", headless, mini.tokenizer_of(headless))
    cnn = "{base_channels: 4, channel_multipliers: [1, 2, 2], norm_groups: 1}"
    data = "data={name: mnist5k, image_size: 16, global_batch_size: 4, num_workers: 0}"
    own = ["model.name=llamagen", f"model.llamagen={{z_channels: 8, cnn: {cnn}}}", data, "loss.perceptual_weight=0"]
    plain = load_config(TokenizerTrainConfig, overrides=own)
    mini.export(root / "cnn", plain, mini.tokenizer_of(plain))
    return root


def config_of(given, run_dir="unused", *overrides) -> LinearProbeConfig:
    """Six steps of 8 images, checkpoints after 3 and 6."""
    options = [
        f"network={{source: gpt, tokenizer: {given / 'tokenizer'}, gpt: {given / 'gpt'}}}",
        "probe={features: cached, base_lrs: [1.0, 10.0], epochs: 2, warmup_epochs: 1, read_batch_size: 5}",
        "data={name: mnist5k, image_size: 16, global_batch_size: 8, num_workers: 0}",
        f"loop={{run_dir: {run_dir}, log_every: 1, save_every: 3, eval_every: 2, device: cpu}}",
    ]
    return load_config(LinearProbeConfig, overrides=[*options, *overrides])


def pixels(split: str) -> torch.Tensor:
    return torch.from_numpy(IMAGES[split].images).permute(0, 3, 1, 2).contiguous()


def network_of(given, **options) -> ProbedNetwork:
    options = {"tokenizer": str(given / "tokenizer")} | options
    options |= {"gpt": str(given / "gpt")} if options.get("source", "gpt") == "gpt" else {}
    return ProbedNetwork(NetworkConfig(**options), 0, "fp32", torch.device("cpu"))
