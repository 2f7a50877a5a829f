"""What a kill at the start of an extraction leaves behind."""

import numpy as np
import pytest
import tiny

from autoregressive import code_writer
from autoregressive.codes import CodesError, CodeStore


@pytest.mark.parametrize("killed_at", ["create_array", "write_atomic"])
def test_an_extraction_killed_while_it_makes_its_arrays_continues(tmp_path, monkeypatch, killed_at):
    """Regression: the folder was taken for one of somebody else. While arrays are made, and while the first note is."""

    class Killed(Exception):
        pass

    def dying(path, *args):
        (path.parent / f".{path.stem}.123{path.suffix}").touch()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(code_writer, killed_at, dying)
        with pytest.raises(Killed):
            tiny.write_codes(tmp_path / "codes", "abc")
    with pytest.raises(CodesError):
        CodeStore(tmp_path / "codes", "train")

    for name in ("codes", "whole"):
        tiny.write_codes(tmp_path / name, "abc")
    codes, whole = (CodeStore(tmp_path / name, "train") for name in ("codes", "whole"))
    assert np.array_equal(codes.codes, whole.codes) and np.array_equal(codes.labels, whole.labels)


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "codes" / "train").mkdir(parents=True)
    (tmp_path / "codes" / "train" / "notes.txt").write_text("mine")
    with pytest.raises(CodesError, match="is not empty and holds no extraction"):
        tiny.write_codes(tmp_path / "codes", "abc")
