"""AR probing (GigaTok, section 4): how well can a small GPT model the codes of a tokenizer?

    python -m evaluations.ar_probe --config configs/eval/ar_probe.yaml tokenizer=runs/VQ_SS256 run_dir=runs/ar_probe/SS
    python -m evaluations.ar_probe --config configs/quickstart/ar_probe.yaml
    python -m evaluations.report runs/ar_probe/SS runs/ar_probe/BL --output ar_probe.html

One command, one config: extract codes, train a GPT-B for 50 epochs at a constant rate, search the guidance scale with
the smallest gFID, measure the validation loss, probe the GPT's features. Each stage continues where it was stopped;
finished ones are skipped. `results.json` collects the numbers; the report puts several tokenizers side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from engine.checkpoint.manifest import write_atomic
from engine.cli import parse_cli, run_entry
from engine.config import save_config
from engine.messages import ConfigError, logger
from engine.pipeline import Stage, python, run_stages
from evaluations.results import read_result

VIEWS = {"centre": [], "flip": ["--flip"], "ten-crop": ["--ten-crop"]}


@dataclass(kw_only=True, slots=True)
class ARProbeConfig:
    """The stages of one AR probing run."""

    tokenizer: str = ""  # folder of the tokenizer (a published file: tokenizer.convert makes one of it)
    run_dir: str = "runs/ar_probe/unnamed"
    views: str = "ten-crop"  # crops of each training image: centre | flip | ten-crop
    gpt_configs: list[str] = field(default_factory=lambda: ["configs/gpt/ar_probe.yaml"])
    gpt_overrides: list[str] = field(default_factory=list)  # key=value of the GPT's training
    probe_configs: list[str] = field(default_factory=lambda: ["configs/eval/linear_probe_gpt.yaml"])
    probe_overrides: list[str] = field(default_factory=list)  # key=value of the linear probe
    reference: str = "train"  # of the gFID: an npz file such as VIRTUAL_imagenet256_labeled.npz, or train
    num_fid_samples: int = 50000
    guidance_schedule: str = "constant"  # constant | step | linear
    search_flags: list[str] = field(default_factory=list)  # further flags of evaluations.search_cfg
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ConfigError(f"views={self.views!r} is not known; choose one of: {', '.join(VIEWS)}")
        if self.num_fid_samples < 2:
            raise ConfigError(f"num_fid_samples={self.num_fid_samples} must be 2 or more")


def stages_of(config: ARProbeConfig) -> list[Stage]:
    """The commands; each can be typed by hand."""
    run = Path(config.run_dir)
    codes, gpt, results, tokenizer = run / "codes", run / "gpt", run / "evaluations", config.tokenizer
    pair = ["--vq-ckpt", tokenizer, "--gpt-ckpt", str(gpt)]

    def configs(files: list[str]) -> list[str]:
        return [part for file in files for part in ("--config", file)]

    return [
        python(
            "codes", "autoregressive.extract_codes", "--vq-ckpt", tokenizer, "--code-path", str(codes),
            *VIEWS[config.views],
        ),
        python(
            "gpt", "autoregressive.train", *configs(config.gpt_configs), f"data.codes={codes}",
            f"data.tokenizer={tokenizer}", f"loop.run_dir={gpt}", *config.gpt_overrides,
        ),
        python(
            "search", "evaluations.search_cfg", *pair, "--cfg-schedule", config.guidance_schedule,
            "--num-fid-samples", str(config.num_fid_samples), "--reference", config.reference,
            "--output", str(results / "search.json"), *config.search_flags,
        ),
        python(
            "val_loss", "evaluations.val_loss", *pair, "--code-path", str(codes),
            "--output", str(results / "val_loss.json"),
        ),
        python(
            "linear_probe", "evaluations.linear_probe", *configs(config.probe_configs),
            f"network.tokenizer={tokenizer}", f"network.gpt={gpt}", f"loop.run_dir={run / 'linear_probe_gpt'}",
            *config.probe_overrides,
        ),
    ]  # fmt: skip


def collect(run: Path) -> dict[str, float]:
    """The numbers of the paper's table: gFID at the best scale, validation loss, accuracy."""
    search = read_result(run / "evaluations" / "search.json")["metrics"]
    loss = read_result(run / "evaluations" / "val_loss.json")["metrics"]
    probe = read_result(run / "linear_probe_gpt" / "result.json")["metrics"]
    return {**search, "val_loss": loss["val_loss"], "linear_probe_top1": probe["top1"]}


def main() -> None:
    config, args = parse_cli(ARProbeConfig, __doc__)
    if not config.tokenizer or not Path(config.tokenizer).is_dir():
        raise ConfigError(f"tokenizer={config.tokenizer!r} is not a folder of a trained tokenizer")
    if args.dry_run:
        print("\n".join(" ".join(stage.command) for stage in stages_of(config)))
        return
    run = Path(config.run_dir)
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    run_stages(run, stages_of(config))
    numbers = collect(run)
    write_atomic(run / "results.json", json.dumps(numbers, indent=1))
    logger.info("%s: %s", run / "results.json", "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))


if __name__ == "__main__":
    run_entry(main)
