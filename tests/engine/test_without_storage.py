"""A network without storage has the names, shapes and kinds of the real one, and draws no random numbers."""

import pytest
import torch
from ranks import aside

from autoregressive.models.registry import build_generator
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.without_storage import without_storage
from tokenizer.models.registry import QUANTIZERS, build_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

CNN = "{base_channels: 4, channel_multipliers: [1, 2], norm_groups: 2, mid_blocks: 1}"
TOKENIZERS = {
    **{
        f"hybrid {name}": [
            f"model.hybrid={{num_tokens: 4, z_channels: 8, semantic_layer: null, cnn: {CNN}}}",
            "model.hybrid.encoder={width: 16, layers: 1, heads: 2}",
            "model.hybrid.decoder={width: 16, layers: 1, heads: 2}",
            f"model.quantizer.name={name}",
        ]
        for name in QUANTIZERS
        if name != "multi_scale"
    },
    "llamagen": [f"model={{name: llamagen, llamagen: {{z_channels: 8, cnn: {CNN}}}}}"],
    "wetok": [f"model={{name: wetok, wetok: {{cnn: {CNN}}}, quantizer: {{name: gq}}}}"],
    "maskgit_vq": [f"model={{name: maskgit_vq, maskgit_vq: {{cnn: {CNN}}}}}"],
    "var_vae": [
        f"model={{name: var_vae, var_vae: {{cnn: {CNN}}}, "
        "quantizer: {name: multi_scale, multi_scale: {scales: [2, 8], codebook_size: 8}}}"
    ],
}


def assert_same_but_for_storage(build) -> None:
    """Builds a network twice, and compares what does not depend on numbers."""
    state = torch.get_rng_state()
    with without_storage():
        described = build()
    assert torch.equal(torch.get_rng_state(), state)
    real = build()
    for kind in ("named_parameters", "named_buffers"):
        expected, found = dict(getattr(real, kind)()), dict(getattr(described, kind)())
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            other = found[name]
            assert other.is_meta and other.requires_grad == tensor.requires_grad, name
            assert (other.shape, other.dtype, type(other)) == (tensor.shape, tensor.dtype, type(tensor)), name


@aside
@pytest.mark.parametrize("overrides", TOKENIZERS.values(), ids=list(TOKENIZERS))
def test_tokenizers(overrides):
    config = load_config(TokenizerTrainConfig, overrides=["data.image_size=16", *overrides])
    assert_same_but_for_storage(lambda: build_tokenizer(config.model, config.data.image_size))


@aside
@pytest.mark.parametrize("positions", ["learned", "rope2d"])
@pytest.mark.parametrize("codes", ["vocab_size: 16", "codebook_sizes: [4, 4]"])
def test_generators(positions, codes):
    sizes = f"{{width: 16, layers: 1, heads: 2, num_tokens: 4, num_classes: 2, positions: {positions}, {codes}}}"
    config = load_config(GPTTrainConfig, overrides=[f"model.gpt={sizes}"])
    assert_same_but_for_storage(lambda: build_generator(config.model))


def test_numbers_are_left_out_and_shapes_are_not():
    """Only what changes numbers alone is left out."""
    with without_storage():
        table = torch.randn(3, 4, generator=torch.Generator()) * 0.5
        assert table.is_meta and table.shape == (3, 4)
        assert (table * torch.ones(2, 3, 1)).shape == (2, 3, 4)
        assert (torch.ones(3, dtype=torch.int64) * 0.5).dtype == torch.float32
        assert torch.nn.functional.normalize(table, dim=-1).shape == (3, 4)
