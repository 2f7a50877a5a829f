"""Everything that defines the training of a generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from autoregressive.models.registry import GeneratorConfig
from engine.loop import TrainLoopConfig, stop_problems
from engine.optim import OptimConfig
from engine.validation import Problem, Section, at_least, in_range


@dataclass(kw_only=True, slots=True)
class CodesConfig(Section):
    """Which codes, and the tokenizer that made them."""

    codes: str = ""  # folder that extract_codes wrote
    tokenizer: str = ""  # folder of the tokenizer
    global_batch_size: int = 256  # images per optimizer step, over all ranks and micro-batches
    accept_changed: bool = False  # resume although the codes are others than those of the checkpoint
    num_workers: int = 4  # loader processes per rank; 0 = in the training process

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "global_batch_size", 1)
        yield from at_least(self, "num_workers", 0)


@dataclass(kw_only=True, slots=True)
class ValidationConfig(Section):
    """Held-out codes and sample images that are looked at during training."""

    num_images: int = 500
    batch_size: int = 50
    preview_classes: int = 8  # classes in the sample grid, four images each; 0 = no grid
    guidance_scale: float = 2.0  # of the sample grid

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "num_images", 1)
        yield from at_least(self, "batch_size", 1)
        yield from at_least(self, "preview_classes", 0)
        yield from at_least(self, "guidance_scale", 1)


@dataclass(kw_only=True, slots=True)
class GPTTrainConfig(Section):
    """Everything that defines the training of a generator."""

    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            weight_decay=0.05, decay_params="matrices", max_grad_norm=1.0, schedule="wsd"
        )
    )
    ema_decay: float = 0.0  # 0 = no EMA weights
    data: CodesConfig = field(default_factory=CodesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def problems(self) -> Iterator[Problem]:
        yield from in_range(self, "ema_decay", 0, 1, open_right=True)
        yield from stop_problems(self.loop, self.loop.steps)
