"""Reconstruction quality of a tokenizer: PSNR, SSIM, codebook usage, and a Frechet distance to reference images.

    python -m evaluations.reconstruction --vq-ckpt runs/quickstart/tokenizer \\
        --output runs/quickstart/evaluations/reconstruction.json
    python -m evaluations.reconstruction --vq-ckpt runs/VQ_SS256 --val-path $IMGNET_ROOT/val --reference val \\
        --extractor inception --output results/VQ_SS256.json

Images go through their codes (encode -> indices -> decode) and are rounded to uint8 before any metric. --reference
names the images that the distance is measured to: the split itself (`val`, which gives rFID) or the training images
(`train`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import UserError, logger, positive, run_entry
from engine.datasets import centre_batch, open_source
from engine.distributed import World, distributed_world
from engine.image_metrics import psnr, ssim
from engine.images import to_float, to_uint8
from evaluations.features import EXTRACTORS
from evaluations.flags import add_asset_flags, assets_of, images_of
from evaluations.protocol import write_result
from evaluations.reference import reference_moments
from evaluations.statistics import Moments, moments_distance
from tokenizer.loading import add_tokenizer_flags, tokenizer_from

SHOWN = 32  # pairs kept for the report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tokenizer_flags(parser)
    parser.add_argument("--data", help="name of the images; default: those of the tokenizer's own config")
    parser.add_argument("--data-path", help="training images in ImageNet layout (only for --reference train)")
    parser.add_argument("--val-path", help="held-out images in ImageNet layout")
    parser.add_argument(
        "--reference", default="val", choices=["val", "train"], help="images the distance is measured to"
    )
    parser.add_argument("--extractor", default="efficientnet_lite0", choices=sorted(EXTRACTORS))
    parser.add_argument("--per-proc-batch-size", type=positive, default=50)
    parser.add_argument(
        "--output", type=Path, required=True, help="result file (JSON); example pairs go beside it as .npz"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add_asset_flags(parser)
    return parser.parse_args()


class CodeUsage:
    """How often each code occurred, over all ranks."""

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.float64)

    def update(self, indices: Tensor) -> None:
        self.counts += torch.bincount(indices.flatten().cpu(), minlength=len(self.counts))

    def metrics(self, world: World) -> dict[str, float]:
        counts = world.sum(self.counts.to(world.device)).cpu()
        p = counts / counts.sum()
        perplexity = torch.exp(-(p * p.clamp_min(1e-30).log()).sum()).item()
        return {"codebook_usage": (counts > 0).double().mean().item(), "codebook_perplexity": perplexity}


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    tokenizer = tokenizer_from(args, world.device)
    data = images_of(tokenizer.provenance.config.data, args)
    source, size = open_source(data, "val"), tokenizer.image_size
    extractor = EXTRACTORS[args.extractor](assets_of(args)).to(world.device)
    reference_source = source if args.reference == "val" else open_source(data, "train")
    reference, reference_facts = reference_moments(
        reference_source, args.reference, data, extractor, args.output.parent, world
    )
    made_moments, real_moments = Moments(extractor.dim), Moments(extractor.dim)
    usage = CodeUsage(tokenizer.quantizer.codebook_size)
    sums = torch.zeros(4, dtype=torch.float64)
    shown: list[tuple[Tensor, Tensor]] = []
    stride = max(1, len(source) // SHOWN)
    starts = range(0, len(source), args.per_proc_batch_size)[world.rank :: world.size]
    for start in tqdm(starts, desc="reconstruction", disable=None if world.is_main else True):
        rows = range(start, min(start + args.per_proc_batch_size, len(source)))
        originals = centre_batch(source, size, rows, data.skip_broken)
        indices = tokenizer.encode(to_float(originals.to(world.device))).indices
        made = to_uint8(tokenizer.decode_indices(indices)).cpu()
        usage.update(indices)
        made_moments.update(extractor(made.to(world.device)))
        real_moments.update(extractor(originals.to(world.device)))
        per_image = (psnr(made, originals), ssim(made, originals), ssim(made, originals, data_range=2.0))
        sums += torch.stack([*(m.sum() for m in per_image), torch.tensor(float(len(made)), dtype=torch.float64)])
        kept = [i for i, row in enumerate(rows) if row % stride == 0]
        shown.append((originals[kept], made[kept]))
    total = world.sum(sums.to(world.device)).cpu()
    count = int(total[3])
    if count < 2:
        raise UserError(f"{source.name} has {count} images; statistics need 2 or more")
    metric = extractor.metric
    is_rfid = metric == "fid" and args.reference == "val"
    metrics = {
        "psnr": (total[0] / count).item(),
        "ssim": (total[1] / count).item(),
        "ssim_range2": (total[2] / count).item(),
        **usage.metrics(world),
        "rfid" if is_rfid else f"{metric}_reconstruction": moments_distance(made_moments.merged(world), reference),
        f"{metric}_real": moments_distance(real_moments.merged(world), reference),
    }
    protocol = {
        "kind": "reconstruction",
        "num_images": count,
        "data": source.name,
        "split": "val",
        "crop": "centre",
        "image_size": size,
        "rounding": "uint8(clamp(127.5 x + 128))",
        "reference": reference_facts,
        "tokenizer": {k: getattr(tokenizer.provenance, k) for k in ("path", "weights", "fingerprint", "stamp")},
        "codebook_size": tokenizer.quantizer.codebook_size,
        "num_tokens": tokenizer.num_tokens,
        "precision": "fp32",
    }
    if world.is_main:
        originals, made = (torch.cat([pair[i] for pair in shown])[:SHOWN].numpy() for i in (0, 1))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        np.savez(args.output.with_suffix(".npz"), originals=originals, reconstructions=made)
        write_result(args.output, metrics, protocol)
        logger.info("%s: %s", args.output, "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))


def main() -> None:
    args = parse_args()
    with distributed_world(args.device) as world:
        evaluate(args, world)


if __name__ == "__main__":
    run_entry(main)
