"""Loads a trained tokenizer: from a run or checkpoint folder of this project, or from a published checkpoint file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from engine import plugins
from engine.arguments import path_text
from engine.averages import note_choice
from engine.checkpoint.foreign.reader import read_checkpoint
from engine.checkpoint.weights import (
    find_weights,
    fingerprint,
    is_average,
    load_strict,
    read_header,
    read_weights,
    require_fit,
)
from engine.config import load_sections
from engine.data.classes import STAMP as CLASSES
from engine.data.config import DataConfig
from engine.devices import usable_device
from engine.messages import ConfigError
from engine.without_storage import without_storage
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import ModelConfig, build_tokenizer
from tokenizer.published.files import is_published
from tokenizer.published.layout import import_state, name_in_file
from tokenizer.published.parts import TOKENIZER_PART, is_gpt, select_submodule
from tokenizer.published.registry import config_of_state, layout_of

C = TypeVar("C")
N = TypeVar("N", bound=nn.Module)
SOURCE = "a folder (run, checkpoint or export), a published file, hf-hub:organization/name, or shipped:NAME"


@dataclass(kw_only=True, slots=True)
class TokenizerSections:
    """The part of a training config that a trained tokenizer needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    plugins: list[str] = field(default_factory=list)  # that training used; named in messages, never imported


@dataclass(frozen=True)
class Provenance:
    """Where a loaded network came from.

    `fingerprint` is the SHA-256 of its parameters. A reader of files leaves it empty; it is filled in once the network
    is loaded, whatever kind of file it came from (`load_tokenizer`).
    """

    path: str
    weights: str  # "ema" or "model"
    fingerprint: str
    stamp: dict[str, Any]
    config: Any
    network_facts: Callable[[], dict[str, Any]] = dict  # what the network itself says of its results

    @property
    def is_average(self) -> bool:
        """Whether the weights are averaged (EMA), also where a shared folder holds them as its only ones."""
        return is_average(self.weights, self.stamp)

    def facts(self) -> dict[str, Any]:
        """What a result says about the network."""
        facts = {name: getattr(self, name) for name in ("path", "weights", "fingerprint", "stamp")}
        facts["stamp"] = {key: value for key, value in self.stamp.items() if key != CLASSES}  # may be thousands
        changed_plugins = plugins.changes(self.stamp.get("plugins", {}))
        return facts | ({"changed_plugins": changed_plugins} if changed_plugins else {}) | self.network_facts()


@dataclass(kw_only=True, slots=True)
class _ImageSize:
    """The only key of `data` that the network depends on."""

    image_size: int = 256


@dataclass(kw_only=True, slots=True)
class _Architecture:
    """The part of a recipe that fixes the network; its other keys (data folders, say) need not resolve here."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: _ImageSize = field(default_factory=_ImageSize, metadata={"partial": True})


def load_tokenizer(
    path: str | Path, *, config: str | Path | None = None, weights: str = "auto", device: str = "cpu"
) -> Tokenizer:
    """A tokenizer in evaluation mode from a run folder, a checkpoint, an exported folder, or a published file.

    A published file needs `config`, the YAML of its architecture, unless its shapes show it; with any other source
    `config` is an error. `weights`: `ema`, `model`, or `auto` (the EMA where there is one). The result has a
    `provenance`. Raises ConfigError or CheckpointError for another kind of network, another size, a device that is not
    there, or a damaged file; nothing loads partly.
    """
    device = usable_device(device)
    if reads_published(path, config):
        tokenizer, provenance = _load_published(Path(path), config, weights)
    else:
        tokenizer, provenance = _load_folder(path, weights)
    tokenizer = tokenizer.to(device).eval().requires_grad_(False)
    tokenizer.provenance = replace(provenance, fingerprint=fingerprint(tokenizer), network_facts=tokenizer.facts)
    return tokenizer


def survey_tokenizer(
    path: str | Path, *, config: str | Path | None = None, weights: str = "auto", hashed: bool = False
) -> Tokenizer:
    """The tokenizer that `load_tokenizer` would load, without storage: from sizes and headers of its files alone.

    With `hashed`, hashes on record are compared too, which reads whole files. Raises what `load_tokenizer` raises for
    files that are missing, damaged in their headers, or of another network. Its provenance has no fingerprint.
    """
    if reads_published(path, config):
        tokenizer, provenance = _load_published(Path(path), config, weights, header_only=True)
    else:
        tokenizer, provenance = _load_folder(path, weights, header_only=True, hashed=hashed)
    tokenizer.provenance = provenance
    return tokenizer


def reads_published(source: str | Path, config: Any, sections: type | None = None) -> bool:
    """Whether a source is a published file, as opposed to one that brings its own config.

    One rule for all sources: a config that is named is used, or refused. It is a path, the name of a recipe, or an
    instance of `sections`. Raises UserError for a source or a config that is none, and for a config beside a source
    that brings its own.
    """
    path_text(source, "source", SOURCE)
    in_memory = sections is not None and isinstance(config, sections)
    if config is not None and not in_memory:
        path_text(config, "config", "the YAML file of an architecture, or the name of a recipe")
    if config is None or is_published(source):
        return is_published(source)
    named = "another one" if in_memory else f"config {config}"
    raise ConfigError(f"{source} brings its own config: {named} is for published files alone; leave it out")


def _load_folder(
    path: str | Path, weights: str, *, header_only: bool = False, hashed: bool = True
) -> tuple[Tokenizer, Provenance]:
    """The tokenizer in a folder of ours; see `load_folder`."""

    def build(config: TokenizerSections) -> Tokenizer:
        return build_tokenizer(config.model, config.data.image_size)

    return load_folder(path, weights, "tokenizer", TokenizerSections, build, header_only=header_only, hashed=hashed)


def load_folder(
    path: str | Path,
    weights: str,
    what: str,
    schema: type[C],
    build: Callable[[C], N],
    *,
    header_only: bool = False,
    hashed: bool = True,
) -> tuple[N, Provenance]:
    """The network in a folder of ours, which `build` makes of the part `schema` of its config; `what` names its kind.

    With `header_only` the network has no storage, and of its weights only names and shapes are looked at. Its
    provenance has no fingerprint yet. Raises CheckpointError as `find_weights` and `load_strict` do, and ConfigError
    for another kind of network.
    """
    # Which weights, and the config beside them.
    weights_file = find_weights(path, weights, what, hashed=hashed)
    folder = weights_file.folder
    try:
        config = load_sections(schema, folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{weights_file.shown} is not a {what}: {error}") from error

    # The network.
    if header_only:
        with without_storage():
            network = build(config)
        require_fit(network, read_header(weights_file.path), weights_file.path)
    else:
        network = build(config)
        load_strict(network, read_weights(weights_file.path), weights_file.path)
        plugins.warn_changes(weights_file.stamp.get("plugins", {}), weights_file.shown)
        note_choice(weights_file, what)

    provenance = Provenance(
        path=weights_file.shown, weights=weights_file.kind, fingerprint="", stamp=weights_file.stamp, config=config
    )
    return network, provenance


def _load_published(
    path: Path, config_path: str | Path | None, weights: str, *, header_only: bool = False
) -> tuple[Tokenizer, Provenance]:
    """The tokenizer in a published file; its provenance has no fingerprint yet.

    With `header_only` the tokenizer has no storage, and of the file only names and shapes are looked at.
    """
    # The YAML, where one is named: it decides about the architecture.
    architecture = load_sections(_Architecture, config_path) if config_path is not None else None
    in_one_dict = architecture is None or layout_of(architecture.model).holds_both_weights

    # The tensors of the tokenizer.
    contents = read_checkpoint(path, prefer=weights, is_wish=in_one_dict, header_only=header_only)
    state = select_submodule(contents.state, TOKENIZER_PART)
    if is_gpt(state):
        raise ConfigError(f"{path} holds a GPT, not a tokenizer")

    # The architecture, with what the file knows better.
    if architecture is None:
        detected_config = config_of_state(state)
        if detected_config is None:
            raise ConfigError(
                f"{path} is a published file: name the YAML of its architecture (--tok-config, --model-config; in "
                "Python config=), or convert it into a folder once: python -m tokenizer.convert --help"
            )
        architecture = _Architecture(model=detected_config)
    layout = layout_of(architecture.model)
    model_config = layout.complete_config(architecture.model, state)
    image_size = architecture.data.image_size

    # The network without storage: tensors of the file take their places. What no file has are the windows of recent
    # codes, which are empty.
    with without_storage():
        tokenizer = build_tokenizer(model_config, image_size)
    rules = layout.rules(model_config)
    windows = {f"quantizer.{name}": window for name, window in tokenizer.quantizer.empty_windows().items()}
    expected = tokenizer.state_dict() | windows
    state, selected = layout.select(state, expected, rules, "model" if contents.kind == "ema" else weights, path)
    source = f"{path} (as {config_path})" if config_path else str(path)
    in_file = name_in_file(contents.file_names, rules, TOKENIZER_PART)
    imported = import_state(state, expected, rules)
    if header_only:
        require_fit(tokenizer, imported, source, in_file)
    else:
        load_strict(tokenizer, imported, source, assign=True, shown_as=in_file)

    sections = TokenizerSections(model=model_config, data=DataConfig(image_size=image_size))
    kind = "ema" if "ema" in (contents.kind, selected) else "model"
    provenance = Provenance(path=str(path), weights=kind, fingerprint="", stamp={}, config=sections)
    return tokenizer, provenance
