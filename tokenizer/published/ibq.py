"""Published tokenizers of IBQ (arXiv:2412.02692): LlamaGen's CNN under VQGAN's names, with index backpropagation.

Their files hold raw weights and EMA in one state dict, beside losses and discriminator. Sizes are 4 ResBlocks per level
of the encoder, 5 of the decoder, 256 latent channels, and 1,024 to 262,144 codes; the YAML says them.
"""

from __future__ import annotations

from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import CODEBOOK, Rule
from tokenizer.published.merged import MergedLayout, cnn_rules, level_rules

QUANTIZER = "ibq"


def ibq_rules(levels: int) -> tuple[Rule, ...]:
    """The names of a CNN with `levels` levels, attention included."""
    return (
        *cnn_rules(levels),
        *level_rules(levels, r"decoder\.conv_blocks\.{level}\.attn\.(.*)", r"decoder.up.{level}.attn.\1"),
        Rule(r"encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..*)", r"encoder.down.\1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.0\.(.*)", r"\1.mid.block_1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.1\.(.*)", r"\1.mid.attn_1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.2\.(.*)", r"\1.mid.block_2.\2", "same"),
        *CODEBOOK,
    )


class IBQLayout(MergedLayout):
    """See the module docstring."""

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        return ibq_rules(len(config.llamagen.cnn.channel_multipliers))
