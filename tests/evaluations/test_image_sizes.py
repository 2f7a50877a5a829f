"""Convolutional tokenizers at another size than that of their training: LlamaGen's 384 px models measured at 256 px,
and whole images at their own size; here at a 256th of the pixels.
"""

import sys

import mini
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as VF

from autoregressive import extract_codes, generate, load_gpt
from autoregressive.codes import CodeStore
from autoregressive.models.registry import build_generator
from autoregressive.sampling import seeded_draw
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.data import resampling
from engine.data.crops import center_crop
from engine.data.images import image_tensor, to_float, to_pil, to_uint8
from engine.image_metrics import psnr
from engine.messages import ConfigError, UserError
from evaluations import generation, reconstruction
from evaluations.protocols.ibq import plain_bilinear_crop
from evaluations.protocols.reconstruction import pad_to
from evaluations.protocols.var import lanczos_crop
from evaluations.protocols.wetok import bilinear_crop, truncated_uint8
from evaluations.results import read_result
from tokenizer import load_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

LLAMAGEN = [
    "model={name: llamagen, llamagen: {z_channels: 8, cnn: {base_channels: 4, channel_multipliers: [1, 2, 2], "
    "encoder_res_blocks: 1, decoder_res_blocks: 1, mid_blocks: 2, norm_groups: 1}}, "
    "quantizer: {vq: {codebook_size: 32, codebook_dim: 4}}}",
    "data={image_size: 16}",
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A convolutional tokenizer trained at 16 px, a GPT over the 36 tokens of 24 px, images of several sizes."""
    root = tmp_path_factory.mktemp("sizes")
    config = load_config(TokenizerTrainConfig, overrides=LLAMAGEN)
    mini.export(root / "tokenizer", config, mini.tokenizer_of(config))
    mini.export(root / "hybrid", mini.tokenizer_config(), mini.tokenizer_of(mini.tokenizer_config()))
    sizes = "{width: 16, layers: 1, heads: 2, vocab_size: 32, num_tokens: 36, num_classes: 4, positions: rope2d}"
    gpt_config = load_config(GPTTrainConfig, overrides=[f"model.gpt={sizes}"])
    torch.manual_seed(3)
    gpt = build_generator(gpt_config.model)
    torch.nn.init.normal_(gpt.output.weight)
    mini.export(root / "gpt", gpt_config, gpt)
    rng = np.random.default_rng(0)
    (root / "val" / "one").mkdir(parents=True)
    for i, (width, height) in enumerate([(30, 26), (24, 40), (33, 33), (28, 50)]):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(root / "val" / "one" / f"{i}.png")
    return root


def evaluate(module, monkeypatch, world, output, *flags):
    monkeypatch.setattr(sys, "argv", ["entry", "--output", str(output), "--device", "cpu", *map(str, flags)])
    module.evaluate(module.parse_args(), world)
    return read_result(output)


def files(given):
    return sorted((given / "val" / "one").glob("*.png"))


def test_reconstructions_at_a_larger_size_are_measured_at_the_smaller_one(given, tmp_path, monkeypatch, world):
    """Crop at 24, bicubic without antialias to 16, of both images; the original is not rounded, as published."""
    flags = ["--vq-ckpt", given / "tokenizer", "--val-path", given / "val", "--extractor", "none"]
    sizes = ["--image-size", 24, "--image-size-eval", 16]
    result = evaluate(reconstruction, monkeypatch, world, tmp_path / "r.json", *flags, *sizes)
    tokenizer, values = load_tokenizer(given / "tokenizer"), []
    for path in files(given):
        original = to_float(image_tensor(center_crop(Image.open(path), 24)))[None]
        made = tokenizer.decode_indices(tokenizer.encode(original).indices)
        small = [F.interpolate(x, size=(16, 16), mode="bicubic", align_corners=False) for x in (made, original)]
        values.append(psnr(to_uint8(small[0]), (small[1] + 1) / 2).item())
    assert result["metrics"]["psnr"] == pytest.approx(np.mean(values), abs=1e-3)
    assert (result["protocol"]["image_size"], result["protocol"]["image_size_eval"]) == (24, 16)
    assert result["protocol"]["num_tokens"] == 36


def test_codes_and_samples_at_a_larger_size(given, tmp_path, monkeypatch, world):
    """36 tokens of 24 px go through store, GPT and decoder; samples are measured at 16 px."""
    data = ["--vq-ckpt", given / "tokenizer", "--image-size", 24]
    flags = [*data, "--data-path", given / "val", "--code-path", tmp_path / "codes", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["extract", *map(str, flags)])
    extract_codes.main()
    store = CodeStore(tmp_path / "codes", "train")
    assert store.codes.shape == (4, 1, 36) and store.manifest.image_size == 24
    flags = [*data, "--gpt-ckpt", given / "gpt", "--image-size-eval", 16, "--num-fid-samples", 6, "--export", "npz"]
    flags += ["--data-path", given / "val", "--sample-dir", tmp_path, "--per-proc-batch-size", 3, "--extractor", "none"]
    result = evaluate(generation, monkeypatch, world, tmp_path / "g.json", *flags, "--cfg-scale", 1)
    assert (result["protocol"]["image_size"], result["protocol"]["image_size_eval"]) == (24, 16)
    tokens = generate(load_gpt(given / "gpt"), torch.arange(6) % 4, draw=seeded_draw(0, torch.arange(6), 36))
    made = load_tokenizer(given / "tokenizer").decode_indices(tokens)
    expected = to_uint8(F.interpolate(made, size=(16, 16), mode="bicubic", align_corners=False))
    with np.load(tmp_path / "samples.npz") as stored:
        found = stored["arr_0"].transpose(0, 3, 1, 2).astype(int)
        assert np.abs(found - expected.numpy()).max() <= 1 and stored["labels"].tolist() == [0, 1, 2, 3, 0, 1]


def test_a_tokenizer_with_learned_positions_keeps_its_size(given, tmp_path, monkeypatch, world):
    """Said at once, for another size and for whole images; so are sizes that do not fit the factor."""
    flags = ["--vq-ckpt", given / "hybrid", "--val-path", given / "val", "--extractor", "none"]
    with pytest.raises(ConfigError, match=r"--image-size 32, but the tokenizer .* is for 16"):
        evaluate(reconstruction, monkeypatch, world, tmp_path / "r.json", *flags, "--image-size", 32)
    with pytest.raises(UserError, match="--original-resolution: this tokenizer is for images of one size"):
        evaluate(reconstruction, monkeypatch, world, tmp_path / "r.json", *flags, "--original-resolution")
    flags[1] = given / "tokenizer"
    with pytest.raises(ConfigError, match=r"image_size=30 .* it must be a multiple of 4"):
        evaluate(reconstruction, monkeypatch, world, tmp_path / "r.json", *flags, "--image-size", 30)


@pytest.mark.parametrize("protocol", ["adm", "wetok"])
def test_whole_images_are_padded_to_the_factor_and_cut_back(given, tmp_path, monkeypatch, world, protocol):
    """Every image counts, at its own size; the margins never reach a metric."""
    flags = ["--vq-ckpt", given / "tokenizer", "--val-path", given / "val", "--extractor", "none"]
    flags += ["--original-resolution", "--protocol", protocol]
    result = evaluate(reconstruction, monkeypatch, world, tmp_path / "r.json", *flags)
    tokenizer, values, bits = load_tokenizer(given / "tokenizer"), [], []
    to_bytes = to_uint8 if protocol == "adm" else truncated_uint8
    for path in files(given):
        image = to_float(image_tensor(Image.open(path)))[None]
        padded, (rows, columns) = pad_to(image, 4)
        assert torch.equal(padded[..., rows, columns], image) and padded.count_nonzero() == image.count_nonzero()
        codes = tokenizer.encode(padded).indices
        grid = (padded.shape[2] // 4, padded.shape[3] // 4)
        made = tokenizer.decode_indices(codes, grid)[..., rows, columns]
        values.append(psnr(to_bytes(made), to_bytes(image)).item())
        bits.append(codes.shape[1] * 5)
    assert result["protocol"]["num_images"] == 4 and result["protocol"]["image_size"] == "original"
    assert result["metrics"]["psnr"] == pytest.approx(np.mean(values), abs=1e-3)
    assert result["metrics"]["bits_per_image"] == pytest.approx(np.mean(bits))
    assert ("ssim_range2" in result["metrics"]) == (protocol == "adm")


WETOK = [
    "model={name: wetok, quantizer: {name: gq, gq: {num_groups: 2, group_dim: 2}}, "
    "wetok: {generative_decoder: true, cnn: {base_channels: 4, channel_multipliers: [1, 2, 2, 2], "
    "encoder_res_blocks: 1, decoder_res_blocks: 1, mid_blocks: 1, norm_groups: 2}}}",
    "data={image_size: 16}",
]


def test_images_smaller_than_two_cells_and_the_seed_of_the_noise(tmp_path, monkeypatch, world):
    """The adaptive norms need two cells: smaller images are padded to them. --noise-seed changes the images of a
    generative decoder, is written beside the number, and repeats; another tokenizer refuses it.
    """
    config = load_config(TokenizerTrainConfig, overrides=WETOK)
    net = mini.tokenizer_of(config)
    torch.nn.init.normal_(net.decoder.conv_in.weight)
    mini.export(tmp_path / "wetok", config, net)
    mini.export(tmp_path / "other", mini.tokenizer_config(), mini.tokenizer_of(mini.tokenizer_config()))
    (tmp_path / "val").mkdir()
    for i, side in enumerate((7, 8, 9)):
        Image.new("RGB", (side, 8), (40 * i, 90, 200)).save(tmp_path / "val" / f"{i}.png")
    padded, (rows, columns) = pad_to(torch.ones(1, 3, 2, 1), 2, 2)
    assert padded.shape[2:] == (4, 4) and padded[..., rows, columns].eq(1).all() and padded.sum() == 6
    flags = ["--vq-ckpt", tmp_path / "wetok", "--val-path", tmp_path / "val", "--extractor", "none"]
    found = [
        evaluate(reconstruction, monkeypatch, world, tmp_path / f"{i}.json", *flags, "--original-resolution", *seed)
        for i, seed in enumerate([(), ("--noise-seed", 0), ("--noise-seed", 5)])
    ]
    assert all(np.isfinite(result["metrics"]["psnr"]) for result in found)
    assert [result["protocol"]["tokenizer"]["noise_seed"] for result in found] == [0, 0, 5]
    assert found[0]["metrics"] == found[1]["metrics"] != found[2]["metrics"]
    flags[1] = tmp_path / "other"
    with pytest.raises(ConfigError, match=r"--noise-seed 5: the tokenizer .* has no generative decoder"):
        evaluate(reconstruction, monkeypatch, world, tmp_path / "x.json", *flags, "--noise-seed", 5)


def test_wetok_crops_with_a_bilinear_resize():
    """Torchvision's rule: the short side becomes 16, the long one is cut in the middle."""
    image = to_pil(mini.random_images(1, 40)[0]).crop((0, 0, 40, 30))
    small = image.resize((21, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(bilinear_crop(image, 16)), np.asarray(small.crop((2, 0, 18, 16))))


@pytest.mark.parametrize("seed", range(20))
def test_the_bilinear_crop_is_that_of_torchvision(seed):
    """For any shape, thin ones included; of those, little more than the window is made."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in np.exp(rng.uniform(0, np.log(300), 2)))
    size = int(rng.integers(4, 40))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = VF.center_crop(VF.resize(image, size, VF.InterpolationMode.BILINEAR), [size, size])
    assert np.array_equal(np.asarray(bilinear_crop(image, size)), np.asarray(expected))
    assert bilinear_crop(Image.new("RGB", (1, 10000)), 256).size == (256, 256)
    larger = VF.resize(image, round(1.125 * size), VF.InterpolationMode.LANCZOS)
    assert np.array_equal(np.asarray(lanczos_crop(image, size)), np.asarray(VF.center_crop(larger, [size, size])))


def test_windows_of_a_lanczos_resize_are_those_of_pillow(monkeypatch):
    """Where the whole resized image would be large."""
    image = to_pil(mini.random_images(1, 60)[0]).crop((0, 0, 60, 41))
    expected = np.asarray(lanczos_crop(image, 16))
    monkeypatch.setattr(resampling, "MAX_WHOLE_BYTES", 0)
    assert np.array_equal(np.asarray(lanczos_crop(image, 16)), expected)


@pytest.mark.parametrize(("width", "height", "size"), [(50, 40, 16), (33, 70, 24), (9, 9, 16), (16, 16, 16)])
def test_the_plain_bilinear_crop_reads_four_pixels(width, height, size):
    """That of `interpolate`, which is not antialiased either, rounded; thin images take no memory."""
    image = to_pil(mini.random_images(1, 80)[0]).crop((0, 0, width, height))
    scale = size / min(width, height)
    new_height, new_width = round(scale * height), round(scale * width)
    floats = image_tensor(image)[None].double()
    resized = F.interpolate(floats, (new_height, new_width), mode="bilinear", align_corners=False)[0]
    top, left = (new_height - size) // 2, (new_width - size) // 2
    expected = resized[:, top : top + size, left : left + size]
    actual = image_tensor(plain_bilinear_crop(image, size)).double()
    assert (actual - expected).abs().max() <= 0.5 + 1e-6
    assert plain_bilinear_crop(Image.new("RGB", (1, 10000)), 256).size == (256, 256)
