"""Files that are written as a whole or not at all, by any number of writers."""

import os
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine import atomic_file as module
from engine.atomic_file import atomic_file, write_atomic


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "note.json"
    write_atomic(path, "old")
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyError
    assert path.read_text() == "old" and names(tmp_path) == ["note.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """Each has a file of its own: the last one wins, as a whole. With one name the second one found no file."""
    path = tmp_path / "note.json"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == ["note.json"]  # the outer one ends last

    texts = [str(number) * 20_000 for number in range(4)]
    threads = [threading.Thread(target=lambda t=t: [write_atomic(path, t) for _ in range(10)]) for t in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_text() in (*texts, "first")
    assert path.read_text() in texts and names(tmp_path) == ["note.json"]


def test_the_name_has_the_process_and_the_suffix(tmp_path):
    with atomic_file(tmp_path / "a.b.npz") as temporary:
        assert temporary.name.startswith(f".a.b.{os.getpid()}-") and temporary.suffix == ".npz"
        np.savez(temporary, x=np.arange(3))  # would add the suffix to any other name
    assert np.load(tmp_path / "a.b.npz")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    """Also where a library lets nobody else read its files."""
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "note.json", "text")
        with atomic_file(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
    finally:
        os.umask(before)
    for name in ("note.json", "a.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_the_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    sync = module.sync_to_disk

    def watch(path):
        synced.append(path.read_text())
        assert not (tmp_path / "note.json").exists()
        sync(path)

    monkeypatch.setattr(module, "sync_to_disk", watch)
    write_atomic(tmp_path / "note.json", "text")
    assert synced == ["text"] and (tmp_path / "note.json").read_text() == "text"
