"""Names of tensors without what wrappers added to them.

torch.compile adds `_orig_mod.`, DDP, DeepSpeed and AveragedModel `module.`, FSDP `_fsdp_wrapped_module.`, activation
checkpointing `_checkpoint_wrapped_module.`, Fabric `_forward_module.`; each may stand inside of a name, where a part of
the network was wrapped, and several in any order. Trainers that hold the network as an attribute add `model.`, `net.`
or `ema.` in front.
"""

from __future__ import annotations

from collections.abc import Iterable

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
RAW_HEADS = frozenset({"model", "online_model", "net", "network"})
EMA_HEADS = frozenset({"ema", "ema_model", "averaged_model"})
EMA_MODULE = "model_ema"  # also the prefix of averages whose names lost their dots, which are left as they are


def unwrapped(name: str, ema_heads: frozenset[str] = EMA_HEADS) -> tuple[str, bool]:
    """(name without wrappers, whether a wrapper says that it is an average)."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    is_average = False
    while len(parts) > 1 and (parts[0] in RAW_HEADS or parts[0] in ema_heads):
        is_average |= parts[0] in ema_heads
        del parts[0]
    return ".".join(parts) or name, is_average


def ema_heads_of(names: Iterable[str]) -> frozenset[str]:
    """The prefixes of averages in a state dict: `model_ema.` only where names behind it have their dots."""
    for name in names:
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        if EMA_MODULE in parts[:2] and len(parts) - parts.index(EMA_MODULE) > 2:
            return EMA_HEADS | {EMA_MODULE}
    return EMA_HEADS
