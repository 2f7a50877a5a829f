"""Autoencoders of other programs, which images are reconstructed with: those of diffusers, and TorchScript programs."""

import importlib.util
import json
import re
import sys

import mini
import numpy as np
import pytest
import torch
from loopback_hub import loopback_hub, use_hub
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from autoregressive import extract_codes
from engine.checkpoint.stamp import header_of
from engine.data.crops import center_crop
from engine.data.images import image_tensor, to_float, to_pil, to_uint8
from engine.image_metrics import psnr
from engine.messages import UserError
from evaluations import reconstruction
from evaluations.results import read_result
from tokenizer import reconstruct
from tokenizer.autoencoders import autoencoder_kl
from tokenizer.autoencoders.loading import autoencoder_kind, load_reconstructing

HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
with_diffusers = pytest.mark.skipif(not HAS_DIFFUSERS, reason="diffusers is not installed: it is an optional extra")
# The published config of Stable Diffusion's autoencoder, with fewer channels, and that of its version 3.5.
CONFIG = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "act_fn": "silu",
    "block_out_channels": [8, 8, 16, 16], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "in_channels": 3, "out_channels": 3, "latent_channels": 4,
    "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32,
}  # fmt: skip
CONFIG_35 = {
    **CONFIG, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}  # fmt: skip
STAND_IN = {"weights": "stand-in: random numbers in the form of the published network"}
PLAIN = {"config": None, "weights": "auto", "device": "cpu"}


def write_autoencoder(folder, config=CONFIG, seed=0, as_before=False):
    """A folder as diffusers writes it, with random weights, stamped as a stand-in; `as_before` with former names."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    network = AutoencoderKL.from_config(config)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if as_before:
        former = {new: old for old, new in autoencoder_kl.PRESENT_NAMES.items()}
        pattern = re.compile(r"(?<=\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(?=\.)")
        state = {pattern.sub(lambda match: former[match[0]], name): tensor for name, tensor in state.items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / autoencoder_kl.WEIGHTS, metadata=header_of(STAND_IN))
    return network.eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four pictures of 40 px in a folder."""
    root = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(mini.random_images(4, 40)):
        to_pil(image).save(root / f"{number}.png")
    return root


def evaluated(tmp_path, entry, source, images, *flags, name="r"):
    """(exit code, output, result) of `evaluations.reconstruction`."""
    output = tmp_path / f"{name}.json"
    arguments = ["--vq-ckpt", source, "--val-path", images, "--extractor", "none", "--device", "cpu"]
    code, out, err = entry(reconstruction.main, *arguments, "--output", output, *flags)
    return code, out + err, read_result(output) if output.is_file() else None


# ---------------------------------------------------------------------------------------------- diffusers
@with_diffusers
@pytest.mark.parametrize("config", [CONFIG, CONFIG_35], ids=["1.x", "3.5"])
def test_images_go_through_the_mode_of_the_posterior(tmp_path, config):
    """As the library computes it from its own objects, to the bit: no sample, no scale, no shift."""
    network = write_autoencoder(tmp_path / "vae", config)
    loaded = load_reconstructing(tmp_path / "vae", **PLAIN)
    pictures = to_float(mini.random_images(2, 32))
    with torch.inference_mode():
        expected = network.decode(network.encode(pictures).latent_dist.mode()).sample
        found = loaded.reconstruct(pictures)
    assert torch.equal(found.images, expected) and found.indices is None
    assert loaded.image_size == 32 and loaded.factor == 8 and loaded.quantizer is None
    facts = loaded.provenance.facts()
    assert facts["latents"] == "mode of the posterior, neither scaled nor shifted" and facts["stamp"] == STAND_IN
    assert facts["latent_channels"] == config["latent_channels"] and re.fullmatch("[0-9a-f]{64}", facts["fingerprint"])


@with_diffusers
@pytest.mark.parametrize(
    ("config", "num_parameters", "num_tensors"), [(CONFIG, 83_653_863, 248), (CONFIG_35, 83_819_683, 244)],
    ids=["1.x", "3.5"],
)  # fmt: skip
def test_the_published_sizes_have_the_published_parameters(tmp_path, config, num_parameters, num_tensors):
    """The configs above differ from the published ones in these three keys only; nothing has storage here."""
    wide = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
    network = autoencoder_kl.AutoencoderKL(autoencoder_kl._build({**config, **wide}, "it"), config, "it").network
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    assert len(network.state_dict()) == num_tensors and network.decoder.conv_out.weight.is_meta


@with_diffusers
def test_files_with_former_names_and_of_half_precision_are_the_same_network(tmp_path):
    """Those of Stable Diffusion 1 have them; a pipeline has its autoencoder in a folder."""
    write_autoencoder(tmp_path / "now")
    write_autoencoder(tmp_path / "pipeline" / "vae", as_before=True)
    names = load_file(tmp_path / "pipeline" / "vae" / autoencoder_kl.WEIGHTS)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in names
    now, before = (load_reconstructing(tmp_path / name, **PLAIN) for name in ("now", "pipeline"))
    assert now.provenance.fingerprint == before.provenance.fingerprint
    half = {name: tensor.half() for name, tensor in names.items()}
    save_file(half, tmp_path / "pipeline" / "vae" / autoencoder_kl.WEIGHTS)
    assert next(load_reconstructing(tmp_path / "pipeline", **PLAIN).parameters()).dtype == torch.float32


@with_diffusers
def test_both_commands_reconstruct_with_it(tmp_path, entry, images):
    """The result says what was measured, and has no numbers of codes; pictures are those that were measured."""
    write_autoencoder(tmp_path / "vae")
    code, text, result = evaluated(tmp_path, entry, tmp_path / "vae", images)
    assert code == 0, text
    metrics, protocol = result["metrics"], result["protocol"]
    assert {"psnr", "ssim", "ssim_range2"} <= metrics.keys()
    assert not {"codebook_usage", "bits_per_image"} & metrics.keys()
    assert protocol["image_size"] == 32 and "num_tokens" not in protocol
    assert protocol["tokenizer"]["network"].startswith("AutoencoderKL of diffusers ")
    assert protocol["tokenizer"]["stamp"]["weights"].startswith("stand-in")

    flags = ["--data-path", images, "--sample-dir", tmp_path / "out", "--device", "cpu"]
    code, _, err = entry(reconstruct.main, "--vq-ckpt", tmp_path / "vae", *flags)
    assert code == 0, err
    pairs = [
        [image_tensor(Image.open(tmp_path / "out" / f"{number}{mark}.png")) for mark in ("", "_gt")]
        for number in range(4)
    ]
    values = [psnr(made[None], original[None]).item() for made, original in pairs]
    assert metrics["psnr"] == pytest.approx(sum(values) / 4, abs=1e-9)


@with_diffusers
def test_whole_images_are_padded_to_its_factor(tmp_path, entry, images):
    """40 px are no multiple of 16; a wrong size is told, and so are options that it has no use for."""
    write_autoencoder(tmp_path / "vae")
    code, text, result = evaluated(tmp_path, entry, tmp_path / "vae", images, "--original-resolution")
    assert code == 0 and result["protocol"]["image_size"] == "original", text
    for flags, message in (
        (["--image-size", 36], "image_size=36 does not fit this autoencoder: a multiple of 8"),
        (["--tok-config", "vq/VQ_SS256"], "is an autoencoder that brings its own config"),
        (["--weights", "ema"], "with one set of weights"),
        (["--noise-seed", 1], "has no generative decoder"),
    ):
        code, text, _ = evaluated(tmp_path, entry, tmp_path / "vae", images, *flags, name="x")
        assert code == 2 and message in text, text


@with_diffusers
def test_a_check_looks_at_names_and_shapes(tmp_path, entry, images):
    write_autoencoder(tmp_path / "vae")
    code, text, _ = evaluated(tmp_path, entry, tmp_path / "vae", images, "--check")
    assert code == 0 and "AutoencoderKL, 4 continuous channels per 8 x 8 pixels, 32 px" in text, text
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**CONFIG, "latent_channels": 8}))
    code, text, _ = evaluated(tmp_path, entry, tmp_path / "vae", images, "--check")
    assert code == 2 and "does not fit this model" in text, text


@with_diffusers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "is of a 'VQModel', and only an AutoencoderKL of diffusers is read here"),
        ({"in_channels": 1}, "is for images of 1 channels"),
        ({"block_out_channels": "many"}, "config.json makes no AutoencoderKL"),
        ({"norm_num_groups": 5}, "config.json makes no AutoencoderKL"),
    ],
)
def test_another_config_is_refused(tmp_path, change, message):
    write_autoencoder(tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(UserError, match=re.escape(message)):
        load_reconstructing(tmp_path / "vae", **PLAIN)


def test_without_the_package_or_the_file_it_says_what_is_missing(tmp_path, monkeypatch):
    """Pickled weights are no way out."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert autoencoder_kind(tmp_path / "vae") is autoencoder_kl.AutoencoderKL
    monkeypatch.setattr(autoencoder_kl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"of diffusers, which is missing: .*--extras diffusers"):
        load_reconstructing(tmp_path / "vae", **PLAIN)
    monkeypatch.setattr(autoencoder_kl.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"has no diffusion_pytorch_model.safetensors.*\.bin holds pickles"):
        load_reconstructing(tmp_path / "vae", **PLAIN)


@with_diffusers
def test_the_hub_gives_two_files_and_nothing_else(tmp_path, monkeypatch):
    """Of a repository, or of one folder of a pipeline; its commit and the hashes are in the stamp."""
    network = write_autoencoder(tmp_path / "vae")
    files = {name: (tmp_path / "vae" / name).read_bytes() for name in ("config.json", autoencoder_kl.WEIGHTS)}
    others = {"README.md": b"x", "large.safetensors": b"x", "diffusion_pytorch_model.bin": b"x"}
    with loopback_hub() as hub:
        hub.seed("them/vae", {**files, **others})
        hub.seed("them/pipeline", {f"vae/{name}": content for name, content in files.items()} | others)
        use_hub(hub, tmp_path / "cache", monkeypatch)
        for address, prefix in (("hf-hub:them/vae", ""), ("hf-hub:them/pipeline/vae", "vae/")):
            loaded = load_reconstructing(address, **PLAIN)
            assert torch.equal(loaded.network.state_dict()["decoder.conv_out.bias"], network.decoder.conv_out.bias)
            assert loaded.provenance.path.startswith(f"{address}@")
            stamp = loaded.provenance.stamp["hub"]
            assert stamp["repository"] == address.removeprefix("hf-hub:").removesuffix("/vae") or not prefix
            assert stamp["sha256"].keys() == files.keys()
            assert {name for name in hub.fetched() if name.startswith(prefix)} >= {f"{prefix}{n}" for n in files}
        assert not {"README.md", "large.safetensors", "diffusion_pytorch_model.bin"} & hub.fetched()


def test_a_tokenizer_of_the_hub_is_still_one(tmp_path, networks, monkeypatch):
    """Its config says so before anything large is fetched; offline, the cache says the same."""
    files = {name: (networks / "tokenizer" / name).read_bytes() for name in ("config.yaml", "model.safetensors")}
    with loopback_hub() as hub:
        hub.seed("us/tokenizer", files)
        for offline in (False, True):
            use_hub(hub, tmp_path / "cache", monkeypatch, offline=offline)
            assert load_reconstructing("hf-hub:us/tokenizer", **PLAIN, trust_jit=False).num_tokens == 8


# ---------------------------------------------------------------------------------------------- TorchScript
class Halves(nn.Module):
    """Images to twice smaller ones and a second output, as an encoder of codes has it."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return nn.functional.avg_pool2d(images, 2), images


class Doubles(nn.Module):
    """Back to images, plus a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.125))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(latents, scale_factor=2.0) + self.shift


class Whole(nn.Module):
    """Both."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Halves(), Doubles()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images)[0])


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Stand-ins for Cosmos's files: whole, in two parts, in bfloat16, and one that returns another size. Read only."""
    root = tmp_path_factory.mktemp("programs")
    (root / "parts").mkdir()
    torch.jit.save(torch.jit.script(Whole()), root / "autoencoder.jit")
    torch.jit.save(torch.jit.script(Whole().to(torch.bfloat16)), root / "bf16.pt")
    torch.jit.save(torch.jit.script(Halves()), root / "parts" / "encoder.jit")
    torch.jit.save(torch.jit.script(Doubles()), root / "parts" / "decoder.jit")
    torch.jit.save(torch.jit.script(Halves()), root / "small.jit")
    return root


TRUST = ("--trust-jit", "--image-size", "32")


def test_a_program_runs_only_where_it_is_trusted(tmp_path, entry, images, programs, monkeypatch):
    """Not for a check either; the error says what the flag means."""
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    for flags in ([], ["--check"]):
        code, text, _ = evaluated(tmp_path, entry, programs / "autoencoder.jit", images, *flags)
        assert code == 2 and "holds code of its own, which would run here with your rights" in text
        assert "add --trust-jit" in text and "Traceback" not in text
    code, text, _ = evaluated(tmp_path, entry, programs / "bf16.pt", images, *TRUST, "--check")
    assert code == 0 and "TorchScript program, trusted, 32 px" in text, text


def test_a_trusted_program_reconstructs(tmp_path, entry, images, programs):
    """In one file or two, which give the same numbers; the result names files, hashes and type."""
    results = {}
    for name in ("autoencoder.jit", "parts"):
        code, text, results[name] = evaluated(tmp_path, entry, programs / name, images, *TRUST, name=name[:5])
        assert code == 0, text
    whole, parts = results.values()
    assert whole["metrics"] == parts["metrics"]
    originals = [image_tensor(center_crop(Image.open(path), 32)) for path in sorted(images.glob("*.png"))]
    with torch.inference_mode():
        made = to_uint8(Whole()(to_float(torch.stack(originals))))
    assert whole["metrics"]["psnr"] == pytest.approx(psnr(made, torch.stack(originals)).mean().item(), abs=1e-9)
    network = parts["protocol"]["tokenizer"]
    assert network["stamp"]["torchscript"].keys() == {"encoder.jit", "decoder.jit"} and network["dtype"] == "float32"
    assert whole["protocol"]["tokenizer"]["fingerprint"] != network["fingerprint"]


def test_whole_images_need_no_size_of_a_program(tmp_path, entry, images, programs):
    """Each is padded to a multiple of 16, and cut back."""
    flags = ["--trust-jit", "--original-resolution"]
    code, text, result = evaluated(tmp_path, entry, programs / "autoencoder.jit", images, *flags)
    assert code == 0 and result["protocol"]["image_size_eval"] == "original", text
    original = image_tensor(Image.open(images / "0.png"))[None]
    padded = nn.functional.pad(to_float(original), (4, 4, 4, 4))
    with torch.inference_mode():
        made = to_uint8(Whole()(padded))[..., 4:-4, 4:-4]
    first = np.load(tmp_path / "r.npz")["score_psnr"][0]
    assert first == pytest.approx(psnr(made, original).item(), abs=1e-6)


def test_its_numbers_have_the_type_of_its_parameters(programs):
    loaded = load_reconstructing(programs / "bf16.pt", **PLAIN, trust_jit=True)
    pictures = to_float(mini.random_images(1, 32))
    found = loaded.reconstruct(pictures).images
    assert found.dtype == torch.float32 and torch.equal(found, Whole().bfloat16()(pictures.bfloat16()).float())
    wrong = load_reconstructing(programs / "bf16.pt", **PLAIN, trust_jit=True, jit_dtype="float16")
    assert wrong.dtype == torch.float16


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("autoencoder.jit", ["--trust-jit"], "--image-size is missing"),
        ("autoencoder.jit", ["--trust-jit", "--image-size", "24"], "a multiple of 16"),
        ("small.jit", TRUST, "turns images (4, 3, 32, 32) into torch.float32 (4, 3, 16, 16)"),
    ],
)
def test_a_program_that_does_not_fit_is_told(tmp_path, entry, images, programs, name, flags, message):
    code, text, _ = evaluated(tmp_path, entry, programs / name, images, *flags)
    assert code == 2 and message in text and "Traceback" not in text, text


def test_a_program_that_fails_or_is_damaged_is_named(tmp_path, programs):
    (tmp_path / "torn.jit").write_bytes((programs / "autoencoder.jit").read_bytes()[:-300])
    assert autoencoder_kind(tmp_path / "torn.jit") is None, "its reader says what is wrong"
    torch.jit.save(torch.jit.script(nn.Conv2d(4, 3, 1)), tmp_path / "conv.jit")
    loaded = load_reconstructing(tmp_path / "conv.jit", **PLAIN, trust_jit=True)
    with pytest.raises(UserError, match=r"conv.jit: the program fails: .*--jit-dtype names another type"):
        loaded.reconstruct(torch.zeros(1, 3, 16, 16))


def test_commands_that_need_codes_say_so(tmp_path, entry, programs, images):
    """Whatever kind of autoencoder it is."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(CONFIG))
    for source in (tmp_path / "vae", programs / "autoencoder.jit"):
        for flags in ([], ["--check"]):
            given = ["--vq-ckpt", source, "--data-path", images, "--code-path", tmp_path / "codes", "--device", "cpu"]
            code, _, err = entry(extract_codes.main, *given, *flags)
            assert code == 2 and "whose codes or latents are not read" in err, err


def test_a_tokenizer_is_none_of_them(networks):
    assert autoencoder_kind(networks / "tokenizer") is None and autoencoder_kind("shipped:gigatok") is None
    assert load_reconstructing(networks / "tokenizer", **PLAIN, trust_jit=False).num_tokens == 8
    assert "diffusers" not in sys.modules or HAS_DIFFUSERS
