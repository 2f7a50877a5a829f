"""How a number of a paper was measured, as one frozen record, and in which facts a measurement here differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.assets import AssetError, AssetsConfig, assets_of, find_asset
from engine.facts import changed_facts
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS

Measured = Literal["generation", "reconstruction", "any"]

CHANGED = "+changed"  # behind the name of a preset that was not followed in every fact
PUBLISHED_WEIGHTS = "published"  # what every preset says of the weights of its extractor
BY_NAME = ("k", "comparison")  # precision and recall of each kind are measured, under names of their own


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published way to measure. A fact that is None is the user's to choose, or is not known."""

    name: str  # for --protocol
    title: str  # whose numbers are measured so
    measured: Measured

    # The images.
    crop: str | None  # of the originals
    image_size: int | None  # pixels, of what is measured
    rounding: str | None  # how floats become 8 bits
    label_rule: str | None  # how classes of generated images are chosen
    count: int | None  # images to measure

    # Their features, and what they are compared with.
    extractor: str  # in EXTRACTORS
    resize: str  # to the input of the extractor
    reference_kind: str | None  # train, val or test
    reference: str  # in words
    k: int | None  # neighbor of precision and recall
    comparison: str | None  # of a distance with that of the neighbor
    repeats: int = 1  # whole measurements, of which the smallest value is reported

    # What stands behind the record.
    rules: str | None = None  # its rules for reconstructions, in PROTOCOLS
    note: str = ""  # what a reader should know
    verified: bool = False  # compared with results of the published program, on seeded weights
    reason: str  # by which test it was verified, or why it was not
    missing: str = ""  # what of it is not computed here; such a preset is unavailable

    def facts(self) -> dict[str, Any]:
        """What a measurement is compared with, key by key."""
        facts = {
            "measured": None if self.measured == "any" else self.measured,
            "crop": self.crop,
            "image_size": self.image_size,
            "rounding": self.rounding,
            "label_rule": self.label_rule,
            "count": self.count,
            "extractor": self.extractor,
            "weights": PUBLISHED_WEIGHTS,
            "resize": self.resize,
            "reference_kind": self.reference_kind,
            "k": self.k,
            "comparison": self.comparison,
            "repeats": self.repeats,
        }
        return {name: fact for name, fact in facts.items() if fact is not None}

    def flags(self) -> dict[str, Any]:
        """{name of a flag: value} of all flags that the commands of evaluations have and the preset sets."""
        flags = {
            "measured": None if self.measured == "any" else self.measured,
            "extractor": self.extractor,
            "reference_kind": self.reference_kind,
            "image_size_eval": self.image_size,
            "labels": self.label_rule,
            "num_fid_samples": self.count,
        }
        return {name: value for name, value in flags.items() if value is not None}

    def unavailable(self, assets: AssetsConfig) -> str | None:
        """Why the preset cannot be followed here: a part that is missing, or a file of weights; None if it can."""
        if self.missing:
            return self.missing
        try:
            for asset in assets_of(EXTRACTORS[self.extractor]):
                find_asset(asset, assets)
        except AssetError as error:
            return str(error)
        return None

    def record(self, assets: AssetsConfig) -> dict[str, Any]:
        """All of it as plain values for JSON, with `unavailable` (a reason, or null)."""
        return {**asdict(self), "unavailable": self.unavailable(assets)}

    def followed_by(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """The section `preset` of a result: the name, and what is different in a measurement with the facts `run`.

        Facts that a measurement cannot know, such as the crop of files from elsewhere, are not in `run`: they are
        listed as `not_known`.
        """
        facts = {name: fact for name, fact in self.facts().items() if name not in BY_NAME}
        known = {name: run[name] for name in facts if name in run}
        changed = changed_facts({name: facts[name] for name in known}, known)
        section: dict[str, Any] = {"name": f"{self.name}{CHANGED}" if changed else self.name}
        if changed:
            section["changed"] = list(changed.values())
        not_known = [name for name in facts if name not in run]
        if not_known:
            section["not_known"] = not_known
        return section


def differences(first: Preset, second: Preset) -> list[str]:
    """The line "key: value, then value" of every fact in which two presets differ."""
    return list(changed_facts(first.facts(), second.facts()).values())


def weights_fact(extractor: Extractor) -> str:
    """What is known of the weights of an extractor: published, random, or where they came from."""
    return PUBLISHED_WEIGHTS if extractor.has_published_weights else extractor.stamp


def extractor_name(extractor: Extractor) -> str:
    """The name of an extractor in its registry; that of its distances for one that is not there."""
    return next((name for name, kind in EXTRACTORS.items() if type(extractor) is kind), extractor.metric)
