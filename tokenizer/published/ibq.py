"""Published tokenizers of IBQ (arXiv:2412.02692): LlamaGen's CNN under VQGAN's names, with index backpropagation.

Their files hold raw weights and EMA in one state dict, beside losses and discriminator. Sizes are 4 ResBlocks per level
of the encoder, 5 of the decoder, 256 latent channels, and 1,024 to 262,144 codes; the YAML says them.
"""

from __future__ import annotations

from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import Rule
from tokenizer.published.merged import MergedLayout

QUANTIZER = "ibq"


def ibq_rules(levels: int) -> tuple[Rule, ...]:
    """VQGAN's names; its decoder counts `levels` from the finest, ours runs from the coarsest."""
    rules: list[Rule] = []
    for published_level in range(levels):
        ours = rf"decoder\.conv_blocks\.{levels - 1 - published_level}"
        published = f"decoder.up.{published_level}"
        rules += [
            Rule(rf"{ours}\.res\.(.*)", rf"{published}.block.\1", "same"),
            Rule(rf"{ours}\.((?:attn|upsample)\..*)", rf"{published}.\1", "same"),
        ]
    return (
        *rules,
        Rule(r"encoder\.conv_blocks\.(\d+)\.res\.(.*)", r"encoder.down.\1.block.\2", "same"),
        Rule(r"encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..*)", r"encoder.down.\1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.0\.(.*)", r"\1.mid.block_1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.1\.(.*)", r"\1.mid.attn_1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.2\.(.*)", r"\1.mid.block_2.\2", "same"),
        Rule(r"(encoder|decoder)\.((?:conv|norm)_(?:in|out)\..*)", r"\1.\2", "same"),
        Rule(r"quantizer\.codebook", "quantize.embedding.weight", "same"),
        Rule(r"(post_)?quant_proj\.weight", r"\1quant_conv.weight", "conv1x1"),
        Rule(r"(post_)?quant_proj\.bias", r"\1quant_conv.bias", "same"),
        Rule(r"quantizer\.recent_.*", "", "unpublished"),
    )


class IBQLayout(MergedLayout):
    """See the module docstring."""

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        return ibq_rules(len(config.llamagen.cnn.channel_multipliers))
