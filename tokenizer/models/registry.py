"""Which tokenizer and which quantizer: names in a config -> networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engine.registry import selected_section
from engine.validation import Problem, Section, one_of
from tokenizer.models.base import Tokenizer
from tokenizer.models.hybrid import HybridConfig, HybridTokenizer
from tokenizer.models.llamagen import LlamaGenConfig, LlamaGenTokenizer
from tokenizer.models.maskgit_vq import MaskGITVQConfig, MaskGITVQTokenizer
from tokenizer.models.var_vae import VARVAEConfig, VARVAETokenizer
from tokenizer.models.wetok import WeTokConfig, WeTokTokenizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.quantizers.gq import GQConfig, GroupLFQ
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.mcq import MCQConfig, ProductVQ
from tokenizer.quantizers.multi_scale import MultiScaleConfig, MultiScaleVQ
from tokenizer.quantizers.rvq import ResidualVQ, RVQConfig
from tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "gq": GroupLFQ,
    "fsq": FSQ,
    "ibq": IBQ,
    "simvq": SimVQ,
    "multi_scale": MultiScaleVQ,
    "rvq": ResidualVQ,
    "mcq": ProductVQ,
}
MODELS: dict[str, type[Tokenizer]] = {
    "hybrid": HybridTokenizer,
    "llamagen": LlamaGenTokenizer,
    "wetok": WeTokTokenizer,
    "maskgit_vq": MaskGITVQTokenizer,
    "var_vae": VARVAETokenizer,
}


@dataclass(kw_only=True, slots=True)
class QuantizerConfig(Section):
    """`name` picks the quantizer, the section of that name configures it."""

    REGISTRY: ClassVar[Mapping[str, Any]] = QUANTIZERS

    name: str = "vq"  # vq | gq (LFQ and BSQ are cases of it) | fsq | ibq | simvq | multi_scale | rvq | mcq
    vq: VQConfig = field(default_factory=VQConfig)
    gq: GQConfig = field(default_factory=GQConfig)
    fsq: FSQConfig = field(default_factory=FSQConfig)
    ibq: IBQConfig = field(default_factory=IBQConfig)
    simvq: SimVQConfig = field(default_factory=SimVQConfig)
    multi_scale: MultiScaleConfig = field(default_factory=MultiScaleConfig)
    rvq: RVQConfig = field(default_factory=RVQConfig)
    mcq: MCQConfig = field(default_factory=MCQConfig)

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "name", QUANTIZERS)

    @property
    def warmup_steps(self) -> int:
        """Steps at the start without quantization."""
        return getattr(getattr(self, self.name, None), "warmup_steps", 0)


@dataclass(kw_only=True, slots=True)
class ModelConfig(Section):
    """`name` picks the network, the section of that name configures it."""

    REGISTRY: ClassVar[Mapping[str, Any]] = MODELS

    name: str = "hybrid"  # hybrid | llamagen | wetok | maskgit_vq | var_vae
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    llamagen: LlamaGenConfig = field(default_factory=LlamaGenConfig)
    wetok: WeTokConfig = field(default_factory=WeTokConfig)
    maskgit_vq: MaskGITVQConfig = field(default_factory=MaskGITVQConfig)
    var_vae: VARVAEConfig = field(default_factory=VARVAEConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "name", MODELS)


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config` describes, freshly initialized. Raises ConfigError as `build_tokenizer` does."""
    section = selected_section(config, QUANTIZERS, "model.quantizer")
    return QUANTIZERS[config.name](section)


def build_tokenizer(config: ModelConfig, image_size: int) -> Tokenizer:
    """The tokenizer that `config` describes, freshly initialized, for images of `image_size` pixels.

    Raises ConfigError where sizes do not fit together, or a section is set that is not in use.
    """
    section = selected_section(config, MODELS, "model")
    return MODELS[config.name](section, build_quantizer(config.quantizer), image_size)
