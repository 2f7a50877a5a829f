"""Reconstructs images with a trained tokenizer: pairs of original and reconstruction as PNG files, and one grid.

    bash scripts/reconstruction.sh --vq-ckpt runs/VQ_SS256 --qualitative --data-path my_photos/ --sample-dir results/rec
    python -m tokenizer.reconstruct --vq-ckpt runs/quickstart/tokenizer --data photos --num-images 8

--data-path is any folder: it is searched for image files, others are counted and ignored. Every image is centre-cropped
to the size of the tokenizer and goes through its codes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from engine.assets import AssetError, AssetsConfig
from engine.cli import entry_parser, positive, run_entry
from engine.config import load_config
from engine.data.config import DataConfig
from engine.data.crops import center_crop
from engine.data.folders import LooseSource
from engine.data.images import image_tensor, save_grid, to_float, to_pil, to_uint8
from engine.data.sources import open_source, source_names
from engine.image_metrics import psnr
from engine.messages import UserError, logger
from engine.world import distributed_world
from tokenizer.cli import add_tokenizer_flags, tokenizer_from
from tokenizer.frozen.lpips import lpips_network
from tokenizer.losses.perceptual import LPIPSLoss


def lpips_or_none(device: torch.device) -> nn.Module | None:
    """LPIPS (VGG) where its weights can be had; else one warning that names the file, and pictures without a score."""
    try:
        network, _ = lpips_network(load_config(AssetsConfig))
    except AssetError as error:
        logger.warning("no LPIPS score in the file names: %s", error)
        return None
    return LPIPSLoss(network).to(device)


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    parser.add_argument("--data-path", type=Path, help="folder that is searched for images")
    packaged = source_names(packaged_only=True)
    parser.add_argument("--data", help=f"instead: held-out images of a packaged set ({packaged})")
    parser.add_argument("--num-images", type=int, default=0, help="only the first images; 0 = all")
    parser.add_argument("--sample-dir", type=Path, default=Path("results/reconstructions"))
    parser.add_argument("--per-proc-batch-size", type=positive, default=16)
    parser.add_argument(
        "--qualitative", action="store_true", help="the mode of this entry; kept for published commands"
    )
    parser.add_argument("--lpips", action="store_true", help="LPIPS of each pair in its file name")
    parser.add_argument("--clear-cache", action="store_true", help="remove intermediate files; the pictures stay")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    if (args.data_path is None) == (args.data is None):
        raise UserError("give either --data-path FOLDER or --data NAME")
    source = (
        LooseSource(args.data_path, "--data-path") if args.data_path else open_source(DataConfig(name=args.data), "val")
    )
    with distributed_world(args.device) as world:
        tokenizer = tokenizer_from(args, world.device)
        count = min(len(source), args.num_images) if args.num_images else len(source)
        mine = range(count)[world.rank :: world.size]
        distance = lpips_or_none(world.device) if args.lpips else None
        args.sample_dir.mkdir(parents=True, exist_ok=True)
        rows, scores = [], []
        for start in tqdm(range(0, len(mine), args.per_proc_batch_size), desc="batches", disable=None):
            numbers = mine[start : start + args.per_proc_batch_size]
            originals = torch.stack([image_tensor(center_crop(source.image(i), tokenizer.image_size)) for i in numbers])
            codes = tokenizer.encode(to_float(originals).to(world.device)).indices
            made = to_uint8(tokenizer.decode_indices(codes)).cpu()
            names = [f"{i:06d}" for i in numbers]
            if distance is not None:
                pairs = zip(names, to_float(made), to_float(originals), strict=True)
                to_device = [(n, m[None].to(world.device), o[None].to(world.device)) for n, m, o in pairs]
                names = [f"{n}_lpips{distance(m, o).item():.4f}" for n, m, o in to_device]
            for name, original, image in zip(names, originals, made, strict=True):
                to_pil(original).save(args.sample_dir / f"{name}_gt.png")
                to_pil(image).save(args.sample_dir / f"{name}.png")
            scores += psnr(made, originals).tolist()
            if len(rows) < 4:
                rows.append((originals[:8], made[:8]))
        if world.is_main:
            width = len(rows[0][0])
            pairs = [torch.cat(pair) for pair in rows if len(pair[0]) == width]
            save_grid(args.sample_dir / "grid.png", to_float(torch.cat(pairs)), columns=width)
            mean = f"mean PSNR of {len(scores)} of them {sum(scores) / len(scores):.2f} dB"
            where = args.sample_dir
            if args.clear_cache:
                logger.info("--clear-cache: this mode writes no intermediate files; nothing was removed")
            logger.info("%d pairs and grid.png (originals above reconstructions) under %s; %s", count, where, mean)


if __name__ == "__main__":
    run_entry(main)
