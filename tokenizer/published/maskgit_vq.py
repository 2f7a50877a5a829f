"""The published tokenizer of MaskGIT (arXiv:2202.04200) as a PyTorch file, which comes with TiTok and RAR: f16, 1,024
codes. The file is a state dict, without averages."""

from __future__ import annotations

from tokenizer.models.registry import ModelConfig
from tokenizer.published.files import WITHOUT_KEY
from tokenizer.published.layout import CODEBOOK, PublishedLayout, Rule, require_quantizer
from tokenizer.published.vqgan import cnn_rules, level_rules

QUANTIZER = "vq"


def maskgit_rules(levels: int) -> tuple[Rule, ...]:
    """The names of a CNN with `levels` levels."""
    upsample = level_rules(
        levels, r"decoder\.conv_blocks\.{level}\.upsample\.conv\.(.*)", r"decoder.up.{level}.upsample_conv.\1"
    )
    return (
        *upsample,
        *cnn_rules(levels),
        Rule(r"(encoder|decoder)\.mid\.(.*)", r"\1.mid.\2", "same"),
        *CODEBOOK,
    )


class MaskGITVQLayout(PublishedLayout):
    """See the module docstring."""

    file_key = WITHOUT_KEY

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        require_quantizer(config, QUANTIZER)
        return maskgit_rules(len(config.maskgit_vq.cnn.channel_multipliers))
