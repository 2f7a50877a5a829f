"""Foreign metrics: the mean absolute error of a pair, and the contrast of an image."""

from evaluations.metrics.registry import METRICS, Metric

METRICS["mean_error"] = Metric(
    "mean_error",
    "mean absolute error",
    better="lower",
    pairs=lambda reconstructions, originals: (reconstructions - originals).abs().mean((1, 2, 3)),
)
METRICS["contrast"] = Metric(
    "contrast", "contrast", better="higher", images=lambda images: images.float().std((1, 2, 3))
)
