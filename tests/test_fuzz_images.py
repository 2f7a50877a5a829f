"""Changed image files give a picture, or one error that names the file: the short form of tests/fuzz/images.py."""

import subprocess

import pytest
from fuzz.image_files import seed_files
from fuzz.images import Fuzz
from PIL import Image

from engine.data.images import ImageError, read_image

CASES = 600


@pytest.fixture
def fuzz(tmp_path):
    return Fuzz(tmp_path, seed=20)


@pytest.mark.filterwarnings("ignore")
def test_a_changed_image_file_gives_a_picture_or_one_error(fuzz):
    """Every seed, then changed ones; decoders of all kinds still give pictures."""
    for case in range(len(fuzz.seeds) + CASES):
        fuzz.run(case)
    assert not fuzz.wrong, "\n".join(fuzz.wrong)
    assert {kind for kind, _ in fuzz.outcomes} >= set(Image.OPEN)
    assert len({kind for kind, outcome in fuzz.outcomes if outcome == "picture"}) >= 25


def test_the_fuzz_notices_other_errors_and_other_sizes(fuzz, monkeypatch):
    """Otherwise it would show nothing."""
    png = next(case for case, (kind, _) in enumerate(fuzz.seeds) if kind == "PNG")
    monkeypatch.setattr("fuzz.images.read_image", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in fuzz.run(png)
    monkeypatch.setattr("fuzz.images.read_image", lambda *_: Image.new("RGB", (5, 5)))
    assert "wrong: RGB of (5, 5)" in fuzz.run(png) and len(fuzz.wrong) == 2


def test_no_decoder_calls_another_program(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, also where the name says .jpg."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_: pytest.fail("a program is called"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: pytest.fail("Ghostscript is looked for"))
    path = tmp_path / "a.jpg"
    path.write_bytes(next(content for kind, content in seed_files() if kind == "EPS"))
    with pytest.raises(ImageError, match=r"a\.jpg is not a readable image \(its content is of no known image format\)"):
        read_image(path)
