"""Everything that defines a tokenizer run."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.assets import AssetsConfig
from engine.data.config import DataConfig
from engine.loop import TrainLoopConfig
from engine.messages import ConfigError
from engine.optim import OptimConfig
from engine.registry import lookup
from tokenizer.losses.semantic import TEACHERS
from tokenizer.losses.terms import LossConfig
from tokenizer.models.registry import ModelConfig


@dataclass(kw_only=True, slots=True)
class SemanticConfig:
    """Semantic regularization of the decoder's inner features (`model.hybrid.semantic_layer`)."""

    teacher: str = ""  # dinov2_{s,b,l,g}[_reg] | clip_b | siglip_so400m | efficientnet_lite0; empty = off
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.teacher:
            lookup(TEACHERS, self.teacher, "semantic.teacher")
        if self.weight < 0:
            raise ConfigError(f"semantic.weight={self.weight} must be 0 or more")


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """Held-out images that are looked at during training: a fixed random choice of the `val` split."""

    num_images: int = 500
    batch_size: int = 25

    def __post_init__(self) -> None:
        if min(self.num_images, self.batch_size) < 1:
            raise ConfigError("validation.num_images and validation.batch_size must be 1 or more")


@dataclass(kw_only=True, slots=True)
class PhaseConfig:
    """One of several trainings, each from the end of the one before: weights, averages, and where the network stays the
    same also the optimizers, the discriminator and LeCam's averages.
    """

    steps: int
    lr: float
    generative_decoder: bool = False  # of model.wetok: a frozen encoder, and a decoder widened when it becomes true


@dataclass(kw_only=True, slots=True)
class TokenizerTrainConfig:
    """Everything that defines a tokenizer run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)  # of the tokenizer and of the discriminator
    ema_decay: float = 0.0  # 0 = no averaged weights
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    assets: AssetsConfig = field(default_factory=AssetsConfig)
    init: str = ""  # tokenizer to start from (run, checkpoint, exported folder), whose quantizer's warm-up is over
    phases: list[PhaseConfig] = field(default_factory=list)  # instead of loop.steps and optim.lr; empty = one training
