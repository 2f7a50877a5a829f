"""The metrics by name: title, unit, direction, and the facts of a protocol that each depends on.

This is the only place that knows whether a smaller value of a metric is better, which cards a report shows, and
which metrics are fractions. A metric that is not in `METRICS` is shown, and never ranked.

A plug-in adds a metric that `--metrics NAME` asks for. Over the images of a generation, uint8 (B,3,H,W):

    METRICS["contrast"] = Metric("contrast", "Contrast", better="higher", images=lambda x: x.float().std((1, 2, 3)))

and over the pairs of a reconstruction with `pairs`; see `Metric`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from engine.messages import UserError

Kind = Literal["pairs", "images"]


@dataclass(frozen=True)
class Metric:
    """One number of a result.

    `depends_on` names sections of a protocol that this metric depends on and others do not: where they differ between
    results, this metric is not ranked.

    `pairs` and `images` are for metrics of plug-ins, computed on request. The result holds the mean over all images.
        pairs(reconstructions, originals) -> (B,)   both float (B,3,H,W) in [-1,1]
        images(images) -> (B,)                      uint8 (B,3,H,W)
    """

    name: str  # the key in the result file
    title: str  # for people
    unit: str = ""
    better: Literal["lower", "higher"] | None = None  # None: says nothing about the quality of a network
    depends_on: tuple[str, ...] = ()
    percent: bool = False  # a fraction in 0..1, shown in percent
    headline: bool = False  # a report shows it on a card
    meaning: str = ""  # what the number says, in a few words, for a reader who does not know it
    anchors: Mapping[str, str] = field(default_factory=dict)  # {metric that gives its scale: what that is of}
    pairs: Callable[[Tensor, Tensor], Tensor] | None = None
    images: Callable[[Tensor], Tensor] | None = None

    @property
    def is_computed_by_plugin(self) -> bool:
        """Whether a plug-in computes the number; it is ranked only between results of the same plug-ins."""
        return self.pairs is not None or self.images is not None


# ------------------------------------------------------------------------------------------------ names of distances
DISTANCE_OF_RECONSTRUCTIONS = "distance of reconstructions from real images, by their features; 0 for equal statistics"
DISTANCE_OF_GENERATED = "distance of generated images from real ones, by their features; 0 for equal statistics"
REFERENCE = ("reference",)  # what every distance depends on
PUBLISHED_DISTANCE = {"generation": "gfid", "reconstruction": "rfid"}  # what is measured -> published name
UNPUBLISHED_SUFFIX = {"generation": "generated", "reconstruction": "reconstruction"}  # of any other distance


def distance_name(family: str, measured: str, published: bool) -> str:
    """The name of the Frechet distance of images that are a `generation` or a `reconstruction`.

    Only where extractor and reference are those of the published number is it called gfid or rfid; else its name is
    that of the `family`, which is the `metric` of the extractor, and a suffix.
    """
    return PUBLISHED_DISTANCE[measured] if published else f"{family}_{UNPUBLISHED_SUFFIX[measured]}"


def distances(family: str, headline: bool = False) -> Iterator[Metric]:
    """The distances of one extractor under its own name, for `METRICS`; also for that of a plug-in."""
    anchors = {f"{family}_real": "held-out real images", f"{family}_noise": "uniform noise"}
    yield Metric(
        f"{family}_reconstruction",
        f"{family}, reconstructed",
        better="lower",
        depends_on=REFERENCE,
        headline=headline,
        meaning=DISTANCE_OF_RECONSTRUCTIONS,
        anchors=anchors,
    )
    yield Metric(
        f"{family}_generated",
        f"{family}, generated",
        better="lower",
        depends_on=REFERENCE,
        headline=headline,
        meaning=DISTANCE_OF_GENERATED,
        anchors=anchors,
    )
    # These give the scale of the distance, and say nothing about a network.
    yield Metric(f"{family}_real", f"{family}, real images", depends_on=REFERENCE)
    yield Metric(f"{family}_noise", f"{family}, uniform noise", depends_on=REFERENCE)
    yield from feature_metrics(family)


PUBLISHED_FAMILY = "fid"  # that of the extractor whose numbers have plain names, such as `kid`
FAMILY_PREFIXES = ("frechet_", "fd_")  # what precedes the name of the features in that of a distance


def number_name(number: str, family: str) -> str:
    """The key of a number of features, such as `kid`, or of the features of another family `kid_lite0`."""
    if family == PUBLISHED_FAMILY:
        return number
    for prefix in FAMILY_PREFIXES:
        family = family.removeprefix(prefix)
    return f"{number}_{family}"


def feature_metrics(family: str) -> Iterator[Metric]:
    """The other numbers of the features of one extractor (`evaluations.protocols.feature_numbers`)."""
    for number, title, better, meaning in FEATURE_NUMBERS:
        name = number_name(number, family)
        where = "" if family == PUBLISHED_FAMILY else f" ({family})"
        yield Metric(name, f"{title}{where}", better=better, depends_on=REFERENCE, meaning=meaning)


FEATURE_NUMBERS: tuple[tuple[str, str, Literal["lower", "higher"] | None, str], ...] = (
    ("kid", "KID", "lower", "kernel distance from real images, without bias; 0 is none"),
    ("kid_subsets", "KID over random subsets", "lower", "as torch-fidelity computes it"),
    ("kid_subsets_std", "spread of one subset of KID", None, "not the error of the mean"),
    ("mind", "MIND", "lower", "distance from real images along random directions; 0 is none"),
    ("precision_k5", "precision, 5 neighbors", "higher", "generated images that lie among real ones"),
    ("recall_k5", "recall, 5 neighbors", "higher", "real images that generation covers"),
    ("density", "density", "higher", "how densely generated images lie among real ones; 1 for real images"),
    ("coverage", "coverage", "higher", "real images with a generated one nearby"),
    ("reference_duplicates", "real images with 5 or more exact copies", None, "no image lies in their balls"),
    ("measured_duplicates", "measured images with 5 or more exact copies", None, "no image lies in their balls"),
    ("authpct", "AuthPct", None, "generated images that are no near copies, in percent; see its held-out value"),
    ("authpct_held_out", "AuthPct of held-out images", None, "the scale of AuthPct"),
    ("closer_than_held_out", "images closer to training images than held-out ones", None, "0.001 without copies"),
    ("copying_z", "copying Z", None, "far below 0: copies; above 0: underfitting"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ drawn text
READBACK = ("text_readback",)  # what every reading depends on: pictures, fonts and the reader
READINGS = ("read_exact", "read_ned")  # of words that the reader reads on the originals
READ_BY_HEIGHT = "read_by_height"  # the table of a result with all readings, also of the anchors, by height of letters


def readings() -> Iterator[Metric]:
    """The means over all heights of drawn text, and what the two anchors have: they say nothing about a network."""
    titles = {"read_exact": "drawn words read exactly", "read_ned": "drawn words, normalized edit likeness"}
    for name, text in titles.items():
        yield Metric(
            name,
            text,
            better="higher",
            depends_on=READBACK,
            percent=True,
            headline=name == READINGS[0],
            meaning="words in reconstructions that a small network still reads",
        )
        yield Metric(f"{name}_blur", f"{text}, in blurred originals", depends_on=READBACK, percent=True)
        yield Metric(f"{name}_jpeg", f"{text}, in JPEG files of originals", depends_on=READBACK, percent=True)


# ------------------------------------------------------------------------------------------------ the metrics
LPIPS = ("lpips_weights",)
GIVEN = ("given_words",)  # what scores of words depend on that another program has read

BUILT_IN = (  # in the order of a report's cards
    # Distances to reference images.
    Metric(
        "rfid",
        "rFID",
        better="lower",
        depends_on=REFERENCE,
        headline=True,
        meaning=DISTANCE_OF_RECONSTRUCTIONS,
    ),
    Metric(
        "gfid",
        "gFID",
        better="lower",
        depends_on=REFERENCE,
        headline=True,
        meaning=DISTANCE_OF_GENERATED,
    ),
    Metric("sfid", "sFID", better="lower", depends_on=REFERENCE),
    Metric(
        "cmmd",
        "CMMD",
        better="lower",
        depends_on=REFERENCE,
        meaning="kernel distance from real images in features of CLIP; 0 is none",
    ),
    *distances("fid"),
    Metric(
        "fd_dinov2",
        "FD-DINOv2",
        better="lower",
        depends_on=REFERENCE,
        headline=True,
        meaning="distance from real images in features of DINOv2; tens are usual",
    ),
    *distances("fd_dinov2"),
    *distances("frechet_clip_l336"),
    *distances("frechet_lite0", headline=True),
    # Pairs of original and reconstruction.
    Metric(
        "psnr",
        "PSNR",
        unit="dB",
        better="higher",
        headline=True,
        meaning="closeness of reconstructed pixels; 20 is coarse, 30 is close",
    ),
    Metric(
        "ssim", "SSIM", better="higher", headline=True, meaning="likeness of structures in reconstructions; 1 is equal"
    ),
    Metric("ssim_range2", "SSIM of range 2, as published", better="higher"),
    Metric(
        "lpips",
        "LPIPS",
        better="lower",
        depends_on=LPIPS,
        headline=True,
        meaning="perceived difference of reconstructions; 0 for equal images",
    ),
    Metric("lpips_raw", "LPIPS of images that are not clamped", better="lower", depends_on=LPIPS),
    Metric("lpips_vgg", "LPIPS of VGG16", better="lower", depends_on=LPIPS),
    Metric("lpips_alex", "LPIPS of AlexNet", better="lower", depends_on=LPIPS),
    *readings(),
    Metric("t_acc", "T-ACC, words read exactly by another program", better="higher", depends_on=GIVEN, percent=True),
    Metric("t_ned", "T-NED, edit likeness of words read so", better="higher", depends_on=GIVEN, percent=True),
    # Codes.
    Metric(
        "codebook_usage",
        "codebook usage",
        better="higher",
        percent=True,
        headline=True,
        meaning="codes that occur in held-out images",
    ),
    Metric("codebook_usage_pooled", "codebook usage, groups pooled", better="higher", percent=True),
    Metric("codebook_perplexity", "codebook perplexity", better="higher"),
    Metric("distinct_codes", "distinct tokens", better="higher"),
    # A budget that the config sets, and no score: fewer bits are better only at equal quality.
    Metric("bits_per_image", "bits per image", headline=True, meaning="the budget of a reconstruction, not a score"),
    Metric("compression_ratio", "compression ratio"),
    # Generated images.
    Metric(
        "inception_score",
        "Inception Score",
        better="higher",
        depends_on=(*REFERENCE, "sample_order"),
        headline=True,
        meaning="generated images are distinct and varied; 1 is lowest",
    ),
    Metric(
        "inception_score_all",
        "Inception Score in one chunk",
        better="higher",
        depends_on=REFERENCE,
        meaning="the score of all images at once, whatever their order",
    ),
    Metric(
        "precision",
        "precision",
        better="higher",
        depends_on=REFERENCE,
        headline=True,
        meaning="generated images that lie among real ones",
    ),
    Metric(
        "recall",
        "recall",
        better="higher",
        depends_on=REFERENCE,
        headline=True,
        meaning="real images that generation covers",
    ),
    Metric("precision_fp16", "precision in emulated float16", depends_on=REFERENCE),
    Metric("recall_fp16", "recall in emulated float16", depends_on=REFERENCE),
    Metric(
        "label_agreement",
        "class accuracy",
        better="higher",
        depends_on=("classifier",),
        percent=True,
        headline=True,
        meaning="generated images in which a classifier sees the class that was asked for",
    ),
    Metric(
        "distinct",
        "distinct code sequences",
        better="higher",
        percent=True,
        headline=True,
        meaning="generated sequences that differ from each other",
    ),
    Metric(
        "memorized",
        "memorized code sequences",
        better="lower",
        depends_on=("training_codes",),
        percent=True,
        headline=True,
        meaning="generated sequences equal to the codes of a training image",
    ),
    Metric("seconds_per_image", "time per image", unit="s", better="lower"),
    Metric("decoding_share", "decoder's fraction of the time", percent=True),
    # GPTs and probes
    Metric(
        "best_guidance_scale",
        "best guidance scale",
        headline=True,
        meaning="the scale with the lowest distance in a search",
    ),
    Metric(
        "val_loss",
        "validation loss of the GPT",
        unit="nats",
        better="lower",
        headline=True,
        meaning="cross entropy per token of held-out images",
    ),
    Metric("val_loss_stderr", "standard error of the validation loss", unit="nats"),
    Metric(
        "val_loss_bound",
        "bound of the validation loss",
        unit="nats",
        better="lower",
        headline=True,
        meaning="of a masked generator, per token of held-out images: not to be compared with the loss of a GPT",
    ),
    Metric("val_loss_bound_stderr", "standard error of the bound of the validation loss", unit="nats"),
    Metric(
        "top1",
        "linear probe, top-1",
        better="higher",
        percent=True,
        headline=True,
        meaning="held-out images that a linear probe classifies correctly",
    ),
    Metric("top5", "linear probe, top-5", better="higher", percent=True),
    Metric("best_base_lr", "best base learning rate"),
    Metric("linear_probe_top1", "linear probe, top-1", better="higher", percent=True),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in BUILT_IN}


# ------------------------------------------------------------------------------------------------ questions
GROUP = re.compile(r"(?P<metric>.+)_group_(?P<group>\d+)")  # a metric of one group of the codebook
SCALE = re.compile(r"(?P<metric>.+)_scale_(?P<scale>\d+)")  # a metric of the tokens of one scale, by its cells per side
HEIGHT = re.compile(r"(?P<metric>.+)_(?P<height>\d+)")  # a reading of letters of one height

# What follows the name of a Frechet distance -> (what it says, whether it is ranked).
DISTANCE_PARTS = {
    "means": ("its part of the means", False),
    "covariances": ("its part of the covariances", False),
    "infinity": ("for infinitely many images", True),
    "infinity_subsets": ("for infinitely many images, by random subsets", True),
    "infinity_subsets_slope": ("its slope over 1/N of random subsets", False),
}


def find_metric(name: str) -> Metric | None:
    """The metric that a number of a result is, or None for an unknown name.

    A part, such as `codebook_usage_group_3`, `codebook_usage_scale_4` or `read_exact_8`, is the metric of the whole
    under its own name and title; so is a number that belongs to a Frechet distance, such as `gfid_infinity`.
    """
    if name in METRICS:
        return METRICS[name]
    for pattern, noun, unit in ((GROUP, "group", ""), (SCALE, "scale", ""), (HEIGHT, "height", " px")):
        part = pattern.fullmatch(name)
        whole = METRICS.get(part["metric"]) if part is not None else None
        if whole is not None and (noun != "height" or whole.depends_on == READBACK):
            return replace(whole, name=name, title=f"{whole.title}, {noun} {part[noun]}{unit}", headline=False)
    return _part_of_distance(name)


def _part_of_distance(name: str) -> Metric | None:
    """The metric of a number that belongs to a Frechet distance, or None."""
    for suffix, (text, is_ranked) in DISTANCE_PARTS.items():
        whole = METRICS.get(name.removesuffix(f"_{suffix}"))
        if whole is not None and name.endswith(f"_{suffix}"):
            better = whole.better if is_ranked else None
            return replace(whole, name=name, title=f"{whole.title}, {text}", better=better, headline=False, meaning="")
    return None


def title(name: str) -> str:
    """A metric's title with its unit, such as "PSNR, dB"; the name itself for an unknown one."""
    metric = find_metric(name)
    if metric is None:
        return name
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def meaning(name: str) -> str:
    """What a metric says and which direction is better, in a few words; empty for an unknown name."""
    metric = find_metric(name)
    if metric is None or not metric.meaning:
        return ""
    direction = f"; {metric.better} is better" if metric.better is not None else ""
    return f"{metric.meaning}{direction}"


def shown(name: str, value: float) -> str:
    """A value as people read it: fractions in percent, other numbers with four digits, without the unit."""
    metric = find_metric(name)
    return f"{value:.1%}" if metric is not None and metric.percent else f"{value:.4g}"


def headline_metrics() -> list[str]:
    """The metrics that a report shows on cards, in their order."""
    return [name for name, metric in METRICS.items() if metric.headline]


def sections_of(name: str) -> tuple[str, ...]:
    """The sections of a protocol that a number depends on and others do not; none for an unknown name."""
    metric = find_metric(name)
    return metric.depends_on if metric is not None else ()


def protocol_sections() -> set[str]:
    """The sections of a protocol that only some metrics depend on."""
    return {section for metric in METRICS.values() for section in metric.depends_on}


def metrics_to_compute(names: Sequence[str], kind: Kind) -> list[Metric]:
    """The metrics of plug-ins that `--metrics` asks for, in the order of the names.

    `kind` is the function that they need. Raises UserError for a name without such a function.
    """
    accepted = [name for name, metric in METRICS.items() if getattr(metric, kind) is not None]
    unknown = [name for name in names if name not in accepted]
    if unknown:
        choices = ", ".join(accepted) if accepted else "none; --plugin registers some"
        raise UserError(f"--metrics {unknown[0]} cannot be computed over {kind} here; choose one of: {choices}")
    return [METRICS[name] for name in dict.fromkeys(names)]
