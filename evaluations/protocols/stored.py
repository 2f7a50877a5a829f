"""The rules of a published evaluation for images that another program has stored: as far as they still apply.

Scores, features and networks are those of the rules. Crop and rounding were that program's: the 8 bits of the files
count as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from evaluations.image_sets import AS_STORED
from evaluations.metrics.extractor import Extractor
from evaluations.protocols.reconstruction import ReconstructionProtocol, Score

STORED_ROUNDING = "uint8 as stored"  # in results


class StoredImages(ReconstructionProtocol):
    """See the module docstring."""

    crop_name = AS_STORED
    rounding = STORED_ROUNDING

    def __init__(self, rules: ReconstructionProtocol) -> None:
        self.rules = rules
        self.name = rules.name
        self.resize_name = rules.resize_name
        self.lpips_backbones = rules.lpips_backbones

    def to_uint8(self, images: Tensor) -> Tensor:
        """Floats that `engine.data.images.to_float` made of 8 bits -> exactly these."""
        return ((images + 1) * 127.5).round().to(torch.uint8)

    def features(self, extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
        return self.rules.features(extractor, images)

    def scores(self, lpips: Mapping[str, nn.Module]) -> dict[str, Score]:
        """The scores of the rules, but for those of floats beyond the range: no file has any."""
        return {name: s for name, s in self.rules.scores(lpips).items() if name not in self.rules.unclamped_scores}

    def missing_scores(self, lpips: Mapping[str, nn.Module]) -> dict[str, str]:
        """{score of the rules that stored images cannot have: why}."""
        reason = "it is of floats beyond the range of 8 bits, which no stored image has"
        return {name: reason for name in self.rules.scores(lpips) if name in self.rules.unclamped_scores}

    def problems(self, extractor: Extractor | None, reference: str) -> Iterator[str]:
        return self.rules.problems(extractor, reference)
