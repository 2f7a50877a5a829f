"""Published tokenizers of LlamaGen (arXiv:2406.06525): VQ-16 and VQ-8."""

from __future__ import annotations

from tokenizer.models.registry import ModelConfig
from tokenizer.published import ibq
from tokenizer.published.layout import CNN, CODE_PATH, PublishedLayout, Rule, require_quantizer

QUANTIZER = "vq"
BY_QUANTIZER: dict[str, PublishedLayout] = {ibq.QUANTIZER: ibq.IBQLayout()}  # released by others, with the same CNN
LLAMAGEN: tuple[Rule, ...] = (*CODE_PATH, CNN)


class LlamaGenLayout(PublishedLayout):
    """See the module docstring."""

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        require_quantizer(config, QUANTIZER)
        return LLAMAGEN

    def variant(self, config: ModelConfig) -> PublishedLayout:
        return BY_QUANTIZER.get(config.quantizer.name, self)
