"""Feature extractors by name. Only numbers of `inception` may be called FID, sFID or Inception Score."""

from __future__ import annotations

from evaluations.metrics.clip import CLIPExtractor
from evaluations.metrics.dinov2 import DINOv2Extractor, EDM2Extractor
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.inception_resizes import AntialiasedInception, PillowInception, TorchInception
from evaluations.metrics.lite0 import Lite0Extractor

EXTRACTORS: dict[str, type[Extractor]] = {
    "clip_l336": CLIPExtractor,
    "dinov2_l": DINOv2Extractor,
    "dinov2_l_edm2": EDM2Extractor,
    "efficientnet_lite0": Lite0Extractor,
    "inception": InceptionExtractor,
    "inception_antialias": AntialiasedInception,
    "inception_pillow": PillowInception,
    "inception_torch": TorchInception,
}
FILE_EXTRACTOR = "inception"  # the default where the reference is a file in ADM's layout
OFFLINE_EXTRACTOR = "efficientnet_lite0"  # the default where the reference is images of the data


def extractors_with(capability: str) -> list[str]:
    """The names of the extractors that have a capability; see `Extractor`."""
    return [name for name, extractor in EXTRACTORS.items() if capability in extractor.capabilities]
