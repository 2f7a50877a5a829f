"""WeTok's tokenizer (arXiv:2508.05599): a CNN whose latents are quantized without any projection, and in a second stage
the generative decoder.

The generative decoder (section 3.3, Eq. 11) takes noise beside the quantized latents, as many channels again, and is
trained as a conditional GAN on a frozen encoder. Its first convolution is that of the first stage, widened by zeros:
at its first step it gives the same images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizer.models.cnn import WETOK, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.conv import ConvTokenizer
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class WeTokConfig:
    """Sizes; the multipliers 1,2,2,4 give factor 8, 1,1,2,2,4 give 16 and 1,1,2,2,4,8 give 32."""

    cnn: CNNConfig = field(default_factory=lambda: CNNConfig(encoder_res_blocks=4, decoder_res_blocks=4, mid_blocks=4))
    generative_decoder: bool = False  # noise beside the latents; trained on a frozen encoder and quantizer
    noise_seed: int = 0  # of the noise in evaluation, which depends on it and on an image's codes alone


class WeTokTokenizer(ConvTokenizer):
    """See the module docstring."""

    min_cells = 2  # the adaptive norms take a variance over the grid

    def __init__(self, config: WeTokConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__(config.cnn, quantizer, image_size)
        channels, self.config = quantizer.codebook_dim, config
        self.encoder = CNNEncoder(config.cnn, channels, WETOK)
        self.decoder = CNNDecoder(config.cnn, channels, WETOK, channels if config.generative_decoder else 0)
        if config.cnn.adaptive_gain:
            self.decoder.set_adaptive_gain(config.cnn.adaptive_gain)
        if config.generative_decoder:
            self.encoder.requires_grad_(False)
            self.quantizer.requires_grad_(False)

    def train(self, mode: bool = True) -> WeTokTokenizer:
        """Training mode; with a generative decoder, encoder and quantizer stay in evaluation mode."""
        super().train(mode)
        if self.config.generative_decoder:
            self.encoder.eval()
            self.quantizer.eval()
        return self

    def decode_features(self, features: Tensor) -> Tensor:
        if not self.config.generative_decoder:
            return self.decoder(features)
        noise = torch.randn_like(features) if self.training else self.noise_of(features)
        return self.decoder(features, noise)

    @torch.no_grad()
    def noise_of(self, features: Tensor) -> Tensor:
        """The noise of evaluation, a function of `noise_seed` and of the signs of each image's latents: it repeats, in
        any batch.
        """
        rows = []
        for signs in (features > 1e-3).flatten(1).to(torch.uint8).cpu().numpy():
            digest = hashlib.blake2b(signs.tobytes(), digest_size=8, salt=str(self.config.noise_seed).encode()[:16])
            generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()) >> 1)
            rows.append(torch.randn(features.shape[1:], generator=generator))
        return torch.stack(rows).to(features)
