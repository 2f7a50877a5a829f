"""`check_code_c2i.sh`: all codes are read, and some images are encoded again."""

import shutil

import numpy as np
import pytest
import tiny

from autoregressive import check_codes
from autoregressive.codes import CodeStore
from tokenizer import load_tokenizer


@pytest.fixture
def store(codes, tmp_path):
    """A copy of codes that may be damaged."""
    return shutil.copytree(codes[0], tmp_path / "codes")


def change(path, place, value) -> None:
    array = np.load(path)
    array[place] = value
    np.save(path, array)


def test_sound_codes_are_described(entry, store):
    """Both splits: the codes in use, repeated images, images per class."""
    change(store / "train" / "codes.npy", 3, np.load(store / "train" / "codes.npy")[5])
    code, _, err = entry(check_codes.main, "--code-path", store)
    assert code == 0, err
    held = CodeStore(store, "train")
    used = len(np.unique(held.codes)) / 16
    per_class = np.bincount(held.labels)
    expected = (
        f"{used:.1%} of the codes in use; 1 images repeat another; {per_class.min()} to {per_class.max()} per class"
    )
    assert expected in err and f"{store / 'val'}: 12 x 2 x 4" in err and "are sound" in err


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        ("codes.npy", (7, 1, 2), 16, "is damaged: image 7 has the code [16] of 16"),
        ("labels.npy", 2, 9, "has labels from 0 to 9; there are 2 classes"),
    ],
)
def test_a_value_that_cannot_be_is_found(entry, store, file, place, value, message):
    """Wherever it stands: opening the codes does not read it."""
    change(store / "val" / file, place, value)
    CodeStore(store, "val")
    code, _, err = entry(check_codes.main, "--code-path", store)
    assert code == 2 and message in err and err.count("error: ") == 1


def test_codes_of_other_images_are_found(entry, codes, tmp_path):
    """Of another number of images, and of as many that are others."""
    tokenizer = ["--vq-ckpt", codes[1], "--device", "cpu", "--num-images", "8"]
    code, _, err = entry(check_codes.main, "--code-path", codes[0], *tokenizer)
    assert code == 2 and "has codes of 12 images, but" in err and "has 24" in err
    tiny.write_codes(tmp_path / "codes", load_tokenizer(codes[1]).provenance.fingerprint, num_images=24)
    code, _, err = entry(check_codes.main, "--code-path", tmp_path / "codes", *tokenizer)
    assert code == 2 and "% of the codes are those that" in err and "files have changed" in err


def test_codes_of_another_tokenizer_are_refused(entry, codes, tmp_path):
    tiny.write_codes(tmp_path / "codes", "0" * 64)
    code, _, err = entry(check_codes.main, "--code-path", tmp_path / "codes", "--vq-ckpt", codes[1], "--device", "cpu")
    assert code == 2 and "holds codes of another tokenizer" in err
