"""Features of frozen networks for linear probes (GigaTok, arXiv:2504.08736).

    gpt         hidden states after layer L // 2, without the final norm, of a GPT that sees the image's codes and the
                null class
    tokenizer   tokens of the encoder's transformer before the projection to z_channels; of a tokenizer without a
                transformer, the cells of its CNN encoder's map
    decoder     tokens of the transformer decoder after its semantic layer

Each is averaged over all tokens; for the GPT that includes the position of the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from autoregressive.loading import load_gpt, require_pair, require_sizes, survey_gpt
from autoregressive.models.base import Generator
from autoregressive.models.registry import build_generator
from engine.checkpoint.weights import WEIGHT_CHOICES, fingerprint
from engine.data.images import to_float
from engine.devices import autocast
from engine.finite import require_finite
from engine.messages import ConfigError
from engine.preflight import Preflight
from engine.seeds import torch_seed
from engine.validation import Problem, Section, at_least, one_of
from tokenizer import load_tokenizer
from tokenizer.loading import survey_tokenizer
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import build_tokenizer

GENERATOR = "gpt"  # name of the source that is a generator, of its config key, and of its facts in a result


@dataclass(kw_only=True, slots=True)
class NetworkConfig(Section):
    """The frozen network, and which of its features are probed."""

    source: str = GENERATOR  # gpt | tokenizer | decoder; see the head of evaluations/probes/features.py
    tokenizer: str = ""  # a run, a checkpoint or an export (folders), or a published file
    tokenizer_config: str = ""  # YAML of the architecture, for a published file
    gpt: str = ""  # like `tokenizer`; for source=gpt only
    gpt_config: str = ""  # like `tokenizer_config`
    weights: str = "auto"  # auto | ema | model; auto: EMA if there is one
    gpt_weights: str = ""  # like `weights`, for the GPT alone; empty: as `weights`
    layer: int | None = None  # of gpt and decoder, from 1; null: the middle of the GPT, the decoder's semantic layer
    after_projection: bool = False  # source=tokenizer only: after the projection to z_channels
    gpt_dropout: bool = False  # compat: dropout of the GPT is on while the probe trains, as in the released code
    random_weights: bool = False  # a control: the probed network gets fresh weights, drawn with loop.seed

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "source", SOURCES)
        yield from one_of(self, "weights", WEIGHT_CHOICES)
        yield from one_of(self, "gpt_weights", ("", *WEIGHT_CHOICES))
        if self.layer is not None:
            yield from at_least(self, "layer", 1)

    def tokenizer_options(self) -> dict[str, Any]:
        """The config and the weights that the tokenizer is opened with, beside its path."""
        return {"config": self.tokenizer_config or None, "weights": self.weights}

    def generator_options(self) -> dict[str, Any]:
        """Those of the generator."""
        return {"config": self.gpt_config or None, "weights": self.gpt_weights or self.weights}


def network_problems(config: NetworkConfig) -> Iterator[Problem]:
    """Yields what does not fit together in the section `network`.

    The section itself cannot: at its defaults it names no networks yet.
    """
    if not config.tokenizer:
        yield Problem("tokenizer", config.tokenizer, "the path of a tokenizer")
    source = SOURCES[config.source]
    if source.needs_generator and not config.gpt:
        yield Problem(GENERATOR, config.gpt, f"the path of a GPT for source={config.source}")

    # Keys that the source does not use must stay at their defaults.
    defaults = NetworkConfig()
    for key in sorted(OPTIONAL_KEYS - source.optional_keys):
        value = getattr(config, key)
        default = getattr(defaults, key)
        if value != default:
            accepted = {None: "null", "": "empty", False: "false"}[default]
            yield Problem(key, value, f"{accepted} for source={config.source}")


def network_needs(config: NetworkConfig, image_size: int, preflight: Preflight) -> None:
    """Looks for the frozen networks, which must fit together, and images of `image_size` pixels."""
    tokenizer = None
    if not preflight.comes_later(config.tokenizer, "network.tokenizer"):
        tokenizer = _surveyed_tokenizer(config, image_size, preflight)
    if SOURCES[config.source].needs_generator and not preflight.comes_later(config.gpt, f"network.{GENERATOR}"):
        with preflight.collecting():
            generator = survey_gpt(config.gpt, **config.generator_options(), hashed=preflight.hashes)
            preflight.ready.append(f"network.{GENERATOR}: {config.gpt} ({generator.num_classes} classes)")
            if tokenizer is not None:
                require_sizes(generator, tokenizer)


def _surveyed_tokenizer(config: NetworkConfig, image_size: int, preflight: Preflight) -> Tokenizer | None:
    """The tokenizer without storage, for images of `image_size` pixels; None where it is not there."""
    with preflight.collecting():
        tokenizer = survey_tokenizer(config.tokenizer, **config.tokenizer_options(), hashed=preflight.hashes)
        preflight.ready.append(f"network.tokenizer: {config.tokenizer} ({tokenizer.num_tokens} tokens)")
        if image_size != tokenizer.image_size:
            preflight.problem(f"data.image_size={image_size}, but the tokenizer is for {tokenizer.image_size}")
        return tokenizer
    return None


# ------------------------------------------------------------------------------------------------ sources
def _chosen_layer(config: NetworkConfig, default: int | None, count: int) -> int:
    """Takes `network.layer`, or `default`.

    Raises ConfigError if there is none, or it is not in 1..`count`.
    """
    layer = default if config.layer is None else config.layer
    if layer is None:
        raise ConfigError(f"{config.tokenizer} has no semantic layer; set network.layer to 1..{count}")
    if not 1 <= layer <= count:
        raise ConfigError(f"network.layer={layer} must lie in 1..{count}, the layers of the {config.source}")
    return layer


class ProbeSource:
    """One value of `network.source`: reads tokens (B,N,C) of images (B,3,H,W) in [-1,1].

    `training` says whether a probe trains, for sources that then behave in another way.
    """

    needs_generator: ClassVar[bool] = False
    optional_keys: ClassVar[frozenset[str]] = frozenset()  # keys of `network` that not every source uses
    layer: int | None = None  # the layer that is read, from 1, of sources with layers

    def __init__(self, config: NetworkConfig, tokenizer: Tokenizer, generator: Generator | None) -> None:
        raise NotImplementedError

    def __call__(self, images: Tensor, training: bool) -> Tensor:
        raise NotImplementedError


class GeneratorSource(ProbeSource):
    """Hidden states of a generator that sees the codes of images and the null class."""

    needs_generator = True
    optional_keys = frozenset({GENERATOR, "gpt_config", "gpt_weights", "layer", "gpt_dropout"})

    def __init__(self, config: NetworkConfig, tokenizer: Tokenizer, generator: Generator) -> None:
        self.tokenizer = tokenizer
        self.generator = generator
        self.has_dropout = config.gpt_dropout
        self.layer = _chosen_layer(config, max(1, generator.num_layers // 2), generator.num_layers)

    def __call__(self, images: Tensor, training: bool) -> Tensor:
        codes = self.tokenizer.encode(images).indices
        labels = codes.new_full((len(codes),), self.generator.null_class)
        self.generator.train(training and self.has_dropout)
        return self.generator.features(labels, codes, self.layer)


class TokenizerSource(ProbeSource):
    """Inner features of a tokenizer, by the names of `Tokenizer.feature_sources`."""

    def __init__(self, config: NetworkConfig, tokenizer: Tokenizer, generator: None) -> None:
        sources = tokenizer.feature_sources()
        name = self.name_of(config)
        if name not in sources:
            raise ConfigError(
                f"network.source={config.source}, network.after_projection={config.after_projection}: "
                f"{config.tokenizer} has no features {name!r}; it has: {', '.join(sorted(sources))}"
            )
        self.source = sources[name]
        if self.source.num_layers is not None:
            self.layer = _chosen_layer(config, self.source.default_layer, self.source.num_layers)

    def name_of(self, config: NetworkConfig) -> str:
        """The name of the features."""
        raise NotImplementedError

    def __call__(self, images: Tensor, training: bool) -> Tensor:
        return self.source.read(images, self.layer)


class EncoderSource(TokenizerSource):
    """Tokens of the encoder, before or after the projection to z_channels."""

    optional_keys = frozenset({"after_projection"})

    def name_of(self, config: NetworkConfig) -> str:
        return "encoder_projection" if config.after_projection else "encoder"


class DecoderSource(TokenizerSource):
    """Tokens of the decoder after a layer."""

    optional_keys = frozenset({"layer"})

    def name_of(self, config: NetworkConfig) -> str:
        return "decoder"


# Value of `network.source` -> what is read.
SOURCES: dict[str, type[ProbeSource]] = {
    GENERATOR: GeneratorSource,
    "tokenizer": EncoderSource,
    "decoder": DecoderSource,
}
OPTIONAL_KEYS = frozenset().union(*(source.optional_keys for source in SOURCES.values()))


# ------------------------------------------------------------------------------------------------ the network
def redraw(network: Tokenizer | Generator, seed: int) -> None:
    """Puts fresh weights in the place of the trained ones.

    The provenance then says `weights: random`.
    """
    torch.manual_seed(torch_seed(seed))
    model = network.provenance.config.model
    if isinstance(network, Generator):
        fresh = build_generator(model)
    else:
        fresh = build_tokenizer(model, network.image_size)
    network.load_state_dict(fresh.state_dict())
    network.provenance = replace(network.provenance, weights="random", fingerprint=fingerprint(network))


class ProbedNetwork:
    """Images uint8 (B,3,H,W) -> features (B,`dim`) float32, without gradients.

    `facts` and `provenance` are for results; `identity` tells features of other networks or settings apart.
    """

    def __init__(self, config: NetworkConfig, seed: int, precision: str, device: torch.device) -> None:
        # The networks. The probed one may be redrawn as a control.
        source = SOURCES[config.source]
        tokenizer = load_tokenizer(config.tokenizer, **config.tokenizer_options(), device=device)
        networks: dict[str, Tokenizer | Generator] = {"tokenizer": tokenizer}
        generator = None
        if source.needs_generator:
            generator = load_gpt(config.gpt, **config.generator_options(), device=device)
            networks[GENERATOR] = generator
        if config.random_weights:
            redraw(generator if source.needs_generator else tokenizer, seed)
        # Afterwards, for a fresh generator may need the codes of the tokenizer, which it takes over here.
        if generator is not None:
            require_pair(generator, tokenizer)

        # How features are read.
        self.read_tokens = source(config, tokenizer, generator)
        self.precision = precision
        self.device = device
        self.image_size = tokenizer.image_size

        # What results and caches say about them.
        self.provenance = {name: network.provenance.facts() for name, network in networks.items()}
        self.facts: dict[str, Any] = {
            "source": config.source,
            "after_projection": config.after_projection,
            "gpt_dropout": config.gpt_dropout,
            "layer": self.read_tokens.layer,
            "precision": precision,
        }
        self.identity = self.facts | {name: facts["fingerprint"] for name, facts in self.provenance.items()}
        self.dim = self(torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)).shape[1]

    @torch.no_grad()
    def __call__(self, images_u8: Tensor, training: bool = False) -> Tensor:
        with autocast(self.device, self.precision):
            tokens = self.read_tokens(to_float(images_u8.to(self.device)), training)
        features = tokens.float().mean(1)
        require_finite(features, "features of the probed network")
        return features
