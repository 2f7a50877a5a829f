"""Quality of generated images: gFID, sFID, Inception Score, precision, recall; variety, memorisation, right classes.

    bash scripts/sample_c2i_search_cfg.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 --cfg-scale 2.0 \\
        --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output results/GPT_B256.json
    python -m evaluations.generation --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --code-path runs/quickstart/codes --num-fid-samples 1000 --cfg-scale 2.0 \\
        --output runs/quickstart/evaluations/generation.json

Images go into the metrics as they are made; --export also writes them. The random numbers of a sample depend on seed,
sample number and position only: with the same batch size any number of processes makes the same images.
`distinct` is the share of different code sequences, `memorised` the share that occurs among the training codes
(--code-path). With --classifier, `label_agreement` is the share of images that it puts into the class they were asked
for. `decoding_share` is the share of the tokenizer's decoder in the time of generation.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoregressive.cli import gpt_from, settings_of
from autoregressive.codes import CodeStore
from autoregressive.sampler import sample_images
from engine.checkpoint.weights import fingerprint
from engine.cli import entry_parser, run_entry
from engine.data.config import DataConfig
from engine.data.images import to_pil
from engine.data.samples import center_batch
from engine.data.sources import ImageSource, has_split, open_source
from engine.messages import UserError, logger
from engine.world import World
from evaluations.cli import extractor_of, output_of, reference_from, run_evaluation
from evaluations.digits.model import classify, load_classifier
from evaluations.generated import Sampler, add_sampled_flags, labels_of
from evaluations.image_sets import NpzWriter
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.sequences import NEAREST_CANDIDATES, nearest_training, noise_images, sequence_shares
from evaluations.protocols.reference import compute_metrics, distance
from evaluations.results import write_arrays, write_result
from tokenizer.cli import images_from, tokenizer_from

SHOWN_PER_CLASS, SHOWN_CLASSES = 8, 10  # images kept for the report


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_sampled_flags(parser)
    parser.add_argument("--code-path", type=Path, help="training codes, to count memorised sequences")
    parser.add_argument("--classifier", type=Path, help="folder of a classifier (evaluations.classifier)")
    parser.add_argument("--export", choices=["npz", "png"], help="also write the images, under --sample-dir")
    return parser.parse_args()


class Export:
    """Writes images as they are made: `samples.npz` in ADM's layout, or PNG files."""

    def __init__(self, args: argparse.Namespace, size: int, world: World) -> None:
        if args.sample_dir is None:
            raise UserError("--export needs --sample-dir, the folder for the images")
        self.folder, self.writer = args.sample_dir / "samples", None
        if args.export == "npz":
            self.writer = NpzWriter(args.sample_dir / "samples.npz", args.num_fid_samples, size, world)
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} holds pictures already; remove them or give another --sample-dir")
        world.barrier()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, ids: Tensor, images: Tensor) -> None:
        if self.writer is not None:
            self.writer.write(ids, images)
            return
        for number, image in zip(ids.tolist(), images, strict=True):
            to_pil(image).save(self.folder / f"{number:06d}.png")


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    output, settings = output_of(args, "generation"), settings_of(args)
    if args.num_fid_samples < 2:
        raise UserError(f"--num-fid-samples {args.num_fid_samples}: statistics need 2 or more")
    extractor = extractor_of(args, world)
    tokenizer = tokenizer_from(args, world.device)
    gpt = gpt_from(args, tokenizer, world.device)
    store = CodeStore(args.code_path, "train") if args.code_path is not None else None
    if store is not None:  # hours before it is needed
        store.require(tokenizer.provenance.fingerprint, args.vq_ckpt)
    data, size, count = images_from(args, tokenizer), args.image_size_eval or tokenizer.image_size, args.num_fid_samples
    reference, is_fid = None, extractor is not None and extractor.metric == "fid"
    if extractor is not None:
        reference = reference_from(args, "generation", data, size, extractor, output.parent, world, keep=is_fid)
    labels = labels_of(args.labels, count, gpt.num_classes, settings.seed)
    sampler = Sampler(gpt, tokenizer, settings, labels, args.labels, args.per_proc_batch_size, size, world)
    classifier = load_classifier(args.classifier) if args.classifier is not None else None
    export = Export(args, size, world) if args.export else None
    made = FeatureStatistics(extractor, count, keep=is_fid) if extractor is not None else None
    # a scale for the offline metric
    noise = FeatureStatistics(extractor, count) if made is not None and not is_fid else None
    tokens = torch.zeros(count, *gpt.token_shape, dtype=torch.long)
    checksums, right = torch.zeros(count, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
    for ids, made_tokens, images in sampler.batches():
        tokens[ids] = made_tokens
        checksums[ids] = torch.tensor([zlib.crc32(image.numpy().tobytes()) for image in images])
        if made is not None:
            made.update(ids, extractor(images.to(world.device)))
        if noise is not None:
            noise.update(ids, extractor(noise_images(len(ids), size, int(ids[0])).to(world.device)))
        if classifier is not None:
            right += (classify(classifier, images) == labels[ids]).sum()
        if export is not None:
            export.write(ids, images)
    metrics, missing = (
        compute_metrics(made, reference, world, "generation", args.fp16_emulation) if made is not None else ({}, {})
    )
    if noise is not None:
        metrics[f"{extractor.metric}_noise"] = distance(noise, reference, world)
    if classifier is not None:
        metrics["label_agreement"] = world.sum(right.to(world.device)).item() / count
    timing = sampler.times()
    tokens, checksums = (world.sum(table.to(world.device)).cpu() for table in (tokens, checksums))
    if export is not None and export.writer is not None:
        export.writer.finish(labels=labels.numpy())
    if not world.is_main:
        return
    if store is not None:
        metrics |= sequence_shares(tokens.flatten(1).numpy(), store.codes)
    else:
        metrics["distinct"] = len(np.unique(tokens.flatten(1).numpy(), axis=0)) / count
    protocol = sampler.protocol(reference)
    protocol["classifier"] = {"fingerprint": fingerprint(classifier)} if classifier is not None else None
    keys = ("fingerprint", "data", "num_images", "views")
    protocol["training_codes"] = {k: getattr(store.manifest, k) for k in keys} if store is not None else None
    write_arrays(output, checksums=checksums.numpy())
    write_result(output, metrics, protocol, unavailable=missing, timing=timing)
    try:  # hours of work are safe by now
        write_arrays(output, checksums=checksums.numpy(), **_examples(sampler, data))
    except UserError as error:
        logger.warning("no examples for the report: %s", error)


def _examples(sampler: Sampler, data: DataConfig) -> dict[str, np.ndarray]:
    """The first samples of each class and the training image nearest to each, for the report."""
    if not has_split(data, "train"):
        raise UserError("the data names no training images")
    source: ImageSource = open_source(data, "train")
    classes = min(SHOWN_CLASSES, sampler.gpt.num_classes)
    labels = torch.arange(classes).repeat_interleave(SHOWN_PER_CLASS)
    ids = labels + torch.arange(SHOWN_PER_CLASS).repeat(classes) * sampler.gpt.num_classes  # as if balanced
    batches = sample_images(
        sampler.gpt, sampler.tokenizer, labels, ids, sampler.settings, sampler.batch_size, sampler.image_size
    )
    made = torch.cat([images for _, images in batches])
    candidates = np.sort(np.random.default_rng(0).permutation(len(source))[:NEAREST_CANDIDATES])
    training = center_batch(source, sampler.image_size, candidates, data.skip_broken)
    return {
        "images": made.numpy(),
        "labels": labels.numpy(),
        "nearest": training[nearest_training(made, training)].numpy(),
        "num_candidates": np.array(len(candidates)),
        "class_names": np.array([str(name) for name in source.class_names]),
    }


def main() -> None:
    run_evaluation(parse_args(), evaluate)


if __name__ == "__main__":
    run_entry(main)
