"""Validation loss of a GPT: mean cross entropy of held-out codes, in nats per token, given the true class.

    bash scripts/val_loss_c2i.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 --val-path $VAL_PATH \\
        --output results/val_loss.json
    python -m evaluations.val_loss --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --output runs/quickstart/evaluations/val_loss.json

Centre crops go through the tokenizer, or --code-path names extracted codes with a split `val`. No dropout, no dropped
labels. Every image counts once, for any batch size and number of processes (the released script averages batch means);
`val_loss_stderr` is the standard error of that mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoregressive.cli import add_gpt_flags, gpt_from
from autoregressive.codes import CENTER_VIEW, CodeStore
from engine.cli import entry_parser, run_entry
from engine.data.images import to_float
from engine.data.samples import labeled_batch
from engine.data.sources import open_source
from engine.messages import ConfigError, UserError
from engine.world import World
from evaluations.cli import add_output_flags, held_out, output_of, run_evaluation
from evaluations.image_sets import rank_batches
from evaluations.results import write_result
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from

Read = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # numbers of images (B,) -> tokens (B,N), labels (B,)


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    parser.add_argument("--code-path", type=Path, help="codes of the tokenizer, with a split `val`, instead of images")
    add_image_flags(parser)
    add_output_flags(parser, batch_size=32)
    return held_out(parser.parse_args())


def open_codes(args: argparse.Namespace, tokenizer: nn.Module) -> tuple[Read, list[str], dict[str, Any]]:
    """How to read the held-out codes, the names of their classes, and the facts of the protocol."""
    if args.code_path is None:
        data = images_from(args, tokenizer)
        source, device = open_source(data, "val"), tokenizer.quant_proj.weight.device

        def encode(rows: np.ndarray) -> tuple[Tensor, Tensor]:
            images, labels = labeled_batch(source, tokenizer.image_size, rows, data.skip_broken)
            return tokenizer.encode(to_float(images.to(device))).indices, labels

        facts = {"num_images": len(source), "data": source.name, "content": source.identity()}
        return encode, source.class_names, facts | {"skip_broken": data.skip_broken, "crop": "centre"}
    if args.data or args.val_path:
        raise UserError("give either --code-path, or --data or --val-path")
    store = CodeStore(args.code_path, "val")
    store.require(tokenizer.provenance.fingerprint, args.vq_ckpt)
    manifest = store.manifest

    def stored(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        tokens = [store.tokens(i, CENTER_VIEW[manifest.views]) for i in rows]
        return torch.stack(tokens), torch.from_numpy(store.labels[rows])

    crop = "centre of 1.1 times the size" if manifest.views == "ten-crop" else "centre"
    return stored, manifest.class_names, {"num_images": len(store), "data": manifest.data, "crop": crop}


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    output = output_of(args, "val_loss")
    tokenizer = tokenizer_from(args, world.device)
    gpt = gpt_from(args, tokenizer, world.device)
    read, class_names, facts = open_codes(args, tokenizer)
    count = facts["num_images"]
    if len(class_names) != gpt.num_classes:
        raise ConfigError(f"{facts['data']} has {len(class_names)} classes, the GPT {gpt.num_classes}")
    if count < 2:
        raise UserError(f"{facts['data']} has {count} images; a standard error needs 2 or more")
    losses = torch.zeros(count, dtype=torch.float64, device=world.device)
    batches = rank_batches(count, args.per_proc_batch_size, world)
    for ids in tqdm(batches, desc="validation loss", disable=None if world.is_main else True):
        tokens, labels = (t.to(world.device) for t in read(ids.numpy()))
        losses[ids] = gpt.image_losses(gpt(labels, tokens), tokens).double()
    losses = world.sum(losses)
    if not world.is_main:
        return
    metrics = {"val_loss": losses.mean().item(), "val_loss_stderr": (losses.std() / count**0.5).item()}
    protocol = {
        "kind": "val_loss",
        **facts,
        "split": "val",
        "image_size": tokenizer.image_size,
        "labels": "true",
        "unit": "nats per token",
        "tokenizer": tokenizer.provenance.facts(),
        "gpt": gpt.provenance.facts(),
        "precision": str(gpt.dtype).removeprefix("torch."),
    }
    write_result(output, metrics, protocol)


def main() -> None:
    run_evaluation(parse_args(), evaluate)


if __name__ == "__main__":
    run_entry(main)
