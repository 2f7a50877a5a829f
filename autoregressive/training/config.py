"""Everything that defines a GPT run."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoregressive.models.gpt import GPTConfig
from engine.loop import TrainLoopConfig
from engine.messages import ConfigError
from engine.optim import OptimConfig


@dataclass(kw_only=True, slots=True)
class CodesConfig:
    """Which codes, and the tokenizer that made them."""

    codes: str = ""  # folder that extract_codes wrote
    tokenizer: str = ""  # folder of the tokenizer
    global_batch_size: int = 256  # images per optimizer step, over all ranks and micro-batches
    num_workers: int = 4  # loader processes per rank; 0 = in the training process

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.global_batch_size < 1:
            raise ConfigError("data.num_workers must be 0 or more, data.global_batch_size 1 or more")


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """Held-out codes and sample images that are looked at during training."""

    num_images: int = 500
    batch_size: int = 50
    preview_classes: int = 8  # classes in the sample grid, four images each; 0 = no grid
    guidance_scale: float = 2.0  # of the sample grid

    def __post_init__(self) -> None:
        if min(self.num_images, self.batch_size) < 1 or self.preview_classes < 0:
            raise ConfigError("validation.num_images and .batch_size must be 1 or more, .preview_classes 0 or more")


@dataclass(kw_only=True, slots=True)
class GPTTrainConfig:
    """Everything that defines a GPT run."""

    model: GPTConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            weight_decay=0.05, decay_params="matrices", max_grad_norm=1.0, schedule="wsd"
        )
    )
    ema_decay: float = 0.0  # 0 = no averaged weights
    data: CodesConfig = field(default_factory=CodesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components
