"""Trains the reader of text_readback: a small network that reads drawn words, 1 to 3 minutes on 2 CPU cores.

    python -m evaluations.text_reader --config configs/eval/text_reader.yaml
    python -m evaluations.text_reader --config configs/eval/text_reader.yaml loop.run_dir=runs/reader loop.seed=1
    python -m evaluations.text_readback --vq-ckpt runs/VQ_SS256 --text-reader runs/text_reader --output text.json

It draws its own words and needs no data. Results of different readers are not ranked, so keep one for all tokenizers
that you compare. The same command continues a run that was stopped.
"""

from __future__ import annotations

from engine.cli import parse_cli, run_entry
from engine.preflight import require
from engine.training_world import training_world
from evaluations.readback.training import ReaderTrainConfig, train, training_needs


def main() -> None:
    config, args = parse_cli(ReaderTrainConfig, __doc__)
    if args.dry_run:
        print("the config is valid")
    require(args, lambda preflight: training_needs(config, preflight))
    with training_world(config.loop) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
