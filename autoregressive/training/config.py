"""Everything that defines the training of a generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from omegaconf import DictConfig

from autoregressive.models.registry import GeneratorConfig
from engine.config import merge_config
from engine.data.config import DataConfig
from engine.data.sources import unused_keys
from engine.loop import TrainLoopConfig, stop_problems
from engine.optim import OptimConfig
from engine.validation import Problem, Section, at_least, in_range


@dataclass(kw_only=True, slots=True)
class GeneratorDataConfig(DataConfig):
    """What a generator is trained on: codes that were extracted before, or images that become codes in training.

    The keys of images are for `tokenize: online` alone.
    """

    tokenize: Literal["codes", "online"] = "codes"  # codes: of `codes`; online: of random crops, made in training
    codes: str = ""  # tokenize=codes: folder that extract_codes wrote
    tokenizer: str = ""  # folder of the tokenizer that makes the codes, or made them
    image_size: int = 0  # tokenize=online: pixels, side of the square crop; 0 = as the tokenizer was trained for
    num_workers: int = 4  # loader processes per rank; 0 = in the training process

    def problems(self) -> Iterator[Problem]:
        """As of images, which have no size of their own here."""
        return (problem for problem in DataConfig.problems(self) if self.image_size or problem.key != "image_size")


OF_ALL_KINDS = {"tokenize", "codes", "tokenizer", "global_batch_size", "num_workers", "accept_changed"}


def data_problems(data: GeneratorDataConfig) -> Iterator[str]:
    """Keys of a data section that do not go together: one line of an error per key."""
    if data.tokenize == "online":
        if data.codes:
            yield (
                f"data.codes={data.codes!r} is set, but data.tokenize=online makes codes in training; empty it (on a "
                "command line: data.codes=), or use data.tokenize=codes"
            )
        yield from unused_keys(data)
        return

    for field_ in fields(data):
        default = field_.default if field_.default is not MISSING else field_.default_factory()
        value = getattr(data, field_.name)
        if field_.name not in OF_ALL_KINDS and value != default:
            yield (
                f"data.{field_.name}={value!r} is set, but data.tokenize=codes reads codes and no images; leave it "
                "out, or use data.tokenize=online"
            )


def images_of(data: DictConfig) -> DataConfig | None:
    """The images of the recorded `data` section of a training; None where it reads codes."""
    if "codes" not in data:
        return merge_config(DataConfig, [("config.yaml", data)])
    config = merge_config(GeneratorDataConfig, [("config.yaml", data)])
    return config if config.tokenize == "online" else None


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
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def problems(self) -> Iterator[Problem]:
        yield from in_range(self, "ema_decay", 0, 1, open_right=True)
        yield from stop_problems(self.loop, self.loop.steps)
