"""Published tokenizers of WeTok (arXiv:2508.05599). Their files hold raw weights and EMA in one state dict.

The names of averaged tensors have lost their dots, so they are made from the plain names, never parsed. The shapes of
a file show its architecture, but for the bits of a group, which are 8 in all released models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from engine.checkpoint.manifest import CheckpointError
from engine.messages import ConfigError, logger
from tokenizer.models.base import Tokenizer
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.generative_decoder import FIRST_CONV
from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import PublishedLayout, Rule, State, export_state, published_name
from tokenizer.quantizers.gq import GQConfig

MODEL, QUANTIZER = "wetok", "gq"
EMA_PREFIX = "model_ema."
GROUP_BITS = 8  # bits per group of all released models; the files do not say it
MARK = "encoder.down.0.block.0.conv1.weight"  # a tensor that only files of this family have


def ema_key(name: str) -> str:
    """The name of the averaged tensor of `name`."""
    return EMA_PREFIX + name.replace(".", "")


def wetok_rules(levels: int) -> tuple[Rule, ...]:
    """WeTok's names; its decoder counts `levels` from the finest, ours runs from the coarsest."""
    rules: list[Rule] = []
    for published_level in range(levels):
        level = levels - 1 - published_level
        rules += [
            Rule(rf"decoder\.adaptive\.{level}\.(.*)", rf"decoder.adaptive.{published_level}.\1", "same"),
            Rule(rf"decoder\.conv_blocks\.{level}\.res\.(.*)", rf"decoder.up.{published_level}.block.\1", "same"),
            Rule(
                rf"decoder\.conv_blocks\.{level}\.upsample\.(.*)", rf"decoder.up.{published_level}.upsample.\1", "same"
            ),
        ]
    return (
        *rules,
        Rule(r"encoder\.conv_blocks\.(\d+)\.res\.(.*)", r"encoder.down.\1.block.\2", "same"),
        Rule(r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.(.*)", r"encoder.down.\1.downsample.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.(.*)", r"\1.mid_block.\2", "same"),
        Rule(r"(encoder|decoder)\.((?:conv|norm)_(?:in|out)\..*)", r"\1.\2", "same"),
        Rule(r"quantizer\.recent_.*", "", "unpublished"),
    )


class WeTokLayout(PublishedLayout):
    """See the module docstring."""

    file_key = "state_dict"
    holds_both_weights = True

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        return wetok_rules(len(config.wetok.cnn.channel_multipliers))

    # ------------------------------------------------------------------------------------------------ architecture
    def config_of(self, state: State) -> ModelConfig | None:
        """The architecture that shapes show. Raises ConfigError where the latent channels are no groups of 8 bits."""
        if MARK not in state:
            return None

        channels = len(state["encoder.conv_out.weight"])
        if channels % GROUP_BITS:
            raise ConfigError(f"{channels} latent channels are no groups of {GROUP_BITS} bits: name the file's YAML")

        def count(prefix: str) -> int:
            """How many numbers follow a prefix in the names."""
            return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

        base = len(state["encoder.conv_in.weight"])
        levels = range(count("encoder.down."))
        config = ModelConfig(name=MODEL)
        config.wetok.cnn = CNNConfig(
            base_channels=base,
            channel_multipliers=[len(state[f"encoder.down.{i}.block.0.conv1.weight"]) // base for i in levels],
            encoder_res_blocks=count("encoder.down.0.block."),
            decoder_res_blocks=count("decoder.up.0.block."),
            mid_blocks=count("encoder.mid_block."),
        )
        config.quantizer.name = QUANTIZER
        config.quantizer.gq = GQConfig(num_groups=channels // GROUP_BITS, group_dim=GROUP_BITS)
        return config

    def complete_config(self, config: ModelConfig, state: State) -> ModelConfig:
        """A decoder whose first convolution takes twice the latent channels is a generative one."""
        first_conv = state.get(FIRST_CONV, state.get(ema_key(FIRST_CONV)))
        encoder_out = state.get("encoder.conv_out.weight", state.get(ema_key("encoder.conv_out.weight")))
        if first_conv is None or encoder_out is None:
            return config
        config = copy.deepcopy(config)
        config.wetok.generative_decoder = first_conv.shape[1] == 2 * len(encoder_out)
        return config

    def explains_itself(self, config: ModelConfig, state: State) -> bool:
        """Whether a file without a YAML is read as the architecture that it has."""
        try:
            detected_config = self.config_of(state)
        except ConfigError:
            return False
        has_same_norms = detected_config.wetok.cnn.norm_groups == config.wetok.cnn.norm_groups
        return detected_config.quantizer == config.quantizer and has_same_norms

    # ------------------------------------------------------------------------------------------------ raw and EMA
    def select(
        self, state: State, expected: State, rules: tuple[Rule, ...], weights: str, path: Path
    ) -> tuple[dict[str, Tensor], str | None]:
        """`model` is raw; `ema` and `auto` are averaged where there are averages.

        A tensor without an average stays raw, and one line says so: files of stage 2 have none of the frozen encoder.
        Raises CheckpointError where an EMA is asked for and there is none.
        """
        raw = {name: tensor for name, tensor in state.items() if not name.startswith(EMA_PREFIX)}
        averages = {name: tensor for name, tensor in state.items() if name.startswith(EMA_PREFIX)}
        if weights == "model" or (weights == "auto" and not averages):
            return raw, "model"
        if not averages:
            raise CheckpointError(f"{path} has no EMA weights ({EMA_PREFIX}*); use weights=model")

        # Published names of all tensors that a file has.
        published = [published_name(name, rules) for name in expected]
        names = [name for name, conversion in published if conversion != "unpublished"]
        raw_only = [name for name in names if ema_key(name) not in averages]
        if raw_only:
            parts = ", ".join(sorted({name.split(".")[0] for name in raw_only}))
            logger.info("%s: %d tensors (%s) have no EMA; their raw weights are taken", path, len(raw_only), parts)

        # Averages that nobody expects stay in the result, for the strict load to name.
        averaged = {name: averages.pop(ema_key(name)) for name in names if ema_key(name) in averages}
        return raw | averaged | averages, "ema"

    def export(self, load: Callable[[str], Tokenizer], config: ModelConfig, weights: str) -> dict[str, Tensor]:
        """Raw weights, and beside them the EMA where the tokenizer has one and it was asked for."""
        tokenizer = load(weights)
        state = export_state(tokenizer.state_dict(), self.rules(config))
        if tokenizer.provenance.weights != "ema":
            return state
        averaged = {ema_key(name): tensor for name, tensor in state.items()}
        return export_state(load("model").state_dict(), self.rules(config)) | averaged
