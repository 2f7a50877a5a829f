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
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.devices import full_precision
from engine.messages import ConfigError
from engine.parallel import not_compiled, shard_like, whole
from engine.validation import Problem, Section, above, at_least, in_range
from engine.world import gather_rows
from tokenizer.quantizers.affinity import Affinity, PlainDistance, SquaredDistance, nearest_codes
from tokenizer.quantizers.base import Quantized, Quantizer, entropy_terms
from tokenizer.quantizers.codebook_updates import MAX_PENDING, CodebookState, Followed
from tokenizer.quantizers.entropy_assignment import assignment_entropies, rows_per_chunk
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
        yield from in_range(self, "decay", 0, 1, open_right=True)
        yield from in_range(self, "restart_threshold", 0, 1, open_left=True)
        if not self.MOVABLE:
            yield from self._moved_together_problems()

    def _moved_together_problems(self) -> Iterator[Problem]:
        """Options for codes that move one by one."""
        for name, default in (("update", "gradient"), ("restart", "none")):
            if getattr(self, name) != default:
                accepted = f"{default}: every update moves all codes of this quantizer"
                yield Problem(name, getattr(self, name), accepted)


class VectorQuantizer(Quantizer):
    """Nearest-neighbor quantizer; see the module docstring."""

    config_class = VQConfig
    in_words = "nearest of learned code vectors"
    replaced_buffers = Quantizer.replaced_buffers | {
        "recent_latents", "cluster_size", "cluster_sum", "usage_ema", "num_restarts"
    }  # fmt: skip
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

    def _prepare_updates(self) -> None:
        """The statistics that `update` and `restart` need; without them the network has no other state."""
        config = self.config
        self._followed: list[tuple[Tensor, Tensor]] = []  # latents and codes of the update under way
        if config.update == "ema":
            self.loss_names = self.loss_names - {"codebook"}
            self.codebook.requires_grad_(False)
            self.register_buffer("cluster_size", torch.ones(self.codebook_size))
            self.register_buffer("cluster_sum", self.codebook.detach().clone())

        # CVQ begins without use, so that it places all codes that the first latents do not choose.
        if config.restart == "nearest":
            self.register_buffer("usage_ema", torch.zeros(self.codebook_size))
        elif config.restart == "random" and config.update == "gradient":
            self.register_buffer("usage_ema", torch.full((self.codebook_size,), 1 / self.codebook_size))
        if config.restart != "none":
            self.register_buffer("num_restarts", torch.zeros((), dtype=torch.long))

    def _normalize(self, vectors: Tensor) -> Tensor:
        """Vectors (...,D), of unit length with `l2_norm`."""
        return F.normalize(vectors, dim=-1) if self.config.l2_norm else vectors

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

    @staticmethod
    @torch.no_grad()
    def nearest(z: Tensor, codes: Tensor) -> Tensor:
        """Index of the nearest code of each latent, the first on ties. (n,D), (K,D) -> (n,) int64."""
        return nearest_codes(SquaredDistance(codes, temperature=1.0), z, rows_per_chunk(codes))

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

    def health(self) -> dict[str, float]:
        facts = {"max_sample_entropy": math.log(self.codebook_size)}
        if self.config.l2_norm:
            facts["code_power"] = 1 / self.codebook_dim
        return facts

    # ------------------------------------------------------------------------------------------------ the update
    @property
    def _is_followed(self) -> bool:
        """Whether the codebook depends on the latents of an update beside their gradients."""
        return self.config.update == "ema" or self.config.restart != "none"

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
        return {
            self.codebook: is_restarted if self.config.update == "gradient" else ~is_skipped.expand_as(is_restarted)
        }

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
        return self.config.MOVABLE and self.config.restart == "none"

    def usage(self) -> dict[str, Tensor]:
        """Also `restarts`."""
        return super().usage() | self.restarts()

    def restarts(self) -> dict[str, Tensor]:
        """`restarted_codes`, with `restart`: how many codes started anew since the start of the run."""
        return {} if self.config.restart == "none" else {"restarted_codes": self.num_restarts.double()}

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
