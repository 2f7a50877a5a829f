"""Names and layout of WeTok's published files, which hold raw and averaged weights in one state dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from engine.checkpoint.manifest import CheckpointError
from engine.messages import ConfigError, logger
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import Rule, published_name
from tokenizer.quantizers.gq import GQConfig


def _wetok(levels: int) -> tuple[Rule, ...]:
    """WeTok's names; its decoder counts levels from the finest, ours runs from the coarsest."""
    rules: list[Rule] = []
    for level in range(levels):
        ours = levels - 1 - level
        rules += [
            (rf"decoder\.adaptive\.{ours}\.(.*)", rf"decoder.adaptive.{level}.\1", "same"),
            (rf"decoder\.conv_blocks\.{ours}\.res\.(.*)", rf"decoder.up.{level}.block.\1", "same"),
            (rf"decoder\.conv_blocks\.{ours}\.upsample\.(.*)", rf"decoder.up.{level}.upsample.\1", "same"),
        ]
    return (
        *rules,
        (r"encoder\.conv_blocks\.(\d+)\.res\.(.*)", r"encoder.down.\1.block.\2", "same"),
        (r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.(.*)", r"encoder.down.\1.downsample.\2", "same"),
        (r"(encoder|decoder)\.mid\.(.*)", r"\1.mid_block.\2", "same"),
        (r"(encoder|decoder)\.((?:conv|norm)_(?:in|out)\..*)", r"\1.\2", "same"),
        (r"quantizer\.recent_.*", "", "own"),
    )


# ------------------------------------------------------------------------------------------------ files of WeTok
EMA_PREFIX = "model_ema."  # averaged weights


OF_GPT = TOKENIZER_PART, GPT_PART = "first_stage_model.", "transformer."  # in the file of a GPT: its tokenizer, itself


WEIGHTLESS = ("loss.", "model_ema.loss", "model_ema.decay", "model_ema.num_updates")


GROUP_BITS = 8  # of all released models; the files do not say it


def ema_key(name: str) -> str:
    """The name of an averaged tensor: it has lost its dots, so it is made from the plain name, never parsed."""
    return EMA_PREFIX + name.replace(".", "")


def select_submodule(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a tokenizer or GPT, also inside a file that holds both, without losses and discriminator."""
    if any(name.startswith(prefix) for name in state):
        state = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) or not k.startswith(OF_GPT)
        }
    return {name: tensor for name, tensor in state.items() if not name.startswith(WEIGHTLESS)}


def wetok_config(state: Mapping[str, Tensor]) -> ModelConfig | None:
    """The architecture that the shapes of a WeTok file show, or None for another file."""
    if "encoder.down.0.block.0.conv1.weight" not in state:
        return None

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    levels, base = range(count("encoder.down.")), len(state["encoder.conv_in.weight"])
    config, channels = ModelConfig(name="wetok"), len(state["encoder.conv_out.weight"])
    config.wetok.cnn = CNNConfig(
        base_channels=base,
        channel_multipliers=[len(state[f"encoder.down.{i}.block.0.conv1.weight"]) // base for i in levels],
        encoder_res_blocks=count("encoder.down.0.block."),
        decoder_res_blocks=count("decoder.up.0.block."),
        mid_blocks=count("encoder.mid_block."),
    )
    if channels % GROUP_BITS:
        raise ConfigError(f"{channels} latent channels are no groups of {GROUP_BITS} bits: name the file's YAML")
    config.quantizer.name = "gq"
    config.quantizer.gq = GQConfig(num_groups=channels // GROUP_BITS, group_dim=GROUP_BITS)
    return config


def pick_ema_or_raw(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], rules: tuple[Rule, ...], weights: str, path: str | Path
) -> tuple[dict[str, Tensor], str]:
    """(published state, which one) of a WeTok file: `model` is raw, `ema` and `auto` averaged where there are averages.

    A tensor without an average stays raw, and one line says so: files of stage 2 have none of the frozen encoder.
    """
    raw = {name: tensor for name, tensor in state.items() if not name.startswith(EMA_PREFIX)}
    averages = {name: tensor for name, tensor in state.items() if name.startswith(EMA_PREFIX)}
    if weights == "model" or (weights == "auto" and not averages):
        return raw, "model"
    if not averages:
        raise CheckpointError(f"{path} has no averaged weights ({EMA_PREFIX}*); use weights=model")
    named = [published_name(name, rules) for name in own]
    expected = [theirs for theirs, layout in named if layout != "own"]
    kept = [name for name in expected if ema_key(name) not in averages]
    if kept:
        parts = ", ".join(sorted({name.split(".")[0] for name in kept}))
        logger.info("%s: %d tensors (%s) have no average; their raw weights are taken", path, len(kept), parts)
    found = {name: averages.pop(ema_key(name)) for name in expected if ema_key(name) in averages}
    return raw | found | averages, "ema"  # averages that nobody expects stay, for the strict load to name
