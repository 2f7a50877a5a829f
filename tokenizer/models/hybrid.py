"""GigaTok's hybrid tokenizer (arXiv:2504.08736, section 3.1).

CNN encoder -> transformer -> quantizer -> transformer -> CNN decoder, in two layouts:

    1d    Q-Formers between the grid and a sequence of latent tokens (`query_transformer.py`)
    2d    transformers over the grid, one token per grid cell (`grid_transformer.py`)

Shapes    images (B,3,H,H) in [-1,1]      grid features (B,z_channels,h,h), h = H / 16 for the published CNN
          latents (B,N,z_channels)        z, z_q (B,N,codebook_dim)        indices (B,N)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from engine.flops import TRAINED, PartFlops, linear_flops
from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least, raise_problems
from tokenizer.models.attention import MultiheadAttention
from tokenizer.models.base import FeatureSource, Tokenizer, TokenizerOutput
from tokenizer.models.cnn import GIGATOK, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.flexible import (
    ALIGNMENT,
    LINEAR,
    FlexibleConfig,
    Lengths,
    alignment_loss,
    semantic_weights,
    visible,
)
from tokenizer.models.grid_transformer import GridDecoder, GridEncoder
from tokenizer.models.query_transformer import (
    QueryDecoder,
    QueryEncoder,
    TransformerConfig,
    is_power_of_two,
    pooling_boxes,
)
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class HybridConfig(Section):
    """Sizes of the hybrid tokenizer."""

    layout: Literal["1d", "2d"] = "1d"
    block: Literal["vit", "qformer"] | None = None  # 2d only: type of the transformer blocks
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    qk_norm: bool = False  # layer norm of queries and keys in every attention; no published model has it
    num_tokens: int = 256  # tokens per image; 1d: a power of 2; 2d: the number of grid cells
    z_channels: int = 256  # channels between CNN, transformer and quantizer
    cnn: CNNConfig = field(default_factory=CNNConfig)
    semantic_layer: int | None = 3  # decoder block (from 1) that the semantic head reads; null = no head
    semantic_dim: int = 768  # channels of the teacher's features
    position_std: float | None = None  # initial std of the tables of positions; null = width ** -0.5, as released
    flexible: FlexibleConfig = field(default_factory=FlexibleConfig)  # 1d only: images of fewer tokens
    init: Literal["released", "torch"] = "released"  # truncated normal 0.02 everywhere, or PyTorch's defaults

    def problems(self) -> Iterator[Problem]:
        # What goes with each layout.
        if self.layout == "2d" and self.block is None:
            yield Problem("block", self.block, "vit or qformer with layout=2d")
        if self.layout == "1d" and self.block is not None:
            yield Problem("block", self.block, "null with layout=1d")
        if self.layout == "1d" and not is_power_of_two(self.num_tokens):
            yield Problem("num_tokens", self.num_tokens, "a power of 2 with layout=1d")
        if self.layout == "2d" and self.flexible.enabled:
            yield Problem("flexible.lengths", self.flexible.lengths, "fixed with layout=2d, whose tokens are places")

        # Flexible lengths, among as many tokens as there are.
        most = self.num_tokens + self.flexible.padding
        if not all(1 <= length <= most for length in self.flexible.listed):
            with_padding = " and padding" if self.flexible.padding else ""
            yield Problem("flexible.listed", self.flexible.listed, f"lengths in 1..{most} (num_tokens{with_padding})")
        if self.flexible.padding >= self.num_tokens:
            yield Problem("flexible.padding", self.flexible.padding, f"less than num_tokens={self.num_tokens}")
        by_length = self.flexible.enabled and self.flexible.semantic_by_length == LINEAR
        if by_length and self.semantic_layer is None:
            yield Problem("flexible.semantic_by_length", LINEAR, "constant with semantic_layer=null")

        # Numbers on their own.
        yield from at_least(self, "z_channels", 1)
        yield from at_least(self, "semantic_dim", 1)
        if self.position_std is not None:
            yield from at_least(self, "position_std", 0)


def _released_init(module: nn.Module) -> None:
    """GigaTok's initialization of one layer: weights truncated normal with std 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class _Passes(NamedTuple):
    """What the transformer decoder gives in one training pass of the network."""

    decoded: Tensor  # grid features (B,z_channels,h,w)
    semantic_features: Tensor | None
    prefix: Tensor | None = None  # grid features of the first tokens of each image, of a second pass
    semantic_weights: Tensor | None = None  # (B,)
    losses: Mapping[str, Tensor] = {}


class HybridTokenizer(Tokenizer):
    """See the module docstring.

    It works at the one image size it is built for: its tables of positions are learned.
    """

    config_class = HybridConfig
    in_words = "CNN and transformer"
    decoder_parts = ("post_quant_proj", "query_decoder", "decoder")

    def __init__(self, config: HybridConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__()
        self.config = config

        # Sizes, checked before anything is built.
        if quantizer.grid_side is not None:
            raise ConfigError(
                f"model.quantizer: {type(quantizer).__name__} takes the latents of a grid, and the hybrid tokenizer "
                "has a sequence; use it in a convolutional tokenizer"
            )
        encoder_dims = config.encoder.dims("model.hybrid.encoder")
        decoder_dims = config.decoder.dims("model.hybrid.decoder")
        raise_problems([*grid_problems(config, image_size), *semantic_problems(config, decoder_dims[1])])
        grid = image_size // config.cnn.factor
        self.image_size = image_size
        self.num_tokens = config.num_tokens
        self.grid = grid
        self.semantic_grid = grid
        self.lengths = Lengths(config.flexible, config.num_tokens) if config.flexible.enabled else None

        # Networks. The order fixes the random initialization; attribute names are those of the checkpoints, for both
        # layouts.
        z = config.z_channels
        sizes = {"grid": grid, "z_channels": z, "position_std": config.position_std}
        head = {"semantic_layer": config.semantic_layer, "semantic_dim": config.semantic_dim}
        self.encoder = CNNEncoder(config.cnn, z, GIGATOK)
        if config.layout == "1d":
            padding = config.flexible.padding
            self.query_encoder = QueryEncoder(encoder_dims, num_tokens=config.num_tokens, padding=padding, **sizes)
            self.query_decoder = QueryDecoder(decoder_dims, num_tokens=config.num_tokens + padding, **sizes, **head)
        else:
            self.query_encoder = GridEncoder(encoder_dims, block=config.block, **sizes)
            self.query_decoder = GridDecoder(decoder_dims, block=config.block, **sizes, **head)
        self.decoder = CNNDecoder(config.cnn, z, GIGATOK)

        # Options of the whole network. The quantizer and its projections keep PyTorch's initialization.
        if config.qk_norm:
            for module in self.modules():
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
        random_bits: Tensor | None = None,
        num_tokens: int | None = None,
    ) -> TokenizerOutput:
        """A full pass.

        `quantize=False` decodes the latents themselves; `entropy` adds the quantizer's entropy loss and its parts;
        `shortcut` also decodes the CNN encoder's features; `semantic` also runs the semantic head. In training
        `random_bits` (B,) also choose how many tokens the decoder sees of each image, where lengths are flexible; in
        evaluation `num_tokens` says how many it sees of all.
        """
        # In training some tokens may be hidden from the decoder, and only then is there padding.
        hides = self.lengths is not None and self.training and random_bits is not None
        features = self.encode_features(images)
        latents = self.quant_proj(self.query_encoder(features)) if hides else self.latents(features)
        quantized = self.quantize_latents(latents, quantize=quantize, entropy=entropy, random_bits=random_bits)
        tokens = self.post_quant_proj(quantized.z_q)
        if num_tokens is not None:
            tokens = tokens[:, :num_tokens]

        if hides:
            passes = self._passes_of_lengths(tokens, self.lengths.drawn(random_bits), semantic)
        else:
            passes = _Passes(*self.query_decoder(tokens, semantic))
        prefix = passes.prefix
        return TokenizerOutput(
            reconstructions=self.decoder(passes.decoded),
            prefix_reconstructions=self.decoder(prefix) if prefix is not None else None,
            quantized=quantized,
            encoder_features=features,
            decoder_features=passes.decoded,
            shortcut_reconstructions=self.decoder(features) if shortcut else None,
            semantic_features=passes.semantic_features,
            semantic_weights=passes.semantic_weights,
            losses=passes.losses,
        )

    def _passes_of_lengths(self, tokens: Tensor, lengths: Tensor, semantic: bool) -> _Passes:
        """What the transformer decoder makes of `tokens` (B,M,z_channels), M with the padding, in training.

        It sees the first `lengths` (B,) of them in its only pass, or in a second one after that of all N tokens.
        """
        flexible = self.config.flexible
        count = tokens.shape[1]
        seen = visible(lengths, count)
        weights = semantic_weights(lengths, count) if semantic and flexible.semantic_by_length == LINEAR else None

        # One pass: whatever looks at the decoder looks at this one.
        if not flexible.full_pass:
            return _Passes(*self.query_decoder(tokens, semantic, seen), semantic_weights=weights)

        # Two passes. Those of all tokens never see padding, as in evaluation.
        everything = tokens[:, : self.num_tokens]
        decoded, of_all = self.query_decoder(everything, semantic and weights is None)
        prefix, of_prefix = self.query_decoder(tokens, weights is not None, seen)
        losses: dict[str, Tensor] = {}
        if flexible.align_weight > 0:
            early = self.query_decoder.early_features
            with torch.no_grad():
                target = early(everything)
            losses[ALIGNMENT] = alignment_loss(early(tokens, seen), target)
        return _Passes(decoded, of_all if weights is None else of_prefix, prefix, weights, losses)

    def encode_features(self, images: Tensor) -> Tensor:
        """Images -> CNN features (B,z_channels,h,h).

        Raises ValueError for images of another size, here rather than deep inside.
        """
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"this tokenizer takes images (B, 3, {self.image_size}, {self.image_size}), found {tuple(images.shape)}"
            )
        return self.encoder(images)

    def latents(self, features: Tensor) -> Tensor:
        """CNN features -> latents before quantization (B,N,codebook_dim), without the padding of training."""
        return self.quant_proj(self._without_padding(self.query_encoder(features)))

    def _without_padding(self, tokens: Tensor) -> Tensor:
        """Tokens (B,M,C) of the transformer encoder -> the first N of them, which are all where nothing pads them."""
        return tokens[:, : self.num_tokens] if self.config.flexible.padding else tokens

    def decode(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Quantized latents (B,N,codebook_dim) -> images, not clamped.

        `grid` is ignored: it is always the one that the network is built for. Where lengths are flexible, the first k
        latents (B,k,codebook_dim) of an image are enough. Raises ValueError for another number of latents.
        """
        count = z_q.shape[1]
        if count != self.num_tokens and (self.lengths is None or not 1 <= count < self.num_tokens):
            raise ValueError(f"this tokenizer decodes {self.num_tokens} tokens, found {count}")
        decoded, _ = self.query_decoder(self.post_quant_proj(z_q))
        return self.decoder(decoded)

    # ------------------------------------------------------------------------------------------------ what others ask
    @classmethod
    def capabilities_of(cls, section: HybridConfig) -> frozenset[str]:
        has_head = section.semantic_layer is not None
        flexible = {"flexible"} if section.flexible.enabled else set()
        return frozenset({"shortcut", *flexible} | ({"semantic"} if has_head else set()))

    @property
    def takes_random_bits(self) -> bool:
        return self.lengths is not None or super().takes_random_bits

    @property
    def decodes_prefixes(self) -> bool:
        return self.lengths is not None and self.config.flexible.full_pass

    @property
    def loss_weights(self) -> Mapping[str, float]:
        weight = self.config.flexible.align_weight
        return {ALIGNMENT: weight} if weight > 0 else {}

    @property
    def shown_lengths(self) -> tuple[int, ...]:
        return () if self.lengths is None else self.lengths.shown

    @classmethod
    def semantic_dim_of(cls, section: HybridConfig) -> int | None:
        return section.semantic_dim

    def training_flops(
        self, *, entropy: bool = False, shortcut: bool = False, semantic: bool = False
    ) -> tuple[PartFlops, ...]:
        # One pass of all parts; a frozen encoder is only read.
        count = self.num_tokens + self.config.flexible.padding
        to_codes = self.query_encoder.flops() + linear_flops(self.quant_proj, count)
        from_codes = self.query_decoder.flops(semantic) + linear_flops(self.post_quant_proj, count)
        if self.trains_decoder_alone:
            encoder, transformers = self.encoder.flops(self.image_size), to_codes + TRAINED * from_codes
        else:
            encoder, transformers = self.encoder.training_flops(self.image_size), TRAINED * (to_codes + from_codes)

        # What flexible lengths add.
        if self.decodes_prefixes:
            transformers += TRAINED * self.query_decoder.flops(semantic=False)
        if self.config.flexible.align_weight > 0:
            transformers += (TRAINED + 1) * self.query_decoder.early_flops()
        decodings = 1 + shortcut + self.decodes_prefixes

        return (
            PartFlops("encoder", "convolution", encoder, recomputed=not self.trains_decoder_alone),
            PartFlops("transformers", "matrix", transformers, recomputed=True),
            PartFlops("quantizer", "matrix", self.quantizer.training_flops(count, entropy), True),
            PartFlops("decoder", "convolution", TRAINED * decodings * self.decoder.flops(self.grid), recomputed=True),
        )

    def encoding_flops(self) -> tuple[PartFlops, ...]:
        transformer = self.query_encoder.flops() + linear_flops(self.quant_proj, self.num_tokens)
        quantizer = self.quantizer.training_flops(self.num_tokens, entropy=False)
        return (
            PartFlops("tokenizer's encoder", "convolution", self.encoder.flops(self.image_size), True),
            PartFlops("tokenizer's transformer", "matrix", transformer, True),
            PartFlops("tokenizer's quantizer", "matrix", quantizer, True),
        )

    @property
    def token_grid(self) -> tuple[int, int] | None:
        return (self.grid, self.grid) if self.config.layout == "2d" else None

    def feature_sources(self) -> dict[str, FeatureSource]:
        def encoder_tokens(images: Tensor, layer: int | None) -> Tensor:
            return self._without_padding(self.query_encoder.features(self.encode_features(images)))

        def projected_tokens(images: Tensor, layer: int | None) -> Tensor:
            return self._without_padding(self.query_encoder(self.encode_features(images)))

        def decoder_tokens(images: Tensor, layer: int | None) -> Tensor:
            tokens, _ = self.query_decoder.features(self.post_quant_proj(self.encode(images).z_q), layer)
            return tokens

        decoder = FeatureSource(
            "decoder block",
            decoder_tokens,
            num_layers=len(self.query_decoder.transformer),
            default_layer=self.query_decoder.semantic_layer,
            grid=(self.grid, self.grid),
        )
        return {
            "encoder": FeatureSource("encoder tokens", encoder_tokens),
            "encoder_projection": FeatureSource("projected encoder tokens", projected_tokens),
            "decoder": decoder,
        }


def semantic_problems(config: HybridConfig, decoder_layers: int) -> Iterator[str]:
    """A semantic layer that the decoder does not have."""
    if config.semantic_layer is not None and not 1 <= config.semantic_layer <= decoder_layers:
        yield f"model.hybrid.semantic_layer={config.semantic_layer} must lie in 1..{decoder_layers} (layers)"


def grid_problems(config: HybridConfig, image_size: int) -> Iterator[str]:
    """An image size that has no whole cells, or a number of tokens that does not fit their grid."""
    factor = config.cnn.factor
    if image_size % factor != 0:
        yield f"data.image_size={image_size} does not fit the model: it must be a multiple of {factor}"
        return
    grid = image_size // factor

    # 2d: one token per cell.
    if config.layout == "2d":
        if config.num_tokens != grid * grid:
            yield f"model.hybrid.num_tokens={config.num_tokens} must be {grid * grid}, the cells of the 2d grid"
        return

    # 1d: the finest boxes of the pooled queries have whole cells.
    if not _boxes_fit(config.num_tokens, grid):
        rows, columns = pooling_boxes(config.num_tokens)[-1]
        fitting = [2**power for power in range((grid * grid).bit_length() + 1) if _boxes_fit(2**power, grid)]
        yield (
            f"model.hybrid.num_tokens={config.num_tokens} does not fit: its finest pooling level of {rows}x{columns} "
            f"boxes must divide the {grid}x{grid} grid of data.image_size={image_size}; this size fits num_tokens "
            f"{', '.join(map(str, fitting))}; this num_tokens fits sizes that are a multiple of "
            f"{math.lcm(rows, columns) * factor}"
        )


def _boxes_fit(num_tokens: int, grid: int) -> bool:
    """Whether the finest boxes of `num_tokens` pooled queries have whole cells of a `grid` x `grid` map."""
    rows, columns = pooling_boxes(num_tokens)[-1]
    return grid % rows == 0 and grid % columns == 0
