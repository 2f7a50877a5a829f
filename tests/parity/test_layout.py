"""The golden folder is used in full: no part that it holds is passed over."""

import gigatok_tokenizers
import goldens
import gpts
import llamagen_tokenizers
import pytest
import test_units

TOKENIZERS = {"gigatok": gigatok_tokenizers, "llamagen": llamagen_tokenizers}
WETOK = ("quantizer", "tokenizer", "ar", "misc")  # cases begin so; test_wetok_*.py compare all of them
PRESENT = [system for system in TOKENIZERS if (goldens.ROOT / system).is_dir()]


def compared(system: str) -> set[str]:
    """The cases of a system that some test compares, as `tiny/tok1d`."""
    tokenizers = TOKENIZERS[system]
    cases = {f"{system}/tiny/{c}" for c in tokenizers.tiny_cases()}
    cases |= {f"{system}/real_seeded/{c}" for c in tokenizers.full_cases()}
    cases |= {f"{folder}/{c}" for folder, c in (*gpts.tiny_cases(), *gpts.full_cases())} | set(test_units.UNITS)
    return {c.removeprefix(f"{system}/") for c in cases if c.startswith(f"{system}/")}


@pytest.mark.parametrize("system", PRESENT)
def test_every_case_of_a_part_is_compared(system):
    """A part that is there has at least one case, and none that no test knows."""
    root = goldens.ROOT / system
    there = {str(path.relative_to(root).with_suffix("")) for path in root.glob("*/*.json")}
    assert there, f"{root} holds no case"
    assert there == compared(system)


@pytest.mark.parametrize("root", [path for path in [goldens.ROOT / "wetok"] if path.is_dir()])
def test_every_case_of_wetok_is_compared(root):
    """Names of the files tell what they hold."""
    there = {path.stem for path in root.glob("*/*.json")}
    assert there and there == {case for prefix in WETOK for case in goldens.cases("wetok/tiny", prefix)}


def test_a_stride_is_read_from_the_note_or_found():
    """`strided` keeps elements 0, n, 2n, ... of each axis."""
    x = goldens.torch.arange(24).view(4, 6)
    assert goldens.strided(x, x[::2, ::3]).tolist() == x[::2, ::3].tolist()
    assert goldens.strided(x, x[:, ::5], "every 5th column").tolist() == x[:, ::5].tolist()
