"""Tiny configs and data for tests: a whole training run takes a second."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from autoregressive.code_writer import CodeWriter
from autoregressive.codes import FORMAT, CodesManifest
from autoregressive.training.config import GPTTrainConfig
from engine.config import merge_config
from tokenizer.training.config import TokenizerTrainConfig

LOOP = "loop: {device: cpu, steps: 6, log_every: 1, eval_every: 0, save_every: 100}\n"
TOKENIZER = f"""\
model:
  hybrid:
    encoder: {{width: 16, layers: 1, heads: 2}}
    decoder: {{width: 16, layers: 1, heads: 2}}
    num_tokens: 4
    z_channels: 8
    semantic_layer: null
    position_std: 1.0
    init: torch
    cnn:
      base_channels: 4
      channel_multipliers: [1, 2]
      norm_groups: 1
      encoder_res_blocks: 1
      decoder_res_blocks: 1
      mid_blocks: 0
      adaptive_gain: 1.0
  quantizer: {{vq: {{codebook_size: 16, codebook_dim: 4}}}}
loss: {{perceptual_weight: 0.0}}
optim: {{lr: 1e-3, max_grad_norm: 1.0}}
data: {{image_size: 8, global_batch_size: 4, num_workers: 0}}
validation: {{num_images: 4, batch_size: 2}}
{LOOP}"""  # 8 px images, 4 tokens of 16 codes
GPT_TRAINING = f"""\
optim: {{lr: 1e-2, schedule: constant}}
data: {{global_batch_size: 4, num_workers: 0}}
validation: {{num_images: 4, batch_size: 2, preview_classes: 0}}
{LOOP}"""
GPT = f"""\
model: {{gpt: {{width: 16, layers: 2, heads: 2, vocab_size: 16, num_tokens: 4, num_classes: 2}}}}
{GPT_TRAINING}"""
WETOK = f"""\
model:
  name: wetok
  wetok:
    cnn: {{base_channels: 4, channel_multipliers: [1, 2], norm_groups: 2, encoder_res_blocks: 1,
           decoder_res_blocks: 1, mid_blocks: 1}}
  quantizer: {{name: gq, gq: {{num_groups: 2, group_dim: 2}}}}
loss:
  l2_weight: 0.0
  l1_weight: 1.0
  perceptual_weight: 0.0
  entropy_weight: 0.1
  discriminator: {{name: patchgan, start_step: 1, weight: 0.1, patchgan: {{base_channels: 4, num_layers: 1}},
                   lecam_weight: 0.05, generator_loss: non_saturating, weigh_own_loss: false}}
optim: {{lr: 1e-3, betas: [0.5, 0.9], weight_decay: 0.0, max_grad_norm: 0.0, schedule: constant}}
ema_decay: 0.9
data: {{image_size: 8, global_batch_size: 4, num_workers: 0}}
validation: {{num_images: 4, batch_size: 2}}
{LOOP}"""  # 8 px images, 16 tokens of 2 x 4 codes
GAN = [
    "loss.discriminator={name: patchgan, start_step: 2, weight: 0.1}",
    "loss.discriminator.patchgan={base_channels: 4, num_layers: 1, norm: none}",
    "ema_decay=0.9",
]
SCALES = [  # the tokenizer of scales in place of `TOKENIZER`'s: 30 tokens of 16 codes
    "model={name: var_vae, hybrid: null}",
    "model.var_vae={z_channels: 4, cnn: {base_channels: 4, channel_multipliers: [1, 2], norm_groups: 2}}",
    "model.var_vae.cnn={encoder_res_blocks: 1, decoder_res_blocks: 1, mid_blocks: 1}",
    "model.quantizer={name: multi_scale, vq: null}",
    "model.quantizer.multi_scale={scales: [1, 2, 3, 4], codebook_size: 16, codebook_dim: 4, num_phis: 4}",
    "model.quantizer.multi_scale={restart: random, restart_threshold: 0.5, decay: 0.5}",
    "ema_decay=0.9",
]


def write_images(root: Path, per_class: int, seed: int, size: int = 12, classes: tuple[str, ...] = ("cat", "dog")):
    """Smooth random PNG images of about `size` pixels, one folder a class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
            coarse.resize((size, size + i % 2), Image.Resampling.BICUBIC).save(root / name / f"{i:03d}.png")


def write_codes(folder: Path, fingerprint: str, num_images: int = 12, seed: int = 3, num_tokens: int = 4) -> None:
    """A finished code store with splits `train` and `val`: 16 codes, 2 classes, 2 views."""
    rng = np.random.default_rng(seed)
    facts = {"num_views": 2, "num_tokens": num_tokens, "codebook_size": 16, "image_size": 8, "views": "flip"}
    for split in ("train", "val"):
        manifest = CodesManifest(
            format=FORMAT,
            fingerprint=fingerprint,
            tokenizer="tiny",
            split=split,
            data="random",
            num_images=num_images,
            class_names=["cat", "dog"],
            **facts,
        )
        writer = CodeWriter(folder, manifest, num_images, rank=0)
        writer.create(rng.integers(0, 2, num_images))
        for block in writer.pending(0, 1):
            writer.write(block, torch.from_numpy(rng.integers(0, 16, (len(block), 2, num_tokens))))
        writer.finish()


def folder_data(images: Path) -> list[str]:
    """Overrides that train on `images`/train and validate on `images`/val."""
    return ["data.name=folder", f"data.root={images / 'train'}", f"data.val_root={images / 'val'}"]


def tokenizer_config(run_dir: Path, images: Path, *overrides: str, base: str = TOKENIZER) -> TokenizerTrainConfig:
    """A tiny tokenizer run on a folder of images."""
    own = [*folder_data(images), f"loop.run_dir={run_dir}", *overrides]
    return merge_config(TokenizerTrainConfig, [("tiny", OmegaConf.create(base)), ("test", own)])


def gpt_config(run_dir: Path, codes: Path, tokenizer: Path, *overrides: str, base: str = GPT) -> GPTTrainConfig:
    """A tiny run of a GPT on codes, or of another generator with `GPT_TRAINING` as `base`."""
    own = [f"data.codes={codes}", f"data.tokenizer={tokenizer}", f"loop.run_dir={run_dir}", *overrides]
    return merge_config(GPTTrainConfig, [("tiny", OmegaConf.create(base)), ("test", own)])


def online_config(run_dir: Path, images: Path, tokenizer: Path, *overrides: str) -> GPTTrainConfig:
    """A tiny GPT run on images that become tokens in each step."""
    own = [*folder_data(images), "data.tokenize=online", f"data.tokenizer={tokenizer}", f"loop.run_dir={run_dir}"]
    return merge_config(GPTTrainConfig, [("tiny", OmegaConf.create(GPT)), ("test", [*own, *overrides])])
