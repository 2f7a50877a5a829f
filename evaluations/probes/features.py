"""Features of frozen networks for linear probes (GigaTok, arXiv:2504.08736): which ones, and how they are read once.

    gpt         hidden states after layer L // 2, without the final norm, of a GPT that sees the image's codes and the
                null class
    tokenizer   tokens of the encoder's transformer before the projection to z_channels; of a tokenizer without
                transformer, the cells of its CNN encoder's map
    decoder     tokens of the transformer decoder after its semantic layer

Each is averaged over all tokens; for the GPT that includes the position of the class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoregressive.codes import write_rows
from autoregressive.loading import load_gpt, require_pair
from autoregressive.models.base import Generator
from autoregressive.models.registry import build_generator
from engine.checkpoint.weights import fingerprint
from engine.data.config import DataConfig
from engine.data.images import to_float
from engine.data.samples import labeled_batch
from engine.data.sources import open_source
from engine.devices import autocast
from engine.messages import ConfigError
from engine.world import World
from evaluations.image_sets import rank_batches
from tokenizer import load_tokenizer
from tokenizer.models.registry import build_tokenizer

Tokens = Callable[[Tensor, bool], Tensor]  # images (B,3,H,W) in [-1,1], whether a probe trains -> tokens (B,N,C)


@dataclass(kw_only=True, slots=True)
class NetworkConfig:
    """The frozen network, and which of its features are probed."""

    source: Literal["gpt", "tokenizer", "decoder"] = "gpt"  # see the head of evaluations/probe_features.py
    tokenizer: str = ""  # a run, a checkpoint or an export (folders), or a published file
    tokenizer_config: str = ""  # YAML of the architecture, for a published file
    gpt: str = ""  # likewise; for source gpt only
    gpt_config: str = ""
    weights: str = "auto"  # auto | ema | model; auto: ema where there is one
    layer: int | None = None  # of gpt and decoder, from 1; null: half of the GPT's, the semantic layer of the decoder
    after_projection: bool = False  # source tokenizer only: after the projection to z_channels
    gpt_dropout: bool = False  # compat: dropout of the GPT is on while the probe trains, as in the released code
    random_weights: bool = False  # a control: the probed network gets fresh weights, drawn with loop.seed


def network_problems(config: NetworkConfig) -> list[str]:
    """What does not fit together in the section `network`."""
    source = config.source
    problems = {
        "tokenizer must name a tokenizer": not config.tokenizer,
        "gpt must name a GPT for source=gpt, and be empty for others": (source == "gpt") != bool(config.gpt),
        "gpt_dropout is for source=gpt": config.gpt_dropout and source != "gpt",
        "layer is for source=gpt and decoder": config.layer is not None and source == "tokenizer",
        "after_projection is for source=tokenizer": config.after_projection and source != "tokenizer",
    }
    return [f"network.{problem}; found source={source}" for problem, wrong in problems.items() if wrong]


def _chosen_layer(config: NetworkConfig, default: int | None, count: int) -> int:
    layer = default if config.layer is None else config.layer
    if layer is None:
        raise ConfigError(f"the decoder of {config.tokenizer} has no semantic layer; set network.layer to 1..{count}")
    if not 1 <= layer <= count:
        raise ConfigError(f"network.layer={layer} must lie in 1..{count}, the layers of the {config.source}")
    return layer


def _of_gpt(config: NetworkConfig, networks: dict[str, nn.Module]) -> tuple[Tokens, int]:
    tokenizer, gpt = networks["tokenizer"], networks["gpt"]
    layer = _chosen_layer(config, max(1, gpt.num_layers // 2), gpt.num_layers)

    def tokens(images: Tensor, training: bool) -> Tensor:
        codes = tokenizer.encode(images).indices
        gpt.train(training and config.gpt_dropout)
        return gpt.features(codes.new_full((len(codes),), gpt.null_class), codes, layer)

    return tokens, layer


def _of_tokenizer(config: NetworkConfig, networks: dict[str, nn.Module]) -> tuple[Tokens, None]:
    tokenizer = networks["tokenizer"]
    encoder = getattr(tokenizer, "query_encoder", None)
    if encoder is None:
        if config.after_projection:
            raise ConfigError(f"network.after_projection: {config.tokenizer} has no transformer with a projection")
        return lambda images, training: tokenizer.encode_features(images).flatten(2).mT, None
    read = encoder.forward if config.after_projection else encoder.features
    return lambda images, training: read(tokenizer.encode_features(images)), None


def decoder_tokens(tokenizer: nn.Module, images: Tensor, layer: int) -> Tensor:
    """Tokens (B,N,C) of the transformer decoder after block `layer` (from 1), decoding the codes of images."""
    return tokenizer.query_decoder.features(tokenizer.post_quant_proj(tokenizer.encode(images).z_q), layer)[0]


def _of_decoder(config: NetworkConfig, networks: dict[str, nn.Module]) -> tuple[Tokens, int]:
    tokenizer = networks["tokenizer"]
    decoder = getattr(tokenizer, "query_decoder", None)
    if decoder is None:
        raise ConfigError(
            f"network.source=decoder: {config.tokenizer} has no transformer decoder; use tokenizer or gpt"
        )
    layer = _chosen_layer(config, decoder.semantic_layer, len(decoder.transformer))
    return lambda images, training: decoder_tokens(tokenizer, images, layer), layer


SOURCES = {"gpt": _of_gpt, "tokenizer": _of_tokenizer, "decoder": _of_decoder}


def _redraw(network: nn.Module, seed: int) -> None:
    """Fresh weights in the place of the trained ones; the provenance says `weights: random`."""
    torch.manual_seed(seed)
    model = network.provenance.config.model
    is_generator = isinstance(network, Generator)
    fresh = build_generator(model) if is_generator else build_tokenizer(model, network.image_size)
    network.load_state_dict(fresh.state_dict())
    network.provenance = replace(network.provenance, weights="random", fingerprint=fingerprint(network))


class ProbedNetwork:
    """Images uint8 (B,3,H,W) -> features (B,`dim`) float32, without gradients; `facts` for results."""

    def __init__(self, config: NetworkConfig, seed: int, precision: str, device: torch.device) -> None:
        loaded = {"weights": config.weights, "device": device}
        tokenizer = load_tokenizer(config.tokenizer, config=config.tokenizer_config or None, **loaded)
        networks = {"tokenizer": tokenizer}
        if config.source == "gpt":
            networks["gpt"] = load_gpt(config.gpt, config=config.gpt_config or None, **loaded)
            require_pair(networks["gpt"], tokenizer)
        if config.random_weights:
            _redraw(networks["gpt" if config.source == "gpt" else "tokenizer"], seed)
        self.tokens, layer = SOURCES[config.source](config, networks)
        self.precision, self.device, self.image_size = precision, device, tokenizer.image_size
        self.provenance = {name: network.provenance.facts() for name, network in networks.items()}
        named = {name: getattr(config, name) for name in ("source", "after_projection", "gpt_dropout")}
        self.facts: dict[str, Any] = {**named, "layer": layer, "precision": precision}
        self.identity = self.facts | {name: facts["fingerprint"] for name, facts in self.provenance.items()}
        self.dim = self(torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)).shape[1]

    @torch.no_grad()
    def __call__(self, images_u8: Tensor, training: bool = False) -> Tensor:
        with autocast(self.device, self.precision):
            tokens = self.tokens(to_float(images_u8.to(self.device)), training)
        return tokens.float().mean(1)


def read_features(
    network: ProbedNetwork, data: DataConfig, split: str, folder: Path, batch_size: int, world: World
) -> np.ndarray:
    """Features of the centre crops of a split: records `features` (dim,) float32 and `label`, memory-mapped.

    They are computed in batches that do not depend on the number of ranks, and kept in a file of `folder` that only the
    same network on the same images finds again. All ranks call this.
    """
    source = open_source(data, split)
    images = {"data": source.name, "split": split, "content": source.identity(), "image_size": network.image_size}
    kept = {"skip_broken": data.skip_broken, "version": source.version()}
    facts = {**network.identity, **images, **kept, "batch_size": batch_size}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path, count = folder / f"features_{key}.npy", len(source)
    if world.any(not path.is_file()):
        record = np.dtype([("features", np.float32, (network.dim,)), ("label", np.int64)])
        temporary = path.with_suffix(".tmp.npy")
        if world.is_main:
            np.lib.format.open_memmap(temporary, mode="w+", dtype=record, shape=(count,)).flush()
        world.barrier()
        batches = rank_batches(count, batch_size, world)
        for ids in tqdm(batches, desc=f"features of {split}", disable=None if world.is_main else True):
            crops, labels = labeled_batch(source, network.image_size, ids.numpy(), data.skip_broken)
            rows = np.empty(len(ids), dtype=record)
            rows["features"], rows["label"] = network(crops).cpu().numpy(), labels.numpy()
            write_rows(temporary, int(ids[0]), rows)
        world.barrier()
        if world.is_main:
            temporary.replace(path)
        world.barrier()
    return np.load(path, mmap_mode="r", allow_pickle=False)
