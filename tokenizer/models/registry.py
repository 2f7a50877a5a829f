"""Which tokenizer and which quantizer: names in a config -> networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from engine.registry import selected_section
from tokenizer.models.hybrid import HybridConfig, HybridTokenizer
from tokenizer.models.llamagen import LlamaGenConfig, LlamaGenTokenizer
from tokenizer.models.wetok import WeTokConfig, WeTokTokenizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.quantizers.gq import GQConfig, GroupLFQ
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


@dataclass(kw_only=True, slots=True)
class QuantizerConfig:
    """`name` picks the quantizer, the section of that name configures it."""

    name: str = "vq"  # vq | gq (LFQ and BSQ are cases of it) | fsq | ibq | simvq
    vq: VQConfig = field(default_factory=VQConfig)
    gq: GQConfig = field(default_factory=GQConfig)
    fsq: FSQConfig = field(default_factory=FSQConfig)
    ibq: IBQConfig = field(default_factory=IBQConfig)
    simvq: SimVQConfig = field(default_factory=SimVQConfig)

    @property
    def warmup_steps(self) -> int:
        """Steps at the start without quantization."""
        return getattr(getattr(self, self.name, None), "warmup_steps", 0)

    @property
    def loss_names(self) -> frozenset[str]:
        """The losses that the chosen quantizer has."""
        return QUANTIZERS[self.name].loss_names if self.name in QUANTIZERS else frozenset()


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """`name` picks the network, the section of that name configures it."""

    name: str = "hybrid"
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    llamagen: LlamaGenConfig = field(default_factory=LlamaGenConfig)
    wetok: WeTokConfig = field(default_factory=WeTokConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)


QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer, "gq": GroupLFQ, "fsq": FSQ, "ibq": IBQ, "simvq": SimVQ
}  # fmt: skip
MODELS: dict[str, Callable[[Any, Any, int], nn.Module]] = {
    "hybrid": HybridTokenizer, "llamagen": LlamaGenTokenizer, "wetok": WeTokTokenizer
}  # fmt: skip


def build_tokenizer(config: ModelConfig, image_size: int) -> nn.Module:
    """The tokenizer that `config` describes, freshly initialized, for images of `image_size` pixels."""
    own, of_quantizer = (
        selected_section(config, MODELS, "model"),
        selected_section(config.quantizer, QUANTIZERS, "model.quantizer"),
    )
    return MODELS[config.name](own, QUANTIZERS[config.quantizer.name](of_quantizer), image_size)
