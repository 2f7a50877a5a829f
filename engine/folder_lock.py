"""One process at a time in a folder, on every file system.

    lock = lock_folder(folder)      # raises FolderInUse if another process holds it
    ...
    lock.release()

Where the file system has locks, the system holds one on `.lock` and frees it however the process ends. Some have none
(Lustre without `flock`, several FUSE and object stores). There `.lock_owner` is created, which only one process can
do. It names its owner (machine, process, start), and a thread renews it. It counts as left behind if its owner was a
process of this machine that is gone, or if nobody has renewed it for STALE_SECONDS.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from engine.json_text import to_json
from engine.messages import UserError, logger

LOCK = ".lock"  # what the system locks
OWNER = ".lock_owner"  # stands for the lock where the system has none
RENEW_SECONDS = 15.0
STALE_SECONDS = 120.0
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # of a system without locks
HELD = {errno.EAGAIN, errno.EACCES}  # of a lock that another process has


class FolderInUse(UserError):
    """Another process works in this folder."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder."""

    host: str
    boot: str  # of the machine, as a process id means nothing after a restart
    pid: int
    start: str  # when the process began, as its id may be given again
    token: str  # unique to this lock

    @classmethod
    def this_process(cls) -> Owner:
        """The owner that this process would be."""
        return cls(socket.gethostname(), _boot_id(), os.getpid(), _start_of(os.getpid()), uuid.uuid4().hex)

    def is_gone(self) -> bool:
        """Whether this is certain: it was a process of this machine, which has ended."""
        if self.host != socket.gethostname():
            return False
        return self.boot != _boot_id() or _start_of(self.pid) != self.start


class FolderLock:
    """A folder that this process holds."""

    def __init__(self, folder: Path, file: TextIO | None) -> None:
        self._file = file  # the file that the system locks; None where `.lock_owner` stands for it
        self._path = folder / OWNER
        self._owner: Owner | None = None
        self._released = threading.Event()
        if file is None:
            self._owner = _create(self._path)
            threading.Thread(target=self._renew, daemon=True).start()

    @property
    def is_of_system(self) -> bool:
        """Whether the file system holds the lock; otherwise a file stands for it."""
        return self._file is not None

    def release(self) -> None:
        """Frees the folder."""
        self._released.set()
        if self._file is not None:
            self._file.close()
        elif self._owner is not None and _read(self._path) == self._owner:
            self._path.unlink()

    def _renew(self) -> None:
        """Shows that the owner lives, until the folder is free."""
        while not self._released.wait(RENEW_SECONDS):
            if _read(self._path) != self._owner:
                logger.error("%s was taken by another process, which may write into this folder", self._path)
                return
            os.utime(self._path)


def lock_folder(folder: Path) -> FolderLock:
    """Locks a folder that exists.

    Unlike `flock`, `lockf` does not share the lock with loader processes, which may outlive a killed run for seconds.

    Raises FolderInUse if another process holds it, OSError if the folder cannot be written.
    """
    file = (folder / LOCK).open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in HELD:
            raise FolderInUse(f"folder {folder} is in use by another process") from error
        if error.errno not in NO_LOCKS:
            raise
        logger.info("%s: the file system has no locks; %s stands for one", folder, OWNER)
        file = None

    # A machine that sees the same folder through another mount may hold it the other way.
    try:
        _refuse_if_owned(folder)
        return FolderLock(folder, file)
    except BaseException:
        if file is not None:
            file.close()
        raise


def is_locked(folder: Path) -> bool:
    """Whether a process holds a folder. It writes nothing there."""
    if (folder / LOCK).is_file():
        with (folder / LOCK).open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in HELD:
                    return True
                if error.errno not in NO_LOCKS:
                    raise
    owner = _read(folder / OWNER)
    if owner is None or owner.is_gone():
        return False

    # By the clock of this machine: a reader writes nothing, and may not be able to.
    try:
        return time.time() - (folder / OWNER).stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:  # released meanwhile
        return False


# ------------------------------------------------------------------------------------------------ the owner's file
def _create(path: Path) -> Owner:
    """Creates the file of an owner, which fails for all but one."""
    owner = Owner.this_process()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(to_json(asdict(owner)))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise FolderInUse(f"folder {path.parent} is in use by another process, which came first") from error
    return owner


def _read(path: Path) -> Owner | None:
    """The owner that a file names; None if there is no such file. One that is being written belongs to nobody known."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Owner("unknown", "", 0, "", "")


def _age(path: Path) -> float:
    """Seconds since a file was renewed, by the clock of its file system, which may not be that of this machine."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _refuse_if_owned(folder: Path) -> None:
    """Raises FolderInUse if an owner's file is there and not left behind; removes one that is."""
    path = folder / OWNER
    owner = _read(path)
    if owner is None:
        return
    age = _age(path)
    if not owner.is_gone() and age < STALE_SECONDS:
        raise FolderInUse(
            f"folder {folder} is in use by process {owner.pid} on {owner.host} (last sign of life {age:.0f} s ago). If "
            f"that one is dead, wait until it has been silent for {STALE_SECONDS:.0f} s, or remove {path}"
        )

    # Renamed first: of several processes that come here, one gets the file that all of them have judged.
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError as error:
        raise FolderInUse(f"folder {folder} is in use by another process, which came first") from error
    taken = _read(aside)
    if taken != owner:
        aside.rename(path)
        raise FolderInUse(f"folder {folder} is in use by another process, which came first")
    aside.unlink()
    why = "has ended" if owner.is_gone() else f"was silent for {age:.0f} s"
    logger.warning("%s: process %d on %s %s; its lock is taken over", folder, owner.pid, owner.host, why)


# ------------------------------------------------------------------------------------------------ processes
def _boot_id() -> str:
    """What changes when the machine restarts; empty where Linux does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process of this machine began; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "alive" if _is_alive(pid) else ""


def _is_alive(pid: int) -> bool:
    """Whether a process exists, also where there is no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
