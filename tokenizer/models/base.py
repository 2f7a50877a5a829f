"""The contract of all tokenizers: images -> codes -> images, and what training, evaluation and probes ask of them.

Shapes    images (B,3,H,W) float32 in [-1,1]      z, z_q (B,N,codebook_dim) float32
          indices int64: (B,N), or (B,N,G) where a token has G indices
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import torch
from PIL import Image
from torch import Tensor

from engine.checkpoint.code_maker import DECODER_OF, CodeMaker
from engine.checkpoint.weights import digest_with
from engine.data.decoding import DEFAULT_DECODING
from engine.data.image_input import Fit, ImageSizes, Picture, float_images
from engine.data.image_output import Output, images_as, require_output
from engine.finite import require_finite
from engine.flops import PartFlops
from engine.messages import ConfigError, UserError
from engine.pretrained import PretrainedNetwork
from engine.validation import Problem
from tokenizer.models.code_input import Codes, as_codes, as_grid
from tokenizer.models.picture_decoder import PictureDecoder
from tokenizer.models.reconstructing import Reconstruction
from tokenizer.quantizers.base import Quantized, Quantizer

State = Mapping[str, Tensor]  # a state dict


@dataclass
class TokenizerOutput:
    """One training forward pass. What may be None is so unless it was asked for."""

    reconstructions: Tensor  # (B,3,H,W), not clamped
    quantized: Quantized
    encoder_features: Tensor  # what the CNN encoder gives (B,z_channels,h,w)
    decoder_features: Tensor  # what the CNN decoder sees (B,z_channels,h,w)
    prefix_reconstructions: Tensor | None = None  # from the first tokens of each image (`decodes_prefixes`)
    shortcut_reconstructions: Tensor | None = None  # CNN decoder applied to `encoder_features`
    semantic_features: Tensor | None = None  # (B, cells of the grid, semantic_dim)
    semantic_weights: Tensor | None = None  # (B,), where the semantic loss of each image has a weight of its own
    losses: Mapping[str, Tensor] = field(default_factory=dict)  # of the network itself, by name (`loss_weights`)


@dataclass(frozen=True)
class FeatureSource:
    """Inner features of a tokenizer, for linear probes and pictures of principal components.

    `read(images, layer)` returns tokens (B,N,C); `layer` counts from 1 and is ignored where `num_layers` is None.
    """

    title: str  # for people, such as "decoder block"
    read: Callable[[Tensor, int | None], Tensor]
    num_layers: int | None = None  # None: there is no layer to choose
    default_layer: int | None = None  # None with layers: the user must choose one
    grid: tuple[int, int] | None = None  # (rows, columns), where the tokens are the cells of a grid


class Tokenizer(PretrainedNetwork):
    """Base class of all tokenizers.

    A tokenizer is a class in a file of its own, entered in `tokenizer.models.registry.MODELS` (or registered by a
    plug-in). It is built as `Class(section, quantizer, image_size)`, where `section` is an instance of its
    `config_class`, and must set `config` (the section), `image_size`, `num_tokens` and `quantizer`, and define
    `forward`, `encode_features`, `latents` and `decode`. Everything else has a default that fits a network without
    special abilities.

    Abilities are announced by `capabilities_of`; nobody asks for the class or the name of a tokenizer:

        semantic    `forward(semantic=True)` returns features for semantic regularization, on a grid of
                    `semantic_grid` x `semantic_grid` cells with `semantic_dim_of(section)` channels
        shortcut    `forward(shortcut=True)` also decodes the CNN encoder's features (GigaTok's shortcut trick)
        any_size    `set_image_size` makes another square size the usual one, and `encode` and `decode` take images
                    whose height and width are multiples of `factor`, with `min_cells` cells or more per side
        flexible    `decode` takes the first k latents of an image for any k, `forward` takes `num_tokens`, and
                    `shown_lengths` are numbers of tokens at which validation looks
        noise       decoding draws random numbers; `set_noise_seed` fixes them, `decoding_noise` tells them, and
                    `decode_with_noise` takes others
    """

    config_class: ClassVar[type]  # the dataclass of its section `model.<name>`
    in_words: ClassVar[str] = ""  # what kind of network it is, for a page; without it the page has the name alone
    config: Any  # its section
    image_size: int  # pixels, side of the images it is trained for
    num_tokens: int  # tokens per image of that size
    quantizer: Quantizer

    # Names of the children that only decoding uses, which `train_parts=decoder` trains: codes depend on the others.
    # Empty, the default, where decoding cannot be trained alone.
    decoder_parts: ClassVar[tuple[str, ...]] = ()
    trains_decoder_alone: bool = False  # whether `train_decoder_alone` was called
    used_tokens: int | None = None  # the first tokens of an image that `reconstruct` decodes; None: all

    semantic_grid: int  # with "semantic": cells per side
    factor: int  # with "any_size": pixels per cell
    min_cells: int = 1  # with "any_size": cells per side that the network needs at least

    # ------------------------------------------------------------------------------------------------ the network
    def forward(
        self,
        images: Tensor,
        *,
        quantize: bool = True,
        entropy: bool = False,
        shortcut: bool = False,
        semantic: bool = False,
        random_bits: Tensor | None = None,
    ) -> TokenizerOutput:
        """A training pass. `quantize=False` passes latents through; the others ask for what their loss terms need.

        `random_bits` (B,) are given in training where `takes_random_bits`: to the network itself, or to its quantizer
        (`Quantizer.takes_random_bits`), which gets them by `quantize_latents`.
        """
        raise NotImplementedError

    def encode_features(self, images: Tensor) -> Tensor:
        """Images -> features before the quantizer's projection (B,C,h,w). Raises ValueError for another image size."""
        raise NotImplementedError

    def latents(self, features: Tensor) -> Tensor:
        """Features -> latents before quantization (B,N,codebook_dim)."""
        raise NotImplementedError

    def decode(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Quantized latents (B,N,codebook_dim) -> images, not clamped.

        `grid` (rows, columns) is for tokenizers that take any size; by default the image is square.
        """
        raise NotImplementedError

    def quantize_latents(
        self, latents: Tensor, *, quantize: bool, entropy: bool, random_bits: Tensor | None = None
    ) -> Quantized:
        """The quantizer's part of `forward`, with the arguments of it."""
        takes_bits = random_bits is not None and self.quantizer.takes_random_bits
        further = {"random_bits": random_bits} if takes_bits else {}
        return self.quantizer(latents, quantize=quantize, entropy=entropy, **further)

    # ------------------------------------------------------------------------------------------------ its use
    def encode(self, images: Tensor) -> Quantized:
        """Images -> quantized latents and indices. Raises NonFiniteValuesError where latents are not finite."""
        latents = self.latents(self.encode_features(images))
        require_finite(latents, "latents of the tokenizer")
        return self.quantizer(latents)

    def decode_indices(self, indices: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Indices -> images, not clamped. The published rFID is that of `encode` -> `decode_indices`.

        Raises NonFiniteValuesError where pixels are not finite.
        """
        images = self.decode(self.quantizer.decode_indices(indices), grid)
        require_finite(images, "pixels decoded by the tokenizer")
        return images

    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Images -> codes -> images, and the codes. Raises as `encode` and `decode_indices` do.

        After `use_tokens(k)` it is the first k codes of each image only.
        """
        indices = self.encode(images).indices
        if self.used_tokens is not None:
            indices = indices[:, : self.used_tokens]
        height, width = images.shape[-2:]
        grid = None if height == width else (height // self.factor, width // self.factor)
        return Reconstruction(self.decode_indices(indices, grid), indices)

    def summary(self) -> str:
        """What it is, in a few words, for people."""
        return f"{self.num_tokens} tokens, {self.image_size} px"

    def picture_decoder(self) -> PictureDecoder:
        """A faster `decode_indices`, in bfloat16: for pictures to look at, never for codes, metrics or training."""
        return PictureDecoder(self)

    # ------------------------------------------------------------------------------------------------ its files
    @classmethod
    def _load(cls, source: str | Path, *, config: str | Path | None, weights: str, device: str) -> Tokenizer:
        from tokenizer.loading import load_tokenizer

        return load_tokenizer(source, config=config, weights=weights, device=device)

    def state_to_share(self) -> dict[str, Tensor]:
        """Its state dict with the quantizer's windows emptied: they hold the codes of the last training images, which
        would decode to these images.
        """
        windows = {f"quantizer.{name}": window for name, window in self.quantizer.empty_windows().items()}
        return {**self.state_dict(), **windows}

    # ------------------------------------------------------------------------------------------------ its friendly use
    def tokenize(
        self,
        images: Picture | Sequence[Picture],
        *,
        fit: Fit | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Tensor:
        """Images -> codes int64 (B,N), or (B,N,G), on the device of the network; one image has B = 1.

        Images are PIL images, paths of files, uint8 arrays or tensors, or floats in [-1,1], alone, in a batch or in a
        list. `fit` ("crop" or "resize") changes those of another size, `value_range` names what black and white are in
        floats; see `engine.data.image_input`. Code that has a batch of float images ready calls `encode`.

        Raises UserError for what is no image, has another size, or could mean two things, for a network that is not
        ready (`require_ready`), and NonFiniteValuesError where images or latents are not finite.
        """
        self.require_ready()
        return self.encode(self.batch_of(images, fit=fit, value_range=value_range)).indices

    def batch_of(
        self,
        images: Picture | Sequence[Picture],
        *,
        fit: Fit | None = None,
        value_range: tuple[float, float] | None = None,
        names: Sequence[str] | None = None,
    ) -> Tensor:
        """The images that `tokenize` takes as float32 (B,3,H,W) in [-1,1] on the device of the network, for `encode`.

        Files and PIL images are decoded as in its training. `names` are those of the images of a list, for messages.
        Raises UserError as `tokenize` does.
        """
        config = getattr(self.provenance, "config", None)
        decoding = config.data.decoding if config is not None else DEFAULT_DECODING
        batch = float_images(images, self.image_sizes, fit=fit, value_range=value_range, decoding=decoding, names=names)
        return batch.to(self.device)

    def require_ready(self) -> None:
        """Raises UserError unless codes and images are what they are in evaluations: in evaluation mode, in float32."""
        if self.training:
            raise UserError("the tokenizer is in training mode, where other codes may come out: call eval() first")
        dtype = next(self.parameters()).dtype
        if dtype != torch.float32:
            name = str(dtype).removeprefix("torch.")
            raise UserError(f"the tokenizer is in {name}, and codes are computed in float32: call float() first")

    @overload
    def detokenize(
        self,
        tokens: Codes,
        *,
        clamp: bool = True,
        output: Literal["float", "uint8"] = "float",
        grid: tuple[int, int] | None = None,
    ) -> Tensor: ...

    @overload
    def detokenize(
        self, tokens: Codes, *, clamp: bool = True, output: Literal["pil"], grid: tuple[int, int] | None = None
    ) -> list[Image.Image]: ...

    def detokenize(
        self, tokens: Codes, *, clamp: bool = True, output: Output = "float", grid: tuple[int, int] | None = None
    ) -> Tensor | list[Image.Image]:
        """Codes (B,N) or (B,N,G), or those of one image without B -> images (B,3,H,W) float32 in [-1,1].

        `output`: "float", "uint8" (a tensor in 0..255) or "pil" (a list of pictures). `clamp=False` gives floats as the
        decoder gives them, which overshoot a bit. `grid` (rows, columns) is for images that are not square, of
        tokenizers that take any size. A code of -1 adds nothing, where the quantizer takes it (`lowest_index`).

        Raises UserError for codes that are not in the codebook or not as many as the tokenizer takes and for a network
        that is not ready (`require_ready`), and NonFiniteValuesError where pixels are not finite.
        """
        require_output(output)
        self.require_ready()
        grid = None if grid is None else as_grid(grid)
        codes = as_codes(tokens, self.quantizer.group_sizes, self.device, self.quantizer.lowest_index)
        self._require_count(codes.shape[1], grid)
        images = self.decode_indices(codes, grid)
        return images_as(images.clamp(-1, 1) if clamp else images, output)

    def _require_count(self, count: int, grid: tuple[int, int] | None) -> None:
        """Raises UserError unless an image may have `count` tokens, on `grid` where one is given."""
        if "any_size" not in self.capabilities:
            if "flexible" in self.capabilities and grid is None and 1 <= count <= self.num_tokens:
                return
            if count != self.num_tokens or grid not in (None, self.token_grid):
                on_grid = f" on a grid of {grid[0]} x {grid[1]}" if grid is not None else ""
                raise UserError(f"{count} tokens{on_grid} are no image of this tokenizer: it takes {self.num_tokens}")
            return
        side = math.isqrt(count)
        rows, columns = grid or (side, side)
        if rows * columns != count or min(rows, columns) < self.min_cells:
            accepted = f"{rows * columns}" if grid is not None else "a square number (or a grid=(rows, columns))"
            least = f", {self.min_cells} or more per side" if self.min_cells > 1 else ""
            raise UserError(f"{count} tokens do not fill the grid: accepted are {accepted}{least}")

    @property
    def image_sizes(self) -> ImageSizes:
        """The sizes of images that it takes."""
        if "any_size" in self.capabilities:
            return ImageSizes(self.image_size, self.factor, self.min_cells * self.factor)
        return ImageSizes(self.image_size)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return next(self.parameters()).device

    # ------------------------------------------------------------------------------------------------ what others ask
    @classmethod
    def capabilities_of(cls, section: Any) -> frozenset[str]:
        """Special abilities of a network with this section; see the class docstring."""
        return frozenset()

    @property
    def capabilities(self) -> frozenset[str]:
        """Special abilities of this network."""
        return self.capabilities_of(self.config)

    @classmethod
    def semantic_dim_of(cls, section: Any) -> int | None:
        """With "semantic": channels of the semantic features, which the teacher must have too."""
        return None

    @property
    def takes_random_bits(self) -> bool:
        """Whether `forward` needs `random_bits` in training; by default for the quantizer alone."""
        return self.quantizer.takes_random_bits

    @property
    def decodes_prefixes(self) -> bool:
        """With "flexible": whether a training pass also decodes a part of the tokens, beside all of them."""
        return False

    @property
    def shown_lengths(self) -> tuple[int, ...]:
        """With "flexible": numbers of tokens, below that of all, at which validation looks."""
        return ()

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Losses that `forward` computes in training (`TokenizerOutput.losses`): name -> weight in the total."""
        return {}

    @property
    def trained_quantizer_losses(self) -> frozenset[str]:
        """Names of the quantizer's losses that training uses; none where the quantizer is frozen."""
        return frozenset() if self.trains_decoder_alone else self.quantizer.loss_names

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of an image of `image_size`, where token i is cell i of a grid over it, in reading order.

        None, the default, where tokens have no place in the image.
        """
        return None

    def feature_sources(self) -> dict[str, FeatureSource]:
        """Inner features by name. Probes know `encoder`, `encoder_projection` and `decoder`; any may be absent."""
        return {}

    def training_flops(
        self, *, entropy: bool = False, shortcut: bool = False, semantic: bool = False
    ) -> tuple[PartFlops, ...] | None:
        """What `forward` and its backward pass compute for one image, by part (see `engine.flops`).

        None, the default, where the network does not count it: its training then shows no rate of operations.
        """
        return None

    def encoding_flops(self) -> tuple[PartFlops, ...] | None:
        """What `encode` computes for one image, by part; None, the default, where the network does not count it."""
        return None

    def code_settings(self) -> dict[str, Any]:
        """What its fingerprint depends on beside its parameters; see `Quantizer.code_settings`."""
        return self.quantizer.code_settings()

    def facts(self) -> dict[str, Any]:
        """What a result says about this network beside its provenance, such as the seed of its noise."""
        return {}

    def set_image_size(self, image_size: int) -> None:
        """With "any_size": makes another square size the usual one. Raises ConfigError where it does not fit."""
        raise NotImplementedError

    def use_tokens(self, count: int) -> None:
        """With "flexible": makes `reconstruct` decode images from their first `count` tokens; all are a whole image.

        Raises ConfigError for a count outside 1..num_tokens.
        """
        if not 1 <= count <= self.num_tokens:
            raise ConfigError(f"--num-tokens {count} must lie in 1..{self.num_tokens}, the tokens of an image")
        self.used_tokens = count if count < self.num_tokens else None

    def set_noise_seed(self, seed: int) -> None:
        """With "noise": fixes the random numbers of decoding in evaluation mode."""
        raise NotImplementedError

    def decoding_noise(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """With "noise": the standard normal numbers (B, ...) that `decode` takes for these latents in evaluation."""
        raise NotImplementedError

    def decode_with_noise(self, z_q: Tensor, noise: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """With "noise": `decode` with given numbers, of the shape that `decoding_noise` has."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ codes and decoder
    def codes_fingerprint(self) -> str:
        """SHA-256 of all that its codes depend on, encoder and quantizer: the same for every decoder.

        Two tokenizers that share it make the same codes of an image, and a generator of the one is a generator of the
        other. It is that of the whole network where `decoder_parts` is empty.
        """
        return digest_with(self.code_parameters(self.named_parameters()), self.code_settings())

    def code_maker(self) -> CodeMaker:
        """What it is compared by, once it is loaded, with the maker of codes and with that of a generator's codes."""
        decoder_of = tuple(self.provenance.stamp.get(DECODER_OF, ()))
        return CodeMaker(self.provenance.fingerprint, self.codes_fingerprint(), decoder_of)

    def makes_codes_of(self, other: CodeMaker) -> bool:
        """Whether it makes the codes that `other` makes. Its encoder is hashed only where it is not `other` itself."""
        return other.fingerprint == self.provenance.fingerprint or self.code_maker().makes_codes_of(other)

    @classmethod
    def code_parameters(cls, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Those of the named parameters of a network that its codes depend on."""
        return ((name, value) for name, value in named if name.split(".")[0] not in cls.decoder_parts)

    def train_decoder_alone(self) -> None:
        """Freezes what codes depend on: it gets no gradients, and stays in evaluation mode.

        Raises ConfigError where the network does not say what decodes.
        """
        if not self.decoder_parts:
            raise ConfigError(
                f"train_parts=decoder: {type(self).__name__} does not say which of its parts decode (decoder_parts)"
            )
        self.trains_decoder_alone = True
        for _, parameter in self.code_parameters(self.named_parameters()):
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode; what `train_decoder_alone` has frozen stays in evaluation mode."""
        super().train(mode)
        if self.trains_decoder_alone:
            for name, child in self.named_children():
                if name not in self.decoder_parts:
                    child.eval()
        return self

    # ------------------------------------------------------------------------------------------------ phases
    @classmethod
    def training_problems(cls, section: Any, starts_from_weights: bool) -> Iterator[Problem]:
        """What forbids training with this section. Keys of the problems are fields of `section`.

        `starts_from_weights`: whether training starts from the weights of another tokenizer.
        """
        return iter(())

    @classmethod
    def section_of_phase(cls, section: Any, generative_decoder: bool) -> Any:
        """The section of a phase that asks for a generative decoder or not; `section` itself where nothing changes.

        Raises ValueError where this tokenizer cannot do what the phase asks for: its text says why, and the caller adds
        the config key.
        """
        if generative_decoder:
            raise ValueError("this tokenizer has no generative decoder")
        return section

    def state_from_earlier(self, raw: State, state: State) -> State:
        """Adapts weights of an earlier phase to this network.

        It is called twice: once for the network that is trained, where `state` are the raw weights of the earlier
        phase, and once for its EMA, where `state` are those of the earlier EMA. `raw` are the raw weights both times:
        what is frozen from now on is taken from them.
        """
        return state
