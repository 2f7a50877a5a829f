"""Vector quantization with a learned codebook (VQ-VAE, arXiv:1711.00937; l2-normalised codes of ViT-VQGAN,
arXiv:2110.04627), and its variants SimVQ and IBQ.

GigaTok's quantizer: 16,384 codes of 8 channels on the unit sphere, rotation trick or straight-through gradient, an
optional entropy loss. Everything here runs in fp32, also inside a bf16 region: with half-precision distances up to 6 %
of the nearest codes change.

Losses    codebook: mean |q - sg z|^2      commitment: mean |sg q - z|^2      entropies: nats (entropy.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.devices import full_precision
from engine.messages import ConfigError
from engine.parallel import shard_like
from engine.world import gather_rows
from tokenizer.quantizers.base import Quantized, Quantizer, entropy_terms
from tokenizer.quantizers.entropy_assignment import assignment_entropies, rows_per_chunk, squared_distances
from tokenizer.quantizers.gradients import rotation_trick, straight_through

KMEANS_LATENTS_PER_CODE = 16  # recent latents kept for the k-means initialization


KMEANS_ROUNDS = 8


@dataclass(kw_only=True, slots=True)
class VQConfig:
    """A codebook of `codebook_size` vectors of `codebook_dim` channels."""

    KEY: ClassVar[str] = "model.quantizer.vq"  # in messages
    LEARNED: ClassVar[bool] = True
    codebook_size: int = 16384
    codebook_dim: int = 8
    l2_norm: bool = True  # compare directions: latents and codes are normalised at every use
    rotation_trick: bool = True  # else straight-through
    entropy_temperature: float = 0.01  # of the soft assignment in the entropy loss
    entropy_distance: Literal["squared", "plain"] = (
        "squared"  # in that assignment; squared as released, plain as written
    )
    entropy_statistics: Literal["local", "global"] = "local"  # of this rank's batch as released, or of all ranks
    warmup_steps: int = 0  # steps at the start in which latents pass through unquantized
    init: Literal["random", "kmeans"] = "random"  # kmeans: on the latents at the end of the warm-up

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_dim < 1:
            raise ConfigError(f"{self.KEY}: codebook_size must be 2 or more and codebook_dim 1 or more")
        if self.entropy_temperature <= 0:
            raise ConfigError(f"{self.KEY}.entropy_temperature={self.entropy_temperature} must be above 0")
        if self.init == "kmeans" and (self.warmup_steps < 1 or not self.LEARNED):
            raise ConfigError(f"{self.KEY}.init=kmeans needs {self.KEY}.warmup_steps from 1 and a learned codebook")


class VectorQuantizer(Quantizer):
    """Nearest-neighbour quantizer; see the module docstring."""

    recent_latents: Tensor | None

    def __init__(self, config: VQConfig) -> None:
        # A window in the released layout: its initial zeros count as code 0 until it is full.
        super().__init__((config.codebook_size,), config.codebook_dim, unseen=0)
        self.config = config
        codebook = torch.empty(self.codebook_size, self.codebook_dim).uniform_(
            -1 / self.codebook_size, 1 / self.codebook_size
        )
        self.codebook = nn.Parameter(self._normalize(codebook))
        kept = KMEANS_LATENTS_PER_CODE * self.codebook_size if config.init == "kmeans" else 0
        self.register_buffer("recent_latents", torch.zeros(kept, self.codebook_dim) if kept else None)

    def _normalize(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.l2_norm else vectors

    def codes(self) -> Tensor:
        """The vectors (K,D) that latents are compared with, fp32."""
        return self._normalize(self.codebook.float())

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        """Latents (B,N,D). `quantize=False` passes the (normalised) latents through; `entropy` adds its terms."""
        with full_precision(z.device):
            z = self._normalize(z.float())
            codes = self.codes()
            flat = z.flatten(0, -2)
            indices = self.nearest(flat, codes).view(z.shape[:-1])
            if self.training:
                self._remember(indices, flat, quantize)
            if not quantize:
                zero = 0.0 * codes.sum()  # keeps the codebook in the graph of data-parallel training
                return Quantized(z + zero, indices)
            z_q = F.embedding(indices, codes)
            losses = {"codebook": (z_q - z.detach()).square().mean(), "commitment": (z_q.detach() - z).square().mean()}
            if entropy:
                squared = self.config.entropy_distance == "squared"
                terms = assignment_entropies(flat, codes, self.config.entropy_temperature, squared, self._over_ranks)
                losses |= entropy_terms(*terms)
            through = rotation_trick if self.config.rotation_trick else straight_through
            return Quantized(through(z, z_q), indices, losses)

    @property
    def _over_ranks(self) -> bool:
        """Whether the codebook entropy is that of all ranks; never in validation, where they may differ in batches."""
        return self.config.entropy_statistics == "global" and self.training

    @staticmethod
    @torch.no_grad()
    def nearest(z: Tensor, codes: Tensor) -> Tensor:
        """Index of the nearest code of each latent, the first on ties. (n,D), (K,D) -> (n,) int64."""
        chunks = z.split(rows_per_chunk(codes))
        return torch.cat([squared_distances(chunk, codes).argmin(1) for chunk in chunks])

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B,N) -> exact code rows (B,N,D)."""
        return F.embedding(indices.long(), self.codes())

    @torch.no_grad()
    def _remember(self, indices: Tensor, latents: Tensor, quantize: bool) -> None:
        self.remember(indices)
        if self.recent_latents is not None and not quantize:
            rows = gather_rows(latents.detach())[-len(self.recent_latents) :]
            self.recent_latents = torch.cat([self.recent_latents[len(rows) :], rows])

    @torch.no_grad()
    def init_from_latents(self) -> None:
        """Sets the codebook to `KMEANS_ROUNDS` rounds of k-means on the recent latents (those of the warm-up)."""
        points = self.recent_latents[self.recent_latents.abs().sum(1) > 0].float().cpu()  # the same bits on every rank
        if len(points) < self.codebook_size:
            raise ConfigError(
                f"k-means for {self.codebook_size} codes has {len(points)} latents; raise vq.warmup_steps"
            )
        generator = torch.Generator().manual_seed(0)
        centres = points[torch.randperm(len(points), generator=generator)[: self.codebook_size]]
        for _ in range(KMEANS_ROUNDS):
            owner = self.nearest(points, centres)
            counts = torch.bincount(owner, minlength=self.codebook_size)
            sums = torch.zeros_like(centres).index_add_(0, owner, points)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
            centres = self._normalize(centres)
        self.codebook.copy_(shard_like(centres, self.codebook))
