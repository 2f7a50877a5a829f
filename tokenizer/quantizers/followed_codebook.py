"""Learned codebooks that depend on the latents of an update beside their gradients; see codebook_updates.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.devices import full_precision
from engine.parallel import not_compiled, shard_like, whole
from engine.validation import Problem, Section, in_range
from tokenizer.quantizers.affinity import SquaredDistance, nearest_codes
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.codebook_updates import MAX_PENDING, CodebookState, Followed
from tokenizer.quantizers.entropy_assignment import rows_per_chunk


def restart_problems(section: Section) -> Iterator[Problem]:
    """Problems of the keys `decay` and `restart_threshold`."""
    yield from in_range(section, "decay", 0, 1, open_right=True)
    yield from in_range(section, "restart_threshold", 0, 1, open_left=True)


class FollowedCodebook(Quantizer):
    """Base class of quantizers with a parameter `codebook` (K,D), whose codes may become averages and start anew.

    Its section has the keys `decay`, `restart` and `restart_threshold` of `VQConfig`. The constructor sets `config` and
    `codebook` and calls `_prepare_updates`; `forward` calls `_follow` where `_is_followed`.
    """

    replaced_buffers = Quantizer.replaced_buffers | {"cluster_size", "cluster_sum", "usage_ema", "num_restarts"}
    codebook: nn.Parameter

    def _prepare_updates(self) -> None:
        """The statistics that averages and `restart` need; without them the network has no other state."""
        self._followed: list[tuple[Tensor, Tensor]] = []  # latents and codes of the update under way
        if self._takes_averages:
            self.loss_names = self.loss_names - {"codebook"}
            self.codebook.requires_grad_(False)
            self.register_buffer("cluster_size", torch.ones(self.codebook_size))
            self.register_buffer("cluster_sum", self.codebook.detach().clone())

        # CVQ begins without use, so that it places all codes that the first latents do not choose.
        if self.config.restart == "nearest":
            self.register_buffer("usage_ema", torch.zeros(self.codebook_size))
        elif self.config.restart == "random" and not self._takes_averages:
            self.register_buffer("usage_ema", torch.full((self.codebook_size,), 1 / self.codebook_size))
        if self.config.restart != "none":
            self.register_buffer("num_restarts", torch.zeros((), dtype=torch.long))

    @property
    def _takes_averages(self) -> bool:
        """Whether codes are averages of their latents, and have no gradient."""
        return False

    def _normalize(self, vectors: Tensor) -> Tensor:
        """Vectors (...,D) with the length that codes have."""
        return vectors

    @staticmethod
    @torch.no_grad()
    def nearest(z: Tensor, codes: Tensor) -> Tensor:
        """Index of the nearest code of each latent, the first on ties. (n,D), (K,D) -> (n,) int64."""
        return nearest_codes(SquaredDistance(codes, temperature=1.0), z, rows_per_chunk(codes))

    # ------------------------------------------------------------------------------------------------ the update
    @property
    def _is_followed(self) -> bool:
        """Whether the codebook depends on the latents of an update beside their gradients."""
        return self._takes_averages or self.config.restart != "none"

    @not_compiled
    def _follow(self, latents: Tensor, indices: Tensor) -> None:
        """Keeps the latents of a micro-batch (n,D) and their codes for `after_update`."""
        if len(self._followed) == MAX_PENDING:
            raise RuntimeError(f"{MAX_PENDING} training passes without an update: call quantizer.after_update")
        self._followed.append((latents.detach(), indices.flatten()))

    @torch.no_grad()
    def after_update(self, step: int, seed: int, is_skipped: Tensor) -> dict[nn.Parameter, Tensor]:
        """Moves the codes as codebook_updates.py says; see `Quantizer.after_update`."""
        if not self._followed:
            return {}
        followed = Followed.of_parts(self._followed)
        self._followed.clear()

        # The update, of whole tensors that are equal on all ranks.
        with full_precision(followed.latents.device):
            before = self._update_state()
            after = self._updated(replace(before), followed, step, seed)

        # What changed is put in its place, unless the step was skipped.
        self.codebook.copy_(shard_like(torch.where(is_skipped, before.codes, after.codes), self.codebook))
        for name in ("cluster_size", "cluster_sum", "usage_ema"):
            if getattr(before, name) is not None:
                setattr(self, name, torch.where(is_skipped, getattr(before, name), getattr(after, name)))
        is_restarted = after.is_restarted & ~is_skipped
        if self.config.restart != "none":
            self.num_restarts = self.num_restarts + is_restarted.sum()
        return {self.codebook: ~is_skipped.expand_as(is_restarted) if self._takes_averages else is_restarted}

    def _update_state(self) -> CodebookState:
        """The codebook and its statistics as they are."""
        codes = whole(self.codebook.detach()).float()
        statistics = [getattr(self, name, None) for name in ("cluster_size", "cluster_sum", "usage_ema")]
        return CodebookState(codes, *statistics, is_restarted=codes.new_zeros(len(codes), dtype=torch.bool))

    def _updated(self, state: CodebookState, followed: Followed, step: int, seed: int) -> CodebookState:
        """What a state becomes by the latents of an update."""
        config = self.config
        counts, sums = followed.statistics(self.codebook_size)
        if state.cluster_size is not None:
            state.average(counts, sums, config.decay, self._normalize)
        if state.usage_ema is not None:
            state.note_usage(counts, config.decay)

        # Codes that nobody uses.
        if config.restart == "random":
            state.restart_at(followed.drawn(self.codebook_size, seed, step), counts, config.restart_threshold)
        elif config.restart == "nearest":
            state.approach(followed.nearest(self._normalize(state.codes), self.nearest), config.decay)
        return state

    @property
    def can_restart_codes(self) -> bool:
        return self.config.restart == "none"

    def usage(self) -> dict[str, Tensor]:
        """Also `restarts`."""
        return super().usage() | self.restarts()

    def restarts(self) -> dict[str, Tensor]:
        """`restarted_codes`, with `restart`: how many codes started anew since the start of the run."""
        return {} if self.config.restart == "none" else {"restarted_codes": self.num_restarts.double()}
