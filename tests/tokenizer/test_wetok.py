"""WeTok's CNN tokenizer and its generative decoder."""

import pytest
import torch
from torch import Tensor

from engine.messages import ConfigError
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.generative_decoder import widened
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.wetok import WeTokConfig, WeTokTokenizer
from tokenizer.quantizers.gq import GQConfig

CNN = CNNConfig(
    base_channels=8, channel_multipliers=[1, 2], encoder_res_blocks=1, decoder_res_blocks=1, mid_blocks=1, norm_groups=4
)


def tokenizer(generative: bool = False, seed: int = 0, noise_seed: int = 0) -> WeTokTokenizer:
    torch.manual_seed(seed)
    wetok = WeTokConfig(cnn=CNN, generative_decoder=generative, noise_seed=noise_seed)
    quantizer = QuantizerConfig(name="gq", gq=GQConfig(num_groups=2, group_dim=3))
    return build_tokenizer(ModelConfig(name="wetok", wetok=wetok, quantizer=quantizer), 16).eval()


def images(count: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_codes_round_trip_at_any_size_that_fits():
    """encode -> decode_indices is the forward pass, also of oblong images; others are an error that says what fits."""
    net = tokenizer()
    with torch.no_grad():
        for height, width in ((16, 16), (8, 12)):
            x = images(2, height, width)
            codes = net.encode(x).indices
            assert codes.shape == (2, height * width // 4, 2)
            grid = (height // 2, width // 2)
            torch.testing.assert_close(net.decode_indices(codes, grid), net(x).reconstructions, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 2"):
        net.encode(images(1, 15, 16))


def test_the_generative_decoder_starts_from_the_plain_one():
    """Widened by zeros the images are equal to 1e-5 for any noise; what is wide already is left alone."""
    plain, wide = tokenizer(), tokenizer(True, seed=5)
    state = widened(plain.state_dict(), wide.state_dict())
    wide.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in widened(state, wide.state_dict()).items())
    with torch.no_grad():
        expected = plain(images()).reconstructions
        for net in (wide, wide.train()):
            torch.testing.assert_close(net(images()).reconstructions, expected, atol=1e-5, rtol=0)


def test_noise_is_fresh_in_training_and_repeats_in_evaluation():
    """In evaluation an image is a function of its codes and `noise_seed`, in any batch and order."""
    net, codes = tokenizer(True), tokenizer().encode(images()).indices
    with torch.no_grad():
        made = net.decode_indices(codes)
        assert torch.equal(net.decode_indices(codes), made)
        for i in range(3):
            torch.testing.assert_close(net.decode_indices(codes[i : i + 1])[0], made[i], atol=1e-5, rtol=0)
        assert not torch.allclose(tokenizer(True, noise_seed=1).decode_indices(codes), made, atol=1e-3)
        noise = net.noise_of(net.decoder_input(net.quantizer.decode_indices(codes), (8, 8)))
        assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
        assert not torch.allclose(noise[0], noise[1])
        net.train()
        assert not torch.allclose(net.decode_indices(codes), net.decode_indices(codes), atol=1e-3)


def test_encoder_and_quantizer_are_frozen_beside_a_generative_decoder():
    """No gradient reaches the encoder, the window of recent codes stands still, and the adaptive norms see no noise."""
    net = tokenizer(True).train()
    before = net.quantizer.recent_indices.clone()
    net(images()).reconstructions.sum().backward()
    assert all(p.grad is None for p in net.encoder.parameters())
    assert net.decoder.conv_in.weight.grad[:, 6:].abs().sum() > 0
    assert torch.equal(net.quantizer.recent_indices, before)
    assert not net.quantizer.training and not net.encoder.training and net.decoder.training
    assert net.decoder.adaptive[0].gamma.in_features == 6


def test_one_grid_cell_is_refused():
    """The adaptive norms take a variance over the grid; of one cell it would be NaN."""
    with pytest.raises(ConfigError, match=r"image_size=2 .* it must be a multiple of 2, 4 or more"):
        build_tokenizer(ModelConfig(name="wetok", wetok=WeTokConfig(cnn=CNN), quantizer=QuantizerConfig(name="gq")), 2)
