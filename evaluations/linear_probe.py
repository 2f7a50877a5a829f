"""Linear probe: how well classes can be read off the features of a frozen GPT or tokenizer.

    bash scripts/train_lin_probe_gpt.sh configs/eval/linear_probe_gpt.yaml loop.run_dir=runs/probe_gpt
    python -m evaluations.linear_probe --config configs/quickstart/linear_probe_gpt.yaml
    python -m evaluations.linear_probe --config configs/quickstart/linear_probe_gpt.yaml network.random_weights=true \\
        loop.run_dir=runs/quickstart/linear_probe_random

MAE's protocol (arXiv:2111.06377, appendix A.1), as GigaTok uses it: batch norm without parameters, one linear layer,
cross entropy, LARS. `probe.features=augmented` crops and flips anew in each epoch; `cached` reads the features of
center crops once and is fast. All learning rates of `probe.base_lrs` train side by side on the same batches, each with
its own head; the best on held-out images is reported, with all of them listed. The result is <run>/result.json; the
same command continues a run that was stopped.
"""

from __future__ import annotations

from engine.cli import parse_cli, run_entry
from engine.world import distributed_world
from evaluations.probes.config import LinearProbeConfig, validate
from evaluations.probes.training import train


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
