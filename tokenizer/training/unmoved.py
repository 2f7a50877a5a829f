"""Parameters that no loss term moves, found before training: a weight of 0 may freeze a codebook without a word.

Nothing is computed: a forward pass without storage leaves the graph of gradients, and the parameters at its ends are
those that are moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from engine.assets import seeded
from engine.messages import ConfigError
from tokenizer.losses.terms import QUANTIZER_WEIGHTS, Term
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import QUANTIZERS
from tokenizer.quantizers.base import Quantizer
from tokenizer.training.config import TokenizerTrainConfig

NUM_LATENTS = 4  # of the pass; their number makes no difference, but for quantizers of one grid


def unmoved_parameters(config: TokenizerTrainConfig, network: Tokenizer, terms: Collection[Term]) -> list[str]:
    """Names of the quantizer's trained parameters that no term moves after the warm-up.

    `network` is on the meta device. A frozen quantizer has none.
    """
    quantizer = network.quantizer
    trained = {name: p for name, p in quantizer.named_parameters() if p.requires_grad}
    if not trained or not network.trained_quantizer_losses:
        return []

    # Quantizers that look at values need a copy with storage.
    names = frozenset(term.name for term in terms)
    try:
        moved = _moved(quantizer, names)
    except ConfigError:  # its entropy loss needs too much memory, which is told elsewhere
        return []
    except (NotImplementedError, RuntimeError):
        section = getattr(config.model.quantizer, config.model.quantizer.name, None)
        with seeded():
            quantizer = QUANTIZERS[config.model.quantizer.name](section)
        moved = _moved(quantizer, names)
    return [name for name, parameter in quantizer.named_parameters() if name in trained and parameter not in moved]


def _moved(quantizer: Quantizer, names: frozenset[str]) -> set[Tensor]:
    """The parameters that the loss terms `names` reach through `quantizer`."""
    count = NUM_LATENTS if quantizer.grid_side is None else quantizer.grid_side**2
    latents = torch.zeros(1, count, quantizer.codebook_dim, device=next(quantizer.parameters()).device)
    with torch.enable_grad():
        quantized = quantizer.eval()(latents, entropy="entropy" in names)
    results = [value for name, value in quantized.losses.items() if name in names]
    if names - quantizer.loss_names:  # terms of reconstructions see the quantized latents
        results.append(quantized.z_q)
    return set(_ends_of_graph(results))


def _ends_of_graph(results: list[Tensor]) -> Iterator[Tensor]:
    """The leaves that `results` have gradients for."""
    pending = [result.grad_fn for result in results if result.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            yield node.variable
        following = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= following
        pending += following


def unmoved_warnings(config: TokenizerTrainConfig, network: Tokenizer, terms: Collection[Term]) -> Iterator[str]:
    """That nothing moves the codebook, and which weights are 0."""
    unmoved = unmoved_parameters(config, network, terms)
    if not unmoved:
        return
    active = {term.name for term in terms}
    losses = sorted(network.quantizer.loss_names - active)
    keys = [f"loss.{QUANTIZER_WEIGHTS.get(name, f'quantizer_weights.{name}')}" for name in losses]
    yield (
        f"no loss term moves {', '.join(f'quantizer.{name}' for name in unmoved)}: the codebook keeps its initial "
        f"values; weights that are 0: {', '.join(keys)}"
    )
