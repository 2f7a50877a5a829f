"""engine/checkpoint: what is saved comes back, what is torn does not exist, and a failure leaves nothing behind."""

import logging
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import Thing, entries, flipped_byte, same, steps_of

from engine.atomic_file import write_atomic
from engine.checkpoint import store as checkpoint
from engine.checkpoint import training_state
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, find_damage, read_manifest
from engine.checkpoint.weights import read_weights


# ---------------------------------------------------------------------------------------------- round trip
def test_what_is_saved_comes_back_bitwise(thing, tmp_path, world):
    """Weights, optimizer, EMA and counters become those that were saved, and training goes on equally."""
    saved = thing.state()
    other = Thing(tmp_path / "run", world, seed=1)
    assert not same(saved, other.state())
    assert other.load() == 2
    assert same(saved, other.state())
    assert any("exp_avg" in name for name in saved) and any(name.startswith(".ema") for name in saved)
    thing.train(range(2, 5))
    other.train(range(2, 5))
    assert same(thing.state(), other.state())


def test_no_checkpoint_means_step_0(tmp_path, world):
    made = Thing(tmp_path / "run", world)
    before = made.state()
    assert made.load() == 0 and same(before, made.state())


def test_the_weights_lie_beside_the_state(thing, tmp_path):
    """`model.safetensors` and `ema.safetensors` hold the weights alone, config.yaml and the stamp travel with them."""
    thing.store.stamp = {"weights": "random"}
    folder = thing.save(3)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "ema.safetensors", "manifest.json", "model.safetensors", "state",
    ]  # fmt: skip
    assert same(read_weights(folder / "model.safetensors"), dict(thing.updater.module.state_dict()))
    assert same(read_weights(folder / "ema.safetensors"), dict(thing.updater.ema.state_dict()))
    assert read_manifest(folder)["stamp"] == {"weights": "random"}
    listed = set(read_manifest(folder)["files"])
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert listed == present - {"manifest.json"}
    assert find_damage(folder) is None


def test_the_newest_is_loaded(thing, tmp_path, world):
    """By number of steps, whatever the order on disk; numbers with more digits than usual are later."""
    thing.train(range(2, 3))
    newest = thing.state()
    thing.store.keep_last = 9
    thing.save(123_456_789)
    thing.train(range(3, 4))
    thing.save(99_999_999)
    other = Thing(tmp_path / "run", world)
    assert other.load() == 123_456_789 and same(newest, other.state())


# ---------------------------------------------------------------------------------------------- torn folders
def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def half_a_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def truncated_state(folder: Path) -> None:
    path = max((folder / "state").glob("*.distcp"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-10])


def missing_state(folder: Path) -> None:
    shutil.rmtree(folder / "state")


TEARS = [no_manifest, half_a_manifest, truncated_state, missing_state, flipped_byte]


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_folder_does_not_exist_for_a_resume(thing, tmp_path, world, tear, caplog):
    """The one before it is used; where a manifest promised more than there is, a warning says what is wrong."""
    saved = thing.state()
    thing.train(range(2, 4))
    tear(thing.save(4))
    other = Thing(tmp_path / "run", world, seed=1)
    with caplog.at_level(logging.WARNING):
        assert other.load() == 2
    assert same(saved, other.state())
    warned = "step_00000004 is damaged" in caplog.text and "the one before it" in caplog.text
    assert warned == (tear not in (no_manifest, half_a_manifest))


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_folder_is_written_again(thing, tmp_path, world, tear):
    """Regression: a run that came back to the step of a damaged checkpoint kept it, and was stuck there for ever."""
    thing.train(range(2, 4))
    tear(thing.save(4))
    other = Thing(tmp_path / "run", world)
    assert other.load() == 2
    other.train(range(2, 4))
    assert find_damage(other.save(4)) is None
    assert same(thing.state(), other.state()) and Thing(tmp_path / "run", world).load() == 4


def test_if_all_are_torn_the_run_starts_anew_with_a_warning(thing, tmp_path, world, caplog):
    flipped_byte(tmp_path / "run" / "checkpoints" / "step_00000002")
    with caplog.at_level(logging.WARNING):
        assert Thing(tmp_path / "run", world).load() == 0
    assert "model.safetensors" in caplog.text


# ---------------------------------------------------------------------------------------------- failing saves
def full_disk_in_state(monkeypatch):
    def fail(*args, **kwargs):
        (Path(kwargs["checkpoint_id"])).mkdir()
        (Path(kwargs["checkpoint_id"]) / "half").write_bytes(b"x" * 100)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state.dcp, "save", fail)


def full_disk_in_a_rank(monkeypatch):
    """As torch reports it: an exception that is no `Exception`, with a traceback in its text."""

    def fail(*args, **kwargs):
        from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise CheckpointException("write", {0: _wrap_exception(error)}) from error

    monkeypatch.setattr(training_state.dcp, "save", fail)


def full_disk_in_weights(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.checkpoint.weights.save_file", fail)


def full_disk_in_manifest(monkeypatch):
    def fail(path, text):
        path.write_text(text[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", fail)


def little_space(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1000))


def no_permission(monkeypatch):
    def fail(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", fail)


@pytest.mark.parametrize(
    "fault",
    [
        full_disk_in_state,
        full_disk_in_a_rank,
        full_disk_in_weights,
        full_disk_in_manifest,
        little_space,
        no_permission,
    ],
)
def test_a_failing_save_leaves_nothing_and_says_what_to_do(thing, tmp_path, world, fault, monkeypatch):
    """One message with the folder, the cause and the remedy; older checkpoints stay, and the run resumes from them."""
    thing.train(range(2, 4))
    with monkeypatch.context() as patched:
        fault(patched)
        with pytest.raises(CheckpointError) as caught:
            thing.save(4)
    message = str(caught.value)
    assert "step_00000004 could not be written" in message and "start the same command again" in message
    assert any(part in message for part in ("No space left", "MB free", "Permission denied"))
    assert "Traceback" not in message and len(message) < 500
    assert entries(tmp_path / "run") == ["step_00000002"]
    again = Thing(tmp_path / "run", world, seed=1)
    assert again.load() == 2
    again.train(range(2, 4))
    again.save(4)
    assert entries(tmp_path / "run") == ["step_00000002", "step_00000004"] and same(again.state(), thing.state())


@contextmanager
def file_size_limit(size: int):
    """The kernel itself refuses to write files above `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_refuses_is_told_the_same_way(tmp_path, world):
    """No simulation: torch's own writer meets a failing write in the middle of a file."""
    thing = Thing(tmp_path / "run", world, width=64)
    thing.save(1)
    with file_size_limit(4096), pytest.raises(CheckpointError) as caught:
        thing.save(2)
    assert "step_00000002 could not be written" in str(caught.value) and "Traceback" not in str(caught.value)
    assert entries(tmp_path / "run") == ["step_00000001"]
    thing.save(2)
    assert steps_of(tmp_path / "run") == [1, 2]


def test_a_bug_is_not_dressed_up_as_a_full_disk(thing, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise AttributeError("a bug")

    monkeypatch.setattr(training_state.dcp, "save", fail)
    with pytest.raises(AttributeError):
        thing.save(4)
    assert entries(tmp_path / "run") == ["step_00000002"]


def test_left_overs_of_a_killed_save_are_cleared(thing, tmp_path):
    """A process that died in the middle of a save leaves a hidden folder; the next save of that step replaces it."""
    torn = tmp_path / "run" / "checkpoints" / ".writing_step_00000004"
    (torn / "state").mkdir(parents=True)
    (torn / "state" / "old").write_bytes(b"x" * 1000)
    assert steps_of(tmp_path / "run") == [2]
    thing.save(4)
    assert entries(tmp_path / "run") == ["step_00000002", "step_00000004"]


def test_a_kill_while_an_old_one_is_removed_leaves_whole_ones_only(thing, tmp_path, monkeypatch):
    """Regression: its manifest outlived its files, or it its manifest, and then nothing ever removed the rest."""

    class Killed(BaseException):
        pass

    def rmtree(path, *args, **kwargs):
        if "step_00000002" in str(path):
            (Path(path) / "model.safetensors").unlink()
            raise Killed

    thing.store.keep_last = 1
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", rmtree)
        thing.save(3)
    folders = checkpoint_folders(tmp_path / "run")
    assert [f.name for f in folders] == ["step_00000003"] and find_damage(folders[0]) is None
    assert len(entries(tmp_path / "run")) == 2
    thing.save(4)
    assert entries(tmp_path / "run") == ["step_00000004"]


def test_the_manifest_is_written_last(thing, tmp_path, monkeypatch):
    """Every other file is complete and on disk when the manifest appears; the final name appears after it."""
    seen = {}
    real = checkpoint.write_atomic

    def watch(path, text):
        seen["files"] = {str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file()}
        seen["synced"] = set(synced)
        seen["final"] = (tmp_path / "run" / "checkpoints" / "step_00000003").exists()
        real(path, text)

    synced = []
    sync = checkpoint.sync_to_disk
    monkeypatch.setattr(checkpoint, "sync_to_disk", lambda path: (synced.append(path.name), sync(path)))
    monkeypatch.setattr(checkpoint, "write_atomic", watch)
    folder = thing.save(3)
    assert seen["files"] == set(read_manifest(folder)["files"]) and not seen["final"]
    assert {Path(name).name for name in seen["files"]} <= seen["synced"]


def test_write_atomic_keeps_the_old_text_on_failure(tmp_path):
    path = tmp_path / "note.json"
    write_atomic(path, "old" * 5000)
    with file_size_limit(4096), pytest.raises(OSError):
        write_atomic(path, "new" * 5000)
    assert path.read_text() == "old" * 5000
