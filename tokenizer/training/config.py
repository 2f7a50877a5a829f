"""The root config of a tokenizer training, and those of its sections that belong to no component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from engine.assets import AssetsConfig
from engine.data.config import DataConfig
from engine.loop import TrainLoopConfig, stop_problems
from engine.optim import OptimConfig
from engine.validation import Problem, Section, at_least, in_range, one_of
from tokenizer.losses.semantic import TEACHERS
from tokenizer.losses.terms import LossConfig
from tokenizer.models.registry import ModelConfig


@dataclass(kw_only=True, slots=True)
class SemanticConfig(Section):
    """Semantic regularization: inner features of the decoder follow those of a frozen teacher."""

    REGISTRY: ClassVar[Mapping[str, Any]] = TEACHERS

    teacher: str = ""  # dinov2_{s,b,l,g}[_reg] | clip_b[_quickgelu] | siglip_so400m | efficientnet_lite0; empty = off
    weight: float = 0.5

    def problems(self) -> Iterator[Problem]:
        if self.teacher:
            yield from one_of(self, "teacher", TEACHERS)
        yield from at_least(self, "weight", 0)

    @property
    def enabled(self) -> bool:
        """Whether there is a teacher whose loss counts."""
        return bool(self.teacher) and self.weight > 0


@dataclass(kw_only=True, slots=True)
class ValidationConfig(Section):
    """Held-out images that are looked at during training: a fixed random choice of the `val` split."""

    num_images: int = 500
    batch_size: int = 25

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "num_images", 1)
        yield from at_least(self, "batch_size", 1)


TrainParts = Literal["all", "decoder"]


@dataclass(kw_only=True, slots=True)
class PhaseConfig(Section):
    """One training phase. It starts from the previous phase's weights and EMA; optimizers, discriminator and LeCam
    state carry over if the network, and what is trained of it, are unchanged.
    """

    steps: int
    lr: float
    generative_decoder: bool = False  # a frozen encoder and quantizer; the decoder is widened when it becomes true
    train_parts: TrainParts | None = None  # null = as for the whole training

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "steps", 1)
        yield from at_least(self, "lr", 0)


@dataclass(kw_only=True, slots=True)
class TokenizerTrainConfig(Section):
    """Everything that defines a tokenizer run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)  # for the tokenizer and for the discriminator
    ema_decay: float = 0.0  # decay of the EMA of the weights; 0 = no EMA
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    assets: AssetsConfig = field(default_factory=AssetsConfig)
    # all, or the decoder alone: what codes depend on stays as `init` (or an earlier phase) has it, EMA weights before
    # raw ones, so that codes and generators made with that stay valid.
    train_parts: TrainParts = "all"
    init: str = ""  # checkpoint (or run, or exported folder) to initialize from; skips quantizer warm-up
    phases: list[PhaseConfig] = field(default_factory=list)  # instead of loop.steps and optim.lr; empty = one training
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def problems(self) -> Iterator[Problem]:
        yield from in_range(self, "ema_decay", 0, 1, open_right=True)
        yield from stop_problems(self.loop, sum(phase.steps for phase in self.phases) or self.loop.steps)

    @property
    def warmup_steps(self) -> int:
        """Steps without quantization: none where training starts from a trained tokenizer, as later phases do."""
        return 0 if self.init else self.model.quantizer.warmup_steps
