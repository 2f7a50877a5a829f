"""How the published files of generators are read and written: the contract, and files whose tensors follow rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from autoregressive.models.base import Generator
from engine.checkpoint.foreign.reader import Weights, read_checkpoint
from engine.messages import ConfigError
from tokenizer.published.layout import Rule, export_state, import_state, name_in_file
from tokenizer.published.parts import GPT_MARKS, GPT_PART, is_gpt, select_submodule

IGNORED = ("freqs_cis", ".kv_cache.")  # tables and caches that published files may hold beside the weights


class PublishedLayout(Protocol):
    """How the published files of a generator look. It is built as `Class(section)`, with the generator's section."""

    def read(self, path: Path, weights: str, *, header_only: bool = False) -> Weights:
        """The generator's weights of a file, under published names; `weights` is auto, ema or model.

        With `header_only` the tensors are on the meta device.
        Raises ConfigError if the file holds no such generator.
        """

    def import_state(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under our names; `own` is a state dict of the generator."""

    def export(self, generator: Generator) -> dict[str, dict[str, Tensor]]:
        """The content of a published file: {key: state dict under published names}; key "": no key around it."""

    def name_in_file(self, weights: Weights) -> Callable[[str], str]:
        """The function that gives the name of a tensor in the file, for messages."""


class RuledLayout:
    """Files whose tensors follow rules; see `PublishedLayout`.

    `file_key` is the key of a written file's state dict, "" where the file is that state dict itself. `holds_tokenizer`
    says whether the tokenizer is in the same state dict; the generator's names then begin with `transformer.`, and
    its weights are raw ones.
    """

    def __init__(self, rules: tuple[Rule, ...], *, file_key: str, holds_tokenizer: bool) -> None:
        self.rules = rules
        self.file_key = file_key
        self.holds_tokenizer = holds_tokenizer

    def read(self, path: Path, weights: str, *, header_only: bool = False) -> Weights:
        # Where the tokenizer is in the same file, `weights` speaks of that.
        preferred = "auto" if self.holds_tokenizer else weights
        contents = read_checkpoint(path, prefer=preferred, order=("model", "ema"), header_only=header_only)
        state = select_submodule(contents.state, GPT_PART)
        if not is_gpt(state):
            raise ConfigError(
                f"{path} holds no GPT (it has none of {', '.join(sorted(GPT_MARKS))}); is it a tokenizer?"
            )
        return replace(contents, state={name: tensor for name, tensor in state.items() if not _is_ignored(name)})

    def import_state(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return import_state(state, own, self.rules)

    def name_in_file(self, weights: Weights) -> Callable[[str], str]:
        return name_in_file(weights.file_names, self.rules, GPT_PART)

    def export(self, generator: Generator) -> dict[str, dict[str, Tensor]]:
        state = export_state(generator.state_dict(), self.rules)
        if self.holds_tokenizer:
            state = {GPT_PART + name: tensor for name, tensor in state.items()}
        return {self.file_key: state}


def _is_ignored(name: str) -> bool:
    """Whether a published tensor is not a weight."""
    return any(part in name for part in IGNORED)
