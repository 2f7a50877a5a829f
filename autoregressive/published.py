"""Layouts of published generator files: which tensors they hold, under which names.

A layout is entered in `LAYOUTS` under the name of its generator. A generator without one cannot be read from, or
written to, a published file; everything else works without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from autoregressive.models.base import Generator
from autoregressive.models.gpt import SIZES, GPTConfig
from autoregressive.models.registry import GeneratorConfig
from engine.checkpoint.foreign.reader import Weights, read_checkpoint
from engine.messages import ConfigError
from tokenizer.published.layout import Rule, export_state, import_state, name_in_file
from tokenizer.published.parts import GPT_PART, is_gpt, select_submodule

PUBLISHED_SIZES = {f"GPT-{size.upper()}": size for size in SIZES}  # as the published commands name them


# ---------------------------------------------------------------------------------------------- the contract
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
        """The content of a published file: {key: state dict under published names}."""

    def name_in_file(self, weights: Weights) -> Callable[[str], str]:
        """The function that gives the name of a tensor in the file, for messages."""


def layout_of(config: GeneratorConfig) -> PublishedLayout:
    """The layout of the files of the generator that `config` names. Raises ConfigError if it has none."""
    if config.name not in LAYOUTS:
        raise ConfigError(
            f"model.name={config.name}: no published layout is known for it, "
            f"so its files cannot be read or written; known for: {', '.join(sorted(LAYOUTS))}"
        )
    return LAYOUTS[config.name](getattr(config, config.name))


# ---------------------------------------------------------------------------------------------- GPTs
# Of GigaTok and LlamaGen. A model with qk_norm has no published layout: its norms match no rule.
GPT_NAMES: tuple[Rule, ...] = (
    Rule(r"class_embedding\.weight", "cls_embedding.embedding_table.weight", "same"),
    Rule(r"token_embedding\.weight", "tok_embeddings.weight", "same"),
    Rule(r"positional_embedding", "positional_embedding", "same"),
    Rule(r"((layers|norm|output)\.(?!.*[qk]_norm).*)", r"\1", "same"),
)

WETOK_NAMES: tuple[Rule, ...] = (
    Rule(r"class_embedding\.weight", "class_emb.embedding_table.weight", "same"),
    Rule(r"layers\.((?!.*[qk]_norm).*)", r"spatial_blocks.\1", "same"),
    Rule(r"head\.tables\.(\d+)\.weight", r"\1_emb.weight", "same"),
    Rule(r"head\.layers\.((?!.*[qk]_norm).*)", r"factorized_blocks.\1", "same"),
    Rule(r"head\.norm\.(.*)", r"norm.\1", "same"),
    Rule(r"head\.outputs\.(.*)", r"head.\1", "same"),
)

# WeTok's names of the tables where a token has two indices.
TWO_TABLES: tuple[Rule, ...] = (
    Rule(r"head\.tables\.0\.weight", "pre_emb.weight", "same"),
    Rule(r"head\.tables\.1\.weight", "post_emb.weight", "same"),
)

IGNORED = ("freqs_cis", ".kv_cache.")  # tables and caches that published files may hold beside the weights


def has_factorized_head(config: GPTConfig) -> bool:
    """Whether a GPT is of WeTok's family."""
    return config.head_name == "factorized"


def layout_rules(config: GPTConfig) -> tuple[Rule, ...]:
    """The names of the family that a config describes."""
    if not has_factorized_head(config):
        return GPT_NAMES
    if len(config.index_sizes) == 2:
        return TWO_TABLES + WETOK_NAMES
    return WETOK_NAMES


class GPTLayout:
    """Files of GigaTok and LlamaGen (`model`), and of WeTok (`state_dict`, with the tokenizer in the same file)."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.rules = layout_rules(config)

    def read(self, path: Path, weights: str, *, header_only: bool = False) -> Weights:
        # WeTok's files hold raw weights of a GPT alone; `weights` then speaks of the tokenizer beside it.
        preferred = "auto" if has_factorized_head(self.config) else weights
        contents = read_checkpoint(path, prefer=preferred, order=("model", "ema"), header_only=header_only)
        state = select_submodule(contents.state, GPT_PART)
        if not is_gpt(state):
            raise ConfigError(f"{path} holds no GPT (it has no tok_embeddings.weight); is it a tokenizer?")
        return replace(contents, state={name: tensor for name, tensor in state.items() if not _is_ignored(name)})

    def import_state(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return import_state(state, own, self.rules)

    def name_in_file(self, weights: Weights) -> Callable[[str], str]:
        return name_in_file(weights.file_names, self.rules, GPT_PART)

    def export(self, generator: Generator) -> dict[str, dict[str, Tensor]]:
        state = export_state(generator.state_dict(), self.rules)
        if not has_factorized_head(self.config):
            return {"model": state}
        return {"state_dict": {GPT_PART + name: tensor for name, tensor in state.items()}}


def _is_ignored(name: str) -> bool:
    """Whether a published tensor is not a weight."""
    return any(part in name for part in IGNORED)


def published_config(size: str, codebook_size: int, num_tokens: int, rotary: bool) -> GeneratorConfig:
    """A published size (a key of `PUBLISHED_SIZES`) over 1,000 classes, for the tokens of a tokenizer."""
    section = GPTConfig(
        size=PUBLISHED_SIZES[size],
        vocab_size=codebook_size,
        num_tokens=num_tokens,
        positions="rope2d" if rotary else "learned",
    )
    return GeneratorConfig(name="gpt", gpt=section)


LAYOUTS: dict[str, Any] = {"gpt": GPTLayout}
