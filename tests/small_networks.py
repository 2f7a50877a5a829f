"""Small forms of every tokenizer and generator, by the names of their registries, for tests on devices."""

import mini
from torch import nn

from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.registry import build_generator, completed
from autoregressive.training.config import GPTTrainConfig
from engine.assets import AssetsConfig
from engine.config import load_config
from tokenizer.models.base import Tokenizer
from tokenizer.training.config import TokenizerTrainConfig

SIZE = 16  # pixels
STAND_INS = AssetsConfig(random_stand_in=True)
CNN = "{base_channels: 4, channel_multipliers: [1, 2], norm_groups: 2, encoder_res_blocks: 1, decoder_res_blocks: 1}"
SECTIONS = {  # kind of tokenizer -> its overrides
    "hybrid": [
        "model.hybrid={num_tokens: 4, z_channels: 8, semantic_dim: 112, semantic_layer: 1}",
        f"model.hybrid.cnn={CNN}",
        "model.hybrid.encoder={width: 16, layers: 1, heads: 2}",
        "model.hybrid.decoder={width: 16, layers: 1, heads: 2}",
    ],
    "llamagen": [f"model.llamagen={{z_channels: 8, cnn: {CNN}}}"],
    "wetok": [f"model.wetok={{cnn: {CNN}}}"],
    "maskgit_vq": [f"model.maskgit_vq={{cnn: {CNN}}}"],
    "var_vae": [f"model.var_vae={{z_channels: 8, cnn: {CNN}}}"],
}
QUANTIZERS = {  # quantizer -> its section
    "vq": "{codebook_size: 32, codebook_dim: 4}",
    "gq": "{num_groups: 2, group_dim: 3}",
    "fsq": "{levels: [5, 3]}",
    "ibq": "{codebook_size: 32, codebook_dim: 4}",
    "simvq": "{codebook_size: 32, codebook_dim: 4}",
    "rvq": "{levels: 3, codebook_size: 16, codebook_dim: 4, level_dropout: 0.5}",
    "mcq": "{groups: 2, codebook_size: 16, codebook_dim: 2}",
    "multi_scale": "{scales: [1, 3, 8], codebook_size: 32, codebook_dim: 4, num_phis: 2}",
}
OF_GRIDS = {"multi_scale"}  # quantizers of convolutional tokenizers alone
PAIRS = [
    (model, quantizer)
    for model in SECTIONS
    for quantizer in QUANTIZERS
    if model != "hybrid" or quantizer not in OF_GRIDS
]
GENERATORS = {  # kind of generator -> its settings
    "plain": "vocab_size: 32",
    "norm of queries and keys": "vocab_size: 32, qk_norm: true",
    "rotary": "vocab_size: 32, positions: rope2d",
    "factorized": "codebook_sizes: [8, 8]",
    "factorized, rotary": "codebook_sizes: [8, 8], positions: rope2d",
    "masked bits": "codebook_sizes: [8, 8], head: masked_bits",
    "modulated": "vocab_size: 32, positions: rope2d",
    "any order": "vocab_size: 32, mlp_width: 32",
    "masked": "codebook_sizes: [8, 8]",
}
GENERATOR_NAMES = {"modulated": "adaln_gpt", "any order": "rar", "masked": "maskgit"}  # kinds that are no plain GPT


def tokenizer_config(model: str, quantizer: str, *overrides: str) -> TokenizerTrainConfig:
    """The config of a small tokenizer whose pretrained networks are stand-ins."""
    return load_config(
        TokenizerTrainConfig,
        overrides=[
            *(override for override in mini.TOKENIZER if not override.startswith("model")),
            f"model.name={model}", *SECTIONS[model], f"model.quantizer.name={quantizer}",
            f"model.quantizer.{quantizer}={QUANTIZERS[quantizer]}", "assets.random_stand_in=true", *overrides,
        ],
    )  # fmt: skip


def generator(kind: str) -> tuple[GPTTrainConfig, Generator]:
    """A small generator for 4 tokens and 4 classes, and its config."""
    name = GENERATOR_NAMES.get(kind, "gpt")
    sizes = f"{{width: 16, layers: 2, heads: 2, num_tokens: 4, num_classes: 4, {GENERATORS[kind]}}}"
    config = load_config(GPTTrainConfig, overrides=[f"model.name={name}", f"model.{name}={sizes}"])
    return config, build_generator(config.model)


def output_layers(network: Generator) -> list[nn.Linear]:
    """The layers that give logits, by their names; they start at zero."""
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return [module for name, module in linears if {"output", "outputs"} & set(name.split("."))]


def generator_config_for(tokenizer: Tokenizer, num_classes: int, *overrides: str) -> GPTTrainConfig:
    """The config of a small GPT over the codes of a tokenizer."""
    config = load_config(GPTTrainConfig, overrides=["model.gpt={width: 16, layers: 1, heads: 2}", *overrides])
    sizes = DataSizes(tokenizer.quantizer.group_sizes, tokenizer.num_tokens, num_classes)
    config.model = completed(config.model, sizes)
    return config
