"""Training of a GPT on codes, and validation on fixed held-out codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.codes import CENTER_VIEW, CodeStore
from autoregressive.models.gpt import GPT
from engine.checkpoint.weights import WeightSets
from engine.devices import autocast
from engine.loop import Batch
from engine.trained_model import TrainedModel
from engine.world import World


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over all tokens of the cross entropy in nats, summed over the indices of a token. (B,N,V), (B,N), or
    (B,N,k,V), (B,N,k).
    """
    indices = tokens.shape[2] if tokens.ndim == 3 else 1
    return indices * F.cross_entropy(logits.flatten(0, -2), tokens.flatten())


class GPTTask:
    """See `engine.loop.Task`. `preview(gpt, name)` writes sample images, or is None."""

    def __init__(
        self,
        gpt: TrainedModel,
        *,
        world: World,
        precision: str,
        validation: CodeStore | None,
        num_validation: int,
        batch_size: int,
        preview: Callable[[GPT, str], None] | None = None,
    ) -> None:
        self.gpt, self.world, self.precision, self.preview = gpt, world, precision, preview
        self.validation, self.batch_size = validation, batch_size
        self.rows = np.zeros(0, dtype=np.int64)
        if validation is not None:  # a fixed choice: stores are sorted by class
            order = np.random.default_rng(0).permutation(len(validation))
            self.rows = np.sort(order[: min(num_validation, len(validation))])

    def parts(self) -> Mapping[str, Any]:
        return {"gpt": self.gpt}

    def weights(self) -> WeightSets:
        return self.gpt.weights()

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        network = self.gpt.wrapped.train()
        total = torch.zeros((), device=self.world.device)
        for i, batch in enumerate(micro_batches):
            with self.gpt.accumulate(last=i + 1 == len(micro_batches)):
                with autocast(self.world.device, self.precision):
                    logits = network(batch["labels"], batch["tokens"], batch["drop"])
                loss = next_token_loss(logits, batch["tokens"])
                (loss / len(micro_batches)).backward()
            total = total + loss.detach() / len(micro_batches)
        return {"loss": total, **self.gpt.step(step, {"loss": total})}

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """`val/loss` in nats per token: true classes, centre view, mean over images; the same for averaged weights."""
        metrics = {}
        named = {"val": self.gpt.module} | ({"val_ema": self.gpt.ema} if self.gpt.ema is not None else {})
        for prefix, network in named.items():
            network.eval()
            if self.validation is not None:
                metrics[f"{prefix}/loss"] = self._loss(network)
            if self.preview is not None:  # on every rank: a sharded network is called by all
                with autocast(self.world.device, self.precision):
                    self.preview(network, f"{prefix}_{step:08d}")
        return metrics

    def _loss(self, network: GPT) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        mine = self.rows[self.world.rank :: self.world.size]
        view = CENTER_VIEW[self.validation.manifest.views]
        for start in range(0, -(-len(self.rows) // self.world.size), self.batch_size):
            rows = mine[start : start + self.batch_size]
            weight, rows = len(rows), rows if len(rows) else self.rows[:1]  # a sharded network is called by all
            tokens = torch.stack([self.validation.tokens(i, view) for i in rows]).to(self.world.device)
            labels = torch.tensor([int(self.validation.labels[i]) for i in rows], device=self.world.device)
            with autocast(self.world.device, self.precision):
                logits = network(labels, tokens)
            total += next_token_loss(logits, tokens).double() * weight
        return self.world.sum(total).item() / len(self.rows)
