"""Vector quantization with a learned codebook (VQ-VAE, arXiv:1711.00937; l2-normalized codes of ViT-VQGAN,
arXiv:2110.04627).

GigaTok's quantizer: 16,384 codes of 8 channels on the unit sphere, rotation trick or straight-through gradient, an
optional entropy loss. Everything here runs in float32, also inside a bf16 region: with half-precision distances up to
6 % of the nearest codes change.

Losses    codebook: mean |q - sg z|^2      commitment: mean |sg q - z|^2      entropies: nats (entropy_assignment.py)

The codebook is trained by its loss, or by averages of the latents (`update=ema`, without a codebook loss), and codes
that nobody uses may start anew (`restart`): codebook_updates.py. Both happen in `after_update`, once per update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.devices import full_precision
from engine.messages import ConfigError
from engine.parallel import shard_like
from engine.validation import Problem, Section, above, at_least
from engine.world import gather_rows
from tokenizer.quantizers.affinity import Affinity, PlainDistance, SquaredDistance
from tokenizer.quantizers.base import Quantized, entropy_terms
from tokenizer.quantizers.entropy_assignment import assignment_entropies
from tokenizer.quantizers.followed_codebook import FollowedCodebook, restart_problems
from tokenizer.quantizers.gradients import rotation_trick, straight_through

KMEANS_LATENTS_PER_CODE = 16  # recent latents that the window holds for the k-means initialization
KMEANS_ROUNDS = 8
ENTROPY_DISTANCES: dict[str, type[Affinity]] = {"squared": SquaredDistance, "plain": PlainDistance}


@dataclass(kw_only=True, slots=True)
class VQConfig(Section):
    """A codebook of `codebook_size` vectors of `codebook_dim` channels."""

    LEARNED: ClassVar[bool] = True  # whether the codebook itself is trained, so that k-means can initialize it
    MOVABLE: ClassVar[bool] = True  # whether codes move one by one, so that `update` and `restart` can be chosen

    codebook_size: int = 16384
    codebook_dim: int = 8
    l2_norm: bool = True  # compare directions: latents and codes are normalized at every use
    rotation_trick: bool = True  # false: straight-through gradients
    entropy_temperature: float = 0.01  # temperature of the soft assignment in the entropy loss
    entropy_distance: Literal["squared", "plain"] = "squared"  # its distance: squared as released, plain as written
    entropy_statistics: Literal["local", "global"] = "local"  # over this rank's batch as released, or over all ranks
    warmup_steps: int = 0  # steps at the start in which latents pass through unquantized
    init: Literal["random", "kmeans"] = "random"  # kmeans: on the latents at the end of the warm-up
    update: Literal["gradient", "ema"] = "gradient"  # ema: codes are averages of their latents, without a codebook loss
    decay: float = 0.99  # per update, of the averages of `ema` and of the use of codes that `restart` reads
    restart: Literal["none", "random", "nearest"] = "none"  # unused codes: become random latents, or the nearest (CVQ)
    restart_threshold: float = 0.1  # of the mean use of a code: with `random`, codes below this start anew

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "codebook_size", 2)
        yield from at_least(self, "codebook_dim", 1)
        yield from above(self, "entropy_temperature", 0)
        yield from at_least(self, "warmup_steps", 0)
        if self.init == "kmeans" and not self.LEARNED:
            yield Problem("init", self.init, "random: this codebook is not learned")
        elif self.init == "kmeans" and self.warmup_steps < 1:
            yield Problem("init", self.init, "random without warmup_steps: k-means needs latents of a warm-up")
        yield from restart_problems(self)
        if not self.MOVABLE:
            yield from self._moved_together_problems()

    def _moved_together_problems(self) -> Iterator[Problem]:
        """Options for codes that move one by one."""
        for name, default in (("update", "gradient"), ("restart", "none")):
            if getattr(self, name) != default:
                accepted = f"{default}: every update moves all codes of this quantizer"
                yield Problem(name, getattr(self, name), accepted)


class VectorQuantizer(FollowedCodebook):
    """Nearest-neighbor quantizer; see the module docstring."""

    config_class = VQConfig
    in_words = "nearest of learned code vectors"
    replaced_buffers = FollowedCodebook.replaced_buffers | {"recent_latents"}
    recent_latents: Tensor | None  # latents of the warm-up, for k-means

    def __init__(self, config: VQConfig) -> None:
        # The window has the released layout: its initial zeros count as code 0 until it is full.
        super().__init__((config.codebook_size,), config.codebook_dim, unseen=0)
        self.config = config

        bound = 1 / self.codebook_size
        codebook = torch.empty(self.codebook_size, self.codebook_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(self._normalize(codebook))

        window = None
        if config.init == "kmeans":
            window = torch.zeros(KMEANS_LATENTS_PER_CODE * self.codebook_size, self.codebook_dim)
        self.register_buffer("recent_latents", window)
        self._prepare_updates()

    def _normalize(self, vectors: Tensor) -> Tensor:
        """Vectors (...,D), of unit length with `l2_norm`."""
        return F.normalize(vectors, dim=-1) if self.config.l2_norm else vectors

    @property
    def _takes_averages(self) -> bool:
        return self.config.update == "ema"

    def codes(self) -> Tensor:
        """The vectors (K,D) that latents are compared with, float32."""
        return self._normalize(self.codebook.float())

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        with full_precision(z.device):
            # Nearest code of every latent.
            z = self._normalize(z.float())
            codes = self.codes()
            latents = z.flatten(0, -2)
            indices = self.nearest(latents, codes).view(z.shape[:-1])
            if self.training:
                self._update_windows(indices, latents, quantize)
                if quantize and self._is_followed:
                    self._follow(latents, indices)

            # Warm-up: the latents themselves. The zero keeps the codebook in the graph of data-parallel training.
            if not quantize:
                zero = 0.0 * codes.sum()
                return Quantized(z + zero, indices)

            # Losses.
            z_q = F.embedding(indices, codes)
            losses = {
                "codebook": (z_q - z.detach()).square().mean(),
                "commitment": (z_q.detach() - z).square().mean(),
            }
            if self.config.update == "ema":
                del losses["codebook"]
            if entropy:
                losses |= self._entropies(latents, codes)

            # A gradient for the encoder.
            gradient_copy = rotation_trick if self.config.rotation_trick else straight_through
            return Quantized(gradient_copy(z, z_q), indices, losses)

    def _entropies(self, latents: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """The entropy terms of latents (n,D) and codes (K,D)."""
        temperature = self.config.entropy_temperature
        terms = assignment_entropies(latents, codes, temperature, self._entropy_affinity, self._over_ranks)
        return entropy_terms(*terms)

    @property
    def _entropy_affinity(self) -> type[Affinity]:
        """What the soft assignment of the entropies compares latents and codes by."""
        return ENTROPY_DISTANCES[self.config.entropy_distance]

    @property
    def _over_ranks(self) -> bool:
        """Whether the codebook entropy is that of all ranks; never in validation, where they may differ in batches."""
        return self.config.entropy_statistics == "global" and self.training

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        return super().choice_distances(self._normalize(z.float()), indices)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B,N) -> exact code rows (B,N,D)."""
        return F.embedding(indices.long(), self.codes())

    def training_flops(self, num_latents: int, entropy: bool) -> int:
        """One table of products with all codes for the choice; for the entropies two, and two gradients; for the
        nearest latent of each code one.
        """
        table = 2 * num_latents * self.codebook_size * self.codebook_dim
        tables = (5 if entropy else 1) + (self.config.restart == "nearest")
        return tables * table

    @property
    def can_restart_codes(self) -> bool:
        return self.config.MOVABLE and super().can_restart_codes

    def health(self) -> dict[str, float]:
        facts = {"max_sample_entropy": math.log(self.codebook_size)}
        if self.config.l2_norm:
            facts["code_power"] = 1 / self.codebook_dim
        return facts

    # ------------------------------------------------------------------------------------------------ the warm-up
    @torch.no_grad()
    def _update_windows(self, indices: Tensor, latents: Tensor, quantize: bool) -> None:
        """Adds a batch to the window of indices, and in a warm-up before k-means to that of latents."""
        self.remember(indices)
        if self.recent_latents is not None and not quantize:
            rows = gather_rows(latents.detach())[-len(self.recent_latents) :]
            self.recent_latents = torch.cat([self.recent_latents[len(rows) :], rows])

    def empty_windows(self) -> dict[str, Tensor]:
        windows = super().empty_windows()
        if self.recent_latents is not None:
            windows["recent_latents"] = torch.zeros(self.recent_latents.shape)
        return windows

    def require_warmup(self, num_latents: int) -> None:
        if self.config.init == "kmeans":
            self._require_points(num_latents)

    def _require_points(self, num_points: int) -> None:
        """Raises ConfigError where there are fewer latents than codes."""
        if num_points < self.codebook_size:
            raise ConfigError(
                f"k-means for {self.codebook_size} codes has {num_points} latents; raise the quantizer's warmup_steps"
            )

    def finish_warmup(self) -> bool:
        """With `init=kmeans`: sets the codebook by k-means on the latents of the warm-up."""
        if self.config.init != "kmeans":
            return False
        self.init_from_latents()
        return True

    @torch.no_grad()
    def init_from_latents(self) -> None:
        """Sets the codebook by k-means on the latents of the warm-up; see `init_from`."""
        self.init_from(self.warmup_latents())

    def warmup_latents(self) -> Tensor:
        """The recent latents (n,D) of the warm-up, with `init=kmeans`."""
        is_filled = self.recent_latents.abs().sum(1) > 0
        return self.recent_latents[is_filled]

    @torch.no_grad()
    def init_from(self, latents: Tensor) -> Tensor:
        """Sets the codebook to `KMEANS_ROUNDS` rounds of k-means on latents (n,D); returns its codes (K,D), on the CPU.

        Raises ConfigError where there are fewer latents than codes.
        """
        # On the CPU and with a fixed seed: the same bits on every rank.
        points = latents.float().cpu()
        self._require_points(len(points))
        generator = torch.Generator().manual_seed(0)
        chosen_points = torch.randperm(len(points), generator=generator)[: self.codebook_size]
        centers = points[chosen_points]

        # Lloyd's algorithm; a center without points stays where it is.
        for _ in range(KMEANS_ROUNDS):
            nearest_center = self.nearest(points, centers)
            counts = torch.bincount(nearest_center, minlength=self.codebook_size)
            sums = torch.zeros_like(centers).index_add_(0, nearest_center, points)
            centers = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centers)
            centers = self._normalize(centers)
        self.codebook.copy_(shard_like(centers, self.codebook))
        if self.config.update == "ema":
            self.cluster_size = torch.ones_like(self.cluster_size)
            self.cluster_sum = centers.to(self.cluster_sum)
        return centers
