"""The extractors of FD-DINOv2 and CMMD: positions, activation, pixels, and what a result says of them.

Small networks of the same classes take the place of those with 300M parameters.
"""

import functools
from pathlib import Path

import mini
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import functional

from engine.assets import ASSETS, TIMM_VITS, Asset, AssetError, AssetsConfig
from engine.checkpoint.manifest import file_sha256
from engine.data.images import image_tensor, to_float, to_pil
from evaluations.metrics.clip import CLIPExtractor
from evaluations.metrics.dinov2 import DINOv2Extractor, EDM2Extractor, published_positions
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.inception_resizes import AntialiasedInception, PillowInception, TorchInception
from evaluations.metrics.input_pixels import central_square, pil_bicubic
from evaluations.metrics.lite0 import Lite0Extractor
from evaluations.protocols.distances import published_name
from evaluations.protocols.reference import extractor_facts
from evaluations.protocols.wetok import WeTokProtocol
from tokenizer.frozen.timm_vit import timm_vit

RANDOM = AssetsConfig(random_stand_in=True)
POSITIONS = Path(__file__).parents[1] / "goldens" / "metrics" / "positions.npz"
CREATE_MODEL = timm.create_model
TOLERANCE = 1e-5  # of features, relative to the largest one


class SmallDINOv2(DINOv2Extractor):
    asset, dim = "dinov2_s", 384


class SmallEDM2(EDM2Extractor):
    asset, dim = "dinov2_s", 384


class SmallCLIP(CLIPExtractor):
    asset, dim, input_size = "clip_b_quickgelu", 512, 224


@pytest.fixture(scope="module", autouse=True)
def few_blocks():
    """Of the transformers: three are as good as twelve."""

    def create(name: str, **options):
        return CREATE_MODEL(name, **({"depth": 3} if name.startswith("vit_") else {}), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create)
        yield


@pytest.fixture(scope="module")
def dinov2():
    extractor = SmallDINOv2(RANDOM)
    scale_layers(extractor.network.network)
    return extractor


@pytest.fixture(scope="module")
def clip():
    return SmallCLIP(RANDOM)


def native_dinov2() -> torch.nn.Module:
    """timm's network with the table for 518 px, seeded; positions and layers count as in a trained one."""
    torch.manual_seed(5)
    network = timm.create_model(TIMM_VITS["dinov2_s"], pretrained=False, num_classes=0).eval()
    torch.nn.init.normal_(network.pos_embed, std=0.5)
    scale_layers(network)
    return network


def scale_layers(network: torch.nn.Module) -> None:
    """Makes blocks count: their scales begin at 1e-5, with which the class token hears nothing of the patches."""
    for block in network.blocks:
        for layer in (block.ls1, block.ls2):
            torch.nn.init.ones_(layer.gamma)


# ------------------------------------------------------------------------------------------------ DINOv2
def test_positions_are_those_of_the_published_rule():
    """A stored table of 37 x 37 positions, what the published code makes of it, and what timm does."""
    with np.load(POSITIONS, allow_pickle=False) as stored:
        table, published, by_timm = (torch.from_numpy(stored[key]) for key in ("table", "published", "timm"))
    resampled = published_positions(table[None], 16)[0]
    torch.testing.assert_close(resampled, published, rtol=0, atol=1e-6)
    assert torch.equal(resampled[0], table[0])  # the class token's
    assert (resampled - by_timm).abs().max() > 0.1 * by_timm.std()
    assert torch.equal(published_positions(table[None], 37)[0], table)
    with pytest.raises(ValueError, match="1368 positions of patches are no square"):
        published_positions(table[None, :-1], 16)


def test_features_equal_the_published_network_bit_for_bit(tmp_path):
    """The file's weights, its mask token left out; the published forward pass resamples the table whenever it runs."""
    network = native_dinov2()
    path = tmp_path / ASSETS["dinov2_s"].file
    save_file({**network.state_dict(), "mask_token": torch.zeros(1, 384)}, path)
    extractor = SmallDINOv2(AssetsConfig(pretrained_dir=str(tmp_path)))
    assert extractor.stamp == f"{path.name} sha256:{file_sha256(path)}"

    pictures = mini.random_images(2, 224)
    with torch.inference_mode():
        x = (pictures.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        grid = network.pos_embed[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, mode="bicubic", antialias=False, scale_factor=(16.1 / 37, 16.1 / 37))
        patches = network.patch_embed.proj(x).flatten(2).transpose(1, 2) + grid.flatten(2).transpose(1, 2)
        first = (network.cls_token + network.pos_embed[:, :1]).expand(2, -1, -1)
        tokens = torch.cat([first, patches], dim=1)
        for block in network.blocks:
            tokens = block(tokens)
        expected = network.norm(tokens)[:, 0]
    features = extractor(pictures)["pool"]
    assert features.shape == (2, 384) and torch.equal(features, expected)

    # timm's own way to 224 px gives something else.
    by_timm, _ = timm_vit("dinov2_s", 224, AssetsConfig(pretrained_dir=str(tmp_path)))
    with torch.inference_mode():
        assert (by_timm(x) - expected).abs().max() > 1e-4 * expected.abs().max()


def test_a_file_that_is_no_dinov2_is_named(tmp_path):
    path = tmp_path / ASSETS["dinov2_s"].file
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(AssetError, match=rf"{path.name} does not fit vit_small.*there is no table of positions"):
        SmallDINOv2(AssetsConfig(pretrained_dir=str(tmp_path)))


def test_the_large_networks_are_the_published_ones():
    """Built without storage: patch, width, depth, heads, norms and activation of ViT-L/14, and its tokens."""
    with torch.device("meta"):
        dinov2 = CREATE_MODEL(TIMM_VITS["dinov2_l"], num_classes=0, img_size=224)
        clip = CREATE_MODEL(TIMM_VITS["clip_l336"], num_classes=CLIPExtractor.dim)
    for network, tokens, eps in ((dinov2, 257, 1e-6), (clip, 577, 1e-5)):
        assert (len(network.blocks), network.embed_dim, network.blocks[0].attn.num_heads) == (24, 1024, 16)
        assert network.pos_embed.shape == (1, tokens, 1024) and network.num_prefix_tokens == 1
        assert network.norm.eps == eps
    assert DINOv2Extractor.dim == 1024 and dinov2.blocks[0].ls1.gamma.shape == (1024,)
    assert clip.head.weight.shape == (CLIPExtractor.dim, 1024)
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(clip.blocks[0].mlp.act(x), x * torch.sigmoid(1.702 * x))
    torch.testing.assert_close(dinov2.blocks[0].mlp.act(x), 0.5 * x * (1 + torch.erf(x / 2**0.5)), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ CLIP
def test_clip_computes_with_quickgelu_and_keeps_the_projection(clip):
    """The built module; both activations are one file, whichever name of timm reads it."""
    activations = {type(block.mlp.act).__name__ for block in clip.network.network.blocks}
    assert activations == {"QuickGELU"}
    assert clip.network.network.head.weight.shape == (512, 768)
    assert clip(mini.random_images(1, 40))["pool"].shape == (1, 512)
    assert ASSETS["clip_b_quickgelu"].file == ASSETS["clip_b"].file == "vit_base_patch16_clip_224.openai.safetensors"
    assert ASSETS["clip_l336"].file == "vit_large_patch14_clip_336.openai.safetensors"


def test_clip_reads_the_names_of_openai(tmp_path, clip):
    """Its image tower out of a file that holds the text tower too; the same features as under timm's names."""
    swaps = [("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"),
             ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
             ("mlp.fc2", "mlp.c_proj"), (".norm1", ".ln_1"), (".norm2", ".ln_2")]  # fmt: skip
    state = {"text_projection": torch.zeros(2, 2)}
    for name, value in clip.network.network.state_dict().items():
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)
        state[f"visual.{name}"] = value
    state["visual.proj"] = state.pop("visual.head.weight").T.contiguous()
    del state["visual.head.bias"]  # the projection has none
    state["visual.class_embedding"] = state.pop("visual.cls_token")[0, 0].clone()
    state["visual.positional_embedding"] = state.pop("visual.pos_embed")[0].clone()
    for part in ("weight", "bias"):
        state[f"visual.ln_post.{part}"] = state.pop(f"visual.norm.{part}")
    save_file(state, tmp_path / ASSETS["clip_b_quickgelu"].file)
    read = SmallCLIP(AssetsConfig(pretrained_dir=str(tmp_path)))
    pictures = mini.random_images(2, 32)
    with torch.no_grad():
        bias = clip.network.network.head.bias
        torch.testing.assert_close(read(pictures)["pool"], clip(pictures)["pool"] - bias, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ pixels
def test_pictures_are_resized_by_pillow_on_8_bits(dinov2):
    """The whole picture for DINOv2, the central square for CLIP; EDM2's way stays close, and is not rounded."""
    pictures = mini.random_images(2, 90)[:, :, :60]
    squashed = dinov2.resized(pictures)
    expected = to_pil(pictures[1]).resize((224, 224), Image.Resampling.BICUBIC)
    assert squashed.dtype == torch.uint8 and torch.equal(squashed[1], image_tensor(expected))
    assert torch.equal(central_square(pictures), pictures[..., 15:75])
    assert torch.equal(pil_bicubic(pictures[..., :60], 60), pictures[..., :60])

    # A smooth picture, made smaller: both filters are antialiased.
    smooth = F.interpolate(pictures.float(), size=(300, 400), mode="bicubic").clamp(0, 255).round().byte()
    by_edm2 = EDM2Extractor.resized(dinov2, smooth)
    difference = (by_edm2 - dinov2.resized(smooth).float()).abs()
    assert by_edm2.dtype == torch.float32 and 0.1 < difference.mean() < 1
    for resize in (dinov2.resized, functools.partial(EDM2Extractor.resized, dinov2)):
        with pytest.raises(ValueError, match="expected uint8 images"):
            resize(smooth.float())


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_features_do_not_depend_on_the_batch(name, request):
    """Batches of 1, 3 and 5: at most 1e-5 of the largest feature. Autocast around them changes nothing."""
    extractor = request.getfixturevalue(name)
    pictures = mini.random_images(5, 48)
    whole = extractor(pictures)["pool"]
    assert whole.dtype == torch.float32
    for size in (1, 3):
        parts = torch.cat([extractor(part)["pool"] for part in pictures.split(size)])
        assert (parts - whole).abs().max() <= TOLERANCE * whole.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(pictures)["pool"], whole)


@pytest.mark.parametrize("name", ["inception", "efficientnet_lite0"])
def test_features_of_convolutions_do_not_depend_on_the_batch(name):
    """All features that an extractor gives, of one picture alone and among others: at most 1e-5 of the largest."""
    extractor = EXTRACTORS[name](RANDOM if name == "inception" else AssetsConfig(pretrained_dir=""))
    pictures = mini.random_images(3, 64)
    whole, last = extractor(pictures), extractor(pictures[2:])
    for kind, features in whole.items():
        assert (last[kind] - features[2:]).abs().max() <= TOLERANCE * features.abs().max(), kind


def test_inception_behind_the_resizes_of_other_evaluations():
    """Pixels by their own libraries; the network is the one of FID, and gives pool features only."""
    pictures = mini.random_images(2, 400)[:, :, :330]
    scaled = F.interpolate(pictures / 255, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(TorchInception.network_input(pictures), 2 * scaled - 1)
    channel = Image.fromarray(pictures[1, 2].float().numpy()).resize((299, 299), Image.Resampling.BICUBIC)
    by_pillow = PillowInception.network_input(pictures)
    torch.testing.assert_close(by_pillow[1, 2], (torch.from_numpy(np.array(channel)) - 128) / 128)
    antialiased = functional.resize(pictures.float(), [299, 299], antialias=True)
    torch.testing.assert_close(AntialiasedInception.network_input(pictures), (antialiased - 128) / 128)

    inception, torch_inception = InceptionExtractor(RANDOM), TorchInception(RANDOM)
    features = torch_inception(pictures)
    assert features.keys() == {"pool"} and torch_inception.spatial_dim is torch_inception.num_classes is None
    by_protocol = inception.features_of_floats(to_float(pictures))["pool"]  # as WeTok's protocol computes them
    torch.testing.assert_close(features["pool"], by_protocol, rtol=1e-3, atol=1e-4)
    assert published_name(torch_inception, "generation", "train") == "fid_generated"
    assert EXTRACTORS["inception_torch"].facts["resize"] == WeTokProtocol.resize_name
    with pytest.raises(ValueError, match="expected uint8 images"):
        torch_inception(pictures.float())


# ------------------------------------------------------------------------------------------------ what a result says
def test_a_result_says_how_features_are_made(dinov2, clip):
    """In the facts of the reference, on which every distance depends."""
    assert extractor_facts(dinov2) == {
        "extractor": "fd_dinov2", "extractor_weights": "random", "positions": "published",
        "resize": "squashed to 224, Pillow bicubic, uint8",
    }  # fmt: skip
    assert "not rounded" in EDM2Extractor.facts["resize"] and EDM2Extractor.metric == "fd_dinov2"
    assert extractor_facts(clip)["activation"] == "quickgelu" and "central square" in extractor_facts(clip)["resize"]
    assert extractor_facts(Lite0Extractor(AssetsConfig())).keys() == {"extractor", "extractor_weights"}


def test_fd_dinov2_needs_known_weights_and_the_usual_reference(tmp_path, monkeypatch, dinov2):
    """A stand-in, a file without a hash on record, and a reference of another kind: the names of other distances."""
    save_file(native_dinov2().state_dict(), tmp_path / ASSETS["dinov2_s"].file)
    config = AssetsConfig(pretrained_dir=str(tmp_path))
    unknown = SmallDINOv2(config)
    for extractor in (dinov2, unknown):
        assert published_name(extractor, "generation", "train") == "fd_dinov2_generated"
        assert published_name(extractor, "reconstruction", "val") == "fd_dinov2_reconstruction"

    digest = file_sha256(tmp_path / ASSETS["dinov2_s"].file)
    on_record = Asset(ASSETS["dinov2_s"].file, digest, "https://example.org")
    monkeypatch.setitem(ASSETS, "dinov2_s", on_record)
    known = SmallDINOv2(config)
    assert published_name(known, "generation", "train") == "fd_dinov2"
    assert published_name(known, "reconstruction", "val") == "fd_dinov2"
    assert published_name(known, "generation", "val") == "fd_dinov2_generated"
    assert published_name(known, "reconstruction", "test") == "fd_dinov2_reconstruction"


def test_extractors_say_which_files_they_need():
    """So that they are looked for before anything is computed."""
    needed = {name: getattr(extractor, "assets", ()) for name, extractor in EXTRACTORS.items()}
    assert needed["dinov2_l"] == needed["dinov2_l_edm2"] == ("dinov2_l",)
    assert needed["clip_l336"] == ("clip_l336",)
    for name, files in needed.items():
        assert files and all(file in ASSETS for file in files), name
