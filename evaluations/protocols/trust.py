"""Which numbers are not worth printing: distances of too few images, or against a reference that does not fit.

The covariance of n feature vectors has rank n - 1 at most. Below feature dimension + 1 images it is singular, and the
Frechet distance depends more on n than on the images; it stays biased up to tens of thousands (arXiv:1911.07023).

Every entry that measures against a reference asks `require_trust` before it computes anything. What is computed all
the same (`--force`) is stamped: `forced` in the facts of the reference, and beside the numbers in the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engine.messages import UserError, logger
from evaluations.metrics.extractor import Extractor

KINDS = {"generation": "train", "reconstruction": "val"}  # what is measured -> the kind of its reference
FEW_IMAGES = 10_000  # below this number a distance is told to be rough
FORCED = "forced"  # the fact of a reference that lists what was forced

# The flags that accept a doubt.
FORCE = "--force"
FORCE_REFERENCE = "--force-reference"  # accepts a reference of the wrong kind only


class Doubt(NamedTuple):
    """A reason why a number should not be trusted, and the flags that accept it."""

    reason: str
    flags: tuple[str, ...] = (FORCE,)


def add_force_flag(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds the flag that accepts all doubts."""
    parser.add_argument(FORCE, action="store_true", help=help)


def add_force_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that accept doubts about a measurement."""
    add_force_flag(
        parser,
        "compute numbers that should not be trusted (too few images, a reference that does not fit); "
        "they are marked as forced wherever they are shown",
    )
    parser.add_argument(
        FORCE_REFERENCE, action="store_true", help="accept a reference of the wrong kind, and nothing else"
    )


def least_images(extractor: Extractor) -> int:
    """The smallest number of images whose covariances can have full rank."""
    return max(extractor.dim, extractor.spatial_dim or 0) + 1


# ------------------------------------------------------------------------------------------------ doubts
def count_doubts(name: str, count: int | str, extractor: Extractor) -> Iterator[Doubt]:
    """A doubt about a set of `count` images, which may be unknown; `name` says which set."""
    least = least_images(extractor)
    if isinstance(count, int) and count < least:
        yield Doubt(f"{name}: {count} images, fewer than {least} (feature dimension {least - 1}, plus 1)")


def reference_doubts(
    facts: Mapping[str, Any], measured: str, image_size: int | None, extractor: Extractor
) -> Iterator[Doubt]:
    """Doubts about a reference with these facts, for images of `image_size` pixels (None: of several sizes)."""
    yield from count_doubts("reference", facts["num_images"], extractor)
    rank = facts.get("covariance_rank", extractor.dim)
    if rank < extractor.dim:
        yield Doubt(f"reference: its covariance has rank {rank} of {extractor.dim}, as that of {rank + 1} images")

    reference_size = facts.get("image_size")
    if reference_size not in (None, image_size):
        yield Doubt(f"reference: images of {reference_size} px, those to measure have {image_size} px")

    # Only published numbers have a kind of reference that they are published with.
    expected = KINDS[measured]
    if "published" in extractor.capabilities and facts["kind"] != expected:
        where = facts.get("file") or facts.get("data")
        reason = f"a {measured} is measured against a reference of kind {expected}, this one is {facts['kind']}"
        yield Doubt(f"{reason} ({where})", (FORCE, FORCE_REFERENCE))


# ------------------------------------------------------------------------------------------------ the rule
def accepted_doubts(
    facts: Mapping[str, Any],
    args: argparse.Namespace,
    measured: str,
    num_images: int | str,
    image_size: int | None,
    extractor: Extractor,
) -> list[Doubt]:
    """The doubts about numbers of `num_images` images against the reference with `facts`, all accepted by the flags.

    `measured` is `generation` or `reconstruction`; a count that is not known is text. Raises UserError that lists the
    doubts which the flags do not accept.
    """
    doubts = [
        *count_doubts(f"the {measured} to measure", num_images, extractor),
        *reference_doubts(facts, measured, image_size, extractor),
    ]
    flags = {flag for flag, is_given in ((FORCE, args.force), (FORCE_REFERENCE, args.force_reference)) if is_given}
    refused = [doubt for doubt in doubts if not flags.intersection(doubt.flags)]
    if refused:
        raise UserError(untrusted_message(refused))
    return doubts


def require_trust(
    facts: dict[str, Any],
    args: argparse.Namespace,
    measured: str,
    num_images: int,
    image_size: int | None,
    extractor: Extractor,
) -> None:
    """Checks that numbers of `num_images` images against the reference with `facts` can be trusted; accepted doubts
    become the list `forced` of `facts`. Arguments and Raises as of `accepted_doubts`.
    """
    doubts = accepted_doubts(facts, args, measured, num_images, image_size, extractor)
    if doubts:
        facts[FORCED] = [doubt.reason for doubt in doubts]
        logger.warning("forced; these numbers should not be trusted: %s", "; ".join(facts[FORCED]))
    counts = {f"{measured} to measure": num_images, "reference": facts["num_images"]}
    few = [f"{name} {count}" for name, count in counts.items() if isinstance(count, int) and count < FEW_IMAGES]
    if few and not doubts:
        logger.warning(
            "fewer than %d images (%s): a Frechet distance is biased upwards; compare it only with numbers of as many",
            FEW_IMAGES, ", ".join(few),
        )  # fmt: skip


def untrusted_message(doubts: Sequence[Doubt]) -> str:
    """All doubts as one message, with the flags that accept all of them."""
    flags = [flag for flag in (FORCE, FORCE_REFERENCE) if all(flag in doubt.flags for doubt in doubts)]
    advice = f"to compute them all the same, marked as forced: {' or '.join(flags)}"
    return "\n  ".join(["these numbers could not be trusted:", *(doubt.reason for doubt in doubts), advice])
