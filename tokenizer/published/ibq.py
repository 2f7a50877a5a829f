"""Published tokenizers of IBQ (arXiv:2412.02692): LlamaGen's CNN under VQGAN's names, with index backpropagation.

Their files hold raw weights and EMA in one state dict, beside losses and discriminator. Sizes are 4 ResBlocks per level
of the encoder, 5 of the decoder, 256 latent channels, and 1,024 to 262,144 codes; the YAML says them.
"""

from __future__ import annotations

from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import CODEBOOK, Rule
from tokenizer.published.merged import MergedLayout
from tokenizer.published.vqgan import attention_cnn_rules

QUANTIZER = "ibq"


class IBQLayout(MergedLayout):
    """See the module docstring."""

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        return (*attention_cnn_rules(len(config.llamagen.cnn.channel_multipliers)), *CODEBOOK)
