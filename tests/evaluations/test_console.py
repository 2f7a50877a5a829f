"""The command `vt`: which module a verb and a recipe run, and what it says where there is none."""

import os
import sys

import pytest
from mains import entry_modules
from recipes import ENTRIES, kind_of, name_of, recipes

from engine.messages import ConfigError, UserError
from engine.recipe_names import recipe_file
from evaluations import console
from evaluations.console import VERBS, config_files, overview, resolve, split_recipe


def module_for(*arguments: str) -> str:
    return resolve("train", list(arguments))[0]


# ------------------------------------------------------------------------------------------------ verbs
def test_every_verb_runs_an_entry():
    assert {verb.module for verb in VERBS.values() if verb.module} <= entry_modules()


def test_the_overview_has_every_verb():
    assert all(f"\n  {verb} " in overview() for verb in VERBS)


def test_an_unknown_verb_suggests_the_closest():
    with pytest.raises(UserError, match=r"no verb 'sampel'; did you mean vt sample\?"):
        resolve("sampel", [])


@pytest.mark.parametrize("path", recipes(), ids=name_of)
def test_every_recipe_is_trained_by_its_trainer(path):
    """By its name, whatever else the command line says."""
    name = name_of(path).removesuffix(".yaml")
    module, arguments = resolve("train", ["--dry-run", name, "loop.steps=1"])
    assert module == ENTRIES[kind_of(path)][0].__name__
    assert arguments == ["--config", name, "--dry-run", "loop.steps=1"]


def test_a_recipe_that_says_nothing_is_refused(tmp_path):
    (tmp_path / "odd.yaml").write_text("optim: {lr: 1e-4}\n")
    with pytest.raises(ConfigError, match="does not say what it trains: it has the sections optim"):
        module_for(str(tmp_path / "odd.yaml"))
    assert module_for("--config", str(tmp_path / "odd.yaml"), "--config=quickstart/tokenizer") == "tokenizer.train"
    with pytest.raises(UserError, match="name a recipe"):
        module_for("loop.steps=1")


def test_the_help_of_train_needs_no_recipe(capsys):
    with pytest.raises(SystemExit, match="0"):
        module_for("--help")
    assert "vt train RECIPE --help" in capsys.readouterr().out


def test_the_recipe_may_stand_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.yaml").write_text("")
    assert split_recipe(["--plugin", "my.py", "x", "a=1"]) == ("x", ["--plugin", "my.py", "a=1"])
    assert split_recipe(["a=1", "--config", "x"]) == (None, ["a=1", "--config", "x"])
    assert split_recipe(["a=b.yaml"]) == ("a=b.yaml", [])
    assert config_files(["--config", "x", "--dry-run", "--config=y"]) == ["x", "y"]


# ------------------------------------------------------------------------------------------------ processes
@pytest.mark.parametrize(
    ("variables", "arguments", "several"),
    [
        ({}, [], False),
        ({"GPUS": "1"}, [], False),
        ({"GPUS": "8"}, [], True),
        ({"GPUS": "8", "NPROC_PER_NODE": "1"}, [], False),
        ({"NNODES": "2"}, [], True),
        ({"GPUS": "8"}, ["--plan=8"], False),
    ],
)
def test_several_processes_start_through_the_launcher(variables, arguments, several, monkeypatch):
    for name in (*console.REQUESTED_PROCESSES, "NNODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    commands = []

    def note(program, command, environment):
        commands.append(command)
        assert environment["VT_PYTHON"] == sys.executable
        raise SystemExit

    monkeypatch.setattr(os, "execvpe", note)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("sys.argv", ["vt", "extract", "--no-such-flag", *arguments])
    with pytest.raises(SystemExit):  # here, or by the parser of the entry
        console.main()
    expected = ["-m", "autoregressive.extract_codes", "--no-such-flag", *arguments]
    assert [command[2:] for command in commands] == ([expected] if several else [])


# ------------------------------------------------------------------------------------------------ recipes by name
@pytest.mark.parametrize("name", ["vq/VQ_SS256", "VQ_SS256", "vq/VQ_SS256.yaml", "configs/vq/VQ_SS256.yaml"])
def test_a_recipe_has_short_names_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_of(recipe_file(name)) == "vq/VQ_SS256.yaml"


def test_a_file_that_is_here_counts_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VQ_SS256").write_text("")
    assert not recipe_file("VQ_SS256").is_absolute()


def test_names_that_stand_for_no_recipe_are_told():
    with pytest.raises(ConfigError, match=r"'gpt' could be any of: .*quickstart/gpt, .*quickstart/twemoji/gpt"):
        recipe_file("gpt")
    with pytest.raises(ConfigError, match=r"'VQ_S256' is neither .* did you mean vq/VQ_SS256"):
        recipe_file("VQ_S256")
