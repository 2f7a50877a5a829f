"""The list of held-out images: which files of a folder are kept for validation, by name.

    # lines that begin with `# `, and empty lines, are for people
    cat/0012.png
    dog/harbor.jpg

Names are relative to `data.root`, with `/` between folders. `python -m evaluations.init` writes such a list, so that no
copy of a held-out image is trained on; it may be edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from engine.data.images import printable
from engine.data.listing import is_folder
from engine.messages import UserError

COMMENT = "# "
SHOWN_NAMES = 3  # of a message


def read_held_out(path: str | Path) -> list[str]:
    """The names of a list. Raises UserError where it cannot be read, or names nothing."""
    if is_folder(path):
        raise UserError(f"data.held_out={str(path)!r} is a folder; it names a text file with one image per line")
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"data.held_out={str(path)!r} cannot be read: {error.strerror}") from error
    names = [line for line in text.splitlines() if line.strip() and not line.startswith(COMMENT)]
    if not names:
        raise UserError(f"data.held_out={str(path)!r} names no image; write one per line, relative to data.root")
    return names


def held_out_text(names: Iterable[str], comments: Sequence[str]) -> bytes:
    """The content of a list, with lines for people above it; the names must be `listable`."""
    lines = [*(COMMENT + comment for comment in comments), *names]
    return ("\n".join(lines) + "\n").encode("utf-8", errors="surrogateescape")


def listable(name: str) -> bool:
    """Whether a line can hold the name of a file: it may have line breaks, or look like a comment."""
    return name.splitlines() == [name] and bool(name.strip()) and not name.startswith(COMMENT)


def are_held_out(names: Sequence[str], path: str | Path, folder: str) -> np.ndarray:
    """Which of the images `names` of a folder are listed in the file `path`: bool (len(names),).

    Raises UserError for listed names that the folder does not have.
    """
    listed = set(read_held_out(path))
    is_listed = np.fromiter((name in listed for name in names), dtype=bool, count=len(names))
    if int(is_listed.sum()) < len(listed):
        missing = sorted(listed.difference(names))
        shown = ", ".join(printable(name) for name in missing[:SHOWN_NAMES])
        more = f" and {len(missing) - SHOWN_NAMES:,} more" if len(missing) > SHOWN_NAMES else ""
        raise UserError(
            f"data.held_out={str(path)!r} lists images that are not in {folder}: {shown}{more}; "
            "put them back, or remove their lines"
        )
    return is_listed
