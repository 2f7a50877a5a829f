"""VAR's tokenizer (arXiv:2404.02905, section 3.2, released code): a VQGAN for codes of several scales.

3x3 convolutions lead to the quantizer and from it. With `model.quantizer.name=multi_scale` an image becomes the codes
of 1x1, 2x2, ... up to 16x16 cells; other quantizers give one code per cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from engine.flops import FORWARD, TRAINED, PartFlops, conv_flops
from engine.validation import Problem, Section, at_least
from tokenizer.models.cnn import VAR, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.conv import ConvTokenizer
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class VARVAEConfig(Section):
    """Sizes. The channel multipliers 1,1,2,2,4 give factor 16."""

    z_channels: int = 32  # channels between CNN and quantizer
    cnn: CNNConfig = field(default_factory=lambda: CNNConfig(base_channels=160))

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "z_channels", 1)


class VARVAETokenizer(ConvTokenizer):
    """See the module docstring."""

    config_class = VARVAEConfig
    in_words = "CNN"
    decoder_parts = ("post_quant_proj", "decoder")

    def __init__(self, config: VARVAEConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__(config.cnn, quantizer, image_size)
        self.config = config
        self.encoder = CNNEncoder(config.cnn, config.z_channels, VAR)
        self.decoder = CNNDecoder(config.cnn, config.z_channels, VAR)
        self.quant_proj = nn.Conv2d(config.z_channels, quantizer.codebook_dim, 3, padding=1)
        self.post_quant_proj = nn.Conv2d(quantizer.codebook_dim, config.z_channels, 3, padding=1)

    def latents(self, features: Tensor) -> Tensor:
        return super().latents(self.quant_proj(features))

    def decoder_input(self, z_q: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return self.post_quant_proj(super().decoder_input(z_q, grid))

    def training_flops(
        self, *, entropy: bool = False, shortcut: bool = False, semantic: bool = False
    ) -> tuple[PartFlops, ...]:
        to_codes = FORWARD if self.trains_decoder_alone else TRAINED
        projections = to_codes * conv_flops(self.quant_proj, self.num_cells)
        projections += TRAINED * conv_flops(self.post_quant_proj, self.num_cells)
        parts = super().training_flops(entropy=entropy, shortcut=shortcut, semantic=semantic)
        return (*parts, PartFlops("projections", "convolution", projections))

    def encoding_flops(self) -> tuple[PartFlops, ...]:
        projection = conv_flops(self.quant_proj, self.num_cells)
        return (*super().encoding_flops(), PartFlops("tokenizer's projection", "convolution", projection, True))
