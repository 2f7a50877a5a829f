"""engine/folder_lock.py: one process at a time, also where the file system has no locks."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace

import pytest

from engine import folder_lock
from engine.folder_lock import OWNER, STALE_SECONDS, FolderInUse, Owner, is_locked, lock_folder
from engine.loop import LoopConfig
from engine.messages import UserError
from engine.run_log import Run

fork = multiprocessing.get_context("fork")


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    """A file system without locks."""

    def lockf(file, flags):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "lockf", lockf)


def hold(folder, pipe):
    lock = lock_folder(folder)
    pipe.send("held")
    time.sleep(60)
    lock.release()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    ours.recv()
    yield process
    process.kill()
    process.join()


def leave_behind(folder, **changes) -> Owner:
    """The file of another owner."""
    owner = replace(Owner.this_process(), **changes)
    (folder / OWNER).write_text(json.dumps(asdict(owner)))
    return owner


def test_without_locks_a_folder_has_one_process(no_locks, tmp_path, holder):
    """A second one is refused with the name of the first; when that is killed, the folder is free at once."""
    assert is_locked(tmp_path)
    with pytest.raises(FolderInUse, match=rf"is in use by process {holder.pid} on .* \(last sign of life \d s ago\)"):
        lock_folder(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not is_locked(tmp_path)
    lock = lock_folder(tmp_path)
    assert is_locked(tmp_path) and json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    lock.release()
    assert not is_locked(tmp_path) and not (tmp_path / OWNER).exists()


def test_a_run_trains_without_locks(no_locks, tmp_path, world):
    """Regression: no training was possible. What another process is told names the key to change."""
    with Run(tmp_path / "run", LoopConfig(), world) as run:
        run.log("hello")
        with pytest.raises(UserError, match=r"run folder .* is in use by process .*; wait, or set loop.run_dir"):
            Run(tmp_path / "run", LoopConfig(), world)
    Run(tmp_path / "run", LoopConfig(), world).close()


def test_a_silent_owner_elsewhere_is_left_behind(no_locks, tmp_path, caplog):
    """A process of another machine cannot be asked; the clock is that of the file system."""
    leave_behind(tmp_path, host="node7")
    with pytest.raises(FolderInUse, match=r"on node7 .* wait until it has been silent for 120 s, or remove .*owner"):
        lock_folder(tmp_path)
    past = time.time() - STALE_SECONDS - 1
    os.utime(tmp_path / OWNER, (past, past))
    lock_folder(tmp_path).release()
    assert "on node7 was silent for 121 s; its lock is taken over" in caplog.text


@pytest.mark.parametrize("change", [{"boot": "before the restart"}, {"start": "1"}, {"pid": 2**22 + 1}])
def test_an_owner_here_that_has_ended_is_left_behind(no_locks, tmp_path, change):
    """However fresh its file is: another start of the machine, another process with its id, no process."""
    leave_behind(tmp_path, **change)
    assert not is_locked(tmp_path)
    lock_folder(tmp_path).release()


def test_the_owner_shows_that_it_lives(no_locks, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "RENEW_SECONDS", 0.02)
    lock = lock_folder(tmp_path)
    os.utime(tmp_path / OWNER, (0, 0))
    end = time.monotonic() + 10
    while (tmp_path / OWNER).stat().st_mtime == 0:
        assert time.monotonic() < end
        time.sleep(0.01)
    lock.release()


def test_a_mount_with_locks_respects_one_without(tmp_path):
    """The same folder, held through another mount; then the other way round."""
    leave_behind(tmp_path, host="node7")
    with pytest.raises(FolderInUse, match="node7"):
        lock_folder(tmp_path)
    (tmp_path / OWNER).unlink()
    lock = lock_folder(tmp_path)
    assert not (tmp_path / OWNER).exists()
    lock.release()


def test_other_errors_are_not_taken_for_a_system_without_locks(tmp_path, monkeypatch):
    def lockf(file, flags):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(OSError, match="broken disk"):
        lock_folder(tmp_path)
    assert not (tmp_path / OWNER).exists()


def test_a_reader_writes_nothing(no_locks, tmp_path):
    """It looks into runs of others, in folders that it may not be able to write."""
    leave_behind(tmp_path, host="node7")
    os.utime(tmp_path, (1, 1))
    assert is_locked(tmp_path)
    past = time.time() - STALE_SECONDS - 1
    os.utime(tmp_path / OWNER, (past, past))
    assert not is_locked(tmp_path)
    assert tmp_path.stat().st_mtime == 1  # nothing was created or removed, not even for a moment
