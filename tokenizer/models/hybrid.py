"""GigaTok's hybrid tokenizer (arXiv:2504.08736): CNN encoder, transformer, quantizer, transformer, CNN decoder.

Layout `1d`: Q-Formers between the grid and a sequence of latent tokens. Layout `2d`: plain transformers, one token a
grid cell.

Shapes    images (B,3,H,H) in [-1,1]      grid features (B,z_channels,h,h), h = H / 16 for the published CNN
          latents (B,N,z_channels)        z, z_q (B,N,codebook_dim)        indices (B,N)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from engine.messages import ConfigError
from tokenizer.models.attention import MultiheadAttention
from tokenizer.models.base import Tokenizer, TokenizerOutput
from tokenizer.models.cnn import GIGATOK, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.grid_transformer import GridDecoder, GridEncoder
from tokenizer.models.query_transformer import QueryDecoder, QueryEncoder, TransformerConfig, pooling_boxes
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class HybridConfig:
    """Sizes of the hybrid tokenizer."""

    layout: Literal["1d", "2d"] = "1d"
    block: Literal["vit", "qformer"] | None = None  # 2d only: type of the transformer blocks
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    qk_norm: bool = False  # layer norm of queries and keys in every attention; no published model has it
    num_tokens: int = 256  # 1d: a power of 2; 2d: the number of grid cells
    z_channels: int = 256  # channels between CNN, Q-Former and quantizer
    cnn: CNNConfig = field(default_factory=CNNConfig)
    semantic_layer: int | None = 3  # decoder block (from 1) that the semantic head reads; null = no head
    semantic_dim: int = 768  # width of the teacher's features
    position_std: float | None = None  # of the position tables at the start; null = width ** -0.5, as released
    init: Literal["released", "torch"] = "released"  # truncated normal 0.02 everywhere, or PyTorch's defaults

    def __post_init__(self) -> None:
        if (self.layout == "2d") != (self.block is not None):
            raise ConfigError(
                f"model.hybrid.block={self.block} with layout={self.layout}: 2d needs vit or qformer, 1d needs null"
            )


def _released_init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class HybridTokenizer(Tokenizer):
    """See the module docstring. Works at the one image size it is built for: its position tables are learned."""

    def __init__(self, config: HybridConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__()
        encoder_dims = config.encoder.dims("model.hybrid.encoder")
        decoder_dims = config.decoder.dims("model.hybrid.decoder")
        grid = grid_size(config, image_size)
        if config.semantic_layer is not None and not 1 <= config.semantic_layer <= decoder_dims[1]:
            raise ConfigError(
                f"model.hybrid.semantic_layer={config.semantic_layer} must lie in 1..{decoder_dims[1]} (layers)"
            )
        self.image_size, self.num_tokens, self.grid = image_size, config.num_tokens, grid
        z, std = config.z_channels, config.position_std
        self.encoder = CNNEncoder(config.cnn, z, GIGATOK)
        tail = (config.semantic_layer, config.semantic_dim)
        if config.layout == "1d":
            self.query_encoder = QueryEncoder(encoder_dims, grid, config.num_tokens, z, std)
            self.query_decoder = QueryDecoder(decoder_dims, grid, config.num_tokens, z, std, *tail)
        else:
            self.query_encoder = GridEncoder(encoder_dims, grid, z, config.block, std)
            self.query_decoder = GridDecoder(decoder_dims, grid, z, config.block, std, *tail)
        self.decoder = CNNDecoder(config.cnn, z, GIGATOK)
        for module in self.modules() if config.qk_norm else ():
            if isinstance(module, MultiheadAttention):
                module.add_qk_norm()
        if config.init == "released":
            self.apply(_released_init)
        self.decoder.set_adaptive_gain(config.cnn.adaptive_gain)
        self.quantizer = quantizer
        self.quant_proj = nn.Linear(z, quantizer.codebook_dim)
        self.post_quant_proj = nn.Linear(quantizer.codebook_dim, z)

    def forward(
        self,
        images: Tensor,
        *,
        quantize: bool = True,
        entropy: bool = False,
        shortcut: bool = False,
        semantic: bool = False,
    ) -> TokenizerOutput:
        """A full pass. `shortcut` also decodes the CNN encoder's features; `semantic` also runs the semantic head."""
        features = self.encode_features(images)
        quantized = self.quantizer(self.latents(features), quantize=quantize, entropy=entropy)
        decoded, semantic_features = self.query_decoder(self.post_quant_proj(quantized.z_q), semantic)
        return TokenizerOutput(
            reconstructions=self.decoder(decoded),
            quantized=quantized,
            encoder_features=features,
            decoder_features=decoded,
            shortcut_reconstructions=self.decoder(features) if shortcut else None,
            semantic_features=semantic_features,
        )

    def encode_features(self, images: Tensor) -> Tensor:
        """CNN features; an image of another size is an error here rather than deep inside."""
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"this tokenizer takes images (B, 3, {self.image_size}, {self.image_size}), found {tuple(images.shape)}"
            )
        return self.encoder(images)

    def latents(self, features: Tensor) -> Tensor:
        """CNN features -> latents before quantization (B,N,codebook_dim)."""
        return self.quant_proj(self.query_encoder(features))

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized latents (B,N,codebook_dim) -> images, not clamped."""
        return self.decoder(self.query_decoder(self.post_quant_proj(z_q))[0])


def grid_size(config: HybridConfig, image_size: int) -> int:
    """Side of the feature grid; an image size or number of tokens that does not fit is an error."""
    factor = config.cnn.factor
    if image_size % factor:
        raise ConfigError(f"data.image_size={image_size} does not fit the model: it must be a multiple of {factor}")
    grid = image_size // factor
    if config.layout == "2d":
        if config.num_tokens != grid * grid:
            raise ConfigError(
                f"model.hybrid.num_tokens={config.num_tokens} must be {grid * grid}, the cells of the 2d grid"
            )
        return grid
    rows, columns = pooling_boxes(config.num_tokens)[-1]
    if grid % rows or grid % columns:
        raise ConfigError(
            f"model.hybrid.num_tokens={config.num_tokens} does not fit: its finest pooling level of "
            f"{rows}x{columns} boxes must divide the {grid}x{grid} grid of data.image_size={image_size}"
        )
    return grid
