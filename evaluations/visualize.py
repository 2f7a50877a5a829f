"""Principal components of a tokenizer's inner features as pictures: what semantic regularization does to them (GigaTok,
figure 8).

    python -m evaluations.visualize --vq-ckpt runs/VQ_SB256 --vq-ckpt runs/VQ_SB256_vanilla --class-name n02099601 \\
        --val-path $IMGNET_ROOT/ILSVRC2012_img_val --output runs/VQ_SB256/evaluations/pca.npz
    python -m evaluations.visualize --vq-ckpt runs/quickstart/tokenizer --output runs/quickstart/evaluations/pca.npz

The images are held-out ones of one class. The features are the tokens of the decoder's block `semantic_layer` (--layer
for another), a grid; of tokenizers without transformer those of the encoder. Three components are taken over all images
together, each scaled from its 1st to its 99th percentile to red, green and blue. A PNG is written beside the npz file,
which the report shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.cli import entry_parser, positive, run_entry
from engine.data.images import save_grid, to_float
from engine.data.samples import center_batch
from engine.data.sources import open_source
from engine.devices import pick_device
from engine.messages import UserError, logger
from evaluations.probes.pca import grid_features, of_one_class, principal_components
from evaluations.results import write_arrays
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser, several=True)
    add_image_flags(parser)
    parser.add_argument("--label", action="append", help="name of each tokenizer in the figure; default: its folder")
    parser.add_argument("--class-name", help="name of the class (its folder); default: the first one")
    parser.add_argument("--num-images", type=positive, default=8)
    parser.add_argument("--layer", type=positive, help="block of the decoder, counted from 1")
    parser.add_argument("--output", type=Path, required=True, help="npz file; a PNG is written beside it")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args()


@torch.inference_mode()
def visualize(args: argparse.Namespace) -> None:
    device, columns, layers = pick_device(args.device), {}, []
    labels = args.label or [Path(path).stem for path in args.vq_ckpt]
    if len(labels) != len(args.vq_ckpt):
        raise UserError(f"--label is given {len(labels)} times for {len(args.vq_ckpt)} tokenizers")
    for number, path in enumerate(args.vq_ckpt):
        single = argparse.Namespace(**{**vars(args), "vq_ckpt": path})
        single.tok_config = (args.tok_config or [None])[min(number, len(args.tok_config or [None]) - 1)]
        tokenizer = tokenizer_from(single, device)
        source = open_source(images_from(single, tokenizer), "val")
        rows, class_name = of_one_class(source, args.class_name, args.num_images)
        originals = center_batch(source, tokenizer.image_size, rows)
        features, what = grid_features(tokenizer, to_float(originals).to(device), args.layer)
        found = torch.from_numpy(principal_components(features)).permute(0, 3, 1, 2)
        pixels = F.interpolate((found * 255).round(), size=originals.shape[-1], mode="nearest").to(torch.uint8)
        columns.setdefault("originals", originals)
        columns[f"map_{number}"] = pixels
        layers.append(f"{labels[number]}: {what}")
    sizes = {tuple(images.shape) for images in columns.values()}
    if len(sizes) > 1:
        raise UserError("the tokenizers have different image sizes; give --image-size or compare those of one size")
    note = f"Class {class_name} of {source.name}; {'; '.join(layers)}."
    arrays = {name: images.numpy() for name, images in columns.items()}
    write_arrays(args.output, names=np.array(labels), note=np.array(note), **arrays)
    picture = args.output.with_suffix(".png")
    size = originals.shape[-1]
    save_grid(picture, to_float(torch.cat(list(columns.values()))), len(originals), zoom=max(1, 96 // size))
    logger.info("%s (originals above, then %s)", picture, ", ".join(labels))


def main() -> None:
    visualize(parse_args())


if __name__ == "__main__":
    run_entry(main)
