"""WeTok's tokenizer (arXiv:2508.05599): a CNN whose latents are quantized without any projection.

In a second stage its decoder becomes a generative one, which takes noise; see `generative_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from engine.seeds import seed_problems
from engine.validation import Problem, Section, raise_problems
from tokenizer.models.base import State
from tokenizer.models.cnn import WETOK, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.conv import ConvTokenizer
from tokenizer.models.generative_decoder import evaluation_noise, widened
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class WeTokConfig(Section):
    """Sizes. The channel multipliers 1,2,2,4 give factor 8, 1,1,2,2,4 give 16 and 1,1,2,2,4,8 give 32."""

    cnn: CNNConfig = field(default_factory=lambda: CNNConfig(encoder_res_blocks=4, decoder_res_blocks=4, mid_blocks=4))
    generative_decoder: bool = False  # noise beside the latents; trained on a frozen encoder and quantizer
    noise_seed: int = 0  # seed of the noise in evaluation, which depends on it and on an image's codes alone

    def problems(self) -> Iterator[Problem]:
        yield from seed_problems(self.noise_seed, "noise_seed")


class WeTokTokenizer(ConvTokenizer):
    """See the module docstring. The quantizer's channels are the CNN's latent channels."""

    config_class = WeTokConfig
    in_words = "CNN"
    min_cells = 2  # the adaptive norms take a variance over the grid

    def __init__(self, config: WeTokConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__(config.cnn, quantizer, image_size)
        self.config = config

        # Encoder and decoder; a generative decoder takes as many channels of noise as there are latent channels.
        channels = quantizer.codebook_dim
        noise_channels = channels if config.generative_decoder else 0
        self.encoder = CNNEncoder(config.cnn, channels, WETOK)
        self.decoder = CNNDecoder(config.cnn, channels, WETOK, noise_channels)
        if config.cnn.adaptive_gain:
            self.decoder.set_adaptive_gain(config.cnn.adaptive_gain)

        # A generative decoder is trained alone.
        if config.generative_decoder:
            self.train_decoder_alone()

    def decode_features(self, features: Tensor) -> Tensor:
        if not self.config.generative_decoder:
            return self.decoder(features)
        noise = torch.randn_like(features) if self.training else self.noise_of(features)
        return self.decoder(features, noise)

    @torch.no_grad()
    def noise_of(self, features: Tensor) -> Tensor:
        """The noise of evaluation (B,C,h,w); see `evaluation_noise`."""
        return evaluation_noise(features, self.config.noise_seed)

    def decoding_noise(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.noise_of(self.decoder_input(z_q, grid))

    def decode_with_noise(self, z_q: Tensor, noise: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.decoder(self.decoder_input(z_q, grid), noise)

    # ------------------------------------------------------------------------------------------------ what others ask
    @classmethod
    def capabilities_of(cls, section: WeTokConfig) -> frozenset[str]:
        noise = {"noise"} if section.generative_decoder else set()
        return super().capabilities_of(section) | noise

    def facts(self) -> dict[str, Any]:
        return {"noise_seed": self.config.noise_seed} if self.config.generative_decoder else {}

    def set_noise_seed(self, seed: int) -> None:
        raise_problems([problem.text("") for problem in seed_problems(seed, "noise_seed")])
        self.config.noise_seed = seed

    # ------------------------------------------------------------------------------------------------ phases
    @classmethod
    def training_problems(cls, section: WeTokConfig, starts_from_weights: bool) -> Iterator[Problem]:
        if section.generative_decoder and not starts_from_weights:
            accepted = "false without init or phases: a generative decoder is trained on a frozen, trained encoder"
            yield Problem("generative_decoder", section.generative_decoder, accepted)

    @classmethod
    def section_of_phase(cls, section: WeTokConfig, generative_decoder: bool) -> WeTokConfig:
        if section.generative_decoder and not generative_decoder:
            raise ValueError("a generative decoder cannot become a plain one again")
        return replace(section, generative_decoder=generative_decoder)

    def state_from_earlier(self, raw: State, state: State) -> State:
        """With a generative decoder: the raw encoder and quantizer, which are frozen, and a widened decoder."""
        if not self.config.generative_decoder:
            return state
        frozen_as_raw = {name: value if name.startswith("decoder.") else raw[name] for name, value in state.items()}
        return widened(frozen_as_raw, self.state_dict())
