"""Trains a small image classifier on real images, to check whether generated images show the requested class.

    python -m evaluations.classifier --config configs/quickstart/classifier.yaml loop.run_dir=runs/quickstart/classifier

It is a plain convolutional network for small images such as digits, and not meant as a benchmark. The same command
continues a run that was stopped.
"""

from __future__ import annotations

from engine.cli import parse_cli, run_entry
from engine.preflight import require
from engine.training_world import training_world
from evaluations.digits.training import ClassifierTrainConfig, train, training_needs, validate

NO_PLAN = (
    "the classifier of small images has no memory plan: it is made for a CPU. Recipes that train a tokenizer or a "
    "generator have one (python -m tokenizer.train, python -m autoregressive.train); --dry-run checks this recipe"
)


def main() -> None:
    config, args = parse_cli(ClassifierTrainConfig, __doc__, no_plan=NO_PLAN, check=validate)
    validate(config)
    if args.dry_run:
        print("the config is valid")
    require(args, lambda preflight: training_needs(config, preflight))
    loop = config.loop
    with training_world(loop) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
