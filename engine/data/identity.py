"""What a data set is, cheaply and without reading pixels: for checkpoints and codes, which must not change theirs.

The order of samples is a function of their number, and a label is the rank of a class. A run that goes on with a file
more or a class less is another run from there on. `facts_of` describes a set as plain values for JSON, `changes`
names what is different. Where the files lie does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engine.checkpoint.manifest import CheckpointError
from engine.data.base import ImageSource, class_counts
from engine.messages import logger

Facts = Mapping[str, Any]
SHOWN_CHANGES = 6


@runtime_checkable
class Described(Protocol):
    """A source that can say what it holds beyond classes and numbers."""

    def contents(self) -> dict[str, str]:
        """Digests by what they are of, such as `names of files`; equal on every machine."""


def digest_of(parts: Iterable[bytes]) -> str:
    """A short SHA-256 of parts in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def int64_bytes(*columns: np.ndarray) -> Iterator[bytes]:
    """The bytes of columns as int64, one after the other, in pieces: a column of a large set is mapped, not read."""
    for column in columns:
        for start in range(0, len(column), 2**20):
            yield column[start : start + 2**20].astype(np.int64).tobytes()


def digest_of_columns(*columns: np.ndarray) -> str:
    """`digest_of` all bytes of the columns as one part, without holding them."""
    digest = hashlib.sha256((8 * sum(map(len, columns))).to_bytes(8, "little"))
    for piece in int64_bytes(*columns):
        digest.update(piece)
    return digest.hexdigest()[:16]


def facts_of(source: ImageSource) -> dict[str, Any]:
    """Number of images, images per class by name, and what the source says of its contents."""
    counts = class_counts(source.labels, len(source.class_names)).tolist()
    facts = {
        "images": len(source),
        "classes": dict(zip(map(str, source.class_names), counts, strict=True)),
    }
    if isinstance(source, Described):
        facts["contents"] = source.contents()
    return facts


def changes(before: Facts, now: Facts) -> list[str]:
    """What differs between the facts of a data set then and now, one line each; empty = the same."""
    lines = []
    if before["images"] != now["images"]:
        lines.append(f"{before['images']:,} images then, {now['images']:,} now")

    # Classes, then the images of those that stayed.
    old, new = before["classes"], now["classes"]
    lines += [f"class {name!r} is gone ({old[name]:,} images)" for name in old if name not in new]
    lines += [f"class {name!r} is new ({new[name]:,} images)" for name in new if name not in old]
    shared = [name for name in old if name in new]
    lines += [
        f"class {name!r} had {old[name]:,} images, now {new[name]:,}" for name in shared if old[name] != new[name]
    ]
    if not lines and list(old) != list(new):
        lines.append("the classes stand in another order")

    # Digests that only one side knows say nothing.
    old, new = before.get("contents", {}), now.get("contents", {})
    lines += [f"other {name}" for name in old if name in new and old[name] != new[name]]
    return lines


def text_of(lines: list[str]) -> str:
    """Changes as one line of a message."""
    more = f"; and {len(lines) - SHOWN_CHANGES} more" if len(lines) > SHOWN_CHANGES else ""
    return "; ".join(lines[:SHOWN_CHANGES]) + more


def require_same(before: Mapping[str, Facts] | None, now: Mapping[str, Facts], where: str, accept: bool) -> None:
    """Compares the data sets of a checkpoint `where`, by split, with those of a run that continues it.

    A split that only one of them has is said, and is no change: held-out images may be added, or no longer measured. A
    change that is accepted, and a checkpoint that does not know its data, are said.

    Raises CheckpointError for a change that is not accepted.
    """
    # Without data on both sides, nothing can be compared.
    if not now:
        return
    if before is None:
        logger.warning("%s, of an older version, does not say which data it was trained on: not compared", where)
        return

    # Splits of one side only.
    for split in before.keys() - now.keys():
        logger.warning("%s had %s images, this run names none: not compared", where, split)
    for split in now.keys() - before.keys():
        logger.warning("%s had no %s images, this run has: not compared", where, split)

    # Splits of both.
    lines = [f"{split}: {line}" for split in before if split in now for line in changes(before[split], now[split])]
    if not lines:
        return
    if not accept:
        raise CheckpointError(
            f"the data changed since {where}: {text_of(lines)}; restore it, start a new run in another loop.run_dir, "
            "or continue with the changed data (data.accept_changed=true)"
        )
    logger.warning("the data changed since %s: %s; accepted (data.accept_changed=true)", where, text_of(lines))
