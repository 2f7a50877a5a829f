"""All numbers of a pair of feature tables, by groups that --numbers names.

A group says which metrics it gives, why it cannot give them, and computes them. A metric that is not there is listed
as unavailable with the reason; it is never given a value that stands for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from engine.messages import logger
from evaluations.metrics.blocks import NUM_BLOCKS, NUM_FOLDS, block_numbers, block_order, equal_blocks_of, stored_order
from evaluations.metrics.cmmd import SIGMA, cmmd_jackknife
from evaluations.metrics.copying import copying_z
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.frechet import Gaussian
from evaluations.metrics.frechet_jackknife import frechet_jackknife, infinity_problem, infinity_warning
from evaluations.metrics.frechet_subsets import NUM_SIZES, fd_infinity_subsets
from evaluations.metrics.intervals import of_images
from evaluations.metrics.kid import MIN_BLOCKS, NUM_SUBSETS, SUBSET_SEED, kid_blocks, kid_subsets, num_kid_blocks
from evaluations.metrics.manifold import MANIFOLD_NAMES, MAX_IMAGES, NEIGHBOR, expected_coverage, manifold_folds
from evaluations.metrics.memorization import QUANTILE, memorization
from evaluations.metrics.mind import MAX_IMAGES as MIND_IMAGES
from evaluations.metrics.mind import NUM_DIRECTIONS, SEED, mind_jackknife
from evaluations.metrics.registry import number_name
from evaluations.protocols.accumulators import Measurement

MANIFOLD_METRICS = {"precision": "precision_k5", "recall": "recall_k5", "density": "density", "coverage": "coverage"}


@dataclass(frozen=True)
class FeatureTables:
    """What numbers are computed of. Tables are float32 (images, D), on the device that computes."""

    extractor: Extractor
    distance: str  # the name of the Frechet distance of these sets
    generated: Tensor  # the images that are measured
    reference_moments: Gaussian  # of all reference images
    reference: Tensor | None  # features of reference images; None: there are only moments
    reference_kind: str  # train or val
    held_out: Tensor | None = None  # features of images that are neither measured nor training images
    reference_reason: str = ""  # why there are no features of the reference

    @cached_property
    def order(self) -> Tensor:
        """The seeded order of the measured images, of which blocks and folds are parts."""
        return block_order(len(self.generated)).to(self.generated.device)

    @cached_property
    def reference_order(self) -> Tensor:
        """The seeded order of the reference images."""
        return block_order(len(self.reference)).to(self.reference.device)

    @property
    def smaller(self) -> int:
        """The number of images of the smaller set."""
        return min(len(self.generated), len(self.reference))

    def name(self, number: str) -> str:
        """The key of a number of this extractor in a result."""
        return number_name(number, self.extractor.metric)

    def few_images(self, least: int) -> str | None:
        """Why the sets do not suffice for numbers of `least` images each; None where they do."""
        if self.reference is None:
            return self.reference_reason
        if self.smaller >= least:
            return None
        return f"each set needs {least} or more images, the smaller has {self.smaller}"


@dataclass(frozen=True)
class NumberGroup:
    """Some numbers that are computed together."""

    meaning: str  # for --help
    names: Callable[[FeatureTables], list[str]]  # the metrics that it gives
    problem: Callable[[FeatureTables], str | None]  # why it gives none
    compute: Callable[[FeatureTables], Measurement]
    is_default: bool = True
    reads_held_out: bool = False  # whether it reads the images of --held-out


def feature_numbers(tables: FeatureTables, groups: Iterable[str]) -> Measurement:
    """The numbers of the named groups; what cannot be computed is `unavailable`, with the reason."""
    measurement = Measurement()
    for name in groups:
        group = GROUPS[name]
        problem = group.problem(tables)
        if problem is None:
            measurement.add(group.compute(tables))
        else:
            measurement.unavailable |= dict.fromkeys(group.names(tables), problem)
    return measurement


# ------------------------------------------------------------------------------------------------ Frechet distances
def _frechet_names(tables: FeatureTables) -> list[str]:
    return [f"{tables.distance}_{part}" for part in ("means", "covariances", "infinity")]


def _frechet_problem(tables: FeatureTables) -> str | None:
    count = len(tables.generated)
    least = 2 * NUM_BLOCKS
    return None if count >= least else f"{NUM_BLOCKS} blocks need {least} or more images, these are {count}"


def _frechet(tables: FeatureTables) -> Measurement:
    """The error of the distance, whose value is there already; its terms, and the one for infinitely many images."""
    measurement = Measurement()
    estimates = frechet_jackknife(tables.generated, tables.reference_moments, tables.order)
    measurement.errors[tables.distance] = estimates.distance
    measurement.add_estimate(f"{tables.distance}_means", estimates.means)
    measurement.add_estimate(f"{tables.distance}_covariances", estimates.covariances)

    # Extrapolated only where there are enough images.
    name = f"{tables.distance}_infinity"
    size = tables.generated.shape
    problem = infinity_problem(*size)
    if problem is not None:
        measurement.unavailable[name] = problem
        return measurement
    warning = infinity_warning(*size)
    if warning is not None:
        logger.warning("%s: %s", name, warning)
    measurement.add_estimate(name, estimates.infinity, form=f"jackknife of {NUM_BLOCKS} blocks")
    return measurement


def _infinity_problem(tables: FeatureTables) -> str | None:
    return infinity_problem(*tables.generated.shape)


def _infinity_subsets(tables: FeatureTables) -> Measurement:
    line = fd_infinity_subsets(tables.generated, tables.reference_moments)
    name = f"{tables.distance}_infinity_subsets"
    definition = {"form": f"line through {NUM_SIZES} random subsets", "seed": 0}
    return Measurement({name: line.intercept, f"{name}_slope": line.slope}, definitions={name: definition})


# ------------------------------------------------------------------------------------------------ kernels, projections
def _sizes(tables: FeatureTables) -> dict[str, int]:
    """The numbers of images of both sets, for definitions."""
    return {"reference_images": len(tables.reference), "measured_images": len(tables.generated)}


def _kid(tables: FeatureTables) -> Measurement:
    num_blocks = num_kid_blocks(len(tables.reference), len(tables.generated))
    orders = tables.reference_order, tables.order
    estimate = kid_blocks(tables.reference, tables.generated, *orders, num_blocks)
    measurement = Measurement()
    measurement.add_estimate(tables.name("kid"), estimate, form=f"{num_blocks} disjoint blocks", **_sizes(tables))
    return measurement


def _kid_subsets(tables: FeatureTables) -> Measurement:
    kid = kid_subsets(tables.reference, tables.generated)
    name = tables.name("kid_subsets")
    form = f"{NUM_SUBSETS} random subsets of {kid.subset_size}"
    definition = {"form": form, "seed": SUBSET_SEED, **_sizes(tables)}
    return Measurement({name: kid.mean, f"{name}_std": kid.std}, definitions={name: definition})


def _mind(tables: FeatureTables) -> Measurement:
    count = min(MIND_IMAGES, tables.smaller) // NUM_BLOCKS * NUM_BLOCKS
    blocks = [
        [rows[: count // NUM_BLOCKS] for rows in equal_blocks_of(order, NUM_BLOCKS)]
        for order in (tables.reference_order, tables.order)
    ]
    measurement = Measurement()
    measurement.add_estimate(
        tables.name("mind"),
        mind_jackknife(tables.reference, tables.generated, *blocks),
        images=count, directions=NUM_DIRECTIONS, seed=SEED, **_sizes(tables),
    )  # fmt: skip
    return measurement


def _cmmd_problem(tables: FeatureTables) -> str | None:
    if "cmmd" not in tables.extractor.capabilities:
        return "it is defined in the features of CLIP; this is another extractor"
    return tables.few_images(2 * NUM_BLOCKS)


def _cmmd(tables: FeatureTables) -> Measurement:
    estimate = cmmd_jackknife(tables.reference, tables.generated, tables.order)
    measurement = Measurement()
    measurement.add_estimate("cmmd", estimate, form="biased, as published", sigma=SIGMA, **_sizes(tables))
    return measurement


# ------------------------------------------------------------------------------------------------ nearest neighbors
def _manifold_names(tables: FeatureTables) -> list[str]:
    return [tables.name(MANIFOLD_METRICS[number]) for number in MANIFOLD_NAMES]


def _manifold(tables: FeatureTables) -> Measurement:
    """Of up to 10,000 images of each set, the first in its seeded order."""
    rows, samples = tables.reference_order[:MAX_IMAGES], tables.order[:MAX_IMAGES]
    reference, generated = tables.reference[rows], tables.generated[samples]
    orders = (stored_order(len(part)).to(part.device) for part in (reference, generated))  # of rows in random order
    estimates, duplicates = manifold_folds(reference, generated, *orders)

    definition = {
        "k": NEIGHBOR,
        "comparison": "<",
        "reference_images": len(reference),
        "measured_images": len(generated),
    }
    measurement = Measurement()
    for number, estimate in estimates.items():
        more = {}
        if number == "coverage":
            more["of_equal_laws"] = expected_coverage(len(reference), len(generated))
        measurement.add_estimate(tables.name(MANIFOLD_METRICS[number]), estimate, **definition, **more)
    measurement.metrics[tables.name("reference_duplicates")] = duplicates.reference
    measurement.metrics[tables.name("measured_duplicates")] = duplicates.generated
    if duplicates.reference:
        logger.warning(
            "%d reference images have %d or more exact copies: no image lies in their balls",
            duplicates.reference, NEIGHBOR,
        )  # fmt: skip
    return measurement


# ------------------------------------------------------------------------------------------------ copies
COPY_METRICS = ("authpct", "authpct_held_out", "closer_than_held_out", "copying_z")


def _copies_problem(tables: FeatureTables) -> str | None:
    if tables.reference is None:
        return tables.reference_reason
    if tables.reference_kind != "train":
        return f"copies are looked for among training images; the reference is of kind {tables.reference_kind}"
    if tables.held_out is None:
        return "its scale is its value for held-out images: name them with --held-out"
    return tables.few_images(2)


def _copies(tables: FeatureTables) -> Measurement:
    numbers = memorization(tables.reference, tables.held_out, tables.generated)
    definition = {"training_images": len(tables.reference), "held_out_images": len(tables.held_out)}
    blocks = block_numbers(len(tables.generated)).numpy()
    measurement = Measurement()
    authentic = of_images(100 * numbers.is_authentic.numpy(), blocks)
    measurement.add_estimate(tables.name("authpct"), authentic, **definition)
    measurement.metrics[tables.name("authpct_held_out")] = numbers.authpct_held_out
    closer = of_images(numbers.is_close.numpy(), blocks)
    measurement.add_estimate(tables.name("closer_than_held_out"), closer, quantile=QUANTILE, **definition)
    z = copying_z(tables.reference, tables.held_out, tables.generated)
    measurement.metrics[tables.name("copying_z")] = z
    measurement.definitions[tables.name("copying_z")] = {"cells": 1, **definition}
    return measurement


# ------------------------------------------------------------------------------------------------ the groups
GROUPS: dict[str, NumberGroup] = {  # for --numbers
    "frechet": NumberGroup(
        "error and terms of the Frechet distance, and the distance for infinitely many images",
        _frechet_names,
        _frechet_problem,
        _frechet,
    ),
    "kid": NumberGroup(
        "KID over disjoint blocks",
        lambda tables: [tables.name("kid")],
        lambda tables: tables.few_images(2 * MIN_BLOCKS),
        _kid,
    ),
    "mind": NumberGroup(
        "Monge Inception Distance",
        lambda tables: [tables.name("mind")],
        lambda tables: tables.few_images(2 * NUM_BLOCKS),
        _mind,
    ),
    "manifold": NumberGroup(
        f"precision, recall, density and coverage with {NEIGHBOR} neighbors",
        _manifold_names,
        lambda tables: tables.few_images((NEIGHBOR + 1) * NUM_FOLDS),
        _manifold,
    ),
    "cmmd": NumberGroup("CMMD, in the features of CLIP", lambda tables: ["cmmd"], _cmmd_problem, _cmmd),
    "copies": NumberGroup(
        "AuthPct and other numbers of copied training images; needs --held-out",
        lambda tables: [tables.name(name) for name in COPY_METRICS],
        _copies_problem,
        _copies,
        reads_held_out=True,
    ),
    "kid_subsets": NumberGroup(
        "KID over random subsets, as torch-fidelity",
        lambda tables: [tables.name("kid_subsets")],
        lambda tables: tables.few_images(2),
        _kid_subsets,
        is_default=False,
    ),
    "infinity_subsets": NumberGroup(
        "distance for infinitely many images by a line through random subsets, as dgm-eval",
        lambda tables: [f"{tables.distance}_infinity_subsets"],
        _infinity_problem,
        _infinity_subsets,
        is_default=False,
    ),
}
DEFAULT_GROUPS = tuple(name for name, group in GROUPS.items() if group.is_default)
