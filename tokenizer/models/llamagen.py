"""LlamaGen's tokenizers VQ-16 and VQ-8 (arXiv:2406.06525, section 3.1): a VQGAN without a transformer.

It is the baseline that GigaTok and WeTok compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from engine.flops import FORWARD, TRAINED, PartFlops, linear_flops
from engine.validation import Problem, Section, at_least
from tokenizer.models.cnn import LLAMAGEN, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.conv import ConvTokenizer
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class LlamaGenConfig(Section):
    """Sizes. The channel multipliers 1,1,2,2,4 give VQ-16, and 1,2,2,4 give VQ-8."""

    z_channels: int = 256  # channels between CNN and quantizer
    cnn: CNNConfig = field(default_factory=CNNConfig)

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "z_channels", 1)


class LlamaGenTokenizer(ConvTokenizer):
    """A convolutional tokenizer with a linear projection on either side of the quantizer."""

    config_class = LlamaGenConfig
    in_words = "CNN"
    decoder_parts = ("post_quant_proj", "decoder")

    def __init__(self, config: LlamaGenConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__(config.cnn, quantizer, image_size)
        self.config = config
        self.encoder = CNNEncoder(config.cnn, config.z_channels, LLAMAGEN)
        self.decoder = CNNDecoder(config.cnn, config.z_channels, LLAMAGEN)
        self.quant_proj = nn.Linear(config.z_channels, quantizer.codebook_dim)
        self.post_quant_proj = nn.Linear(quantizer.codebook_dim, config.z_channels)

    def latents(self, features: Tensor) -> Tensor:
        return self.quant_proj(super().latents(features))

    def decoder_input(self, z_q: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return super().decoder_input(self.post_quant_proj(z_q), grid)

    def training_flops(
        self, *, entropy: bool = False, shortcut: bool = False, semantic: bool = False
    ) -> tuple[PartFlops, ...]:
        to_codes = FORWARD if self.trains_decoder_alone else TRAINED
        projections = to_codes * linear_flops(self.quant_proj, self.num_tokens)
        projections += TRAINED * linear_flops(self.post_quant_proj, self.num_tokens)
        parts = super().training_flops(entropy=entropy, shortcut=shortcut, semantic=semantic)
        return (*parts, PartFlops("projections", "matrix", projections))

    def encoding_flops(self) -> tuple[PartFlops, ...]:
        projection = linear_flops(self.quant_proj, self.num_tokens)
        return (*super().encoding_flops(), PartFlops("tokenizer's projection", "matrix", projection, True))
