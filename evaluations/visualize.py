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
from torch import Tensor, nn

from engine.config import UserError, logger, positive, run_entry
from engine.datasets import ImageSource, centre_batch, open_source
from engine.distributed import pick_device
from engine.images import save_grid, to_float
from evaluations.probe_features import decoder_tokens
from evaluations.protocol import write_arrays
from tokenizer.loading import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from

COMPONENTS, LOW, HIGH = 3, 1, 99  # percentiles that become 0 and 255


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tokenizer_flags(parser, several=True)
    add_image_flags(parser)
    parser.add_argument("--label", action="append", help="name of each tokenizer in the figure; default: its folder")
    parser.add_argument("--class-name", help="name of the class (its folder); default: the first one")
    parser.add_argument("--num-images", type=positive, default=8)
    parser.add_argument("--layer", type=positive, help="block of the decoder, counted from 1")
    parser.add_argument("--output", type=Path, required=True, help="npz file; a PNG is written beside it")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args()


def of_one_class(source: ImageSource, name: str | None, count: int) -> tuple[np.ndarray, str]:
    """The first images of a class, and its name."""
    name = name if name is not None else source.class_names[0]
    if name not in source.class_names:
        shown = ", ".join(map(str, source.class_names[:12]))
        raise UserError(f"--class-name {name!r} is not a class of {source.name}; it has: {shown} ...")
    found = np.flatnonzero(source.labels == source.class_names.index(name))[:count]
    if len(found) < 2:
        raise UserError(f"class {name!r} of {source.name} has {len(found)} images; 2 or more are needed")
    return found, str(name)


def grid_features(tokenizer: nn.Module, images: Tensor, layer: int | None) -> tuple[Tensor, str]:
    """Inner features (B,h,w,C) of images, and which they are."""
    if not hasattr(tokenizer, "query_decoder"):
        if layer is not None:
            raise UserError("--layer names a block of a transformer decoder; this tokenizer has none")
        return tokenizer.encode_features(images).permute(0, 2, 3, 1), "encoder features"
    decoder = tokenizer.query_decoder
    layer = layer or decoder.semantic_layer or len(decoder.transformer)
    if layer > len(decoder.transformer):
        raise UserError(f"--layer {layer}: the decoder has {len(decoder.transformer)} blocks")
    tokens = decoder_tokens(tokenizer, images, layer)
    return tokens.unflatten(1, (decoder.grid, decoder.grid)), f"decoder block {layer}"


def principal_components(features: Tensor) -> np.ndarray:
    """(B,h,w,C) -> (B,h,w,3) in 0..1: the first three components over all cells, signs fixed by the largest loading."""
    flat = features.flatten(0, 2).double().cpu()
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    axes = F.pad(axes[:COMPONENTS], (0, 0, 0, max(0, COMPONENTS - len(axes))))
    signs = torch.gather(axes, 1, axes.abs().argmax(1, keepdim=True)).sign()
    found = (flat @ (axes * torch.where(signs == 0, 1.0, signs)).T).numpy()
    low, high = np.percentile(found, [LOW, HIGH], axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled.reshape(*features.shape[:3], COMPONENTS)


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
        originals = centre_batch(source, tokenizer.image_size, rows)
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
