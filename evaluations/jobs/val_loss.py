"""The evaluation behind `evaluations.val_loss`: held-out codes, and the loss of each image."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autoregressive.cli import gpt_from
from autoregressive.codes import CodeStore
from autoregressive.loading import classes_of
from autoregressive.models.base import Generator
from autoregressive.tokenized import TokenizedImages
from autoregressive.views import VIEWS
from engine.data.classes import Classes, with_labels_of
from engine.data.config import DataConfig
from engine.data.sources import open_source
from engine.finite import numbered, require_finite
from engine.messages import UserError
from engine.progress import progress
from engine.world import World
from evaluations.cli import output_path
from evaluations.image_sets import CENTER_CROP, decoding_facts, rank_batches
from evaluations.results import claim_result, write_result
from tokenizer.cli import images_from, tokenizer_from
from tokenizer.models.base import Tokenizer


class HeldOutCodes(Protocol):
    """Codes of held-out images with their labels."""

    facts: dict[str, Any]  # for the protocol; `num_images` and `data` among them

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Numbers of images (B,) -> tokens (B,N) or (B,N,k), labels (B,)."""


class CodesOfImages:
    """Center crops of the held-out images, through the tokenizer."""

    def __init__(self, data: DataConfig, tokenizer: Tokenizer, classes: Classes, device: torch.device) -> None:
        source = with_labels_of(open_source(data, "val"), classes)
        self.images = TokenizedImages(source, tokenizer, device, data.skip_broken)
        self.facts = {
            "num_images": len(source),
            "data": source.name,
            "content": source.identity(),
            "skip_broken": data.skip_broken,
            "crop": CENTER_CROP,
            **decoding_facts(data.decoding),
        }

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.images.read(rows)


class StoredCodes:
    """The codes of the split `val` that were extracted before, in their center view."""

    def __init__(self, folder: Path, classes: Classes) -> None:
        self.store = CodeStore(folder, "val")
        self.store.take_labels_of(classes)
        manifest = self.store.manifest
        crop = VIEWS[manifest.views].crop_name
        self.facts = {"num_images": len(self.store), "data": manifest.data, "crop": crop}
        if manifest.decoding:
            self.facts["decoding"] = manifest.decoding

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.store.read(rows)


def held_out_losses(generator: Generator, labels: Tensor, tokens: Tensor) -> Tensor:
    """The loss of each image (B,) float64, mean over the passes that the generator takes for it."""
    passes = generator.held_out_inputs(tokens)
    losses = [generator.image_losses(generator(labels, tokens, **inputs), tokens).double() for inputs in passes]
    return sum(losses) / len(passes)


@dataclass
class ValLossJob:
    """A generator and held-out codes of its tokenizer, checked."""

    output: Path
    tokenizer: Tokenizer
    generator: Generator
    codes: HeldOutCodes
    batch_size: int

    @classmethod
    def from_args(cls, args: argparse.Namespace, world: World) -> ValLossJob:
        """Opens and checks everything that the flags name, before anything is measured.

        Raises UserError for what does not fit.
        """
        output = output_path(args, "val_loss")
        if args.code_path is not None and (args.data or args.val_path):
            raise UserError("give either --code-path, or --data or --val-path")
        tokenizer = tokenizer_from(args, world.device)
        generator = gpt_from(args, tokenizer, world.device)

        # Held-out images, with the labels that the generator knows.
        codes: HeldOutCodes
        classes = classes_of(generator)
        if args.code_path is not None:
            codes = StoredCodes(args.code_path, classes)
            codes.store.require(tokenizer.code_maker(), args.vq_ckpt)
        else:
            codes = CodesOfImages(images_from(args, tokenizer), tokenizer, classes, world.device)

        data = codes.facts["data"]
        num_images = codes.facts["num_images"]
        if num_images < 2:
            raise UserError(f"{data} has {num_images} images; a standard error needs 2 or more")
        return cls(output, tokenizer, generator, codes, args.per_proc_batch_size)

    def protocol(self) -> dict[str, Any]:
        """How the numbers were made."""
        return {
            "kind": "val_loss",
            **self.codes.facts,
            "split": "val",
            "image_size": self.tokenizer.image_size,
            "labels": "true",
            "unit": "nats per token",
            **self.generator.held_out_facts,
            "tokenizer": self.tokenizer.provenance.facts(),
            "gpt": self.generator.provenance.facts(),
            "precision": str(self.generator.dtype).removeprefix("torch."),
        }

    def run(self, world: World) -> None:
        """Measures, and writes the result."""
        protocol = self.protocol()
        claim_result(self.output, protocol)
        count = self.codes.facts["num_images"]
        losses = torch.zeros(count, dtype=torch.float64, device=world.device)
        batches = rank_batches(count, self.batch_size, world)
        for ids in progress(batches, "validation loss", world):
            with numbered("image", ids):
                tokens, labels = self.codes.read(ids.numpy())
                labels = labels.to(world.device)
                tokens = tokens.to(world.device)
                image_losses = held_out_losses(self.generator, labels, tokens)
                require_finite(image_losses, "losses of the generator")
            losses[ids] = image_losses
        losses = world.sum(losses)

        if world.is_main:
            name = f"val_{self.generator.held_out_loss}"
            metrics = {name: losses.mean().item(), f"{name}_stderr": (losses.std() / count**0.5).item()}
            write_result(self.output, metrics, protocol)
