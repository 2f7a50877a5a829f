"""Frechet distance, precision and recall, and features of Inception, against their usual formulations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.assets import AssetsConfig
from evaluations.benchmarks.cases import ALLOWED, OURS, Case, Measurable, Row, Target, compared
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.timing import added_memory
from evaluations.metrics.frechet import Gaussian, frechet_distance
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.precision_recall import NEIGHBOR, precision_recall

DIM = InceptionExtractor.dim
ROOT_DIM = 512  # features whose matrix square root takes a second
SETS = {"quick": (500, 1000), "default": (1500, 3000), "long": (1500, 3000)}  # reference images, samples
WHOLE_SETS = (10_000, 50_000)  # of a published evaluation
MAX_MIB = 1e9 / 2**20  # that precision and recall may add
IMAGES = {"quick": 1, "default": 4, "long": 8}
IMAGE_FLOPS = 11.4e9  # of Inception at 299 pixels: two per multiplication and addition

EIGENVALUES = "eigenvalues of A B, as torch-fidelity"
ROOT = "matrix square root of A B, by scipy"
TABLES = "whole tables of distances"
CONTIGUOUS = "torch-fidelity's forward pass, contiguous"
PRODUCTS = "its matrix products alone, at the machine's limit"


# ------------------------------------------------------------------------------------------------ usual forms
def distance_by_eigenvalues(a: Gaussian, b: Gaussian) -> float:
    """The Frechet distance with the trace of (A B)^1/2 from the eigenvalues of A B, which is not symmetric."""
    values = np.linalg.eigvals(a[1] @ b[1])
    return _distance(a, b, np.sqrt(values.astype(np.complex128)).real.sum())


def distance_by_root(a: Gaussian, b: Gaussian) -> float:
    """The Frechet distance as first published: with the matrix square root of A B."""
    from scipy.linalg import sqrtm

    return _distance(a, b, float(np.trace(sqrtm(a[1] @ b[1]).real)))


def _distance(a: Gaussian, b: Gaussian, cross: float) -> float:
    """The distance of two Gaussians from the trace of (A B)^1/2."""
    difference = a[0] - b[0]
    return float(difference @ difference + np.trace(a[1]) + np.trace(b[1]) - 2 * cross)


def tables_precision_recall(reference: Tensor, samples: Tensor) -> tuple[float, float]:
    """Precision and recall of samples (n,D) against reference features (m,D), with three whole tables of distances."""
    reference_radii = torch.cdist(reference, reference).kthvalue(NEIGHBOR + 1).values
    sample_radii = torch.cdist(samples, samples).kthvalue(NEIGHBOR + 1).values
    distances = torch.cdist(samples, reference)
    precision = (distances <= reference_radii).any(1).double().mean()
    recall = (distances <= sample_radii[:, None]).any(0).double().mean()
    return precision.item(), recall.item()


# ------------------------------------------------------------------------------------------------ inputs
def gaussian(dim: int, seed: int) -> Gaussian:
    """The statistics of more features than their size: a regular covariance."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((dim + dim // 4, dim))
    return features.mean(0), np.cov(features, rowvar=False)


def features_of(count: int, seed: int, device: torch.device) -> Tensor:
    """`count` rows like pool features: not negative."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator).relu().to(device)


# ------------------------------------------------------------------------------------------------ rows
@dataclass(frozen=True)
class WholeEvaluation:
    """Precision and recall of as many images as a published evaluation has, once: minutes on a CPU."""

    reference: int
    samples: int
    name: str = "precision and recall of a whole evaluation"

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        # Time, then memory, which is measured in a process of one thread. The first run moves the samples in place, and
        # the second one moves them by as good as nothing.
        reference, samples = features_of(self.reference, 0, device), features_of(self.samples, 1, device)
        start = time.perf_counter()
        precision_recall(reference, samples)
        seconds = time.perf_counter() - start
        added = added_memory(lambda: precision_recall(reference, samples), device)

        # Against the products that it cannot do without, and against a gigabyte.
        least = limits.seconds("gemm", _distance_flops(self.reference, self.samples))
        row: Row = {
            "name": self.name,
            "seconds": {OURS: seconds, PRODUCTS: least},
            "spread": 0.0,
            "against": PRODUCTS,
            "time": compared(Target("at most", 1.3), seconds, least),
            "share_of_limit": {"value": least / seconds},
            "facts": {"reference images": self.reference, "samples": self.samples},
            "where_missed": "sums, comparisons and the nearest four pass over every tile of distances too",
        }
        if added is not None:
            row["mib"] = {OURS: added, ALLOWED: MAX_MIB}
            row["memory"] = compared(Target("at most", 1.0), added, MAX_MIB)
        return row


def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The rows of all metrics that take time."""
    if device.type == "cpu":  # the distance is computed on the host in any case
        yield _frechet_case(ROOT_DIM if size == "quick" else DIM, EIGENVALUES, Target("at most", 0.6))
        yield _frechet_case(ROOT_DIM, ROOT, None)
    yield _manifold_case(*SETS[size], device)
    yield _inception_case(IMAGES[size], device)
    if size == "long":
        yield WholeEvaluation(*WHOLE_SETS)


def _frechet_case(dim: int, against: str, target: Target | None) -> Case:
    """A distance of regular covariances. Float64 has half the rate of float32."""
    a, b = gaussian(dim, 0), gaussian(dim, 1)
    plain = {EIGENVALUES: distance_by_eigenvalues, ROOT: distance_by_root}[against]
    flops = (1 / 3 + 2 + 2 + 4 / 3) * dim**3  # decomposition, two products, reduction to three diagonals
    return Case(
        f"Frechet distance, {dim:,} features, against the {against.split(',')[0]}",
        {OURS: lambda: frechet_distance(a, b), against: lambda: plain(a, b)},
        against=against,
        target=target,
        least_work={"gemm": 2 * flops},
        facts={"relative difference": abs(frechet_distance(a, b) / plain(a, b) - 1)},
    )


def _manifold_case(num_reference: int, num_samples: int, device: torch.device) -> Case:
    """Precision and recall."""
    reference, samples = features_of(num_reference, 0, device), features_of(num_samples, 1, device)
    return Case(
        f"precision and recall, {num_reference:,} x {num_samples:,} images",
        {
            OURS: lambda: precision_recall(reference, samples.clone()),  # it moves the samples
            TABLES: lambda: tables_precision_recall(reference, samples),
        },
        against=TABLES,
        least_work={"gemm": _distance_flops(num_reference, num_samples)},
        limit_target=Target("at least", 1 / 1.3),
        where_missed="products of these sizes do not reach the rate of square ones",
    )


def _distance_flops(num_reference: int, num_samples: int) -> float:
    """Operations of the products behind all distances within both sets and between them."""
    return 2.0 * DIM * (num_reference**2 + num_samples**2 + num_reference * num_samples)


def _inception_case(count: int, device: torch.device) -> Case:
    """Features of images, with seeded weights."""
    extractor = InceptionExtractor(AssetsConfig(random_stand_in=True)).to(device)
    images = torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8, device=device)
    network = extractor.network.network

    def contiguous() -> object:
        with torch.inference_mode():
            return network(images)

    return Case(
        f"features of Inception, {count} image(s)",
        {OURS: lambda: extractor(images), CONTIGUOUS: contiguous},
        against=CONTIGUOUS,
        least_work={"convolution": count * IMAGE_FLOPS},
    )
