"""Decoding for pictures: close to the pixels of metrics, for every tokenizer, and nothing else changes."""

import mini
import pytest
import torch

import autoregressive.sample
import evaluations.measure
from engine.config import load_config
from engine.finite import NonFiniteValuesError
from tokenizer.models.base import Tokenizer
from tokenizer.training.config import TokenizerTrainConfig

SMALL_CNN = (
    "{base_channels: 8, channel_multipliers: [1, 2], decoder_res_blocks: 1, encoder_res_blocks: 1, norm_groups: 4}"
)
TOKENIZERS = {
    "hybrid, 1d": [],
    "hybrid, 2d": ["model.hybrid.layout=2d", "model.hybrid.block=qformer", "model.hybrid.num_tokens=16"],
    "llamagen": [
        "model.name=llamagen",
        f"model.llamagen={{z_channels: 8, cnn: {SMALL_CNN}}}",
    ],
    "wetok": [
        "model.name=wetok",
        f"model.wetok={{generative_decoder: true, cnn: {SMALL_CNN}}}",
        "model.quantizer={name: gq, vq: null, gq: {num_groups: 2, group_dim: 2}}",
    ],
}


def tokenizer_of(name: str) -> Tokenizer:
    is_other = not name.startswith("hybrid")
    base = [override for override in mini.TOKENIZER if not (is_other and override.startswith("model.hybrid"))]
    config = load_config(TokenizerTrainConfig, overrides=[*base, *TOKENIZERS[name]])
    return mini.tokenizer_of(config).eval()


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_pictures_are_close_to_the_pixels_of_metrics(name):
    """Within 3 levels of 255 on average; the tokenizer itself keeps its bits, codes and pixels."""
    tokenizer = tokenizer_of(name)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    codes = tokenizer.tokenize(images)
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    expected = tokenizer.decode_indices(codes)

    pictures = tokenizer.picture_decoder().decode_indices(codes)
    assert pictures.dtype == torch.float32 and pictures.shape == expected.shape
    assert 0 < 127.5 * (pictures - expected).abs().mean() < 3
    assert torch.equal(tokenizer.decode_indices(codes), expected)
    assert torch.equal(tokenizer.tokenize(images), codes)
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_have_a_place_where_they_are_cells_of_a_grid(name):
    """Rows and columns for images of 16 pixels; none for a sequence of tokens."""
    tokenizer = tokenizer_of(name)
    side = round(tokenizer.num_tokens**0.5)
    assert tokenizer.token_grid == (None if name == "hybrid, 1d" else (side, side))


def test_the_copy_is_in_bfloat16_and_channels_last():
    """All but the quantizer, which is the same object: codes stand for the same latents."""
    tokenizer = tokenizer_of("hybrid, 1d")
    network = tokenizer.picture_decoder().network
    assert network.quantizer is tokenizer.quantizer
    rest = [p for name, p in network.named_parameters() if not name.startswith("quantizer.")]
    assert {p.dtype for p in rest} == {torch.bfloat16} and not any(p.requires_grad for p in rest)
    kernels = [p for p in rest if p.ndim == 4]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}


def test_pixels_that_are_not_finite_are_refused():
    tokenizer = tokenizer_of("hybrid, 1d")
    torch.nn.init.constant_(tokenizer.decoder.conv_out.bias, torch.inf)
    with pytest.raises(NonFiniteValuesError, match="pixels decoded by the tokenizer"):
        tokenizer.picture_decoder().decode_indices(torch.zeros(1, 8, dtype=torch.long))


def test_such_pictures_are_not_measured(networks, entry, tmp_path):
    """The command writes them, and the folder is refused as a set of images, also one of its classes; with the usual
    pixels the folder is one of other settings.
    """
    folder = tmp_path / "pictures"
    flags = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", networks / "gpt", "--qual-num", 2, "--class-idx", "0,1"]
    flags += ["--device", "cpu", "--sample-dir", folder]
    code, _, err = entry(autoregressive.sample.main, *flags, "--decode-precision", "bf16", "--weight-layout", "auto")
    assert code == 0, err
    assert "the fastest here for 2 rows" in err
    assert len(list(folder.glob("class_*/000000.png"))) == 2

    for samples in (folder, folder / "class_0"):
        measured = ["--samples", samples, "--gt-npz-path", folder, "--measured", "generation"]
        code, _, err = entry(
            evaluations.measure.main, *measured, "--extractor", "efficientnet_lite0", "--device", "cpu"
        )
        assert code == 2 and "holds pictures to look at, not to measure: --decode-precision bf16" in err

    code, _, err = entry(autoregressive.sample.main, *flags)
    assert code == 2 and "was filled with other settings" in err
