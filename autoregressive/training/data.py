"""What a generator is trained on, by `data.tokenize`: stored codes, or images that become codes in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from autoregressive.models.base import Generator
from autoregressive.tokenized import Tokenization
from autoregressive.training.config import GPTTrainConfig, data_problems
from autoregressive.training.online_codes import OnlineCodes
from autoregressive.training.stored_codes import StoredCodes
from autoregressive.training.task import HeldOut
from engine.data.classes import Classes
from engine.data.identity import Facts
from engine.data.sources import Counted
from engine.data.stream import Batch
from engine.validation import raise_problems
from engine.world import World
from tokenizer.models.base import Tokenizer


class TrainingData(Protocol):
    """The codes that a generator is trained on, and those that are held out."""

    source: Counted  # the training images or their codes
    classes: Classes  # of the labels of both
    held_out: HeldOut | None
    no_validation: str  # why there are none, for the log
    tokenization: Tokenization | None  # makes the tokens of a batch that has images

    def completed(self, config: GPTTrainConfig) -> GPTTrainConfig:
        """`config` with what it leaves open as these data have it: what a run records.

        Raises ConfigError where the sizes of its network are others than those of the codes.
        """

    def facts(self) -> Mapping[str, Facts]:
        """What the data of each split are, for checkpoints (`engine.data.identity`)."""

    def stamp(self) -> Mapping[str, Any]:
        """What the weights say of the data beside their tokenizer and classes."""

    def stream(
        self, config: GPTTrainConfig, generator: Generator, world: World, order_version: Callable[[], int]
    ) -> Callable[[int], Iterator[Batch]]:
        """Batches of a completed config from a step on; see `engine.data.stream.stream_opener`.

        A batch has `labels` (B,), `drop` (B,), whether a label is dropped, either `tokens` (B, *token_shape) or
        `images_u8` (B,3,H,W), and the random choices of the generator.
        """


KINDS = {"codes": StoredCodes, "online": OnlineCodes}


def check_data(config: GPTTrainConfig) -> None:
    """Raises ConfigError where keys of the data section do not go together."""
    raise_problems(list(data_problems(config.data)))


def require_names(config: GPTTrainConfig) -> None:
    """Raises ConfigError where the data section does not go together, or does not say what to train on."""
    check_data(config)
    KINDS[config.data.tokenize].require_names(config)


def open_data(config: GPTTrainConfig, tokenizer: Tokenizer, world: World) -> TrainingData:
    """Opens what a config names. Raises UserError for what is not there, or does not fit the tokenizer."""
    return KINDS[config.data.tokenize](config, tokenizer, world)
