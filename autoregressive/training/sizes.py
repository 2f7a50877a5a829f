"""The sizes that a generator takes from what it is trained on, and whether those of its config fit."""

from __future__ import annotations

from dataclasses import replace

from autoregressive.codes import CodeStore
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.registry import completed
from autoregressive.training.config import GeneratorDataConfig, GPTTrainConfig
from engine.data.classes import Classes, count_problem
from engine.data.sources import survey_source
from engine.messages import ConfigError, UserError
from engine.validation import raise_problems
from tokenizer.loading import survey_tokenizer
from tokenizer.models.base import Tokenizer


# ------------------------------------------------------------------------------------------------ what is left open
def with_sizes(config: GPTTrainConfig, sizes: DataSizes) -> GPTTrainConfig:
    """`config` with the sizes that its model leaves open (codebooks, tokens, classes) as in `sizes`.

    The result is what a run records, so that its checkpoints need no codes.
    """
    return replace(config, model=completed(config.model, sizes))


def with_sizes_of(config: GPTTrainConfig, store: CodeStore) -> GPTTrainConfig:
    """The same, as stored codes have them."""
    return with_sizes(config, _sizes_of(store))


def with_sizes_of_present_codes(config: GPTTrainConfig) -> GPTTrainConfig:
    """`config` with the sizes that it leaves open as its codes have them, or the tokenizer and the images that make
    them; as it is where these cannot be read.
    """
    try:
        sizes = _present_sizes(config)
    except UserError:  # the pre-flight tells what is wrong with them
        return config
    return config if sizes is None else with_sizes(config, sizes)


def sizes_of_tokenizer(tokenizer: Tokenizer, num_classes: int) -> DataSizes:
    """Those of the codes that `tokenizer` makes of images with `num_classes` classes."""
    return DataSizes(tuple(tokenizer.quantizer.group_sizes), tokenizer.num_tokens, num_classes)


def _sizes_of(store: CodeStore) -> DataSizes:
    return DataSizes(store.manifest.index_sizes, store.manifest.num_tokens, len(store.classes))


def _present_sizes(config: GPTTrainConfig) -> DataSizes | None:
    """The sizes of what a config names; None where it names nothing."""
    if config.data.tokenize == "codes":
        return _sizes_of(CodeStore(config.data.codes, "train")) if config.data.codes else None
    tokenizer = surveyed_tokenizer(config.data)
    return None if tokenizer is None else sizes_of_tokenizer(tokenizer, _present_classes(config))


def _present_classes(config: GPTTrainConfig) -> int:
    """The number of classes of the training images; 1 where the model says its own: to list images may take minutes."""
    one, two = (completed(config.model, DataSizes((1,), 1, num_classes)) for num_classes in (1, 2))
    if one == two:
        return 1
    names = survey_source(config.data, "train").class_names
    if names is None:
        raise UserError("the classes of these images are known only once they are opened")
    return len(names)


# ------------------------------------------------------------------------------------------------ the tokenizer
def surveyed_tokenizer(data: GeneratorDataConfig) -> Tokenizer | None:
    """The tokenizer of `data.tokenize=online`, without storage, for images of their size; None where none is named.

    Raises UserError where it is not there, or is for images of another size.
    """
    if not data.tokenizer:
        return None
    tokenizer = survey_tokenizer(data.tokenizer)
    fit_image_size(tokenizer, data)
    return tokenizer


def fit_image_size(tokenizer: Tokenizer, data: GeneratorDataConfig) -> None:
    """Makes `tokenizer` one for images of `data.image_size` pixels. Raises ConfigError where it cannot be."""
    if data.image_size in (0, tokenizer.image_size):
        return
    if "any_size" not in tokenizer.capabilities:
        raise ConfigError(
            f"data.image_size={data.image_size}, but the tokenizer {data.tokenizer} is for {tokenizer.image_size} "
            "pixels; leave data.image_size out"
        )
    tokenizer.set_image_size(data.image_size)


# ------------------------------------------------------------------------------------------------ what does not fit
def check_codes(network: Generator, name: str, store: CodeStore) -> None:
    """Raises one ConfigError that lists all sizes of `network`, the generator `name`, that the codes do not have."""
    manifest = store.manifest
    _check(network, name, manifest.index_sizes, manifest.token_shape, str(store.folder), store.classes)


def check_tokenizer(network: Generator, name: str, tokenizer: Tokenizer, classes: Classes | None) -> None:
    """The same for codes that `tokenizer` makes in training, of images with `classes`, if those are known."""
    sizes = tuple(tokenizer.quantizer.group_sizes)
    token_shape = (tokenizer.num_tokens, len(sizes)) if len(sizes) > 1 else (tokenizer.num_tokens,)
    _check(network, name, sizes, token_shape, f"the tokenizer {tokenizer.provenance.path}", classes)


def _check(
    network: Generator,
    name: str,
    codebook_sizes: tuple[int, ...],
    token_shape: tuple[int, ...],
    owner: str,
    classes: Classes | None,
) -> None:
    """Compares a network with codes of these sizes, whose `owner` messages name, and with their `classes`."""
    sizes = {
        "codebook_sizes": (list(network.codebook_sizes), list(codebook_sizes)),
        "num_tokens": (network.num_tokens, token_shape[0]),
    }
    expected = f"; the generator is for {network.codes_in_words}" if network.codes_in_words else ""
    problems = [
        f"model.{name} has {key}={configured}, but {owner} has {stored}{expected}"
        for key, (configured, stored) in sizes.items()
        if configured != stored
    ]
    problem = None
    if classes is not None:
        problem = count_problem(classes, network.num_classes, f"model.{name} has num_classes")
    if problem is not None:
        problems.append(problem)

    # The same sizes in another layout: a list of one index is not the same as a plain index.
    if not problems and network.token_shape != token_shape:
        problems.append(f"model.{name} is for tokens of shape {network.token_shape}, but {owner} has {token_shape}")
    raise_problems(problems)
