"""What a published state dict holds: a tokenizer, a GPT, or (WeTok) the tokenizer inside the file of its GPT."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

TOKENIZER_PART = "first_stage_model."  # prefix of a tokenizer inside the file of its GPT
GPT_PART = "transformer."  # prefix of that GPT
GPT_MARKS = frozenset(
    {"tok_embeddings.weight", "class_emb.embedding_table.weight", "timesteps_embeddings"}
)  # tensors that only GPTs have
WITHOUT_WEIGHTS = ("loss.", "model_ema.loss", "model_ema.decay", "model_ema.num_updates")  # prefixes of training state


def select_submodule(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a tokenizer or GPT, also inside a file that holds both, without losses and discriminator."""
    if any(name.startswith(prefix) for name in state):
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix) or not name.startswith((TOKENIZER_PART, GPT_PART))
        }
    return {name: tensor for name, tensor in state.items() if not name.startswith(WITHOUT_WEIGHTS)}


def is_gpt(state: Mapping[str, Tensor]) -> bool:
    """Whether a published state dict is that of a GPT."""
    names = {name.removeprefix(GPT_PART) for name in state}
    return not names.isdisjoint(GPT_MARKS)
