"""Linear probe: how well can the class of an image be read from the features of a frozen GPT or tokenizer?

    bash scripts/train_lin_probe_gpt.sh configs/eval/linear_probe_gpt.yaml loop.run_dir=runs/probe_gpt
    python -m evaluations.linear_probe --config configs/quickstart/linear_probe_gpt.yaml
    python -m evaluations.linear_probe --config configs/quickstart/linear_probe_gpt.yaml network.random_weights=true \\
        loop.run_dir=runs/quickstart/linear_probe_random

The probe follows MAE's protocol (arXiv:2111.06377, appendix A.1), as GigaTok uses it: batch norm without parameters,
one linear layer, cross entropy, LARS. `probe.features=augmented` crops and flips the images anew in each epoch;
`cached` reads the features of center crops only once and is fast. Each learning rate in `probe.base_lrs` trains a head
of its own, side by side on the same batches. The one with the best accuracy on held-out images is reported, and all of
them are listed. The result is written to <run>/result.json. The same command continues a run that was stopped.
"""

from __future__ import annotations

from engine.cli import parse_cli, run_entry
from engine.preflight import Preflight, require
from engine.training_world import training_world
from evaluations.probes.config import LinearProbeConfig, validate
from evaluations.probes.features import network_needs
from evaluations.probes.training import train

NO_PLAN = (
    "a linear probe has no memory plan: on each GPU it needs the forward pass of its frozen network, and one linear "
    "layer per learning rate. Recipes that train a tokenizer or a generator have one (python -m tokenizer.train, "
    "python -m autoregressive.train); --dry-run checks this recipe"
)


def needs(config: LinearProbeConfig, preflight: Preflight) -> None:
    """Looks for the networks, the images, and all that every training needs."""
    network_needs(config.network, config.data.image_size, preflight)
    preflight.training_images(config.data)
    preflight.training(config.loop, config.data.global_batch_size, checkpoint_bytes=0)


def main() -> None:
    config, args = parse_cli(LinearProbeConfig, __doc__, no_plan=NO_PLAN, check=validate)
    validate(config)
    if args.dry_run:
        print("the config is valid")
    require(args, lambda preflight: needs(config, preflight))
    loop = config.loop
    with training_world(loop) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
