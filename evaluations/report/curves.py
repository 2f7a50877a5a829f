"""The charts of what training recorded: which records they show, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.run_log import read_metrics
from evaluations.report.charts import MAX_POINTS, Points, line_chart
from evaluations.report.page import details, section
from evaluations.report.records import VALUES, Records
from evaluations.report.run_folder import RunFolder, is_training
from tokenizer.losses.terms import MAIN_TERMS, PREFIX_PICTURE_WEIGHTS, QUANTIZER_TERMS, SHORTCUT_TERMS
from tokenizer.models.registry import QUANTIZERS

MAX_PAGE_POINTS = 60_000  # of all lines of a page that lays runs over one another, which is about 1 MB
MIN_POINTS = 40  # of a line of such a page
MAX_INDICES = 8  # of a token, each of which has a line of its own
MAX_SCALES = 12  # of the tokens of an image, likewise
FIRST_CHARTS = 4  # of a network, that such a page shows at once; the others open by a click

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
    """One line for each key that is `prefix` and a number, in the order of the numbers; none of more than `most`."""

    prefix: str
    most: int | None = None

    def lines(self, records: Records) -> dict[str, Points]:
        """{key: [(step, value), ...]}."""
        keys = {key for record in records for key in record if key.startswith(self.prefix)}
        if self.most is not None and len(keys) > self.most:
            return {}
        ordered = sorted(keys, key=lambda key: float(key.removeprefix(self.prefix)))
        return {key: points_of(records, key) for key in ordered}


@dataclass(frozen=True)
class Chart:
    """One chart of a training. `unit` is that of the vertical axis, or empty."""

    title: str
    unit: str
    series: Sequence[Series | Prefix]
    percent: bool = False  # fractions in 0..1, shown in percent as on cards and in tables

    def draw(self, records: Records) -> str:
        """The chart as HTML; empty text if nothing of it was recorded."""
        lines: dict[str, Points] = {}
        for series in self.series:
            lines |= {name: self.scaled(points) for name, points in series.lines(records).items()}
        return line_chart(self.title, lines, self.unit or "value")

    def scaled(self, points: Points) -> Points:
        """Recorded points in the unit of the vertical axis."""
        return [(step, 100 * value) for step, value in points] if self.percent else points


@dataclass(frozen=True)
class Training:
    """The charts of one trained network, whose records are in `folder`."""

    title: str
    folder: Path
    charts: Sequence[Chart]
    purpose: str = ""  # what the network is for, where its config names no kind

    @property
    def exists(self) -> bool:
        """Whether it was started."""
        return is_training(self.folder)


def points_of(records: Records, key: str) -> Points:
    """[(step, value), ...] of all records that have `key`."""
    return [(record["step"], record[key]) for record in records if key in record]


def same_name(keys: Sequence[str]) -> list[Series]:
    """Lines that are called like their keys."""
    return [Series(key, key) for key in keys]


COMMON_CHARTS = [  # of every training; for the meters see engine/meters.py
    Chart("Learning rate", "lr", same_name(["lr"])),
    Chart("Norm of the gradient", "norm before clipping", same_name(["grad_norm", "grad_norm_discriminator"])),
    Chart("Speed", "images per second", same_name(["images_per_second"])),
    Chart("Operations of the model", "10^12 per second and process", same_name(["model_tflops"])),
    Chart(
        "Use of the device",
        "fraction",
        [
            Series("MFU", key="mfu"),
            Series("waiting for data", key="data_wait"),
            Series("making tokens", key="tokenize_share"),
        ],
    ),
    Chart("Most memory held", "GB", same_name(["peak_memory_gb"])),
]
PROBE_CHARTS = [Chart("Loss per base learning rate", "nats", [Prefix("loss/")])]
GPT_CHARTS = [
    Chart(
        "Cross entropy per token",
        "nats",
        [
            Series("training", key="loss"),
            Series("held out", key="val/loss"),
            Series("EMA", key="val_ema/loss"),
            Series("held out, bound", key="val/loss_bound"),
            Series("EMA, bound", key="val_ema/loss_bound"),
        ],
    ),
]

OTHER_CHARTS = [
    Chart("Loss", "", [Series("training", key="loss"), Series("held out", key="val/loss")]),
    Chart("Accuracy", "% of images", [Series("held out", key="val/accuracy")], percent=True),
]


def tokenizer_charts() -> list[Chart]:
    """The charts of a tokenizer, with the losses that any registered quantizer names itself."""
    # The names of the losses.
    of_quantizers = {loss for quantizer in QUANTIZERS.values() for loss in quantizer.loss_names}
    named_by_quantizers = sorted(of_quantizers - set(QUANTIZER_TERMS))
    main_terms = [name for name in MAIN_TERMS if name != "entropy"]  # The entropies have a chart of their own.

    # Held-out images first, then the losses, then the codes.
    return [
        Chart(
            "Validation PSNR",
            "dB",
            [
                Series("weights", key="val/psnr"),
                Series("EMA", key="val_ema/psnr"),
                Series("mean color of each image", key="val/psnr_mean_color"),
                Series("image shrunk to the grid of tokens", key="val/psnr_shrunken"),
            ],
        ),
        Chart("Validation PSNR by number of tokens", "dB", [Prefix("val/psnr_tokens_", most=MAX_INDICES + 1)]),
        Chart("Training losses", "", same_name([*main_terms, *named_by_quantizers, "loss"])),
        Chart(
            "Shortcut and discriminator losses",
            "",
            same_name([*SHORTCUT_TERMS, *PREFIX_PICTURE_WEIGHTS, *DISCRIMINATOR_LOSSES]),
        ),
        Chart(
            "Codebook usage",
            "% of codes",
            [Series("training window", key="codebook_usage"), Series("held out", key="val/codebook_usage")],
            percent=True,
        ),
        Chart("Codebook usage by index", "% of codes", [Prefix("codebook_usage_group_", most=MAX_INDICES)], True),
        Chart("Codebook usage by scale", "% of codes", [Prefix("codebook_usage_scale_", most=MAX_SCALES)], True),
        Chart(
            "Codebook usage by scale, held out",
            "% of codes",
            [Prefix("val/codebook_usage_scale_", most=MAX_SCALES)],
            percent=True,
        ),
        Chart(
            "Codebook usage by tokens", "% of codes", [Prefix("val/codebook_usage_from_token_", most=MAX_INDICES)], True
        ),
        Chart("Rest after each level", "fraction of latents", [Prefix("rest_level_", most=MAX_INDICES)]),
        Chart("Restarted codes", "since the start of the run", same_name(["restarted_codes"])),
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
        Training("classifier", layout.classifier, OTHER_CHARTS, "tells which class a generated image shows"),
        Training("reader of drawn text", layout.text_reader, OTHER_CHARTS, "reads the words of reconstructed pictures"),
        Training("linear probe GPT", layout.generator_probe, PROBE_CHARTS),
        Training("linear probe tokenizer", layout.tokenizer_probe, PROBE_CHARTS),
    ]


def curves(run: RunFolder) -> str:
    """What training recorded, one group of charts per trained network."""
    groups = []
    for training in trainings_of(run):
        records = read_metrics(training.folder)
        of_network, common = (
            "".join(chart.draw(records) for chart in charts) for charts in (training.charts, COMMON_CHARTS)
        )
        if of_network or common:
            more = details("learning rate, gradient, speed and memory", f'<div class="charts">{common}</div>')
            heading = "" if run.is_training else f"<h3>{training.title}</h3>"
            groups.append(f'{heading}<div class="charts">{of_network}</div>{more if common else ""}')
    return section("Training curves", "".join(groups), "curves")


# ------------------------------------------------------------------------------------------------ several runs
def overlaid_curves(runs: Sequence[tuple[str, RunFolder]]) -> str:
    """The records of named runs laid over one another: for each network a chart per record, with one line per run."""
    # {network: {name of the run: training}}
    networks: dict[str, dict[str, Training]] = {}
    for name, run in runs:
        for training in trainings_of(run):
            if training.exists:
                networks.setdefault(training.title, {})[name] = training

    groups = []
    for title, trainings in networks.items():
        charts = _overlaid_charts(trainings)
        if charts:
            first, others = charts[:FIRST_CHARTS], charts[FIRST_CHARTS:]
            more = f'<div class="charts">{"".join(others)}</div>' if others else ""
            heading = f"<h3>{title}</h3>" if len(networks) > 1 else ""
            groups.append(
                f'{heading}<div class="charts">{"".join(first)}</div>{details(f"{len(others)} more charts", more)}'
            )
    return section("Curves of all runs", "".join(groups), "curves")


def _overlaid_charts(trainings: Mapping[str, Training]) -> list[str]:
    """One chart per record of one kind of network, those of held-out images first."""
    records = {name: read_metrics(training.folder) for name, training in trainings.items()}
    (first, *_) = trainings.values()
    lines = [
        (chart, series)
        for chart in (*first.charts, *COMMON_CHARTS)
        for series in chart.series
        if isinstance(series, Series) and any(points_of(of_run, series.key) for of_run in records.values())
    ]
    lines.sort(key=lambda pair: not pair[1].key.startswith("val/"))

    # All lines together have a limited number of points.
    max_points = max(MIN_POINTS, min(MAX_POINTS, MAX_PAGE_POINTS // max(1, len(lines) * len(records))))
    charts = []
    for chart, series in lines:
        points = {name: chart.scaled(points_of(of_run, series.key)) for name, of_run in records.items()}
        title, unit = _title_of_record(chart, series), chart.unit or series.key
        charts.append(line_chart(title, points, unit, max_points=max_points, may_zoom=True))
    return [chart for chart in charts if chart]


def _title_of_record(chart: Chart, series: Series) -> str:
    """The title of a chart of one record: as the table of runs calls it, where it has a column."""
    if series.key in VALUES:
        title = VALUES[series.key].title
        return f"{title[0].upper()}{title[1:]}"
    return chart.title if series.name == series.key == "lr" else f"{chart.title}: {series.name}"
