"""Files that are there as a whole or not at all: written under another name, synced, then renamed.

A crash, a full disk or a power cut leaves either the old content or the new one. Two processes that write the same file
do not touch each other's: the last one wins, as a whole.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_to_disk(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on disk and would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def writer_token() -> str:
    """A word that no other writer has: the number of this process, for people, and a random part, because machines that
    share a disk share numbers.
    """
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def temporary_path(path: Path, token: str) -> Path:
    """The hidden file beside `path` of one writer. It keeps the suffix, by which libraries know the format."""
    return path.with_name(f".{path.stem}.{token}{path.suffix}")


@contextmanager
def atomic_file(path: Path, token: str | None = None) -> Iterator[Path]:
    """The path under which the body writes the file `path`, in any way: at its end it gets the name `path`.

    Where the body raises, the file is removed and `path` stays as it was. The folder must be there. The mode is that of
    any new file, what the umask of the user leaves, also where a library is stricter. `token`: that of several
    processes which write one file together, of which one enters this; by default one of its own.
    """
    temporary = temporary_path(path, token or writer_token())
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        sync_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Writes a small text file as UTF-8, as a whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
