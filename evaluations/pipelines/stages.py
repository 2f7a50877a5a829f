"""Stages that several pipelines have. Each is a command that can be typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.pipeline import Stage, config_flags, module_stage
from evaluations.run_layout import REPORT_STAGE, RunLayout

CODES = "codes"
SEARCH = "search"
VAL_LOSS = "val_loss"
TEXT = "text_readback"


def both_networks(tokenizer: str | Path, generator: str | Path) -> list[str]:
    """The flags that name a tokenizer and a generator of its codes."""
    return ["--vq-ckpt", str(tokenizer), "--gpt-ckpt", str(generator)]


def codes_stage(tokenizer: str | Path, codes: Path, *flags: str) -> Stage:
    """The codes of a tokenizer."""
    return module_stage(
        CODES, "autoregressive.extract_codes", "--vq-ckpt", str(tokenizer), "--code-path", str(codes), *flags
    )


def generator_stage(
    folder: Path, configs: Sequence[str | Path], tokenizer: str | Path, codes: Path | None, *overrides: str
) -> Stage:
    """The training of a generator into `folder`, whose name is that of the stage, on `codes` or without any."""
    return module_stage(
        folder.name, "autoregressive.train", *config_flags(configs),
        f"data.codes={codes or ''}", f"data.tokenizer={tokenizer}", f"loop.run_dir={folder}", *overrides,
    )  # fmt: skip


def search_stage(layout: RunLayout, networks: Sequence[str], *flags: str) -> Stage:
    """The search for the guidance scale with the smallest distance. `networks` are flags that name both networks."""
    output = str(layout.result(SEARCH))
    return module_stage(SEARCH, "evaluations.search_cfg", *networks, "--output", output, *flags)


def val_loss_stage(layout: RunLayout, networks: Sequence[str], *flags: str) -> Stage:
    """The validation loss of a generator. `networks` are flags that name both networks."""
    output = str(layout.result(VAL_LOSS))
    return module_stage(VAL_LOSS, "evaluations.val_loss", *networks, "--output", output, *flags)


def text_stage(layout: RunLayout, num_pictures: int) -> Stage:
    """What a reader, trained before, reads in drawn text after a tokenizer; `num_pictures` per height of letters."""
    return module_stage(
        TEXT, "evaluations.text_readback", "--vq-ckpt", str(layout.tokenizer), "--text-reader", str(layout.text_reader),
        "--num-pictures", str(num_pictures), "--output", str(layout.result(TEXT)),
    )  # fmt: skip


def probe_stage(name: str, folder: Path, configs: Sequence[str | Path], *overrides: str) -> Stage:
    """A linear probe into `folder`."""
    return module_stage(name, "evaluations.linear_probe", *config_flags(configs), *overrides, f"loop.run_dir={folder}")


def report_stage(run: Path) -> Stage:
    """The report, always rerun: it is cheap, and picks up new results. It needs one process only."""
    return replace(on_one_process(module_stage(REPORT_STAGE, "evaluations.report", str(run))), always=True)


def on_one_process(stage: Stage) -> Stage:
    """The stage on one process, whatever the environment asks for."""
    return replace(stage, command=["env", "NPROC_PER_NODE=1", *stage.command])
