"""Tiny trainings of a generator that must be equal: whole, in micro-batches, on two processes, and gone on with."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import mini
import pytest
import tiny
import torch
from ranks import on_ranks
from torch import Tensor

from autoregressive import load_gpt
from autoregressive.train import train
from engine.checkpoint.manifest import checkpoint_folders
from engine.run_log import read_metrics
from engine.world import World
from tokenizer import load_tokenizer

ALONE = World(0, 1, 0, torch.device("cpu"))
Codes = tuple[Path, Path]  # a store of codes, and their tokenizer


def codes_below(root: Path, base: str = tiny.TOKENIZER, num_tokens: int = 4) -> Codes:
    """A tokenizer with initial weights, and random codes in its name."""
    config = tiny.tokenizer_config(root / "run", root, base=base)
    mini.export(root / "tokenizer", config, mini.tokenizer_of(config))
    fingerprint = load_tokenizer(root / "tokenizer").provenance.fingerprint
    tiny.write_codes(root / "codes", fingerprint, num_tokens=num_tokens)
    return root / "codes", root / "tokenizer"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_gpt(folder, weights="model").state_dict()


@dataclass(frozen=True)
class Runs:
    """Trainings with the same settings."""

    settings: tuple[str, ...]  # overrides of `tiny.GPT_TRAINING`

    def train(self, world: World, folder: Path, codes: Codes, *overrides: str) -> Path:
        """A training into `folder`, which it returns."""
        train(tiny.gpt_config(folder, *codes, *self.settings, *overrides, base=tiny.GPT_TRAINING), world)
        return folder

    def require_parts_change_nothing(self, whole: Path, codes: Codes, folder: Path, *of_ranks: str) -> None:
        """With half micro-batches, and on two processes (with the overrides `of_ranks`), losses and weights are those
        of the run `whole`, up to rounding.
        """
        self.train(ALONE, folder / "accumulated", codes, "loop.grad_accum=2")
        on_ranks(2, folder / "ranks", self.train, folder / "two", codes, *of_ranks)
        for other in ("accumulated", "two"):
            for expected, record in zip(read_metrics(whole), read_metrics(folder / other), strict=True):
                for name in (name for name in expected if "loss" in name):
                    assert record[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (other, name)
            for name, tensor in weights(folder / other).items():
                torch.testing.assert_close(tensor, weights(whole)[name], rtol=1e-4, atol=1e-6)

    def require_the_same_bits_without_the_last(self, whole: Path, codes: Codes, folder: Path, *overrides: str) -> None:
        """A copy of the run `whole` that lost its last checkpoint ends with the same weights."""
        shutil.copytree(whole, folder)
        shutil.rmtree(checkpoint_folders(folder)[-1])
        self.train(ALONE, folder, codes, *overrides)
        assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(folder).items())
