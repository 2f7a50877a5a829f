"""Linear probe: how well the classes of images can be read off the features of a frozen GPT or tokenizer.

    bash scripts/train_lin_probe_gpt.sh configs/eval/linear_probe_gpt.yaml loop.run_dir=runs/probe_gpt
    python -m evaluations.linear_probe --config configs/quickstart/linear_probe_gpt.yaml
    python -m evaluations.linear_probe --config configs/quickstart/linear_probe_gpt.yaml network.random_weights=true \\
        loop.run_dir=runs/quickstart/linear_probe_random

MAE's protocol (arXiv:2111.06377, appendix A.1), as GigaTok uses it: batch norm without parameters, one linear layer,
cross entropy, LARS. `probe.features=augmented` crops and flips anew in each epoch; `cached` reads the features of
centre crops once and is fast. All rates of `probe.base_lrs` train side by side on the same batches, each with its own
head; the best on held-out images is reported, with all of them listed. The result is <run>/result.json; the same
command continues a run that was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache

import torch

from engine.checkpoint.store import CheckpointStore
from engine.cli import parse_cli, run_entry
from engine.data.samples import training_item
from engine.data.sources import open_source
from engine.data.stream import open_stream
from engine.loop import Batch, LoopConfig, check_batch, fit
from engine.messages import ConfigError, UserError
from engine.run_log import Run
from engine.world import World, distributed_world
from evaluations.probes.features import ProbedNetwork, read_features
from evaluations.probes.task import FROZEN, LinearProbeConfig, ProbeTask, validate
from evaluations.results import write_result


def train(config: LinearProbeConfig, world: World) -> None:
    """Trains the probe to its end, or continues, and writes the result."""
    data, probe, loop = config.data, config.probe, config.loop
    check_batch(data.global_batch_size, world, loop.grad_accum)
    source, held_out = open_source(data, "train"), open_source(data, "val")
    if list(source.class_names) != list(held_out.class_names):
        raise UserError(f"{source.name} and {held_out.name} have different classes; a probe needs the same in both")
    total = len(source) // data.global_batch_size * probe.epochs
    if total == 0:
        raise ConfigError(f"data.global_batch_size={data.global_batch_size}, but there are only {len(source)} images")
    if loop.steps not in (LoopConfig().steps, total):
        raise ConfigError(f"loop.steps={loop.steps}: leave it out; probe.epochs={probe.epochs} are {total} steps")
    network = ProbedNetwork(config.network, loop.seed, loop.precision, world.device)
    if data.image_size != network.image_size:
        raise ConfigError(f"data.image_size={data.image_size}, but the tokenizer is for {network.image_size}")
    loop = replace(loop, steps=total)
    config = replace(config, loop=loop)
    run = Run(loop.run_dir, config, world, loop.wandb_project)
    try:
        read = lru_cache(lambda split: read_features(network, data, split, run.dir, probe.read_batch_size, world))
        torch.manual_seed(loop.seed)
        task = ProbeTask(network, lambda: read("val"), len(source.class_names), config, world)
        run.log(f"probe of {network.facts}: {network.dim} features; {len(source):,} training images; {total} steps")
        stamp = {"features": network.identity | {"num_train_images": len(source)}}
        stamp |= {"weights": "random"} if config.network.random_weights else {}
        store = CheckpointStore(run.dir, world, config, loop.keep_last, loop.keep_every, FROZEN, stamp)

        def stream(start_step: int) -> Iterator[Batch]:
            """Opened once it is certain that the run goes on: reading features may take hours."""
            rows = read("train") if probe.features == "cached" else None

            def cached(index: int, position: int) -> Batch:
                row = rows[index]
                return {"features": torch.from_numpy(row["features"].copy()), "labels": torch.tensor(int(row["label"]))}

            item = training_item(source, data, loop.seed) if rows is None else cached
            return open_stream(item, len(source), data, loop, world)(start_step)

        fit(task, stream, loop, run, world, store)
        metrics = task.result()
        augmented = {"random_crop": data.random_crop, "flip_prob": data.flip_prob}
        protocol = {
            "kind": "linear_probe",
            "num_images": len(held_out),
            "num_train_images": len(source),
            "data": held_out.name,
            "content": held_out.identity(),
            "train_content": source.identity(),
            "skip_broken": data.skip_broken,
            "train_data": source.name,
            "image_size": data.image_size,
            "crop": "center",
            "train_crop": augmented if probe.features == "augmented" else "center",
            "batch_size": data.global_batch_size,
            "steps": total,
            "seed": loop.seed,
            **asdict(probe),
            **network.facts,
            **network.provenance,
        }
        if world.is_main:
            write_result(run.dir / "result.json", metrics, protocol)
    finally:
        run.close()


def main() -> None:
    config, args = parse_cli(LinearProbeConfig, __doc__, check=validate)
    validate(config)
    if args.dry_run:
        print("the config is valid")
        return
    with distributed_world(config.loop.device, config.loop.deterministic) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
