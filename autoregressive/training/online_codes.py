"""`data.tokenize=online`: a generator is trained on images, whose random crops become tokens in each step.

This is the default of the published code of GigaTok. Crops and flips are those of a tokenizer's training, a function of
(seed, position); the tokens of a crop are those that an extraction would store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autoregressive.codes import Choices, choices_at
from autoregressive.models.base import Generator
from autoregressive.tokenized import RememberedTokens, Tokenization
from autoregressive.training.build import network_on_meta
from autoregressive.training.config import GeneratorDataConfig, GPTTrainConfig
from autoregressive.training.sizes import check_tokenizer, fit_image_size, sizes_of_tokenizer, with_sizes
from engine.data.classes import Classes, with_labels_of
from engine.data.identity import facts_of
from engine.data.samples import decoding_stamp, training_item
from engine.data.sources import ImageSource, has_split, open_source
from engine.data.stream import Batch, stream_opener
from engine.messages import ConfigError
from engine.preflight import Preflight
from engine.seeds import counter_rng
from engine.world import World
from tokenizer.models.base import Tokenizer

DROP_KEY = 0xD209  # keeps the random numbers of label dropout apart from those of crops


def image_item(
    source: ImageSource,
    data: GeneratorDataConfig,
    seed: int,
    class_dropout_prob: float,
    choices: Choices | None = None,
) -> Callable[[int, int], Batch]:
    """Returns `item(index, position)`, which makes a sample of image `index`:

        images_u8        uint8 (3, image_size, image_size): a random crop, as in the training of a tokenizer
        labels           int64 ()
        drop             bool (): whether the label is dropped
        skipped_images   int64 (): broken images that were passed
        ...              what `choices` draws (`autoregressive.codes.choices_at`)

    All of it depends on (seed, position) only.
    """
    crop = training_item(source, data, seed)

    def item(index: int, position: int) -> Batch:
        sample = crop(index, position)
        chance = counter_rng(seed, DROP_KEY, position).random()
        drop: Tensor = torch.tensor(chance < class_dropout_prob)
        own = {name: sample[name] for name in ("images_u8", "labels", "skipped_images")}
        return own | {"drop": drop} | choices_at(seed, position, choices)

    return item


class OnlineCodes:
    """The images of both splits and their tokenizer; see `autoregressive.training.data.TrainingData`."""

    no_validation = "data.val_root is empty"

    def __init__(self, config: GPTTrainConfig, tokenizer: Tokenizer, world: World) -> None:
        """Raises UserError for images that are not there, or of classes that only the held-out ones have."""
        # The tokenizer, for the size of the images.
        fit_image_size(tokenizer, config.data)
        self.tokenizer = tokenizer
        self.tokenization = Tokenization(tokenizer, world.device)
        self.data = replace(config.data, image_size=tokenizer.image_size)
        self.seed = config.loop.seed

        # The images.
        self.source = open_source(self.data, "train")
        self.classes = Classes.of(self.source)
        self.held_out: RememberedTokens | None = None
        if has_split(self.data, "val"):
            source = with_labels_of(open_source(self.data, "val"), self.classes)
            self.held_out = RememberedTokens(source, tokenizer, world.device, self.data.skip_broken)

    @staticmethod
    def require_names(config: GPTTrainConfig) -> None:
        """Raises ConfigError where the config does not say what to train on."""
        if not config.data.tokenizer:
            raise ConfigError("data.tokenizer must name the tokenizer that makes the codes (data.tokenize=online)")

    @staticmethod
    def needs(config: GPTTrainConfig, network: Generator, tokenizer: Tokenizer | None, preflight: Preflight) -> None:
        """Looks for the images of both splits, and whether the tokenizer fits the network."""
        classes = Classes.of_survey(preflight.training_images(config.data))
        if tokenizer is not None:
            with preflight.collecting():
                fit_image_size(tokenizer, config.data)
                check_tokenizer(network, config.model.name, tokenizer, classes)

    def completed(self, config: GPTTrainConfig) -> GPTTrainConfig:
        config = with_sizes(config, sizes_of_tokenizer(self.tokenizer, len(self.classes)))
        config = replace(config, data=self.data)
        check_tokenizer(network_on_meta(config), config.model.name, self.tokenizer, self.classes)
        return config

    def facts(self) -> dict[str, Any]:
        held_out = {} if self.held_out is None else {"val": facts_of(self.held_out.source)}
        return {"train": facts_of(self.source), **held_out}

    def stamp(self) -> dict[str, Any]:
        return decoding_stamp(self.source, self.data, self.seed)

    def stream(
        self, config: GPTTrainConfig, generator: Generator, world: World, order_version: Callable[[], int]
    ) -> Callable[[int], Iterator[Batch]]:
        return stream_opener(
            image_item(self.source, self.data, self.seed, generator.class_dropout_prob, generator.training_choices()),
            len(self.source),
            config.data,
            config.loop,
            world,
            self.source.where,
            order_version=order_version,
        )
