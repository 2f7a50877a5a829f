"""The published sizes are real: one training step of the 136M tokenizer and of GPT-B on a CPU, by the same entries.

LPIPS, DINOv2 and the discriminator take part with random stand-in weights, and the checkpoint says so.
"""

import math

import pytest
import torch

from autoregressive.code_writer import CodeWriter
from autoregressive.codes import FORMAT, CodesManifest
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.train import train as train_gpt
from autoregressive.training.config import GPTTrainConfig
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.config import load_config
from engine.image_metrics import psnr
from engine.run_log import read_metrics
from engine.world import distributed_world
from tokenizer.train import train as train_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

pytestmark = pytest.mark.slow  # 95 s and 4 GB
SMALL_RUN = ["loop.steps=1", "loop.device=cpu", "loop.precision=fp32", "data.num_workers=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One step of VQ_SS256 on a photograph, and the folder that the run leaves."""
    folder = tmp_path_factory.mktemp("published")
    overrides = [
        *SMALL_RUN,
        "data.name=photos",
        "data.root=''",
        "data.val_root=''",
        "data.global_batch_size=1",
        "validation.num_images=1",
        "loss.discriminator.start_step=1",
        "assets.random_stand_in=true",
        f"loop.run_dir={folder / 'tokenizer'}",
    ]
    with distributed_world("cpu") as world:
        train_tokenizer(load_config(TokenizerTrainConfig, ["configs/vq/VQ_SS256.yaml"], overrides), world)
    return folder


@pytest.fixture(scope="module")
def tokenizer(runs):
    from tokenizer import load_tokenizer

    return load_tokenizer(runs / "tokenizer")


def test_every_term_of_the_published_recipe_takes_part(runs):
    """Reconstruction, LPIPS, codebook, commitment, semantic, adversarial and shortcut terms are finite in step 1."""
    records = read_metrics(runs / "tokenizer")
    trained = next(r for r in records if "loss" in r)
    names = (
        "reconstruction_l2 perceptual codebook commitment semantic adversarial discriminator "
        "shortcut_l2 shortcut_perceptual shortcut_feature grad_norm"
    )
    assert all(math.isfinite(trained[name]) for name in names.split())
    assert trained["skipped_steps"] == 0
    assert any("val/psnr" in r for r in records)


def test_random_weights_are_stamped(runs):
    """The checkpoint of a run with stand-in networks says `weights: random` and names them."""
    stamp = read_manifest(checkpoint_folders(runs / "tokenizer")[-1])["stamp"]
    assert stamp["weights"] == "random"
    assert stamp["random"] == ["dinov2_b", "lpips"]


def test_136m_tokenizer_encodes_and_decodes(tokenizer):
    """256 codes below 16,384 an image; decoding them gives finite pixels, the same for the same codes."""
    assert sum(p.numel() for p in tokenizer.parameters()) == 136_073_227
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        codes = tokenizer.encode(images).indices
        first, second = tokenizer.decode_indices(codes), tokenizer.decode_indices(codes)
    assert codes.shape == (1, 256) and codes.min() >= 0 and codes.max() < 16_384
    assert first.shape == (1, 3, 256, 256) and torch.isfinite(first).all() and torch.equal(first, second)


def test_gpt_b_trains_a_step_and_samples(runs, tokenizer):
    """GPT-B takes one step on codes of that tokenizer (loss ln 16,384 at the start) and samples with guidance."""
    manifest = CodesManifest(
        format=FORMAT,
        fingerprint=tokenizer.provenance.fingerprint,
        tokenizer="test",
        split="train",
        data="random codes",
        num_images=4,
        num_views=1,
        num_tokens=256,
        codebook_size=16_384,
        image_size=256,
        views="centre",
        class_names=[str(i) for i in range(1000)],
    )
    writer = CodeWriter(runs / "codes", manifest, 4, rank=0)
    writer.create(torch.arange(4).numpy())
    codes = torch.randint(0, 16_384, (4, 1, 256), generator=torch.Generator().manual_seed(0))
    for block in writer.pending(0, 1):
        writer.write(block, codes)
    writer.finish()
    overrides = [
        *SMALL_RUN,
        f"data.codes={runs / 'codes'}",
        f"data.tokenizer={runs / 'tokenizer'}",
        "data.global_batch_size=2",
        "validation.preview_classes=0",
        f"loop.run_dir={runs / 'gpt'}",
    ]
    with distributed_world("cpu") as world:
        train_gpt(load_config(GPTTrainConfig, ["configs/gpt/GPT_B256.yaml"], overrides), world)
    trained = next(r for r in read_metrics(runs / "gpt") if "loss" in r)
    assert trained["loss"] == pytest.approx(math.log(16_384), abs=1e-4)

    from autoregressive import load_gpt

    gpt = load_gpt(runs / "gpt")
    settings = SamplerSettings(Guidance(scale=2.0))
    tokens, images = next(sample_images(gpt, tokenizer, torch.tensor([207]), torch.tensor([0]), settings, 1))
    assert tokens.shape == (1, 256) and images.shape == (1, 3, 256, 256) and images.dtype == torch.uint8
    assert psnr(images, images).isinf().all()
