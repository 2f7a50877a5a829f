"""AR probing (GigaTok, section 4): how well can a small GPT model the codes of a tokenizer?

    python -m evaluations.ar_probe --config configs/eval/ar_probe.yaml tokenizer=runs/VQ_SS256 run_dir=runs/ar_probe/SS
    python -m evaluations.ar_probe --config configs/quickstart/ar_probe.yaml
    python -m evaluations.report runs/ar_probe/SS runs/ar_probe/BL --output ar_probe.html

A single command with a single config extracts codes, trains a GPT-B for 50 epochs at a constant learning rate, searches
for the guidance scale with the smallest gFID, measures the validation loss, and probes the GPT's features. A stage that
was stopped continues where it was, and finished stages are skipped. `results.json` collects the numbers, and the report
shows several tokenizers side by side.
"""

from __future__ import annotations

from pathlib import Path

from engine.atomic_file import write_atomic
from engine.cli import parse_cli, run_entry
from engine.config import save_config
from engine.json_text import to_json
from engine.messages import logger
from engine.pipeline import run_stages
from engine.preflight import Preflight, require
from evaluations.pipelines.ar_probe import ARProbeConfig, collect, stages_of
from evaluations.pipelines.running import needs_of_stages
from evaluations.results import numbers_text

NO_PLAN = (
    "AR probing is a series of commands, which --dry-run lists; its training has a memory plan by itself: "
    "python -m autoregressive.train --config FILE --plan GPUS, with the files of gpt_configs"
)


def needs(config: ARProbeConfig, preflight: Preflight) -> None:
    """Looks for what its stages need that are left."""
    if not config.tokenizer:
        preflight.problem("tokenizer is empty; it names the folder of a trained tokenizer")
        return
    needs_of_stages(Path(config.run_dir), "run_dir", stages_of(config), preflight)


def main() -> None:
    config, args = parse_cli(ARProbeConfig, __doc__, no_plan=NO_PLAN)
    if args.dry_run:
        print("\n".join(" ".join(stage.command) for stage in stages_of(config)))
    require(args, lambda preflight: needs(config, preflight), starts_scripts=True)

    run = Path(config.run_dir)
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    run_stages(run, stages_of(config))

    results_file = run / "results.json"
    results = collect(run)
    write_atomic(results_file, to_json(results, indent=1))
    logger.info("%s: %s", results_file, numbers_text(results, results, digits=4))


if __name__ == "__main__":
    run_entry(main)
