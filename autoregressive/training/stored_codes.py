"""`data.tokenize=codes`: a generator is trained on codes that were extracted before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autoregressive.codes import CodeStore, code_batch
from autoregressive.models.base import Generator
from autoregressive.training.build import network_on_meta
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.sizes import check_codes, with_sizes_of
from engine.data.classes import Classes, labels_among
from engine.data.identity import facts_of
from engine.data.stream import Batch, stream_opener
from engine.messages import ConfigError
from engine.preflight import Preflight
from engine.world import World
from tokenizer.models.base import Tokenizer


class StoredCodes:
    """The codes of both splits; see `autoregressive.training.data.TrainingData`."""

    tokenization = None
    no_validation = "the codes have no split `val`"

    def __init__(self, config: GPTTrainConfig, tokenizer: Tokenizer, world: World) -> None:
        """Raises CodesError for codes that `tokenizer` did not make."""
        folder = config.data.codes
        self.source = CodeStore(folder, "train")
        maker = tokenizer.code_maker()
        self.source.require(maker, config.data.tokenizer)

        self.held_out: CodeStore | None = None
        if (Path(folder) / "val").is_dir():
            self.held_out = CodeStore(folder, "val")
            self.held_out.require(maker, config.data.tokenizer)
            self.held_out.take_labels_of(self.source.classes)

    @staticmethod
    def require_names(config: GPTTrainConfig) -> None:
        """Raises ConfigError where the config does not say what to train on."""
        if not config.data.codes or not config.data.tokenizer:
            raise ConfigError("data.codes and data.tokenizer must name the codes and the tokenizer that made them")

    @staticmethod
    def needs(config: GPTTrainConfig, network: Generator, tokenizer: Tokenizer | None, preflight: Preflight) -> None:
        """Looks for the codes, held-out ones included."""
        if not config.data.codes:
            preflight.problem("data.codes is empty; it names the folder that extract_codes wrote")
            return
        if preflight.comes_later(config.data.codes, "data.codes"):
            return
        with preflight.collecting():
            store = CodeStore(config.data.codes, "train")
            preflight.ready.append(f"data.codes: {len(store):,} images in {store.folder}")
            check_codes(network, config.model.name, store)
            if (Path(config.data.codes) / "val").is_dir():
                held_out = CodeStore(config.data.codes, "val")
                labels_among(held_out.classes, store.classes)

    @property
    def classes(self) -> Classes:
        return self.source.classes

    def completed(self, config: GPTTrainConfig) -> GPTTrainConfig:
        config = with_sizes_of(config, self.source)
        check_codes(network_on_meta(config), config.model.name, self.source)
        return config

    def facts(self) -> dict[str, Any]:
        held_out = {} if self.held_out is None else {"val": facts_of(self.held_out)}
        return {"train": facts_of(self.source), **held_out}

    def stamp(self) -> dict[str, Any]:
        return {}

    def stream(
        self, config: GPTTrainConfig, generator: Generator, world: World, order_version: Callable[[], int]
    ) -> Callable[[int], Iterator[Batch]]:
        return stream_opener(
            code_batch(self.source, config.loop.seed, generator.class_dropout_prob, generator.training_choices()),
            len(self.source),
            config.data,
            config.loop,
            world,
            order_version=order_version,
            at_once=True,
        )
