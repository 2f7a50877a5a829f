"""Layouts of published generator files: which tensors they hold, under which names.

A layout is entered in `LAYOUTS` under the name of its generator. A generator without one cannot be read from, or
written to, a published file; everything else works without.
"""

from __future__ import annotations

from typing import Any

from autoregressive.models.gpt import SIZES, GPTConfig
from autoregressive.models.registry import GeneratorConfig
from autoregressive.published_adaln import AdaLNGPTLayout
from autoregressive.published_layout import PublishedLayout, RuledLayout
from autoregressive.published_rar import RARLayout
from autoregressive.published_var import VARLayout
from engine.messages import ConfigError
from tokenizer.published.layout import Rule

PUBLISHED_SIZES = {f"GPT-{size.upper()}": size for size in SIZES}  # as the published commands name them


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


def has_factorized_head(config: GPTConfig) -> bool:
    """Whether a GPT is of the family of WeTok and Open-MAGVIT2."""
    return config.head_name == "factorized"


def layout_rules(config: GPTConfig) -> tuple[Rule, ...]:
    """The names of the family that a config describes."""
    if not has_factorized_head(config):
        return GPT_NAMES
    if len(config.index_sizes) == 2:
        return TWO_TABLES + WETOK_NAMES
    return WETOK_NAMES


class GPTLayout(RuledLayout):
    """Files of GigaTok and LlamaGen (`model`), and of WeTok and Open-MAGVIT2 (`state_dict`, with their tokenizer)."""

    def __init__(self, config: GPTConfig) -> None:
        is_factorized = has_factorized_head(config)
        file_key = "state_dict" if is_factorized else "model"
        super().__init__(layout_rules(config), file_key=file_key, holds_tokenizer=is_factorized)


def published_config(size: str, codebook_size: int, num_tokens: int, rotary: bool) -> GeneratorConfig:
    """A published size (a key of `PUBLISHED_SIZES`) over 1,000 classes, for the tokens of a tokenizer."""
    section = GPTConfig(
        size=PUBLISHED_SIZES[size],
        vocab_size=codebook_size,
        num_tokens=num_tokens,
        positions="rope2d" if rotary else "learned",
    )
    return GeneratorConfig(name="gpt", gpt=section)


LAYOUTS: dict[str, Any] = {"gpt": GPTLayout, "adaln_gpt": AdaLNGPTLayout, "rar": RARLayout, "next_scale": VARLayout}
