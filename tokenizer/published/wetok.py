"""Published tokenizers of WeTok (arXiv:2508.05599) and Open-MAGVIT2 (arXiv:2409.04410), which share their CNN.

Their files hold raw weights and EMA in one state dict. The shapes of a file show its architecture, but for the bits of
a group, which are 8 in all released models of WeTok. Those of Open-MAGVIT2 are one group of 14 or 18 bits (LFQ), and
need a YAML: `quantizer: {name: gq, gq: {num_groups: 1, group_dim: 18}}`.
"""

from __future__ import annotations

import copy

from engine.messages import ConfigError
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.generative_decoder import FIRST_CONV
from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import Rule, State, num_rows
from tokenizer.published.merged import MergedLayout, ema_key
from tokenizer.published.vqgan import cnn_rules, level_rules
from tokenizer.quantizers.gq import GQConfig

MODEL, QUANTIZER = "wetok", "gq"
GROUP_BITS = 8  # bits per group of all released models; the files do not say it
MARK = "encoder.down.0.block.0.conv1.weight"  # a tensor of this family, and of VQGAN
NOT_MARKS = {"encoder.conv_in.bias", "quantize.embedding.weight"}  # of VQGAN's files, and of those with a codebook


def wetok_rules(levels: int) -> tuple[Rule, ...]:
    """The names of a CNN with `levels` levels; the adaptive norms of the decoder count like its levels."""
    return (
        *cnn_rules(levels),
        *level_rules(levels, r"decoder\.adaptive\.{level}\.(.*)", r"decoder.adaptive.{level}.\1"),
        Rule(r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.(.*)", r"encoder.down.\1.downsample.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.(.*)", r"\1.mid_block.\2", "same"),
    )


class WeTokLayout(MergedLayout):
    """See the module docstring."""

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        return wetok_rules(len(config.wetok.cnn.channel_multipliers))

    # ------------------------------------------------------------------------------------------------ architecture
    def config_of(self, state: State) -> ModelConfig | None:
        """The architecture that shapes show. Raises ConfigError where the latent channels are no groups of 8 bits."""
        if MARK not in state or not NOT_MARKS.isdisjoint(state):
            return None

        channels = num_rows(state, "encoder.conv_out.weight")
        if channels % GROUP_BITS:
            raise ConfigError(f"{channels} latent channels are no groups of {GROUP_BITS} bits: name the file's YAML")

        def count(prefix: str) -> int:
            """How many numbers follow a prefix in the names."""
            return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

        base = num_rows(state, "encoder.conv_in.weight")
        levels = range(count("encoder.down."))
        config = ModelConfig(name=MODEL)
        config.wetok.cnn = CNNConfig(
            base_channels=base,
            channel_multipliers=[num_rows(state, f"encoder.down.{i}.block.0.conv1.weight") // base for i in levels],
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
        if first_conv is None or encoder_out is None or first_conv.ndim != 4 or encoder_out.ndim != 4:
            return config  # the strict load names them
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
