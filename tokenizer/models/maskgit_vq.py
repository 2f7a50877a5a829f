"""MaskGIT's tokenizer of ImageNet (arXiv:2202.04200, section 3.1; f16), which MaskGIT and RAR generate codes of.

A CNN whose latents are quantized without any projection. Inside the network, pixels lie in [0,1].
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from engine.validation import Section
from tokenizer.models.cnn import MASKGIT, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.conv import ConvTokenizer
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class MaskGITVQConfig(Section):
    """Sizes. The channel multipliers 1,1,2,2,4 give factor 16."""

    cnn: CNNConfig = field(default_factory=lambda: CNNConfig(decoder_res_blocks=2))


class MaskGITVQTokenizer(ConvTokenizer):
    """See the module docstring. The quantizer's channels are the CNN's latent channels."""

    config_class = MaskGITVQConfig
    in_words = "CNN"

    def __init__(self, config: MaskGITVQConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__(config.cnn, quantizer, image_size)
        self.config = config
        self.encoder = CNNEncoder(config.cnn, quantizer.codebook_dim, MASKGIT)
        self.decoder = CNNDecoder(config.cnn, quantizer.codebook_dim, MASKGIT)

    def encode_features(self, images: Tensor) -> Tensor:
        return super().encode_features((images + 1) / 2)

    def decode_features(self, features: Tensor) -> Tensor:
        return 2 * self.decoder(features) - 1
