"""tests/parity takes any golden folder of the layout: no name, case or size of our own one is wired into it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from other_goldens import write_other_goldens

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("goldens")
    write_other_goldens(root)
    return root


def outcomes(folder: Path, names: str) -> dict[str, str]:
    """{test: PASSED or FAILED} of the files test_<name>.py of tests/parity over `folder`."""
    files = [f"tests/parity/test_{name}.py" for name in names.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PARITY_GOLDENS": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*?::(\S+)", done.stdout, re.MULTILINE)
    assert lines, done.stdout + done.stderr
    return {test: outcome for outcome, test in lines}


def test_another_folder_is_compared_in_full(folder):
    """Other cases and optional names, parts left out, a GPT whose first index is not the widest one."""
    names = "wetok_tokenizer wetok_training wetok_gpt wetok_evaluation tokenizer baseline_tokenizers gpt layout units"
    names += " baseline_generators"
    seen = outcomes(folder, names)
    assert set(seen.values()) == {"PASSED"}, [test for test, outcome in seen.items() if outcome != "PASSED"]
    compared = {
        "test_images_codes_and_images_again[tokenizer_b-oblong/]",
        "test_three_training_steps[tokenizer_b]",
        "test_teacher_forced_logits_loss_and_gradients[ar_uneven]",
        "test_greedy_tokens_with_and_without_guidance[ar_uneven]",
        "test_tiny_tokenizer_output_is_that_of_the_released_code[llamagen-tok_c-oblong_rec_from_decode_code]",
        "test_outputs_are_those_of_the_published_code[ibq/tiny_seeded-small]",
        "test_outputs_are_those_of_the_published_code[ibq/tiny_seeded-generator]",
    }
    assert compared <= seen.keys()


@pytest.mark.slow
def test_a_wrong_value_under_an_optional_name_is_found(folder, tmp_path):
    """Twice the tolerance in one latent of the odd images; everything else is still right."""
    target = tmp_path / "wetok" / "tiny"
    target.mkdir(parents=True)
    for path in (folder / "wetok" / "tiny").glob("tokenizer_b*"):
        (target / path.name).write_bytes(path.read_bytes())
    with np.load(target / "tokenizer_b.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["oblong/latent"].flat[0] += 2e-4
    np.savez(target / "tokenizer_b.npz", **changed)

    seen = outcomes(tmp_path, "wetok_tokenizer")
    assert seen.pop("test_images_codes_and_images_again[tokenizer_b-oblong/]") == "FAILED"
    assert "test_images_codes_and_images_again[tokenizer_b-]" in seen and set(seen.values()) == {"PASSED"}
