"""Published generators of VAR (arXiv:2404.02905): files that are a state dict of raw weights.

A file holds no codes: those of the tokenizer are taken over when both are loaded (`Generator.adopt_codes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from autoregressive.models.base import Generator
from autoregressive.models.next_scale import NextScaleConfig
from engine.checkpoint.foreign.reader import Weights, read_checkpoint
from engine.messages import ConfigError
from tokenizer.published.layout import Rule, export_state, import_state, name_in_file

VAR_NAMES: tuple[Rule, ...] = (
    Rule(r"start", "pos_start", "same"),
    Rule(r"positions", "pos_1LC", "same"),
    Rule(r"word_embedding\.(.*)", r"word_embed.\1", "same"),
    Rule(r"class_embedding\.weight", "class_emb.weight", "same"),
    Rule(r"level_embedding\.weight", "lvl_embed.weight", "same"),
    Rule(r"shared_modulation\.(.*)", r"shared_ada_lin.1.\1", "same"),
    Rule(r"layers\.(\d+)\.attention\.log_scale", r"blocks.\1.attn.scale_mul_1H11", "same"),
    Rule(r"layers\.(\d+)\.attention\.qkv\.weight", r"blocks.\1.attn.mat_qkv.weight", "same"),
    Rule(r"layers\.(\d+)\.attention\.((q_bias|v_bias|proj\..*))", r"blocks.\1.attn.\2", "same"),
    Rule(r"layers\.(\d+)\.(fc[12]\..*)", r"blocks.\1.ffn.\2", "same"),
    Rule(r"layers\.(\d+)\.modulation\.(.*)", r"blocks.\1.ada_lin.1.\2", "same"),
    Rule(r"layers\.(\d+)\.table", r"blocks.\1.ada_gss", "same"),
    Rule(r"final_modulation\.(.*)", r"head_nm.ada_lin.1.\1", "same"),
    Rule(r"output\.(.*)", r"head.\1", "same"),
)
CONSTANTS = ("lvl_1L", "attn_bias_for_masking", ".attn.zero_k_bias")  # tables of the files that are no weights
CODES = ("scale_codes.", "has_codes")  # what is not in these files, by our names


class VARLayout:
    """Files of VAR, without a key around the state dict; see `PublishedLayout`."""

    def __init__(self, config: NextScaleConfig) -> None:
        self.rules = VAR_NAMES
        self.config = config

    def read(self, path: Path, weights: str, *, header_only: bool = False) -> Weights:
        contents = read_checkpoint(path, prefer=weights, order=("model", "ema"), header_only=header_only)
        if "pos_1LC" not in contents.state:
            raise ConfigError(f"{path} holds no generator of scales (it has no pos_1LC); is it a tokenizer?")
        state = {name: tensor for name, tensor in contents.state.items() if not name.endswith(CONSTANTS)}
        return replace(contents, state=state)

    def import_state(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {name: tensor for name, tensor in own.items() if not name.startswith(CODES)}
        device = next(iter(state.values())).device if state else torch.device("cpu")
        absent = {
            name: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in own.items()
            if name.startswith(CODES)
        }
        return import_state(state, weights, self.rules) | absent

    def name_in_file(self, weights: Weights) -> Callable[[str], str]:
        return name_in_file(weights.file_names, self.rules, "")

    def export(self, generator: Generator) -> dict[str, dict[str, Tensor]]:
        own = {name: tensor for name, tensor in generator.state_dict().items() if not name.startswith(CODES)}
        return {"": export_state(own, self.rules) | self._constants(own)}

    def _constants(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tables that the published reader asks for: levels, the mask of attention, and biases of keys."""
        sizes = torch.tensor([side**2 for side in self.config.scales])
        levels = torch.arange(len(sizes)).repeat_interleave(sizes)
        mask = torch.zeros(len(levels), len(levels)).masked_fill(levels[:, None] < levels, -torch.inf)
        biases = {
            f"blocks.{name.split('.')[1]}.attn.zero_k_bias": torch.zeros_like(tensor)
            for name, tensor in own.items()
            if name.endswith(".attention.q_bias")
        }
        return {"lvl_1L": levels[None], "attn_bias_for_masking": mask[None, None], **biases}
