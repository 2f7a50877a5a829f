"""The metrics that compare sets of images: distances, Inception Score, and numbers of single features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engine.messages import logger
from engine.world import World
from evaluations.metrics.blocks import NUM_BLOCKS, NUM_FOLDS, block_order
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.frechet_jackknife import frechet_jackknife
from evaluations.metrics.intervals import of_folds
from evaluations.metrics.manifold import manifold_of_folds
from evaluations.metrics.precision_recall import NEIGHBOR, precision_recall
from evaluations.metrics.registry import distance_name
from evaluations.protocols.accumulators import Measurement
from evaluations.protocols.feature_numbers import FeatureTables, feature_numbers
from evaluations.protocols.reference import Reference
from evaluations.protocols.trust import KINDS

MANIFOLD_METRICS = ("precision", "recall")  # ADM's; need features of single images


def pool_distance(statistics: FeatureStatistics, reference: Reference, world: World) -> float:
    """Frechet distance of pool features. A collective: every rank calls it."""
    return frechet_distance(statistics.pool.merged(world).gaussian(), reference.pool)


def published_name(extractor: Extractor, measured: str, kind: str) -> str:
    """The name of the distance of a `generation` or `reconstruction` to a reference of a kind.

    Gfid, rfid and other published names only where extractor and reference are those of the published numbers.
    """
    is_usual_kind = kind == KINDS[measured]
    if is_usual_kind and extractor.published_distance is not None and extractor.has_published_weights:
        return extractor.published_distance
    return distance_name(extractor.metric, measured, is_usual_kind and "published" in extractor.capabilities)


def compute_metrics(
    statistics: FeatureStatistics,
    reference: Reference,
    world: World,
    measured: str,
    numbers: Sequence[str] = (),
    with_manifold: bool = True,
    emulate_fp16: bool = False,
    held_out: Tensor | None = None,
) -> Measurement:
    """All metrics of images that are a `generation` or a `reconstruction`.

    A collective: every rank calls it. `numbers` are groups of `evaluations.protocols.feature_numbers`. `with_manifold`
    asks for ADM's precision and recall; `emulate_fp16` adds them in emulated float16. All of these need features of
    single images. `held_out`: features of further images, for numbers of copies.
    """
    extractor = statistics.extractor
    name = published_name(extractor, measured, reference.facts["kind"])
    measurement = Measurement({name: pool_distance(statistics, reference, world)})

    # Over streamed statistics.
    if statistics.spatial is not None and reference.spatial is not None:
        spatial = statistics.spatial.merged(world).gaussian()
        measurement.metrics["sfid"] = frechet_distance(spatial, reference.spatial)
    if statistics.score is not None:
        _add_scores(measurement, statistics, world)

    # What was not asked for is not missing.
    measurement.unavailable |= {
        metric: reason
        for metric, reason in reference.missing.items()
        if with_manifold or metric not in MANIFOLD_METRICS
    }
    if statistics.features is None:
        return measurement

    # Over the features of single images, which every rank has; the main rank's numbers are written.
    features = statistics.all_features(world).to(world.device)
    spatial_features = statistics.all_spatial_features(world) if "sfid" in measurement.metrics else None
    if not world.is_main:
        return measurement
    tables = FeatureTables(
        extractor=extractor,
        distance=name,
        generated=features,
        reference_moments=reference.pool,
        reference=reference.features.to(world.device) if reference.features is not None else None,
        reference_kind=reference.facts["kind"],
        held_out=held_out.to(world.device) if held_out is not None else None,
        reference_reason=reference.no_features,
    )
    measurement.add(feature_numbers(tables, numbers))
    if "frechet" in numbers and spatial_features is not None and len(features) >= 2 * NUM_BLOCKS:
        estimates = frechet_jackknife(spatial_features, reference.spatial, block_order(len(spatial_features)))
        measurement.errors["sfid"] = estimates.distance
    if with_manifold and tables.reference is not None:
        _add_manifold(measurement, tables, emulate_fp16)
    return measurement


def _add_scores(measurement: Measurement, statistics: FeatureStatistics, world: World) -> None:
    """The Inception Score over chunks, and of all images at once. A collective: every rank calls it."""
    measurement.metrics["inception_score"] = statistics.score.value(world)
    if statistics.count >= 2 * NUM_BLOCKS:
        chunked, of_all = statistics.score.without_blocks(world)
        measurement.errors["inception_score"] = chunked
        measurement.add_estimate("inception_score_all", of_all)

    # Also where nobody has told the classes.
    problem = statistics.score.order_problem(world)
    if problem is not None:
        measurement.definitions["inception_score"] = {"order": problem}
        if world.is_main:
            logger.warning("the images are %s", problem)


def _add_manifold(measurement: Measurement, tables: FeatureTables, emulate_fp16: bool) -> None:
    """ADM's precision and recall of all images, with errors from folds. It moves the features in place: it is last."""
    pair = tables.reference, tables.generated
    if tables.smaller <= NEIGHBOR:
        reason = f"they need more than {NEIGHBOR} images in each set"
        measurement.unavailable |= dict.fromkeys(MANIFOLD_METRICS, reason)
        return

    folds = []
    if tables.smaller >= (NEIGHBOR + 1) * NUM_FOLDS:
        folds = manifold_of_folds(*pair, tables.reference_order, tables.order, NEIGHBOR, strict=False)
    if emulate_fp16:
        fp16 = precision_recall(*pair, emulate_fp16=True)
        measurement.metrics |= {f"{name}_fp16": value for name, value in zip(MANIFOLD_METRICS, fp16, strict=True)}
    for name, value in zip(MANIFOLD_METRICS, precision_recall(*pair), strict=True):
        measurement.metrics[name] = value
        if folds:
            measurement.errors[name] = of_folds(value, [getattr(fold, name) for fold in folds])
