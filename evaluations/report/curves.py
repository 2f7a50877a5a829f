"""The charts of what training recorded: which records they show, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.run_log import read_metrics
from evaluations.report.charts import Points, line_chart
from evaluations.report.run_folder import RunFolder
from tokenizer.losses.terms import MAIN_TERMS, QUANTIZER_TERMS, SHORTCUT_TERMS
from tokenizer.models.registry import QUANTIZERS

Records = Sequence[Mapping[str, float]]

# What the records of a discriminator call its losses.
DISCRIMINATOR_LOSSES = ("discriminator", "lecam")


@dataclass(frozen=True)
class Series:
    """One line: the values recorded under `key`, called `name` in the legend."""

    name: str
    key: str

    def lines(self, records: Records) -> dict[str, Points]:
        """{name in the legend: [(step, value), ...]}."""
        return {self.name: points_of(records, self.key)}


@dataclass(frozen=True)
class Prefix:
    """One line for each key that is `prefix` and a number, in the order of the numbers."""

    prefix: str

    def lines(self, records: Records) -> dict[str, Points]:
        """{key: [(step, value), ...]}."""
        keys = {key for record in records for key in record if key.startswith(self.prefix)}
        ordered = sorted(keys, key=lambda key: float(key.removeprefix(self.prefix)))
        return {key: points_of(records, key) for key in ordered}


@dataclass(frozen=True)
class Chart:
    """One chart of a training. `unit` is that of the vertical axis, or empty."""

    title: str
    unit: str
    series: Sequence[Series | Prefix]

    def draw(self, records: Records) -> str:
        """The chart as HTML; empty text if nothing of it was recorded."""
        lines: dict[str, Points] = {}
        for series in self.series:
            lines |= series.lines(records)
        return line_chart(self.title, lines, self.unit)


@dataclass(frozen=True)
class Training:
    """The charts of one trained network, whose records are in `folder`."""

    title: str
    folder: Path
    charts: Sequence[Chart]


def points_of(records: Records, key: str) -> Points:
    """[(step, value), ...] of all records that have `key`."""
    return [(record["step"], record[key]) for record in records if key in record]


def same_name(keys: Sequence[str]) -> list[Series]:
    """Lines that are called like their keys."""
    return [Series(key, key) for key in keys]


METER_CHARTS = [  # of every training, see engine/meters.py
    Chart("Speed", "images per second", same_name(["images_per_second"])),
    Chart("Operations of the model", "10^12 per second and process", same_name(["model_tflops"])),
    Chart("Use of the device", "fraction", [Series("MFU", key="mfu"), Series("waiting for data", key="data_wait")]),
    Chart("Most memory held", "GB", same_name(["peak_memory_gb"])),
]
PROBE_CHARTS = [Chart("Loss per base learning rate", "nats", [Prefix("loss/")])]
GPT_CHARTS = [
    Chart(
        "Cross entropy per token",
        "nats",
        [Series("training", key="loss"), Series("held out", key="val/loss"), Series("EMA", key="val_ema/loss")],
    ),
    Chart("Learning rate", "", same_name(["lr"])),
]


OTHER_CHARTS = [
    Chart("Loss", "", [Series("training", key="loss"), Series("held out", key="val/loss")]),
    Chart("Accuracy", "fraction", [Series("held out", key="val/accuracy")]),
]


def tokenizer_charts() -> list[Chart]:
    """The charts of a tokenizer, with the losses that any registered quantizer names itself."""
    of_quantizers = {loss for quantizer in QUANTIZERS.values() for loss in quantizer.loss_names}
    named_by_quantizers = sorted(of_quantizers - set(QUANTIZER_TERMS))
    main_terms = [name for name in MAIN_TERMS if name != "entropy"]  # The entropies have a chart of their own.
    return [
        Chart("Validation PSNR", "dB", [Series("weights", key="val/psnr"), Series("EMA", key="val_ema/psnr")]),
        Chart("Training losses", "", same_name([*main_terms, *named_by_quantizers])),
        Chart("Shortcut and discriminator losses", "", same_name([*SHORTCUT_TERMS, *DISCRIMINATOR_LOSSES])),
        Chart(
            "Codebook usage",
            "fraction of codes",
            [Series("training window", key="codebook_usage"), Series("held out", key="val/codebook_usage")],
        ),
        Chart("Assignment entropies", "nats", same_name(["sample_entropy", "codebook_entropy"])),
    ]


def training_of(run: RunFolder) -> Training:
    """The network of a single training, which its config tells."""
    config = run.config
    if "loss" in config:
        return Training("tokenizer", run.path, tokenizer_charts())
    if "codes" in config.get("data", {}):
        return Training("GPT", run.path, GPT_CHARTS)
    if "probe" in config:
        return Training("linear probe", run.path, PROBE_CHARTS)
    return Training("network", run.path, OTHER_CHARTS)


def trainings_of(run: RunFolder) -> list[Training]:
    """The networks of a run, in the order of the page."""
    if run.is_training:
        return [training_of(run)]
    layout = run.layout
    return [
        Training("tokenizer", layout.tokenizer, tokenizer_charts()),
        Training("GPT", layout.generator, GPT_CHARTS),
        Training("linear probe GPT", layout.generator_probe, PROBE_CHARTS),
        Training("linear probe tokenizer", layout.tokenizer_probe, PROBE_CHARTS),
    ]


def curves(run: RunFolder) -> str:
    """What training recorded, one group of charts per trained network."""
    groups = []
    for training in trainings_of(run):
        records = read_metrics(training.folder)
        charts = [chart.draw(records) for chart in (*training.charts, *METER_CHARTS)]
        if any(charts):
            groups.append(f'<h2>Training: {training.title}</h2><div class="charts">{"".join(charts)}</div>')
    return "".join(groups)
