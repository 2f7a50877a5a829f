"""The notebook of the documentation runs from first to last, with the models that come with the program."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"


def shape_of(cell) -> tuple[list[str], bool]:
    """What a code cell gives: the kinds of its outputs in order and whether a picture is among them."""
    kinds = [output.output_type for output in cell.outputs]
    pictures = any("image/png" in output.get("data", {}) for output in cell.outputs)
    return kinds, pictures


def test_the_tour_runs_and_shows_what_is_stored(tmp_path, monkeypatch):
    """Every cell ends without an error, and gives prints and pictures where the stored notebook shows them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    stored = nbformat.read(TOUR, as_version=4)
    fresh = nbformat.read(TOUR, as_version=4)
    NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    code_cells = [(a, b) for a, b in zip(stored.cells, fresh.cells, strict=True) if a.cell_type == "code"]
    assert len(code_cells) >= 6
    for before, after in code_cells:
        assert shape_of(before) == shape_of(after), before.source
    assert sum(shape_of(cell)[1] for cell, _ in code_cells) >= 6
