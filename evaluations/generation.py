"""Quality of generated images: a Frechet distance to training images, variety, memorisation, agreement with the class.

    python -m evaluations.generation --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --code-path runs/quickstart/codes --num-fid-samples 1000 --cfg-scale 2.0 \\
        --output runs/quickstart/evaluations/generation.json

Labels are balanced: sample i has class i modulo the number of classes. `distinct` is the share of different code
sequences, `memorised` the share that occurs among the training codes. With --classifier, `label_agreement` is the share
of images that it puts into the class they were asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from autoregressive.codes import CodeStore
from autoregressive.loading import add_gpt_flags, gpt_from
from autoregressive.sampling import add_sampler_flags, sample_images, settings_of
from engine.config import UserError, logger, positive, run_entry
from engine.datasets import centre_batch, open_source
from engine.distributed import World, distributed_world
from evaluations.features import EXTRACTORS
from evaluations.flags import add_asset_flags, assets_of, images_of
from evaluations.protocol import write_result
from evaluations.reference import reference_moments
from evaluations.small_cnn import classify, load_classifier
from evaluations.statistics import Moments, moments_distance
from tokenizer.loading import add_tokenizer_flags, tokenizer_from

SHOWN_PER_CLASS, SHOWN_CLASSES = 8, 10  # images kept for the report
NEAREST_CANDIDATES = 5000  # training images among which the nearest one is looked for


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    parser.add_argument("--code-path", type=Path, help="training codes, to count memorised sequences")
    parser.add_argument("--classifier", type=Path, help="folder of a classifier (evaluations.classifier)")
    parser.add_argument("--data", help="name of the reference images; default: those of the tokenizer's own config")
    parser.add_argument("--data-path", help="reference images in ImageNet layout")
    parser.add_argument("--extractor", default="efficientnet_lite0", choices=sorted(EXTRACTORS))
    parser.add_argument("--num-fid-samples", type=int, default=50000, help="images to generate (default 50000)")
    parser.add_argument("--per-proc-batch-size", type=positive, default=32)
    parser.add_argument("--output", type=Path, required=True, help="result file (JSON); examples go beside it as .npz")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.set_defaults(val_path=None)
    add_sampler_flags(parser)
    add_asset_flags(parser)
    return parser.parse_args()


def noise_images(count: int, size: int, seed: int) -> Tensor:
    """Uniform noise, uint8 (count,3,size,size): the distance of no image at all."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def sequence_shares(tokens: np.ndarray, training: np.ndarray) -> dict[str, float]:
    """`distinct` and `memorised` of code sequences (n, N); `training` is (images, views, N)."""
    made = [row.astype(np.int32).tobytes() for row in tokens]
    wanted, known = set(made), set()
    for image in training:  # one at a time: the training codes may be larger than memory
        known |= wanted & {row.astype(np.int32).tobytes() for row in image}
    return {"distinct": len(wanted) / len(made), "memorised": sum(row in known for row in made) / len(made)}


def nearest_training(images: Tensor, training: Tensor) -> Tensor:
    """Index of the training image with the smallest squared pixel difference. uint8 (n,3,H,W), (m,3,H,W) -> (n,)."""
    a, b = images.flatten(1).float() / 255, training.flatten(1).float() / 255
    return torch.cdist(a, b).argmin(1)


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    settings = settings_of(args)
    tokenizer = tokenizer_from(args, world.device)
    gpt = gpt_from(args, tokenizer, world.device)
    if args.num_fid_samples < 2:
        raise UserError(f"--num-fid-samples {args.num_fid_samples}: statistics need 2 or more")
    store = CodeStore(args.code_path, "train") if args.code_path is not None else None
    if store is not None:  # hours before it is needed
        store.require(tokenizer.provenance.fingerprint, args.vq_ckpt)
    data = images_of(tokenizer.provenance.config.data, args)
    source, size = open_source(data, "train"), tokenizer.image_size
    extractor = EXTRACTORS[args.extractor](assets_of(args)).to(world.device)
    reference, reference_facts = reference_moments(source, "train", data, extractor, args.output.parent, world)
    ids = torch.arange(args.num_fid_samples)
    labels = ids % gpt.config.num_classes
    # whole batches are dealt to the ranks in turn, so that batches have the same shapes for any number of processes
    chunks = ids.split(args.per_proc_batch_size)[world.rank :: world.size]
    moments, noise_moments = Moments(extractor.dim), Moments(extractor.dim)
    classifier = load_classifier(args.classifier) if args.classifier is not None else None
    with_noise = extractor.metric != "fid"  # a scale for the offline metric; FID has its own
    tokens, right = [torch.zeros(0, gpt.config.num_tokens, dtype=torch.long)], torch.zeros(1, dtype=torch.float64)
    for chunk in tqdm(chunks, desc="generation", disable=None if world.is_main else True):
        for made_tokens, made in sample_images(gpt, tokenizer, labels[chunk], chunk, settings, len(chunk)):
            moments.update(extractor(made.to(world.device)))
            tokens.append(made_tokens)
            if with_noise:
                noise_moments.update(extractor(noise_images(len(chunk), size, int(chunk[0])).to(world.device)))
            if classifier is not None:
                right += (classify(classifier, made) == labels[chunk]).sum()
    own_ids = torch.cat(chunks) if chunks else ids[:0]
    metric = extractor.metric
    name = "gfid" if metric == "fid" else f"{metric}_generated"
    metrics = {name: moments_distance(moments.merged(world), reference)}
    if with_noise:
        metrics[f"{metric}_noise"] = moments_distance(noise_moments.merged(world), reference)
    if classifier is not None:
        metrics["label_agreement"] = world.sum(right.to(world.device)).item() / len(ids)
    all_tokens = _gather_by_id(torch.cat(tokens), own_ids, world, len(ids))
    if not world.is_main:
        return
    if store is not None:
        metrics |= sequence_shares(all_tokens.numpy(), store.codes)
    protocol = {
        "kind": "generation",
        "num_images": len(ids),
        "labels": "balanced",
        "image_size": size,
        "rounding": "uint8(clamp(127.5 x + 128))",
        "reference": reference_facts,
        "sampler": {
            "guidance_scale": settings.guidance.scale,
            "guidance_schedule": settings.guidance.schedule,
            "guidance_start": settings.guidance.start,
            "guidance_first_token": settings.guidance.first_token,
            "unguided_scale": settings.guidance.unguided_scale,
            "last_guided": settings.guidance.last_guided,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "greedy": settings.greedy,
            "seed": settings.seed,
            "batch_size": args.per_proc_batch_size,
        },
        "tokenizer": {k: getattr(tokenizer.provenance, k) for k in ("path", "weights", "fingerprint", "stamp")},
        "gpt": {k: getattr(gpt.provenance, k) for k in ("path", "weights", "fingerprint", "stamp")},
        "precision": str(gpt.output.weight.dtype).removeprefix("torch."),
    }
    write_result(args.output, metrics, protocol)
    _save_examples(args, gpt, tokenizer, settings, source, data.skip_broken)
    logger.info("%s: %s", args.output, "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))


def _gather_by_id(tokens: Tensor, ids: Tensor, world: World, count: int) -> Tensor:
    """Token rows of all ranks in the order of sample numbers."""
    table = torch.zeros(count, tokens.shape[1], dtype=torch.long, device=world.device)
    table[ids.to(world.device)] = tokens.to(world.device)
    return world.sum(table).cpu()


def _save_examples(args: argparse.Namespace, gpt, tokenizer, settings, source, skip_broken: bool) -> None:
    """The first samples of each class and the training image nearest to each, for the report."""
    classes = min(SHOWN_CLASSES, gpt.config.num_classes)
    ids = torch.arange(SHOWN_PER_CLASS * gpt.config.num_classes)
    ids = ids[ids % gpt.config.num_classes < classes]
    labels = ids % gpt.config.num_classes
    order = torch.argsort(labels, stable=True)
    made = torch.cat([m for _, m in sample_images(gpt, tokenizer, labels, ids, settings, args.per_proc_batch_size)])[
        order
    ]
    candidates = np.sort(np.random.default_rng(0).permutation(len(source))[:NEAREST_CANDIDATES])
    training = centre_batch(source, tokenizer.image_size, candidates, skip_broken)
    nearest = training[nearest_training(made, training)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        args.output.with_suffix(".npz"),
        images=made.numpy(),
        labels=labels[order].numpy(),
        nearest=nearest.numpy(),
        num_candidates=len(candidates),
        class_names=np.array([str(name) for name in source.class_names]),
    )


def main() -> None:
    args = parse_args()
    with distributed_world(args.device) as world:
        evaluate(args, world)


if __name__ == "__main__":
    run_entry(main)
