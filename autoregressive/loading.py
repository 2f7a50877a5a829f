"""Loads a trained generator: from a folder of this project, which carries its config, or from a published file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from autoregressive.models.base import Generator
from autoregressive.models.registry import GeneratorConfig, build_generator
from autoregressive.published import layout_of
from engine.checkpoint.code_maker import CodeMaker
from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import fingerprint, load_strict, require_fit
from engine.config import load_sections
from engine.data.classes import Classes
from engine.devices import usable_device
from engine.messages import ConfigError
from engine.without_storage import without_storage
from tokenizer.loading import Provenance, load_folder, reads_published
from tokenizer.models.base import Tokenizer


@dataclass(kw_only=True, slots=True)
class GeneratorSections:
    """The part of a training config that a trained generator needs."""

    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    plugins: list[str] = field(default_factory=list)  # of its training: named in messages, never imported


def load_gpt(
    path: str | Path,
    *,
    config: str | Path | GeneratorConfig | None = None,
    weights: str = "auto",
    device: torch.device | str = "cpu",
) -> Generator:
    """Loads a generator in evaluation mode from a run, a checkpoint, an export (folders), or a published file.

    A published file needs `config`: the YAML of its architecture, or a `GeneratorConfig`; with any other source it is
    an error. `weights` is `ema`, `model` or `auto`: the EMA weights of a run of this project, and `model` of a
    published file, as the published readers do (averages where it has nothing else).
    The result has a `provenance`. Another kind of network, another size, a device that is not there, or a damaged file
    is an error; nothing loads partly.
    """
    device = usable_device(device)
    if reads_published(path, config, GeneratorConfig):
        generator, provenance = _load_published(Path(path), config, weights)
    else:
        generator, provenance = _load_folder(path, weights)
    generator = generator.to(device).eval().requires_grad_(False)
    generator.provenance = replace(provenance, fingerprint=fingerprint(generator))
    return generator


def survey_gpt(
    path: str | Path,
    *,
    config: str | Path | GeneratorConfig | None = None,
    weights: str = "auto",
    hashed: bool = False,
) -> Generator:
    """The generator that `load_gpt` would load, without storage: see `tokenizer.loading.survey_tokenizer`."""
    if reads_published(path, config, GeneratorConfig):
        generator, provenance = _load_published(Path(path), config, weights, header_only=True)
    else:
        generator, provenance = _load_folder(path, weights, header_only=True, hashed=hashed)
    generator.provenance = provenance
    return generator


def _load_folder(
    path: str | Path, weights: str, *, header_only: bool = False, hashed: bool = True
) -> tuple[Generator, Provenance]:
    """The generator in a folder of ours; see `tokenizer.loading.load_folder`."""

    def build(config: GeneratorSections) -> Generator:
        return build_generator(config.model)

    return load_folder(path, weights, "generator", GeneratorSections, build, header_only=header_only, hashed=hashed)


def _load_published(
    path: Path, config: str | Path | GeneratorConfig | None, weights: str, *, header_only: bool = False
) -> tuple[Generator, Provenance]:
    """The generator in a published file; with `header_only` without storage, from names and shapes alone."""
    if config is None:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        raise ConfigError(
            f"{path} is a published file: name its architecture (--gpt-model GPT-B, or --gpt-config FILE; in Python "
            "config=FILE)"
        )
    model = config if isinstance(config, GeneratorConfig) else load_sections(GeneratorSections, config).model
    layout = layout_of(model)
    contents = layout.read(path, weights, header_only=header_only)

    # The tensors of the file become the parameters; nothing is initialized first.
    with without_storage():
        generator = build_generator(model)
    ours = layout.import_state(contents.state, generator.state_dict())
    if header_only:
        require_fit(generator, ours, path, layout.name_in_file(contents))
    else:
        load_strict(generator, ours, path, assign=True, shown_as=layout.name_in_file(contents))
    return generator, Provenance(str(path), contents.kind, "", {}, GeneratorSections(model=model))


def require_pair(generator: Generator, tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless `generator` was trained on codes of `tokenizer` (both loaded), whatever its decoder.

    A generator that needs the tokenizer's code vectors takes them over, where its file did not have them.

    Where the generator does not say what it was trained on, its tokens must at least have the tokenizer's sizes.
    """
    trained_on = CodeMaker.of_stamp(generator.provenance.stamp)
    if trained_on is not None and not tokenizer.makes_codes_of(trained_on):
        raise ConfigError(
            f"the generator {generator.provenance.path} was trained on codes of tokenizer "
            f"{trained_on.fingerprint[:16]}, but {tokenizer.provenance.path} is "
            f"{tokenizer.provenance.fingerprint[:16]}; {trained_on.why_not()}"
        )

    require_sizes(generator, tokenizer)
    generator.adopt_codes(tokenizer.quantizer)


def require_sizes(generator: Generator, tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless the tokens of `generator` have the sizes of those of `tokenizer`."""
    generator_sizes = (generator.num_tokens, generator.codebook_sizes)
    tokenizer_sizes = (tokenizer.num_tokens, tuple(tokenizer.quantizer.group_sizes))
    if generator_sizes != tokenizer_sizes:
        expected = _tokens_text(*generator_sizes)
        reason = f"; it is for {generator.codes_in_words}" if generator.codes_in_words else ""
        raise ConfigError(
            f"the generator is for {expected} per image, the tokenizer gives {_tokens_text(*tokenizer_sizes)}{reason}"
        )


def classes_of(generator: Generator) -> Classes:
    """The classes that a loaded generator was trained on; unknown where it does not say them."""
    return generator.classes


def _tokens_text(num_tokens: int, codebook_sizes: tuple[int, ...]) -> str:
    return f"{num_tokens} tokens of {' x '.join(map(str, codebook_sizes))} codes"
