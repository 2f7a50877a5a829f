"""A miniature tokenizer with every part, random images, and ranks that are threads, for tests of several packages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autoregressive.models.registry import build_generator
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config, save_config
from engine.data.packaged import ArraySource
from engine.world import World
from evaluations.metrics.intervals import Estimate
from tokenizer.models.registry import build_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

T = TypeVar("T")

# About 30,000 parameters: 16-pixel images, a 4x4 grid, 8 tokens of 32 codes, a semantic head.
TOKENIZER = [
    "data={name: mnist5k, image_size: 16, global_batch_size: 4, num_workers: 0, random_crop: false, flip_prob: 0}",
    "model.hybrid.encoder={width: 16, layers: 2, heads: 2}",
    "model.hybrid.decoder={width: 16, layers: 2, heads: 2}",
    "model.hybrid.num_tokens=8",
    "model.hybrid.z_channels=8",
    "model.hybrid.cnn={base_channels: 4, channel_multipliers: [1, 2, 2], encoder_res_blocks: 1, "
    "decoder_res_blocks: 1, mid_blocks: 1, norm_groups: 1, adaptive_gain: 1.0}",
    "model.hybrid.semantic_layer=1",
    "model.hybrid.semantic_dim=12",
    "model.hybrid.position_std=1.0",
    "model.hybrid.init=torch",
    "model.quantizer.vq={codebook_size: 32, codebook_dim: 4}",
    "loss.perceptual_weight=0",
    "loop.device=cpu",
]
SILENT = SimpleNamespace(log=lambda text: None, save_grid=None)  # a run that keeps nothing


def tokenizer_config(*overrides: str) -> TokenizerTrainConfig:
    """The training config of the miniature tokenizer."""
    return load_config(TokenizerTrainConfig, overrides=[*TOKENIZER, *overrides])


def tokenizer_of(config: TokenizerTrainConfig, seed: int = 0) -> nn.Module:
    """A freshly initialized tokenizer."""
    torch.manual_seed(seed)
    return build_tokenizer(config.model, config.data.image_size)


def export(folder: Path, config: Any, module: nn.Module) -> Path:
    """An exported folder: config.yaml and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")
    return folder


def export_networks(root: Path) -> None:
    """`tokenizer` and `other` (the same with other weights), and a `gpt` of two layers over their codes, 4 classes."""
    config = tokenizer_config()
    for name, seed in (("tokenizer", 0), ("other", 1)):
        export(root / name, config, tokenizer_of(config, seed))
    sizes = "model.gpt={width: 16, layers: 2, heads: 2, vocab_size: 32, num_tokens: 8, num_classes: 4}"
    gpt_config = load_config(GPTTrainConfig, overrides=[sizes])
    gpt = build_generator(gpt_config.model)
    nn.init.normal_(gpt.output.weight)
    export(root / "gpt", gpt_config, gpt)


def tiny_errors(metrics: dict[str, Any]) -> dict[str, Estimate]:
    """Errors of 1e-9 for the single numbers among metrics, so that any difference of two results is told apart."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return {name: Estimate(value, 1e-9, 9, "jackknife", (value,) * 10) for name, value in numbers.items()}


def random_images(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """uint8 (count,3,size,size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def image_source(count: int, size: int = 16, seed: int = 0, classes: int = 4, name: str = "mnist5k") -> ArraySource:
    """`count` random images, by default under the name of a packaged set."""
    pixels = random_images(count, size, seed).permute(0, 2, 3, 1).contiguous().numpy()
    names = [str(i) for i in range(classes)]
    return ArraySource(name, pixels, np.arange(count, dtype=np.int64) % classes, names)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank that is a thread of this process: sums and barriers as in a process group, without one."""

    shared: dict
    meeting: threading.Barrier

    def barrier(self) -> None:
        self.meeting.wait(60)

    def sum(self, tensor: Tensor) -> Tensor:
        self.shared[self.rank] = tensor.detach().clone()
        self.barrier()
        total = sum(self.shared[rank] for rank in range(self.size))
        self.barrier()
        return total

    def gather_rows(self, tensor: Tensor) -> Tensor:
        self.shared[self.rank] = tensor.detach().clone()
        self.barrier()
        rows = torch.cat([self.shared[rank] for rank in range(self.size)])
        self.barrier()
        return rows


def on_ranks(size: int, work: Callable[[World], T]) -> list[T]:
    """`work(world)` on `size` ranks at once; the results by rank. An error on any rank is raised."""
    shared, meeting = {}, threading.Barrier(size)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, size, rank, torch.device("cpu"), shared, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return [results[rank] for rank in range(size)]
