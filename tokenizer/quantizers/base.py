"""The contract of all quantizers, and the window of recent indices that every one of them keeps.

Shapes    z, z_q (B,N,D) float32      indices int64: (B,N) with one index per token (`num_groups` 1), (B,N,G) with G of
          them; index g lies in [0, group_sizes[g]), or is -1 where nothing was chosen (`lowest_index`). An image has as
          many tokens as latents, where a quantizer does not say otherwise (`num_indices`)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.world import gather_rows
from tokenizer.quantizers.usage import code_usage, images_of_window, usage_by_scale

USAGE_WINDOW = 65_536  # recent training tokens, over all ranks, that usage and perplexity describe


@dataclass
class Quantized:
    """The result of a quantizer.

    `losses` are unweighted scalars, only those that were asked for; a training also records what else is among them.
    """

    z_q: Tensor
    indices: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """Base class of all quantizers.

    A quantizer is a class in a file of its own, entered in `tokenizer.models.registry.QUANTIZERS` (or registered by a
    plug-in). It is built as `Class(section)`, where `section` is an instance of its `config_class`, calls this
    constructor, and defines `forward` and `decode_indices`. In training `forward` calls `remember(indices)`. Whatever
    else `forward` changes in itself must be a buffer: where an update is skipped, buffers are put back.

    A section may have a field `warmup_steps`: for so many steps at the start of a run `forward` is called with
    `quantize=False`; then `finish_warmup` is called once.
    """

    config_class: ClassVar[type]  # the dataclass of its section `model.quantizer.<name>`
    in_words: ClassVar[str] = ""  # how it quantizes, for a page; without it the page has the name alone
    # Losses that it computes. `codebook`, `commitment` and `entropy` have weights of their own in the section `loss`;
    # others have the weight in `loss.quantizer_weights`, by default the one in `loss_weights`.
    loss_names: frozenset[str] = frozenset({"codebook", "commitment", "entropy"})
    loss_weights: ClassVar[Mapping[str, float]] = {}
    # Buffers that are replaced and never written into; see `engine.buffers`.
    replaced_buffers: ClassVar[frozenset[str]] = frozenset({"recent_indices"})
    # -1: `decode_indices` takes an index of -1, which adds nothing to the latent.
    lowest_index: ClassVar[int] = 0
    # Whether `forward` takes a further argument `random_bits` in training: int64 (B,), 31 random bits of each image for
    # choices at random, which are the same for any number of processes and micro-batches.
    takes_random_bits: bool = False

    # Cells per side of the square grid whose latents, row by row, are the only ones that it takes; None: any latents.
    grid_side: int | None = None
    # Cells per side of the grids whose tokens follow each other in an image; empty where tokens are all of one kind.
    scales: Sequence[int] = ()
    group_sizes: tuple[int, ...]  # codes of each of the `num_groups` indices of a token
    num_groups: int
    codebook_size: int  # the largest of the group sizes
    codebook_dim: int  # channels of a latent, all groups together
    # The window, (USAGE_WINDOW,) or (USAGE_WINDOW, num_groups); None in a part of another quantizer, which has one for
    # all of its parts.
    recent_indices: Tensor | None

    def __init__(self, group_sizes: Sequence[int], codebook_dim: int, unseen: int = -1) -> None:
        """`unseen` fills the window before training; a negative value is not counted."""
        super().__init__()
        self.group_sizes = tuple(group_sizes)
        self.num_groups = len(self.group_sizes)
        self.codebook_size = max(self.group_sizes)
        self.codebook_dim = codebook_dim

        self.unseen = unseen
        shape = (USAGE_WINDOW,) if self.num_groups == 1 else (USAGE_WINDOW, self.num_groups)
        dtype = torch.int32 if self.codebook_size < 2**31 else torch.int64
        self.register_buffer("recent_indices", torch.full(shape, unseen, dtype=dtype))

    # ------------------------------------------------------------------------------------------------ to define
    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        """Latents (B,N,D) -> quantized latents, indices and losses, in float32 whatever the autocast region.

        `quantize=False` passes the latents through (no losses); `entropy` adds the entropy loss and its parts.
        """
        raise NotImplementedError

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B,N) or (B,N,G) -> exact quantized latents (B,N,D)."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ may be defined
    def num_indices(self, num_latents: int) -> int:
        """How many tokens the latents of an image become. By default each latent is one."""
        return num_latents

    def code_vectors(self, indices: Tensor) -> Tensor:
        """The vectors (B,N,D) that indices (B,N) or (B,N,G) stand for, each by itself, for any N."""
        return self.decode_indices(indices)

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        """How far latents (B,N,D) are from the codes `indices`, by what `forward` chooses: (B,N), least for its choice.

        Two programs that choose different codes for the same latent both are right where these distances are nearly
        equal. The default is the squared distance.
        """
        return (z.float() - self.decode_indices(indices)).square().sum(-1)

    def code_settings(self) -> dict[str, Any]:
        """Options, as JSON, on which the codes of a latent or their values depend without a trace in the weights.

        They are part of a tokenizer's identity, so that codes made with others are refused; empty for the defaults.
        """
        return {}

    def finish_warmup(self) -> bool:
        """Called once, on all ranks, when quantization begins. Returns whether it changed parameters."""
        return False

    def after_update(self, step: int, seed: int, is_skipped: Tensor) -> Mapping[nn.Parameter, Tensor]:
        """Called once after the optimizer's update `step`, on all ranks; `seed` is that of the run.

        For state that depends on all latents of an update, over ranks and micro-batches. Random choices come from
        (seed, step) and are equal on all ranks. Where the scalar `is_skipped` is true nothing may change; the host must
        not read it. Returns which rows of parameters, bool (rows,), were set to values that no gradient gave: the
        optimizer forgets their moments, and the averaged network takes them over.
        """
        return {}

    def require_warmup(self, num_latents: int) -> None:
        """Raises ConfigError where a warm-up of `num_latents` latents, over all ranks, is too short for its end."""

    def warnings(self) -> Iterator[str]:
        """What to tell before a training with this section, which is valid all the same."""
        return iter(())

    def memory_needed(self, num_latents: int) -> int:
        """Bytes that the entropy loss of `num_latents` tokens holds at its peak, with gradients; 0 if negligible."""
        return 0

    def require_memory(self, num_latents: int) -> None:
        """Raises ConfigError, before anything is allocated, where `memory_needed` is above a limit of the section."""

    def training_flops(self, num_latents: int, entropy: bool) -> int:
        """Operations of `forward` and its backward pass (see `engine.flops`); 0 without products that count."""
        return 0

    @property
    def can_restart_codes(self) -> bool:
        """Whether its section has an option `restart`, for codes that nobody uses, that is off."""
        return False

    def health(self) -> dict[str, float]:
        """What the doctor needs to judge a run; a key that has no meaning for a quantizer is left out.

        code_power            mean square per channel of a code, where all codes have the same
        max_sample_entropy    nats, the `sample_entropy` of latents that prefer no code
        """
        return {}

    # ------------------------------------------------------------------------------------------------ the window
    def empty_windows(self) -> dict[str, Tensor]:
        """The values that windows have before training, by the name of their buffer."""
        if self.recent_indices is None:
            return {}
        shape = self.recent_indices.shape
        return {"recent_indices": torch.full(shape, self.unseen, dtype=self.recent_indices.dtype)}

    @torch.no_grad()
    def remember(self, indices: Tensor) -> None:
        """Adds the indices of one batch, of all ranks, to the window."""
        if self.recent_indices is None:
            return
        new = gather_rows(indices.flatten(0, 1).to(self.recent_indices.dtype))[-USAGE_WINDOW:]
        self.recent_indices = torch.cat([self.recent_indices[len(new) :], new])

    def usage(self) -> dict[str, Tensor]:
        """`code_usage` of the window, also by scale, and what else a record should tell of the codes."""
        usage = code_usage(self.recent_indices, self.group_sizes)
        if self.scales:
            images = images_of_window(self.recent_indices, self.scales)
            usage |= usage_by_scale(images, self.codebook_size, self.scales)
        return usage


def entropy_terms(sample: Tensor, codebook: Tensor | None, codebook_weight: float = 1.0) -> dict[str, Tensor]:
    """The entropy loss and its two parts (nats); without a codebook entropy only the sample entropy."""
    if codebook is None:
        return {"sample_entropy": sample, "entropy": sample}
    return {"sample_entropy": sample, "codebook_entropy": codebook, "entropy": sample - codebook_weight * codebook}
