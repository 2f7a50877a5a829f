"""Reconstruction quality of a tokenizer: rFID, PSNR, SSIM, LPIPS, codebook usage, compression.

    python -m evaluations.reconstruction --vq-ckpt runs/quickstart/tokenizer \\
        --output runs/quickstart/evaluations/reconstruction.json
    bash scripts/reconstruction.sh --vq-ckpt runs/VQ_SS256 --val-path $IMGNET_ROOT/ILSVRC2012_img_val \\
        --extractor inception --lpips --output results/VQ_SS256.json
    python -m evaluations.reconstruction --vq-ckpt runs/WeTok --val-path coco/val2017 --protocol wetok \\
        --original-resolution --extractor inception --output results/WeTok_coco.json

Images go through their codes (encode -> indices -> decode). --protocol adm (GigaTok, LlamaGen): ADM's centre crop,
uint8 rounding, TensorFlow's resize. --protocol wetok: bilinear crop, truncated uint8 for PSNR and SSIM, unrounded
images and torch's resize for rFID. The distance is measured to the same held-out images unless --reference names
others. Convolutional tokenizers take --original-resolution: whole images, padded to the tokenizer's factor.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from engine.cli import entry_parser, run_entry
from engine.data.sources import open_source
from engine.messages import UserError
from engine.world import World
from evaluations.cli import (
    add_measure_flags,
    add_published_flags,
    assets_of,
    extractor_of,
    held_out,
    output_of,
    reference_from,
    run_evaluation,
)
from evaluations.image_sets import with_bar
from evaluations.metrics.code_usage import CodeUsage, bits_of, not_counted, usage_metrics
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.protocols.pair_scores import pair_scores, score_names
from evaluations.protocols.reconstruction import RULES, Reconstructor
from evaluations.protocols.reference import Reference, compute_metrics, distance
from evaluations.results import write_arrays, write_result
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from
from tokenizer.frozen.lpips import lpips_network

SHOWN = 32  # pairs kept for the report
MIN_LPIPS = 32  # pixels; smaller images vanish in its network


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    add_image_flags(parser)
    parser.add_argument("--protocol", default="adm", choices=sorted(RULES))
    parser.add_argument("--original-resolution", action="store_true", help="whole images, one at a time, padded")
    parser.add_argument(
        "--precision-recall", action="store_true", help="also precision and recall (slow without a GPU)"
    )
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (its networks must lie in PRETRAINED_DIR)")
    add_measure_flags(parser, reference="val", batch_size=50)
    add_published_flags(parser)
    args = parser.parse_args()
    return args if args.reference == "train" else held_out(args)


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    output = output_of(args, "reconstruction")
    networks = (
        {m: lpips_network(assets_of(args), n) for m, n in RULES[args.protocol].lpips.items()} if args.lpips else {}
    )
    extractor = extractor_of(args, world)
    tokenizer = tokenizer_from(args, world.device)
    reconstruct, rules = Reconstructor(tokenizer, args), RULES[args.protocol]
    if rules.float_features and extractor is not None and not hasattr(extractor, "of_floats"):
        raise UserError("--protocol wetok measures rFID: use --extractor inception, or none")
    if args.lpips and not reconstruct.whole and reconstruct.eval_size < MIN_LPIPS:
        raise UserError(f"--lpips needs images of {MIN_LPIPS} px or more, these have {reconstruct.eval_size}")
    data = images_from(args, tokenizer)
    source = open_source(data, "val")
    if len(source) < 2:
        raise UserError(f"{source.name} has {len(source)} images; statistics need 2 or more")
    facts = {"data": source.name, "split": "val", "content": source.identity()}
    reference = None  # the images themselves, unless the flags name others
    if extractor is not None and args.reference != "val":
        if rules.float_features:
            raise UserError("--protocol wetok measures against the same images, cropped its way: leave out --reference")
        size, keep = reconstruct.eval_size, args.precision_recall
        reference = reference_from(args, "reconstruction", data, size, extractor, output.parent, world, keep)
    lpips = {name: network.to(world.device) for name, (network, _) in networks.items()}
    sets = {}
    if extractor is not None:
        sets = {
            name: FeatureStatistics(extractor, len(source), keep=args.precision_recall) for name in ("made", "real")
        }
    names = score_names(rules, args.lpips)
    usage, table = CodeUsage(tokenizer.quantizer), torch.zeros(len(names) + 2, len(source), dtype=torch.float64)
    shown, stride = [], max(1, len(source) // SHOWN)
    batches = reconstruct.batches(source, args.per_proc_batch_size, data.skip_broken, world)
    for ids, pixels in with_bar(batches, len(source), "reconstruction", world):
        originals, made, indices = reconstruct(pixels.to(world.device))
        usage.update(indices)
        resized = reconstruct.eval_size != reconstruct.size
        table[:-2, ids] = pair_scores(rules, made, originals, resized, lpips).cpu()
        table[-2, ids], table[-1, ids] = float(pixels.shape[-2] * pixels.shape[-1]), float(indices.shape[1])
        for name, images in {"made": made, "real": originals}.items():
            if extractor is not None:
                floats = rules.float_features
                found = extractor.of_floats(images.clamp(-1, 1)) if floats else extractor(rules.to_uint8(images))
                sets[name].update(ids, found)
        kept = [i for i, row in enumerate(ids.tolist()) if row % stride == 0 and not reconstruct.whole]
        if kept:
            shown.append((rules.to_uint8(originals[kept]).cpu(), rules.to_uint8(made[kept]).cpu(), ids[kept]))
    table, (counts, distinct) = world.sum(table.to(world.device)).cpu(), usage.merged(world)
    metrics: dict[str, Any] = dict(zip(names, table.mean(1).tolist(), strict=False))
    metrics |= usage_metrics(counts, distinct, usage.sizes)
    metrics |= bits_of(tokenizer.quantizer, *table[-2:].mean(1).tolist())
    missing = not_counted(usage.sizes)
    if extractor is not None:
        distances, unmeasured = _distances(args, sets, reference, facts, world)
        missing |= unmeasured
        metrics |= distances
    protocol = {
        "kind": "reconstruction",
        "name": args.protocol,
        "num_images": len(source),
        **facts,
        "skip_broken": data.skip_broken,
        "crop": "none, padded to the factor" if reconstruct.whole else rules.crop_name,
        "image_size": "original" if reconstruct.whole else reconstruct.size,
        "image_size_eval": "original" if reconstruct.whole else reconstruct.eval_size,
        "rounding": rules.rounding,
        "reference": metrics.pop("reference", None),
        "lpips_weights": {name: stamp for name, (_, stamp) in networks.items()},
        "codebook_size": tokenizer.quantizer.codebook_size,
        "num_tokens": tokenizer.num_tokens,
        "precision": "fp32",
        "tokenizer": tokenizer.provenance.facts(),
    }
    if world.is_main:
        names_shown = ("originals", "reconstructions", "numbers")
        pairs = {
            n: torch.cat(parts)[:SHOWN].numpy() for n, parts in zip(names_shown, zip(*shown, strict=True), strict=False)
        }
        scores = {f"score_{name}": row for name, row in zip(names, table.numpy(), strict=False)}
        write_arrays(output, code_counts=counts.numpy(), **pairs, **scores)
        write_result(output, metrics, protocol, unavailable=missing)


def _distances(args, sets, reference, images, world) -> tuple[dict[str, Any], dict[str, str]]:
    """Distances of the reconstructions, and of the originals where they are not the reference; its facts. `images` are
    those of the originals.
    """
    extractor, real = sets["made"].extractor, {}
    if reference is None:
        own = sets["real"]
        facts = {**images, "kind": "val", "num_images": own.count, "statistics": "of the images themselves"}
        facts |= {"extractor": extractor.metric, "extractor_weights": extractor.stamp}
        spatial = own.spatial.merged(world).gaussian() if own.spatial is not None else None
        features = own.all_features(world) if own.features is not None else None
        reference = Reference(facts, own.pool.merged(world).gaussian(), spatial, features)
    else:
        real = {f"{extractor.metric}_real": distance(sets["real"], reference, world)}
    metrics, missing = compute_metrics(sets["made"], reference, world, "reconstruction", args.fp16_emulation)
    return {**metrics, **real, "reference": reference.facts}, missing


def main() -> None:
    run_evaluation(parse_args(), evaluate)


if __name__ == "__main__":
    run_entry(main)
