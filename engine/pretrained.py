"""Trained networks as objects: what tokenizers and generators have in common as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from engine.messages import UserError
from engine.sharing import save_network


class PretrainedNetwork(nn.Module):
    """Base class of the networks that are loaded and saved by name. A kind of network says how it is loaded."""

    provenance: Any = None  # where a loaded network came from (`tokenizer.loading.Provenance`)

    @classmethod
    def _load(cls, source: str | Path, *, config: Any, weights: str, device: torch.device | str) -> PretrainedNetwork:
        """The network of this kind that `source` names, of any class; see `from_pretrained`."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: str | Path | Any = None,
        weights: str = "auto",
        device: torch.device | str = "cpu",
    ) -> Self:
        """A trained network in evaluation mode: `Tokenizer.from_pretrained("runs/quickstart")`, and so for `GPT`.

        `source`: the folder of a run, a checkpoint, or one that `save_pretrained` wrote; a published file, with its
        `config`, the YAML of its architecture, unless its shapes show it; an address of the hub,
        `hf-hub:organization/name@revision`, which is fetched; or `shipped:NAME`. `config` goes with a published file
        alone: all others bring their own. `weights`: `ema`, `model`, or `auto`. `device`: as PyTorch names it, or
        `auto`. The arguments are those of `tokenizer.load_tokenizer` and `autoregressive.load_gpt`.

        Raises UserError where there is no such network or device, its files are damaged, or it is of another class than
        `cls`.
        """
        network = cls._load(source, config=config, weights=weights, device=device)
        if not isinstance(network, cls):
            raise UserError(f"{source} holds a {type(network).__name__}, not a {cls.__name__}")
        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the network to a new folder, for `from_pretrained` and every command: see
        `engine.sharing.save_network`.
        """
        save_network(self, folder)

    def state_to_share(self) -> dict[str, Tensor]:
        """Its state dict, which holds nothing of single training images beside the weights."""
        return self.state_dict()
