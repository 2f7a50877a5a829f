"""A tiny trained network with its checkpoints, for the tests of engine/checkpoint.py."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.checkpoint.store import CheckpointStore
from engine.optim import OptimConfig
from engine.trained_model import TrainedModel


@dataclass(kw_only=True, slots=True)
class Sizes:
    """What the network is."""

    width: int = 6


@dataclass(kw_only=True, slots=True)
class Config:
    """A root config."""

    model: Sizes = field(default_factory=Sizes)
    note: str = ""


class Thing:
    """A trained network and its store."""

    def __init__(
        self, folder: Path, world, *, width: int = 6, seed: int = 0, ema: float = 0.9, note: str = "", **store
    ):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 3))
        self.updater = TrainedModel(network, OptimConfig(lr=1e-2), total_steps=99, world=world, ema_decay=ema)
        self.parts = {"network": self.updater}
        self.config = Config(model=Sizes(width=width), note=note)
        self.store = CheckpointStore(folder, world, self.config, **store)

    def train(self, steps: range) -> None:
        for step in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            self.updater.wrapped(x).square().sum().backward()
            self.updater.step(step, {})

    def save(self, step: int) -> Path:
        return self.store.save(step, self.parts, self.updater.weights)

    def load(self) -> int:
        return self.store.load_latest(self.parts)

    def state(self) -> dict[str, torch.Tensor]:
        return flat(copy.deepcopy(self.updater.state_dict()))


def flat(tree, prefix: str = "") -> dict:
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}.{name}").items()}
    return {prefix: tree}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()
    )


def steps_of(folder: Path) -> list[int]:
    return [read_manifest(f)["step"] for f in checkpoint_folders(folder)]


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def flipped_byte(folder: Path) -> None:
    """One bit of the weights is wrong; the size is right."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
