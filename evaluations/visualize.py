"""Shows the principal components of a tokenizer's inner features as pictures (GigaTok, figure 8).

    python -m evaluations.visualize --vq-ckpt runs/VQ_SB256 --vq-ckpt runs/VQ_SB256_vanilla --class-name n02099601 \\
        --val-path $IMGNET_ROOT/ILSVRC2012_img_val --output runs/VQ_SB256/evaluations/pca.npz
    python -m evaluations.visualize --vq-ckpt runs/quickstart/tokenizer --output runs/quickstart/evaluations/pca.npz

The pictures show what semantic regularization does to the features. The images are held-out images of a single class.
The features are the tokens of the decoder's block `semantic_layer` (or of the block --layer), laid out as a grid; for
tokenizers without a transformer, they are those of the encoder. Three components are computed over all images together
and shown as red, green and blue, each scaled from its 1st to its 99th percentile. The report shows the npz file, and a
PNG file is written beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.data.grids import save_grid
from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import open_source
from engine.devices import pick_device
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.outputs import require_suffix
from engine.preflight import Preflight, require
from evaluations.probes.pca import grid_features, images_of_class, principal_components
from evaluations.results import claim_arrays, write_arrays
from tokenizer.cli import (
    add_image_flags,
    add_label_flag,
    add_tokenizer_flags,
    flags_of_tokenizer,
    images_from,
    images_to_check,
    tokenizer_from,
    tokenizer_labels,
    tokenizer_needs,
)


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser, several=True)
    add_image_flags(parser)
    add_label_flag(parser)
    parser.add_argument(
        "--class-name", help="name of the class, which is that of its folder (default: the first class)"
    )
    parser.add_argument("--num-images", type=positive, default=8)
    parser.add_argument("--layer", type=positive, help="block of the decoder whose features are shown, counted from 1")
    parser.add_argument("--output", type=Path, required=True, help="npz file to write; a PNG file is written beside it")
    add_device_flag(parser)
    return parser.parse_args()


def component_images(features: Tensor, size: int) -> Tensor:
    """Features (B,h,w,C) -> their principal components as uint8 images (B,3,size,size)."""
    components = torch.from_numpy(principal_components(features)).permute(0, 3, 1, 2)
    return F.interpolate((components * 255).round(), size=size, mode="nearest").to(torch.uint8)


@torch.inference_mode()
def visualize(args: argparse.Namespace) -> None:
    """Writes the npz file and the PNG."""
    device = pick_device(args.device)
    labels = tokenizer_labels(args)

    # Components of the same images under each tokenizer.
    rows: dict[str, Tensor] = {}
    descriptions = []
    networks = []
    for number, label in enumerate(labels):
        flags = flags_of_tokenizer(args, number)
        tokenizer = tokenizer_from(flags, device)
        data = images_from(flags, tokenizer)
        source = open_source(data, "val")
        indices, class_name = images_of_class(source, args.class_name, args.num_images)
        originals = center_batch(source, tokenizer.image_size, indices, data.skip_broken)
        features, title = grid_features(tokenizer, to_float(originals).to(device), args.layer)
        rows.setdefault("originals", originals)
        rows[f"map_{number}"] = component_images(features, originals.shape[-1])
        descriptions.append(f"{label}: {title}")
        networks.append(tokenizer.provenance.fingerprint)
    if len({images.shape for images in rows.values()}) > 1:
        raise UserError("the tokenizers have different image sizes; give --image-size or compare those of one size")

    # The same picture may be made again; anything else is not overwritten.
    require_suffix(args.output, ".npz", "--output")
    picture = args.output.with_suffix(".png")
    settings = {"tokenizers": networks, "labels": labels, "images": source.identity(), "class": class_name}
    settings |= {"num_images": len(originals), "image_size": originals.shape[-1], "layer": args.layer}
    claim_arrays(args.output, settings, companion=picture)

    # Arrays for the report.
    note = f"Class {class_name} of {source.name}; {'; '.join(descriptions)}."
    arrays = {name: images.numpy() for name, images in rows.items()}
    arrays["settings"] = np.array(to_json(settings))
    write_arrays(args.output, names=np.array(labels), note=np.array(note), **arrays)

    # A picture for people: originals in the first row, one row per tokenizer below.
    images = to_float(torch.cat(list(rows.values())))
    caption = f"Held-out images, not selected; below, as colors, three principal components. {note}"
    save_grid(picture, images, len(originals), row_names=["originals", *labels], caption=caption)
    logger.info("%s (originals above, then %s)", picture, ", ".join(labels))


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for all tokenizers and their held-out images."""
    preflight.device(args.device)
    for number in range(len(args.vq_ckpt)):
        flags = flags_of_tokenizer(args, number)
        tokenizer = tokenizer_needs(flags, preflight)
        with preflight.collecting():
            data = images_to_check(flags, tokenizer)
            if data is not None:
                preflight.images(data, "val")
    preflight.output_file(args.output, "--output")
    with preflight.collecting():
        require_suffix(args.output, ".npz", "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    visualize(args)


if __name__ == "__main__":
    run_entry(main)
