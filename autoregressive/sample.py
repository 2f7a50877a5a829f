"""Draws images of given classes and writes them as PNG files and one grid.

    bash scripts/sample_c2i_visualization.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 \\
        --class-idx "22,388,90,978" --qual-num 40 --cfg-scale 4.0 --sample-dir results/samples
    python -m autoregressive.sample --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt

Sample i always looks the same for the same seed and settings, whatever the batch size. Several processes share the
classes.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from tqdm import tqdm

from autoregressive.cli import add_gpt_flags, add_sampler_flags, gpt_from, settings_of
from autoregressive.sampler import sample_images
from engine.cli import entry_parser, positive, run_entry
from engine.data.images import save_grid, to_float, to_pil
from engine.messages import UserError, logger
from engine.world import distributed_world
from tokenizer.cli import add_tokenizer_flags, tokenizer_from


def parse_classes(text: str, num_classes: int) -> list[int]:
    """`"22,388"` -> [22, 388]; anything else is an error that says what is accepted."""
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--class-idx {text!r} must be numbers separated by commas, such as 22,388") from None
    bad = [c for c in classes if not 0 <= c < num_classes]
    if bad:
        raise UserError(f"--class-idx has {bad[0]}, but the GPT knows the classes 0..{num_classes - 1}")
    return classes


def folder_name(label: int, num_classes: int) -> str:
    """`class_22_bald_eagle` for ImageNet, `class_3` elsewhere."""
    if num_classes != 1000:
        return f"class_{label}"
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return f"class_{label}_" + re.sub(r"[^a-z0-9]+", "_", _IMAGENET_CATEGORIES[label].lower()).strip("_")


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    parser.add_argument("--class-idx", default=None, help='classes, such as "22,388"; default: the first eight')
    parser.add_argument(
        "--qual-num", type=positive, default=40, help="images in all, divided among the classes (default 40)"
    )
    parser.add_argument("--sample-dir", type=Path, default=Path("results/samples"))
    parser.add_argument("--per-proc-batch-size", type=positive, default=32)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add_sampler_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    settings = settings_of(args)
    with distributed_world(args.device) as world:
        tokenizer = tokenizer_from(args, world.device)
        gpt = gpt_from(args, tokenizer, world.device)
        count = gpt.config.num_classes
        classes = parse_classes(args.class_idx, count) if args.class_idx else list(range(min(8, count)))
        each = -(-args.qual_num // len(classes))
        mine, firsts = classes[world.rank :: world.size], []
        for label in tqdm(mine, desc="classes", disable=None if world.is_main else True):
            ids = torch.arange(each) + label * 2**32
            labels = torch.full((each,), label)
            batches = sample_images(gpt, tokenizer, labels, ids, settings, args.per_proc_batch_size)
            images = torch.cat([made for _, made in batches])
            folder = args.sample_dir / folder_name(label, count)
            folder.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                to_pil(image).save(folder / f"{i:06d}.png")
            save_grid(folder / "grid.png", to_float(images), columns=min(8, each))
            firsts.append(images[:1])
        world.barrier()
        if world.is_main:
            save_grid(args.sample_dir / "grid.png", to_float(torch.cat(firsts)), columns=min(8, len(firsts)))
            logger.info("wrote %d images of each of %d classes under %s", each, len(classes), args.sample_dir)


if __name__ == "__main__":
    run_entry(main)
