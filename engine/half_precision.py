"""Half precision as storage: weights that are rounded to float16 for a small file, and float32 once they are loaded.

Every reader turns the numbers of a file into those of the network (`engine.checkpoint.weights.load_strict`), so the
file alone says its precision. A rounded network is another one than before: its fingerprint is that of the float32
values that come out of its file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import shorten

STORED_DTYPE = torch.float16


def as_stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in half precision; whole numbers stay as they are.

    Raises CheckpointError that names tensors with numbers beyond the range of half precision.
    """
    stored = {name: value.to(STORED_DTYPE) if value.is_floating_point() else value for name, value in state.items()}
    overflowed = [name for name, value in stored.items() if not torch.isfinite(value).all()]
    if overflowed:
        lines = ["these weights have numbers that half precision cannot hold:", *shorten(overflowed)]
        raise CheckpointError("\n  ".join(lines))
    return stored


@torch.no_grad()
def round_to_stored(network: nn.Module) -> None:
    """Rounds the numbers of a network to what half precision holds; they stay float32.

    Raises CheckpointError as `as_stored` does, and then changes nothing.
    """
    network.load_state_dict(as_stored(network.state_dict()))
