"""A tiny checkpoint of every layout that the product reads, as a description that can be changed before it is written.

A `Layout` knows the content of its file (published names), how the product loads it, and what the loaded network says
under the names of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tiny
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from autoregressive.loading import load_gpt
from autoregressive.models.gpt import GPTConfig
from autoregressive.models.registry import GeneratorConfig, build_generator
from autoregressive.published import GPTLayout
from engine.config import merge_config, save_config
from tokenizer import load_tokenizer
from tokenizer.loading import TokenizerSections
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.llamagen import LlamaGenConfig
from tokenizer.models.maskgit_vq import MaskGITVQConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.var_vae import VARVAEConfig
from tokenizer.models.wetok import WeTokConfig
from tokenizer.published.layout import export_state
from tokenizer.published.merged import ema_key
from tokenizer.published.parts import TOKENIZER_PART
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.gq import GQConfig
from tokenizer.quantizers.ibq import IBQConfig
from tokenizer.quantizers.multi_scale import MultiScaleConfig
from tokenizer.quantizers.vq import VQConfig
from tokenizer.training.config import TokenizerTrainConfig

State = dict[str, Tensor]
IMAGE_SIZE = 8
SCALES = [1, 2, 4]  # the last one is the grid of that size
WITHOUT_YAML = "WeTok without a YAML"  # its shapes show its architecture
MERGED = ("WeTok", WITHOUT_YAML, "Open-MAGVIT2", "IBQ")  # raw weights and averages in one state dict
CNN = {"base_channels": 4, "channel_multipliers": [1, 2], "norm_groups": 2}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}


@dataclass(frozen=True)
class Layout:
    """One kind of file. `content` is what torch.save gets; `key` and `prefix` say where the chosen weights are."""

    name: str
    content: dict[str, Any]
    key: str  # of the state dict that `auto` takes
    load: Callable[[Path], nn.Module]
    exported: Callable[[nn.Module], State]  # the chosen weights under the names of the file
    folder: Path  # for a file of it

    def chosen(self, content: dict[str, Any]) -> State:
        """The chosen state dict of a content."""
        return content[self.key]

    @cached_property
    def healthy(self) -> State:
        """The chosen weights as they are read without a change, under the names of the file."""
        path = self.folder / f"{self.name}.pt"
        torch.save(self.content, path)
        return self.exported(self.load(path))


# ---------------------------------------------------------------------------------------------- tokenizers
def tokenizer_configs() -> dict[str, ModelConfig]:
    """A tiny network of each family."""
    hybrid = merge_config(TokenizerTrainConfig, [("tiny", OmegaConf.create(tiny.TOKENIZER))]).model
    cnn = CNNConfig(**CNN, encoder_res_blocks=1, decoder_res_blocks=1, mid_blocks=1)
    deep = CNNConfig(**CNN, encoder_res_blocks=1, decoder_res_blocks=2)
    vq = QuantizerConfig(name="vq", vq=VQConfig(codebook_size=16, codebook_dim=4))
    groups = QuantizerConfig(name="gq", gq=GQConfig(num_groups=2, group_dim=2))
    bits = QuantizerConfig(name="gq", gq=GQConfig(num_groups=1, group_dim=6))
    wide = replace(cnn, base_channels=32, channel_multipliers=[1], norm_groups=32)
    eight_bits = QuantizerConfig(name="gq", gq=GQConfig(num_groups=1, group_dim=8))
    ibq = QuantizerConfig(name="ibq", ibq=IBQConfig(codebook_size=16, codebook_dim=4))
    multi_scale = MultiScaleConfig(scales=SCALES, codebook_size=16, codebook_dim=4)
    scales = QuantizerConfig(name="multi_scale", multi_scale=multi_scale)
    return {
        "GigaTok": hybrid,
        "LlamaGen": ModelConfig(name="llamagen", llamagen=LlamaGenConfig(cnn=deep, z_channels=8), quantizer=vq),
        "WeTok": ModelConfig(name="wetok", wetok=WeTokConfig(cnn=cnn), quantizer=groups),
        WITHOUT_YAML: ModelConfig(name="wetok", wetok=WeTokConfig(cnn=wide), quantizer=eight_bits),
        "Open-MAGVIT2": ModelConfig(name="wetok", wetok=WeTokConfig(cnn=cnn), quantizer=bits),
        "IBQ": ModelConfig(name="llamagen", llamagen=LlamaGenConfig(cnn=deep, z_channels=4), quantizer=ibq),
        "MaskGIT": ModelConfig(name="maskgit_vq", maskgit_vq=MaskGITVQConfig(cnn=cnn), quantizer=vq),
        "VAR": ModelConfig(name="var_vae", var_vae=VARVAEConfig(cnn=deep, z_channels=4), quantizer=scales),
    }


def network(config: ModelConfig, seed: int) -> nn.Module:
    """A tokenizer with seeded weights."""
    torch.manual_seed(seed)
    return build_tokenizer(config, IMAGE_SIZE).eval()


def tokenizer_layout(name: str, config: ModelConfig, folder: Path) -> Layout:
    """A file with raw weights and averages; in the families with one state dict, both are in it."""
    rules = layout_rules(config)
    raw, averaged = (export_state(network(config, seed).state_dict(), rules) for seed in (0, 1))
    is_merged = name in MERGED
    if is_merged:
        both = raw | {ema_key(tensor_name): tensor for tensor_name, tensor in averaged.items()}
        both |= {"loss.discriminator.main.0.weight": torch.ones(3), "model_ema.decay": torch.tensor(0.999)}
        content = {"state_dict": both, "epoch": 3, "optimizer_states": [OPTIMIZER], "pytorch-lightning_version": "1.9"}
    else:
        content = {"model": raw, "ema": averaged, "optimizer": OPTIMIZER, "steps": 7, "args": {"lr": 0.1}}

    yaml = folder / f"{name}.yaml"
    sections = TokenizerSections(model=config)
    sections.data.image_size = IMAGE_SIZE
    save_config(sections, yaml)

    def exported(loaded: nn.Module) -> State:
        state = export_state(loaded.state_dict(), rules)
        return {ema_key(tensor_name): tensor for tensor_name, tensor in state.items()} if is_merged else state

    key = "state_dict" if is_merged else "ema"
    architecture = None if name == WITHOUT_YAML else yaml
    return Layout(name, content, key, lambda path: load_tokenizer(path, config=architecture), exported, folder)


# ---------------------------------------------------------------------------------------------- GPTs
def gpt_layout(name: str, folder: Path, tokenizer: State | None = None) -> Layout:
    """A file of GigaTok or LlamaGen, or of WeTok with the `tokenizer` beside the GPT."""
    has_both = tokenizer is not None
    tokens = {"head": "factorized", "codebook_sizes": [4, 4]} if has_both else {"vocab_size": 16}
    positions = "rope2d" if name.startswith("LlamaGen") or has_both else "learned"
    section = GPTConfig(width=8, layers=1, heads=1, num_tokens=16, num_classes=2, positions=positions, **tokens)
    torch.manual_seed(3)
    gpt = build_generator(GeneratorConfig(gpt=section))
    for parameter in gpt.parameters():
        nn.init.normal_(parameter)
    layout = GPTLayout(section)
    state = next(iter(layout.export(gpt).values()))
    if has_both:
        beside = {f"{TOKENIZER_PART}{tensor_name}": tensor for tensor_name, tensor in tokenizer.items()}
        content = {"state_dict": state | beside, "epoch": 3}
    else:
        content = {"model": state, "optimizer": OPTIMIZER, "steps": 7, "args": {"lr": 0.1}}

    def exported(loaded: nn.Module) -> State:
        return next(iter(layout.export(loaded).values()))

    key = next(iter(content))
    config = GeneratorConfig(gpt=section)
    return Layout(name, content, key, lambda path: load_gpt(path, config=config), exported, folder)


def layouts(folder: Path) -> list[Layout]:
    """One of each kind; their YAMLs lie in `folder`."""
    tokenizers = [tokenizer_layout(name, config, folder) for name, config in tokenizer_configs().items()]
    wetok = next(layout for layout in tokenizers if layout.name == "WeTok")
    gpts = [gpt_layout("GigaTok GPT", folder), gpt_layout("LlamaGen GPT", folder)]
    return [*tokenizers, *gpts, gpt_layout("WeTok GPT", folder, wetok.content["state_dict"])]
