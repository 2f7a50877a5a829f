"""The commands that README, docs and module docstrings show are accepted by the entries that they name."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from script_modules import script_modules

from engine.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [
    p for package in ("tokenizer", "autoregressive", "evaluations") for p in sorted((ROOT / package).rglob("*.py"))
]
TRAINERS = {  # entry -> its config
    "tokenizer.train": "TokenizerTrainConfig",
    "autoregressive.train": "GPTTrainConfig",
    "evaluations.classifier": "ClassifierTrainConfig",
    "evaluations.ar_probe": "ARProbeConfig",
    "evaluations.linear_probe": "LinearProbeConfig",
}
WRAPPERS = script_modules()
SHELL_ONLY = {"env_install.sh", "scripts/test.sh", "scripts/launch.sh", "scripts/torture.sh", "set_env_vars.sh"}


def commands_of(text: str) -> list[str]:
    """Lines that call one of our scripts or modules, continuation lines joined."""
    joined = re.sub(r"\\+\n\s*", " ", text)
    lines = (re.sub(r"\s{3,}\S.*|\s+#.*", "", line.strip().strip("`")) for line in joined.splitlines())
    found = []
    for line in lines:
        line = re.sub(r"^([A-Za-z_]+=\S+ )+", "", line)
        if re.match(r"(bash (scripts/|env_install)|python -m (tokenizer|autoregressive|evaluations)\.)", line):
            found.append(line)
    return found


CASES = [(page.relative_to(ROOT), c) for page in PAGES for c in commands_of(page.read_text(encoding="utf-8"))]
for module in MODULES:
    doc = re.match(r'"""(.*?)"""', module.read_text(encoding="utf-8"), re.DOTALL)
    CASES += [(module.relative_to(ROOT), c) for c in commands_of(doc[1] if doc else "")]


def test_commands_were_found():
    """The pattern still finds the commands of the README: quick start, training, extraction, sampling, evaluation."""
    shown = " ".join(command for page, command in CASES if page.name == "README.md")
    for name in ("quickstart.sh", "train_vq.sh", "extract_code_c2i.sh", "train_c2i.sh", "reconstruction.sh", "convert"):
        assert name in shown


@pytest.mark.parametrize(("page", "command"), CASES, ids=lambda value: str(value)[:60])
def test_shown_command_is_accepted(page, command, monkeypatch):
    """Scripts and configs exist, flags parse, and overrides fit the config of the entry."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    words = shlex.split(command)
    if words[0] == "bash":
        script = words[1]
        assert (ROOT / script).is_file(), f"{page}: {script} does not exist"
        if script in SHELL_ONLY:
            return
        arguments = words[2:]
        name = WRAPPERS[Path(script).stem].picked(arguments)
    else:
        name, arguments = words[2], words[3:]
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # `python -m` of a package runs its __main__
        module = importlib.import_module(f"{name}.__main__")
    if name in TRAINERS:
        files = [a for a in arguments if a.endswith(".yaml")]
        overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
        assert all((ROOT / f).is_file() for f in files), f"{page}: {files}"
        load_config(getattr(module, TRAINERS[name]), [ROOT / f for f in files], overrides)
        return
    monkeypatch.setattr("sys.argv", ["entry", *arguments])
    args = module.parse_args()
    for flag in ("tok_config", "gpt_config"):
        assert not getattr(args, flag, None) or (ROOT / getattr(args, flag)).is_file()
