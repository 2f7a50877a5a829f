"""Random command lines end in a result to trust, or in one error: the short form of tests/fuzz/commands.py."""

import json
import random

import numpy as np
import pytest
from fuzz.command_place import CHECK_ONLY, command_lines
from fuzz.commands import OUT, Fuzz, run, silent_numbers

from evaluations.results import read_result


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp("fuzz"), seed=30)


@pytest.mark.filterwarnings("ignore")
def test_random_command_lines_end_in_a_result_or_one_error(fuzz):
    for case in range(60):
        fuzz.run(case)
    assert not fuzz.wrong, "\n".join(fuzz.wrong)


@pytest.mark.filterwarnings("ignore")
def test_the_command_lines_work_before_they_are_changed(fuzz, monkeypatch):
    """Otherwise the fuzz would only test how they are refused. A few for real, all with --check."""
    monkeypatch.chdir(fuzz.place)
    for module, groups in command_lines(OUT).items():
        arguments = [part for group in groups for part in group]
        code, output = run(module, [*arguments, "--check"])
        assert code == 0, (module, output)
    real = [module for module in command_lines(OUT) if module not in CHECK_ONLY]
    for module in random.Random(0).sample(real, 4):
        arguments = [part for group in command_lines(f"{OUT}/{module}")[module] for part in group]
        code, output = run(module, arguments)
        assert code in (0, 1), (module, output)


def test_the_fuzz_notices_numbers_that_are_not_finite(tmp_path):
    """Otherwise it would show nothing."""
    assert silent_numbers([], "psnr 21.3 dB, information about nano-infinite things", tmp_path) is None
    assert "prints" in silent_numbers([], "psnr nan dB", tmp_path)
    assert "prints" in silent_numbers([], "loss: -inf", tmp_path)
    for name, content in (("a.json", '{"x": NaN}'), ("b.jsonl", '{"x": 1}\n{"x": Infinity}\n')):
        (tmp_path / name).write_text(content)
        assert "no JSON" in silent_numbers([], "", tmp_path)
        (tmp_path / name).write_text(json.dumps({"x": 1}))
    np.savez(tmp_path / "c.npz", np.array([np.inf]))
    assert "not finite" in silent_numbers([], "", tmp_path)


def test_a_path_that_no_file_system_takes_is_an_error(entry):
    """Regression: a traceback of OSError."""
    import tokenizer.convert

    code, _, err = entry(tokenizer.convert.main, "--vq-ckpt", "x" * 400, "--output", "out")
    assert code == 2 and "Traceback" not in err and "File name too long" in err and len(err) < 600


@pytest.mark.filterwarnings("ignore")
def test_a_result_with_a_number_that_is_not_finite_shows_none(fuzz, monkeypatch):
    """Regression: compare printed nan, and measure --check --extractor none was a KeyError."""
    monkeypatch.chdir(fuzz.place)
    code, output = run("evaluations.compare", ["a.json", "nan.json"])
    assert code in (0, 3) and silent_numbers([], output, fuzz.place / OUT) is None
    assert read_result("nan.json")["unavailable"] == {"psnr": "its value is not finite (nan)"}
    arguments = ["--samples", "samples.npz", "--gt-npz-path", "squares", "--extractor", "none", "--check"]
    code, output = run("evaluations.measure", arguments)
    assert code == 2 and "--extractor none leaves nothing to measure" in output


@pytest.mark.parametrize("output", ["", ".", "/", "arrays.dat"])
@pytest.mark.filterwarnings("ignore")
def test_an_output_without_a_right_name_is_an_error(output, fuzz, monkeypatch):
    """Regression: tracebacks for empty names; and x.dat was judged, but x.npz written."""
    monkeypatch.chdir(fuzz.place)
    for module in ("evaluations.visualize", "evaluations.make_reference", "autoregressive.convert"):
        groups = [group for group in command_lines(OUT)[module] if group[0] != "--output"]
        arguments = [part for group in groups for part in group] + ["--output", output]
        for more in (["--check"], []):
            code, told = run(module, [*arguments, *more])
            assert code == 2 and told.count("error: ") == 1 and "--output" in told, (module, code, told)
