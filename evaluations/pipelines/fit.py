"""Whether the networks of a script fit together, before the first of them is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from autoregressive.loading import require_sizes
from autoregressive.models.base import DataSizes
from autoregressive.models.registry import completed
from autoregressive.training.build import network_on_meta as generator_on_meta
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.messages import ConfigError
from engine.pipeline import Stage
from tokenizer.training.checks import network_on_meta as tokenizer_on_meta
from tokenizer.training.config import TokenizerTrainConfig

ANY_NUMBER = 1000  # of classes, where nobody knows them yet: no size of a token depends on it


def config_arguments(stage: Stage) -> tuple[list[str], list[str]]:
    """(the YAML files, the `key=value` items) of a stage that trains."""
    pairs = zip(stage.arguments, stage.arguments[1:], strict=False)
    files = [value for flag, value in pairs if flag == "--config"]
    return files, [part for part in stage.arguments if "=" in part and part not in files and not part.startswith("-")]


def fit_problems(stages: Sequence[Stage]) -> Iterator[str]:
    """What a tokenizer and a generator that are both to be trained do not agree on: the sizes of tokens.

    A recipe that is wrong by itself is not judged; its own stage tells what is wrong with it.
    """
    # Only a script that trains both can find out so late.
    trainings = {stage.module: stage for stage in stages}
    tokenizer_stage = trainings.get("tokenizer.train")
    generator_stage = trainings.get("autoregressive.train")
    if tokenizer_stage is None or generator_stage is None:
        return

    # Both networks, without memory for their weights.
    try:
        tokenizer_config = load_config(TokenizerTrainConfig, *config_arguments(tokenizer_stage), unset=[])
        tokenizer = tokenizer_on_meta(tokenizer_config)
        generator_config = load_config(GPTTrainConfig, *config_arguments(generator_stage), unset=[])
        sizes = DataSizes(tuple(tokenizer.quantizer.group_sizes), tokenizer.num_tokens, ANY_NUMBER)
        generator_config = replace(generator_config, model=completed(generator_config.model, sizes))
        generator = generator_on_meta(generator_config)
    except ConfigError:
        return

    # The sizes of tokens of one and the other.
    try:
        require_sizes(generator, tokenizer)
    except ConfigError as error:
        yield f"{error}: {tokenizer_stage.name} and {generator_stage.name} do not fit together"
