"""Names and layouts of published checkpoints: rules that convert state dicts both ways, and the contract of a family.

A rule is (our name, published name, layout). The first is a regular expression, the second its replacement. Layouts:

    same       the tensor itself
    conv1x1    our linear weight (O,I) is their 1x1 convolution (O,I,1,1)
    table      our (N,C) is their (N,1,C)
    codes      our int32 window of indices is their float32 one
    own        training state that published files do not contain
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.messages import ConfigError
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import ModelConfig

Rule = tuple[str, str, str]
State = Mapping[str, Tensor]

# From features to codes and back: names that GigaTok and LlamaGen share.
CODE_PATH: tuple[Rule, ...] = (
    (r"quantizer\.codebook", "quantize.embedding.weight", "same"),
    (r"quantizer\.recent_indices", "quantize.codebook_used", "codes"),
    (r"quant_proj\.weight", "quant_conv.weight", "conv1x1"),
    (r"quant_proj\.bias", "quant_conv.bias", "same"),
    (r"post_quant_proj\.weight", "post_quant_conv.weight", "conv1x1"),
    (r"post_quant_proj\.bias", "post_quant_conv.bias", "same"),
    (r"quantizer\.recent_latents", "", "own"),
)
CNN: Rule = (r"(encoder|decoder)\.(.*)", r"\1.\2", "same")


class PublishedLayout:
    """How the published files of one tokenizer family are laid out.

    A layout is an object in a file of its family, entered in `tokenizer.published.registry.LAYOUTS` under the name of
    the model that it serves. A model without a layout can be trained and shared as a folder, but neither read from nor
    written to a published file.
    """

    file_key = "model"  # the key of a written file's state dict
    holds_both_weights = False  # whether raw weights and EMA are in one state dict

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

    def fill(self, state: dict[str, Tensor], expected: State) -> dict[str, Tensor]:
        """`state` with tensors that some published files leave out."""
        return state

    def export(self, load: Callable[[str], Tokenizer], config: ModelConfig, weights: str) -> dict[str, Tensor]:
        """The state dict of a published file. `load(weights)` gives the tokenizer; `weights` is what was asked for."""
        return export_state(load(weights).state_dict(), self.rules(config))

    def explains_itself(self, config: ModelConfig, state: State) -> bool:
        """Whether a file with this state dict needs no YAML beyond what every file of the family needs."""
        return True


# ------------------------------------------------------------------------------------------------ conversion by rules
def published_name(name: str, rules: tuple[Rule, ...]) -> tuple[str, str]:
    """(published name, layout) of one of our names. Raises ConfigError for a part that no released model has."""
    for pattern, replacement, layout in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement), layout
    raise ConfigError(f"no published name is known for {name!r}: no released model has such a part")


def to_published(tensor: Tensor, layout: str) -> Tensor:
    """One of our tensors in the published layout."""
    if layout == "conv1x1":
        return tensor[:, :, None, None]
    if layout == "table":
        return tensor[:, None]
    if layout == "codes":
        return tensor.float()
    return tensor


def from_published(tensor: Tensor, layout: str) -> Tensor:
    """One published tensor in our layout.

    A tensor that cannot have come from the layout is returned as it is: a strict load names it.
    """
    if layout == "conv1x1" and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if layout == "table" and tensor.ndim == 3 and tensor.shape[1] == 1:
        return tensor[:, 0]
    if layout == "codes":
        return tensor.to(torch.int32)
    return tensor


def export_state(state: State, rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    """Our state dict under published names and layouts."""
    exported = {}
    for name, tensor in state.items():
        published, layout = published_name(name, rules)
        if layout != "own":
            exported[published] = to_published(tensor, layout)
    return exported


def import_state(published: State, expected: State, rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    """A published state dict under our names, for a strict load that names everything missing or unexpected.

    `expected` gives the names we expect; unknown published names keep theirs.
    """
    our_names: dict[str, str] = {}
    layouts: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        published_as, layouts[name] = published_name(name, rules)
        our_names[published_as] = name

        # Training state that no published file has: an empty window.
        if layouts[name] == "own":
            empty = -1 if name.endswith("indices") else 0
            state[name] = torch.full(tensor.shape, empty, dtype=tensor.dtype)

    for name, tensor in published.items():
        if name in our_names:
            ours = our_names[name]
            state[ours] = from_published(tensor, layouts[ours])
        else:
            state[name] = tensor
    return state
