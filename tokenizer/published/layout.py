"""Names and layouts of published checkpoints: rules that convert state dicts both ways, and the contract of a family.

A rule (`Rule`) says how a tensor of ours is called in a published file, and how it is converted:

    same           the tensor itself
    conv1x1        our linear weight (O,I) is their 1x1 convolution (O,I,1,1)
    table          our (N,C) is their (N,1,C)
    codes          our int32 window of indices is their float32 one, which some files leave out
    unpublished    training state that published files do not contain
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.messages import ConfigError
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import ModelConfig

State = Mapping[str, Tensor]
TRAINING_STATE = ("codes", "unpublished")  # conversions of tensors that a file need not have


class Rule(NamedTuple):
    """How one tensor, or several with similar names, are called and converted."""

    name: str  # regular expression of our name
    published_name: str  # its replacement, as of `re.Match.expand`
    conversion: str  # see the module docstring


# From features to codes and back: names that all families with a learned codebook share.
CODEBOOK: tuple[Rule, ...] = (
    Rule(r"quantizer\.codebook", "quantize.embedding.weight", "same"),
    Rule(r"(post_)?quant_proj\.weight", r"\1quant_conv.weight", "conv1x1"),
    Rule(r"(post_)?quant_proj\.bias", r"\1quant_conv.bias", "same"),
)
# Those of GigaTok and LlamaGen, whose files also hold the usage window.
CODE_PATH: tuple[Rule, ...] = (
    *CODEBOOK,
    Rule(r"quantizer\.recent_indices", "quantize.codebook_used", "codes"),
    Rule(r"quantizer\.recent_latents", "", "unpublished"),
)
CNN = Rule(r"(encoder|decoder)\.(.*)", r"\1.\2", "same")


class PublishedLayout:
    """How the published files of one tokenizer family are laid out.

    A layout is an object in a file of its family, entered in `tokenizer.published.registry.LAYOUTS` under the name of
    the model that it serves. A model without a layout can be trained and shared as a folder, but neither read from nor
    written to a published file.
    """

    file_key = "model"  # the key of a written file's state dict; "": the file is that state dict itself
    holds_both_weights = False  # whether raw weights and EMA are in one state dict

    def variant(self, config: ModelConfig) -> PublishedLayout:
        """The layout of this very config, where a model was released with several quantizers."""
        return self

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        """The names of a network. Raises ConfigError where no published file has such a network."""
        raise NotImplementedError

    def config_of(self, state: State) -> ModelConfig | None:
        """The architecture that a state dict shows by itself; None where it needs a YAML."""
        return None

    def complete_config(self, config: ModelConfig, state: State) -> ModelConfig:
        """`config` with what the file knows better than a YAML, such as the width of a part for training only."""
        return config

    def select(
        self, state: State, expected: State, rules: tuple[Rule, ...], weights: str, path: Path
    ) -> tuple[dict[str, Tensor], str | None]:
        """(state dict, "ema" or "model") where raw weights and EMA are in one state dict; None leaves the choice.

        `expected` is the state dict of the network, under our names.
        """
        return dict(state), None

    def export(self, tokenizer: Tokenizer, load_raw: Callable[[], Tokenizer]) -> dict[str, Tensor]:
        """The state dict of a published file; `load_raw` gives the same tokenizer with its raw weights."""
        return export_state(tokenizer.state_dict(), self.rules(tokenizer.provenance.config.model))

    def explains_itself(self, config: ModelConfig, state: State) -> bool:
        """Whether a file with this state dict needs no YAML beyond what every file of the family needs."""
        return True


def require_quantizer(config: ModelConfig, name: str) -> None:
    """Raises ConfigError where `config` has another quantizer than the released models of its family."""
    if config.quantizer.name != name:
        raise ConfigError(f"model.quantizer.name={config.quantizer.name}: no published layout of {config.name} has it")


def num_rows(state: State, name: str) -> int:
    """The first size of a tensor that shows an architecture. Raises ConfigError where it is missing, or has no rows."""
    tensor = state.get(name)
    if tensor is None or tensor.ndim == 0 or len(tensor) == 0:
        fault = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
        raise ConfigError(f"the file does not show its architecture: {name} {fault}; name its YAML")
    return len(tensor)


# ------------------------------------------------------------------------------------------------ conversion by rules
def published_name(name: str, rules: tuple[Rule, ...]) -> tuple[str, str]:
    """(published name, conversion) of one of our names. Raises ConfigError for a part that no released model has."""
    for rule in rules:
        match = re.fullmatch(rule.name, name)
        if match:
            return match.expand(rule.published_name), rule.conversion
    raise ConfigError(f"no published name is known for {name!r}: no released model has such a part")


def to_published(tensor: Tensor, conversion: str) -> Tensor:
    """One of our tensors as it is in a published file."""
    if conversion == "conv1x1":
        return tensor[:, :, None, None]
    if conversion == "table":
        return tensor[:, None]
    if conversion == "codes":
        return tensor.float()
    return tensor


def from_published(tensor: Tensor, conversion: str) -> Tensor:
    """One published tensor as it is in our network.

    A tensor that cannot have come from the conversion is returned as it is: a strict load names it.
    """
    if conversion == "conv1x1" and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if conversion == "table" and tensor.ndim == 3 and tensor.shape[1] == 1:
        return tensor[:, 0]
    if conversion == "codes":
        codes = tensor.to(torch.int32)
        is_whole = tensor.is_meta or torch.equal(codes.to(tensor.dtype), tensor)
        return codes if is_whole else tensor
    return tensor


def export_state(state: State, rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    """Our state dict as that of a published file."""
    exported = {}
    for name, tensor in state.items():
        published, conversion = published_name(name, rules)
        if conversion != "unpublished":
            exported[published] = to_published(tensor, conversion)
    return exported


def import_state(published: State, expected: State, rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    """A published state dict under our names, for a strict load that names everything missing or unexpected.

    `expected` is the state dict of the freshly built network: it gives the names that we expect, and the values of
    training state that the file does not have. Unknown published names stay as they are.
    """
    our_names: dict[str, str] = {}
    conversions: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        published_as, conversion = published_name(name, rules)
        our_names[published_as] = name
        conversions[name] = conversion
        if conversion in TRAINING_STATE:
            state[name] = tensor

    for name, tensor in published.items():
        if name in our_names:
            our_name = our_names[name]
            state[our_name] = from_published(tensor, conversions[our_name])
        else:
            state[name] = tensor
    return state


def name_in_file(file_names: Mapping[str, str], rules: tuple[Rule, ...], part: str) -> Callable[[str], str]:
    """The function that gives the name of a tensor in a file, for messages.

    It takes our names, and published ones that nobody expects. `file_names` are those of the file, by the name without
    wrappers; `part` is the prefix of the network in a file that holds two.
    """

    def shown(name: str) -> str:
        try:
            published, _ = published_name(name, rules)
        except ConfigError:
            published = name
        candidates = (part + name, name, part + published, published)
        return next((file_names[c] for c in candidates if c in file_names), published or name)

    return shown
