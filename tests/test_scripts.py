"""The shell scripts: --help installs nothing, and each runs the module that it is for."""

import importlib.util
import os
import subprocess

import pytest
from script_copies import copy_scripts, program
from script_modules import ROOT, script_modules

MODULES = script_modules()
BY_FLAG = {script: modules for script, modules in MODULES.items() if modules.flag}
ADDED = {  # arguments that a script adds to those that it gets
    "train_vq_fsdp": ["loop.strategy=fsdp"],
    "train_c2i_fsdp": ["loop.strategy=fsdp"],
    **{f"train_{name}_lin_probe_and_eval": ["--probed", name] for name in ("lm", "tok", "all")},
}
OTHERS = {"check_versions", "gpu_check", "launch", "test", "torture"}


@pytest.fixture
def run(tmp_path):
    """`run(script, *arguments)` in a copy of the scripts whose python and installer only say what they were asked."""
    copy_scripts(tmp_path / "copy")
    active = tmp_path / "env"

    def call(script, *arguments, installed=True):
        if installed:  # `python -` is the question whether all packages are there
            program(active / "bin" / "python", '[ "$1" = - ] || echo "python $*"')
        environment = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(active)}
        command = ["bash", f"copy/scripts/{script}.sh", *arguments]  # from another folder, by a relative path
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def test_every_script_is_tested():
    """Each runs a module of a package, but for those that are named here."""
    names = {path.stem for path in (ROOT / "scripts").glob("*.sh")}
    assert names == {*MODULES, *OTHERS, "common", "slurm_example"}


@pytest.mark.parametrize("script", MODULES)
def test_help_is_that_of_the_module(run, script):
    """Once there is an environment; nothing is installed. The module exists."""
    done = run(script, "--help")
    module = MODULES[script].module
    words = done.stdout.split()
    added = [word for word in words[3:] if word != "--help"]  # what a script adds of its own
    assert (done.returncode, words[:3]) == (0, ["python", "-m", module]) and "--help" in words, done.stderr
    assert added == ADDED.get(script, [])
    assert importlib.util.find_spec(module) is not None


def test_published_names_run_what_they_always_ran():
    """The map is read from the scripts; these few lines are the anchor that does not move with them."""
    published = {
        "train_vq": "tokenizer.train",
        "train_c2i": "autoregressive.train",
        "quickstart": "evaluations.quickstart",
        "train_vq_and_eval": "evaluations.train_vq_and_eval",
        "train_vq_and_eval_fsdp": "evaluations.train_vq_and_eval",
        "train_c2i_and_eval": "evaluations.train_c2i_and_eval",
        "train_c2i_and_eval_fsdp": "evaluations.train_c2i_and_eval",
        "eval_c2i": "evaluations.eval_c2i",
        "train_lm_lin_probe_and_eval": "evaluations.lin_probe_and_eval",
        "train_tok_lin_probe_and_eval": "evaluations.lin_probe_and_eval",
        "train_all_lin_probe_and_eval": "evaluations.lin_probe_and_eval",
        "train_vq_fsdp": "tokenizer.train",
        "train_c2i_fsdp": "autoregressive.train",
        "check_code_c2i": "autoregressive.check_codes",
    }
    assert {script: MODULES[script].module for script in published} == published


@pytest.mark.parametrize("script", ["quickstart", "test", "launch"])
def test_help_needs_no_environment(run, script):
    """Of scripts that would install one, and of the one that runs modules: the comment at their head."""
    done = run(script, "--help", installed=False)
    first = (ROOT / "scripts" / f"{script}.sh").read_text().splitlines()[1].removeprefix("# ")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, first), done.stderr


@pytest.mark.parametrize("script", [*MODULES, "torture"])
def test_without_an_environment_a_script_says_how_to_get_one(run, script):
    """A wrapper neither installs nor fails without a word; the quick start installs."""
    done = run(script, "--config", "x.yaml", installed=False)
    assert done.returncode == 1 and "run: bash env_install.sh" in done.stderr
    assert done.stdout == ("installs --env venv --extras quickstart\n" if script == "quickstart" else "")


@pytest.mark.parametrize("script", BY_FLAG)
def test_a_flag_picks_the_module(run, script):
    """Wherever it stands among the arguments, which are handed on as they are."""
    modules = BY_FLAG[script]
    with_flag = run(script, "--x", "a b", modules.flag)
    assert with_flag.stdout == f"python -m {modules.module_with_flag} --x a b {modules.flag}\n"
    without_flag = run(script, "--x", f"a{modules.flag}")
    assert without_flag.stdout == f"python -m {modules.module} --x a{modules.flag}\n"
