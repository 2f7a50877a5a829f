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

import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoregressive.codes import CENTRE_VIEW, CodeStore
from autoregressive.loading import add_gpt_flags, gpt_from
from autoregressive.task import next_token_loss
from engine.config import ConfigError, UserError, logger, positive, run_entry
from engine.datasets import labelled_batch, open_source
from engine.distributed import World
from engine.images import to_float
from evaluations.flags import run_evaluation
from evaluations.protocol import write_result
from tokenizer.loading import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from

Read = Callable[[range], tuple[Tensor, Tensor]]  # rows -> tokens (B,N), labels (B,)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    parser.add_argument("--code-path", type=Path, help="codes of the tokenizer, with a split `val`, instead of images")
    add_image_flags(parser)
    parser.add_argument("--per-proc-batch-size", type=positive, default=32)
    parser.add_argument("--output", type=Path, required=True, help="result file (JSON)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    if args.val_path is None:  # the published command names held-out images so
        args.val_path, args.data_path = args.data_path, None
    return args


def open_codes(args: argparse.Namespace, tokenizer: nn.Module) -> tuple[Read, list[str], dict[str, Any]]:
    """How to read the held-out codes, the names of their classes, and the facts of the protocol."""
    if args.code_path is None:
        data = images_from(args, tokenizer)
        source, device = open_source(data, "val"), tokenizer.quant_proj.weight.device

        def encode(rows: range) -> tuple[Tensor, Tensor]:
            images, labels = labelled_batch(source, tokenizer.image_size, rows, data.skip_broken)
            return tokenizer.encode(to_float(images.to(device))).indices, labels

        return (
            encode,
            source.class_names,
            {
                "num_images": len(source),
                "data": source.name,
                "content": source.identity(),
                "skip_broken": data.skip_broken,
                "crop": "centre",
            },
        )
    if args.data or args.val_path:
        raise UserError("give either --code-path, or --data or --val-path")
    store = CodeStore(args.code_path, "val")
    store.require(tokenizer.provenance.fingerprint, args.vq_ckpt)
    manifest = store.manifest

    def stored(rows: range) -> tuple[Tensor, Tensor]:
        tokens = [store.tokens(i, CENTRE_VIEW[manifest.views]) for i in rows]
        return torch.stack(tokens), torch.from_numpy(store.labels[rows.start : rows.stop])

    crop = "centre of 1.1 times the size" if manifest.views == "ten-crop" else "centre"
    return stored, manifest.class_names, {"num_images": len(store), "data": manifest.data, "crop": crop}


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    tokenizer = tokenizer_from(args, world.device)
    gpt = gpt_from(args, tokenizer, world.device)
    read, class_names, facts = open_codes(args, tokenizer)
    count = facts["num_images"]
    if len(class_names) != gpt.config.num_classes:
        raise ConfigError(f"{facts['data']} has {len(class_names)} classes, the GPT {gpt.config.num_classes}")
    if count < 2:
        raise UserError(f"{facts['data']} has {count} images; a standard error needs 2 or more")
    # whole batches are dealt to the ranks: each image is computed in the same batch for any number of them
    losses = torch.zeros(count, dtype=torch.float64, device=world.device)
    starts = range(0, count, args.per_proc_batch_size)[world.rank :: world.size]
    for start in tqdm(starts, desc="validation loss", disable=None if world.is_main else True):
        rows = range(start, min(start + args.per_proc_batch_size, count))
        tokens, labels = (t.to(world.device) for t in read(rows))
        pairs = zip(gpt(labels, tokens), tokens, strict=True)
        losses[rows.start : rows.stop] = torch.stack([next_token_loss(logits[None], t[None]) for logits, t in pairs])
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
        "precision": str(gpt.class_embedding.weight.dtype).removeprefix("torch."),
    }
    write_result(args.output, metrics, protocol)
    logger.info("%s: %s", args.output, "  ".join(f"{k} {v:.5g}" for k, v in metrics.items()))


def main() -> None:
    run_evaluation(parse_args(), evaluate)


if __name__ == "__main__":
    run_entry(main)
