"""The metrics that compare sets of images: Frechet distances, Inception Score, precision and recall."""

from __future__ import annotations

from engine.world import World
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.precision_recall import NEIGHBOR, precision_recall
from evaluations.metrics.registry import distance_name
from evaluations.protocols.accumulators import Measurement
from evaluations.protocols.reference import Reference
from evaluations.protocols.trust import KINDS

MANIFOLD_METRICS = ("precision", "recall")  # need features of single images


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
    statistics: FeatureStatistics, reference: Reference, world: World, measured: str, emulate_fp16: bool = False
) -> Measurement:
    """All metrics of images that are a `generation` or a `reconstruction`.

    A collective: every rank calls it. Precision and recall need features of both sets; `emulate_fp16` adds them in
    emulated float16.
    """
    extractor = statistics.extractor
    name = published_name(extractor, measured, reference.facts["kind"])
    metrics = {name: pool_distance(statistics, reference, world)}

    if statistics.spatial is not None and reference.spatial is not None:
        metrics["sfid"] = frechet_distance(statistics.spatial.merged(world).gaussian(), reference.spatial)
    if statistics.score is not None:
        metrics["inception_score"] = statistics.score.value(world)

    # What was not asked for is not missing.
    asked_for_manifolds = statistics.features is not None
    missing = {
        metric: reason
        for metric, reason in reference.missing.items()
        if asked_for_manifolds or metric not in MANIFOLD_METRICS
    }
    if not asked_for_manifolds or reference.features is None:
        return Measurement(metrics, missing)

    features = statistics.all_features(world)
    if min(len(features), len(reference.features)) <= NEIGHBOR:
        missing |= dict.fromkeys(MANIFOLD_METRICS, f"they need more than {NEIGHBOR} images in each set")
        return Measurement(metrics, missing)

    # The exact ones come last: they move the features in place.
    pair = reference.features.to(world.device), features.to(world.device)
    if emulate_fp16:
        metrics["precision_fp16"], metrics["recall_fp16"] = precision_recall(*pair, emulate_fp16=True)
    metrics["precision"], metrics["recall"] = precision_recall(*pair)
    return Measurement(metrics, missing)
