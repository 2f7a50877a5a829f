"""Group-wise lookup-free quantization (GQ) of WeTok (arXiv:2508.05599, Eq. 6-9).

The D = G * d channels of a latent are split into G groups of d neighbors; every channel is replaced by its sign. The
codebook of a group is implicit: all 2^d sign vectors, so there is nothing to learn or to look up. G = 1 is LFQ
(arXiv:2310.05737); d = 1 is what WeTok's ablation calls BSQ; with `l2_norm` latents and codes lie on the unit sphere,
which is BSQ itself (arXiv:2406.07548).

Shapes    z, z_q (B,N,D) float32, z_q is +-1 (over sqrt(D) with l2_norm; 0 gives -1)
          indices (B,N,G) int64, or (B,N) for one group; bit 0 = first channel of the group
Losses    commitment: mean (z - sg z_q)^2      entropies: nats (entropy_bits.py), of the soft assignment
          softmax(-|z_g - code|^2 / temperature), whose bits have logits 4 z / temperature
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.devices import full_precision
from engine.flops import TRAINED
from engine.messages import ConfigError
from engine.validation import Problem, Section, above, at_least
from tokenizer.quantizers.base import Quantized, Quantizer, entropy_terms
from tokenizer.quantizers.entropy_bits import bit_entropies, codebook_entropy_bytes
from tokenizer.quantizers.gradients import straight_through

MAX_BITS = 62  # bits of one index, which is an int64


@dataclass(kw_only=True, slots=True)
class GQConfig(Section):
    """`num_groups` groups of `group_dim` channels; each has one index, unless `index_bits` splits the bits anew."""

    num_groups: int = 4  # G; 1 = LFQ
    group_dim: int = 8  # channels per group, which are the bits of its index
    l2_norm: bool = False  # latents and codes on the unit sphere (BSQ)
    index_bits: list[int] = field(default_factory=list)  # splits the D bits into indices of these sizes: [3, 5, 8]
    entropy_temperature: float = 0.01
    codebook_entropy: Literal["pooled", "per_group"] = "pooled"  # pooled as released; per_group: Eq. 7 and 9, sums
    codebook_entropy_weight: float = 1.0  # weight inside the entropy loss; 0 leaves the sample entropy alone
    entropy_form: Literal["factorized", "naive"] = "factorized"  # naive holds every code of every latent: a reference
    entropy_statistics: Literal["local", "global"] = "local"  # over this rank's batch as released, or over all ranks
    max_entropy_mb: int = 512  # a codebook entropy that needs more memory is refused

    def problems(self) -> Iterator[Problem]:
        for name in ("num_groups", "group_dim", "max_entropy_mb"):
            yield from at_least(self, name, 1)
        yield from at_least(self, "codebook_entropy_weight", 0)
        yield from above(self, "entropy_temperature", 0)

        channels = self.num_groups * self.group_dim
        bits = self.bits
        if self.index_bits and (min(bits) < 1 or sum(bits) != channels):
            accepted = f"1 or more each, all together num_groups * group_dim = {channels}"
            yield Problem("index_bits", self.index_bits, accepted)
        if bits and max(bits) > MAX_BITS:
            accepted = f"at most {MAX_BITS} bits per index (index_bits splits them); the indices have {bits}"
            yield Problem("index_bits" if self.index_bits else "group_dim", max(bits), accepted)

    @property
    def bits(self) -> list[int]:
        """Bits of each index of a token."""
        return self.index_bits or [self.group_dim] * self.num_groups


class GroupLFQ(Quantizer):
    """See the module docstring. It has no parameters.

    `config.num_groups` are the groups whose entropies are taken; `num_groups` is the number of indices of a token,
    which `config.index_bits` makes another one.
    """

    config_class = GQConfig
    in_words = "signs of groups of channels, without a learned codebook"
    loss_names = frozenset({"commitment", "entropy"})

    def __init__(self, config: GQConfig) -> None:
        self.config = config
        self.bits = list(config.bits)
        super().__init__([2**bits for bits in self.bits], config.num_groups * config.group_dim)
        self.code_magnitude = self.codebook_dim**-0.5 if config.l2_norm else 1.0  # of every channel of a code

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        with full_precision(z.device):
            z = F.normalize(z.float(), dim=-1) if self.config.l2_norm else z.float()
            positive = z > 0
            indices = self.pack(positive)
            if self.training:
                self.remember(indices)
            if not quantize:
                return Quantized(z, indices)

            z_q = torch.where(positive, self.code_magnitude, -self.code_magnitude)
            losses = {"commitment": (z - z_q).square().mean()}
            if entropy:
                losses |= self.entropies(z)
            return Quantized(straight_through(z, z_q), indices, losses)

    def entropies(self, z: Tensor) -> dict[str, Tensor]:
        """The entropy terms of latents (B,N,D). Raises ConfigError where they need too much memory."""
        config = self.config
        self.require_memory(z[..., 0].numel())
        logits = (4 * self.code_magnitude / config.entropy_temperature) * z.reshape(
            -1, config.num_groups, config.group_dim
        )
        terms = bit_entropies(
            logits,
            with_codebook_entropy=config.codebook_entropy_weight > 0,
            per_group=config.codebook_entropy == "per_group",
            naive=config.entropy_form == "naive",
            over_ranks=config.entropy_statistics == "global" and self.training,
        )
        return entropy_terms(*terms, codebook_weight=config.codebook_entropy_weight)

    # ------------------------------------------------------------------------------------------------ memory
    def memory_needed(self, num_latents: int) -> int:
        return self._memory_of_groups(self.config.num_groups, num_latents)

    def _memory_of_groups(self, num_groups: int, num_latents: int) -> int:
        """Bytes that the codebook entropy would need if the channels were split into `num_groups` groups."""
        if self.config.codebook_entropy_weight == 0:
            return 0
        histograms = num_groups if self.config.codebook_entropy == "per_group" else 1
        naive = self.config.entropy_form == "naive"
        bits = self.codebook_dim // num_groups
        return codebook_entropy_bytes(bits, num_latents * num_groups, naive, histograms)

    def require_memory(self, num_latents: int) -> None:
        limit = self.config.max_entropy_mb * 2**20
        needed = self.memory_needed(num_latents)
        if needed <= limit:
            return

        channels = self.codebook_dim
        divisors = [groups for groups in range(1, channels + 1) if channels % groups == 0]
        fitting = [groups for groups in divisors if self._memory_of_groups(groups, num_latents) <= limit]
        groups = fitting[0] if fitting else "none"
        raise ConfigError(
            f"the codebook entropy of 2^{self.config.group_dim} codes needs about {needed:,} bytes, "
            f"above model.quantizer.gq.max_entropy_mb={self.config.max_entropy_mb}; num_groups={groups} would fit for "
            f"{channels} channels, or codebook_entropy_weight=0 keeps the sample entropy alone"
        )

    def training_flops(self, num_latents: int, entropy: bool) -> int:
        """The mean probability of each code: a product of two tables over all latents, with its two gradients."""
        if not entropy or self.config.codebook_entropy_weight == 0:
            return 0
        return TRAINED * 2 * num_latents * self.config.num_groups * 2**self.config.group_dim

    # ------------------------------------------------------------------------------------------------ indices
    def pack(self, positive: Tensor) -> Tensor:
        """Signs (B,N,D) bool -> indices (B,N,G) or (B,N)."""
        parts = positive.long().split(self.bits, dim=-1)
        places = [torch.arange(part.shape[-1], device=part.device) for part in parts]
        indices = [torch.bitwise_left_shift(*pair).sum(-1) for pair in zip(parts, places, strict=True)]
        return torch.stack(indices, dim=-1) if self.num_groups > 1 else indices[0]

    def decode_indices(self, indices: Tensor) -> Tensor:
        columns = indices.long().unbind(-1) if self.num_groups > 1 else [indices.long()]
        places = [torch.arange(bits, device=indices.device) for bits in self.bits]
        pairs = zip(columns, places, strict=True)
        signs = torch.cat([torch.bitwise_right_shift(column[..., None], place) & 1 for column, place in pairs], dim=-1)
        return torch.where(signs > 0, self.code_magnitude, -self.code_magnitude)

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        z = F.normalize(z.float(), dim=-1) if self.config.l2_norm else z.float()
        return super().choice_distances(z, indices)

    def health(self) -> dict[str, float]:
        summed_groups = self.config.num_groups if self.config.codebook_entropy == "per_group" else 1
        return {
            "code_power": self.code_magnitude**2,
            "max_sample_entropy": self.config.group_dim * summed_groups * math.log(2),
        }
