"""The published tokenizer of VAR (arXiv:2404.02905): f16, 4,096 codes of 32 channels. The file is a state dict, without
averages.

It also holds a moving count of how often each scale used each code, which only training reads: it is left out when a
file is read, and zero in a file that is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import ModelConfig
from tokenizer.published.files import WITHOUT_KEY
from tokenizer.published.layout import PublishedLayout, Rule, State, require_quantizer
from tokenizer.published.vqgan import attention_cnn_rules

QUANTIZER = "multi_scale"
HITS = "quantize.ema_vocab_hit_SV"  # (scales, codes)


class VARVAELayout(PublishedLayout):
    """See the module docstring."""

    file_key = WITHOUT_KEY

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        require_quantizer(config, QUANTIZER)
        return (
            *attention_cnn_rules(len(config.var_vae.cnn.channel_multipliers)),
            Rule(r"quantizer\.codebook", "quantize.embedding.weight", "same"),
            Rule(r"quantizer\.phis\.(.*)", r"quantize.quant_resi.qresi_ls.\1", "same"),
            Rule(r"(post_)?quant_proj\.(.*)", r"\1quant_conv.\2", "same"),
        )

    def select(
        self, state: State, expected: State, rules: tuple[Rule, ...], weights: str, path: Path
    ) -> tuple[dict[str, Tensor], str | None]:
        return {name: tensor for name, tensor in state.items() if name != HITS}, None

    def export(self, tokenizer: Tokenizer, load_raw: Callable[[], Tokenizer]) -> dict[str, Tensor]:
        section = tokenizer.provenance.config.model.quantizer.multi_scale
        hits = torch.zeros(len(section.scales), section.codebook_size)
        return {**super().export(tokenizer, load_raw), HITS: hits}
