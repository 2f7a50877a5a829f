"""AR probing: its config, the commands of its stages, and the numbers that it collects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoregressive.guidance import GUIDANCE_SCHEDULES
from autoregressive.views import VIEWS
from engine.pipeline import Stage
from engine.validation import Problem, Section, at_least, one_of
from evaluations.pipelines.stages import (
    both_networks,
    codes_stage,
    generator_stage,
    probe_stage,
    search_stage,
    val_loss_stage,
)
from evaluations.results import read_result
from evaluations.run_layout import RunLayout

TOP1 = ("top1", "top1_se", "top1_low", "top1_high")  # of a linear probe, with its error


@dataclass(kw_only=True, slots=True)
class ARProbeConfig(Section):
    """The stages of one AR probing run."""

    tokenizer: str = ""  # folder of the tokenizer (tokenizer.convert makes one from a published file)
    run_dir: str = "runs/ar_probe/unnamed"
    views: str = "ten-crop"  # crops of each training image: center | flip | ten-crop
    gpt_configs: list[str] = field(default_factory=lambda: ["configs/gpt/ar_probe.yaml"])
    gpt_overrides: list[str] = field(default_factory=list)  # key=value for the training of the GPT
    probe_configs: list[str] = field(default_factory=lambda: ["configs/eval/linear_probe_gpt.yaml"])
    probe_overrides: list[str] = field(default_factory=list)  # key=value for the linear probe
    reference: str = "train"  # of the gFID: an npz file such as VIRTUAL_imagenet256_labeled.npz, or train
    num_fid_samples: int = 50000
    guidance_schedule: str = "constant"  # constant | step | linear
    search_flags: list[str] = field(default_factory=list)  # further flags of evaluations.search_cfg, such as --force
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "views", VIEWS)
        yield from at_least(self, "num_fid_samples", 2)
        yield from one_of(self, "guidance_schedule", GUIDANCE_SCHEDULES)


def stages_of(config: ARProbeConfig) -> list[Stage]:
    """The commands; each can be typed by hand."""
    layout = RunLayout(config.run_dir)
    view_flag = VIEWS[config.views].flag
    networks = both_networks(config.tokenizer, layout.generator)

    return [
        # Training of the GPT, on stored codes.
        codes_stage(config.tokenizer, layout.codes, *([] if view_flag is None else [view_flag])),
        generator_stage(
            layout.generator, config.gpt_configs, config.tokenizer, layout.codes, *config.gpt_overrides
        ),
        # What it is judged by: gFID at the best scale, validation loss, and the accuracy of a linear probe.
        search_stage(
            layout, networks,
            "--cfg-schedule", config.guidance_schedule, "--num-fid-samples", str(config.num_fid_samples),
            "--reference", config.reference, *config.search_flags,
        ),
        val_loss_stage(layout, networks, "--code-path", str(layout.codes)),
        probe_stage(
            "linear_probe", layout.generator_probe, config.probe_configs,
            f"network.tokenizer={config.tokenizer}", f"network.gpt={layout.generator}", *config.probe_overrides,
        ),
    ]  # fmt: skip


def collect(run: Path) -> dict[str, Any]:
    """Collects the numbers of the paper's table with their errors: gFID at the best scale, validation loss, accuracy.

    `forced` ({metric: why it should not be trusted}) is there too, where the search was forced.
    """
    layout = RunLayout(run)
    search = read_result(layout.result("search"))
    val_loss = read_result(layout.result("val_loss"))["metrics"]
    probe = read_result(layout.generator_probe / "result.json")["metrics"]
    top1 = {f"linear_probe_{name}": value for name, value in probe.items() if name in TOP1}
    forced = {"forced": search["forced"]} if "forced" in search else {}
    return {**search["metrics"], **val_loss, **top1, **forced}
