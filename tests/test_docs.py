"""What README and docs show is true: commands are accepted by their entries, links lead somewhere, names exist."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import tiny
from PIL import Image
from script_modules import script_modules
from worked_files import FILES, restored_registries, write_file

import evaluations.doctor.data
from engine import plugins
from engine.config import load_config
from engine.config_help import describe
from evaluations import console
from evaluations.doctor.checks import CHECKS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
UNPARSED = {"engine.launcher"}  # scripts/launch.sh starts it; what follows `-m` is the command of another entry
TRAINERS = {  # entry -> its config
    "tokenizer.train": "TokenizerTrainConfig",
    "autoregressive.train": "GPTTrainConfig",
    "evaluations.classifier": "ClassifierTrainConfig",
    "evaluations.text_reader": "ReaderTrainConfig",
    "evaluations.ar_probe": "ARProbeConfig",
    "evaluations.linear_probe": "LinearProbeConfig",
}
WRAPPERS = script_modules()
SHELL_ONLY = {
    "env_install.sh",
    "scripts/check_versions.sh",
    "scripts/gpu_check.sh",
    "scripts/test.sh",
    "scripts/launch.sh",
    "scripts/torture.sh",
    "set_env_vars.sh",
}


COMMAND = re.compile(r"(bash (scripts/|env_install)|python -m (engine|tokenizer|autoregressive|evaluations)\.|vt )")
PLACEHOLDERS = {"NAME", "RECIPE", "..."}  # in the place of arguments
# What a command of a page writes, and a later one reads -> the shipped recipe that it is a copy of.
MADE = {f"my_run/{name}.yaml": f"configs/own_data/{name}.yaml" for name in ("tokenizer", "gpt")}


def commands_of(lines: Iterable[str]) -> list[str]:
    """The lines that call one of our scripts or modules, without variables in front and comments behind."""
    plain = (re.sub(r"\s{3,}\S.*|\s+#.*", "", line.strip()) for line in lines)
    plain = (re.sub(r"^([A-Za-z_]+=\S+ )+", "", line) for line in plain)
    return [line for line in plain if COMMAND.match(line)]


def joined_lines(text: str) -> list[str]:
    """The lines of a text, continuation lines joined."""
    return re.sub(r"\\+\n\s*", " ", text).splitlines()


def commands_of_page(text: str) -> list[str]:
    """Commands in blocks of code, and those within a line of prose or a cell of a table."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    in_blocks = (line for block in blocks for line in joined_lines(block))
    return commands_of([*in_blocks, *re.findall(r"`([^`\n]+)`", prose)])


CASES = [(page.relative_to(ROOT), c) for page in PAGES for c in commands_of_page(page.read_text(encoding="utf-8"))]
for module in MODULES:
    doc = re.match(r'"""(.*?)"""', module.read_text(encoding="utf-8"), re.DOTALL)
    CASES += [(module.relative_to(ROOT), c) for c in commands_of(joined_lines(doc[1] if doc else ""))]


def test_commands_were_found():
    """The pattern still finds the commands of the README: quick start, training, extraction, sampling, evaluation."""
    shown = " ".join(command for page, command in CASES if page.name == "README.md")
    for name in ("quickstart.sh", "train_vq.sh", "extract_code_c2i.sh", "train_c2i.sh", "reconstruction.sh", "convert"):
        assert name in shown


@pytest.mark.parametrize(("page", "command"), CASES, ids=lambda value: str(value)[:60])
def test_shown_command_is_accepted(page, command, monkeypatch, tmp_path):
    """Scripts and configs exist, flags parse, and overrides fit the config of the entry; with the files of the page of
    worked extensions in the current folder.
    """
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        write_file(name, tmp_path)
    with restored_registries():
        check_command(page, command, monkeypatch)


def entry_of(page: Path, words: list[str]) -> tuple[str, list[str]] | None:
    """(module, arguments) that the words of a command stand for; None where only a shell script runs."""
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), f"{page}: {words[1]} does not exist"
        if words[1] in SHELL_ONLY:
            return None
        return WRAPPERS[Path(words[1]).stem].picked(words[2:]), words[2:]
    if words[0] == "vt":
        assert words[1] in {*console.VERBS, "VERB"} or words[1].startswith("-"), f"{page}: {words}"
        nothing_to_check = len(words) == 2 or words[2] == "--help" or PLACEHOLDERS & set(words)
        return None if nothing_to_check else console.resolve(words[1], words[2:])
    return None if words[2] in UNPARSED else (words[2], words[3:])


def check_command(page: Path, command: str, monkeypatch) -> None:
    entry = entry_of(page, shlex.split(command))
    if entry is None:
        return
    name, arguments = entry
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # `python -m` of a package runs its __main__
        module = importlib.import_module(f"{name}.__main__")
    if not arguments or arguments == ["--help"]:
        return  # the name of an entry, which exists
    if name in TRAINERS:
        files = console.config_files(arguments) or [a for a in arguments if a.endswith(".yaml")]
        files = [MADE.get(file, file) for file in files]
        overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
        plugins.load_from_arguments(arguments)
        load_config(getattr(module, TRAINERS[name]), files, overrides)
        return
    monkeypatch.setattr("sys.argv", ["entry", *arguments])
    args = module.parse_args()
    for flag in ("tok_config", "gpt_config"):
        assert not getattr(args, flag, None) or (ROOT / getattr(args, flag)).is_file()


# ------------------------------------------------------------------------------------------------ the pages themselves
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
ON_EACH_PAGE = pytest.mark.parametrize("page", TEXTS)
MAX_CELL = 130  # characters of a table cell, so that a table can be read
BRITISH = re.compile(
    r"\b\w*(centre|colour|neighbour|normalis|factoris|memoris|recognis|initialis|regularis|generalis|licence)\w*",
    re.IGNORECASE,
)


def anchors_of(text: str) -> set[str]:
    """The anchors that a Markdown page has, one per heading."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@ON_EACH_PAGE
def test_links_lead_somewhere(page):
    """Files and headings of this project that a page links to."""
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.is_file(), f"{page} links to {link}"
        assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), f"{page} links to {link}"


@ON_EACH_PAGE
def test_tables_can_be_read(page):
    """Cells are short (a link counts as its text), and all rows of a table have as many cells as its head."""
    width = None
    for line in TEXTS[page].splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cell).strip() for cell in line.strip().strip("|").split("|")]
        width = width or len(cells)
        assert len(cells) == width, f"{page}: {line}"
        assert max(map(len, cells)) <= MAX_CELL, f"{page}: {line}"


@ON_EACH_PAGE
def test_spelling_is_american(page):
    assert not BRITISH.search(TEXTS[page]), BRITISH.search(TEXTS[page])


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 180


def defined_names(path: Path) -> set[str]:
    """Functions, classes, methods (as Class.method) and constants of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_architecture_names_what_exists():
    """`path/file.py: Class.method` and `path/file.py`, and registries in the table of registries."""
    text = TEXTS["docs/architecture.md"]
    references = re.findall(
        r"`((?:engine|tokenizer|autoregressive|evaluations|tests|configs)/[\w/.]+)(?:: ([\w.]+))?`", text
    )
    assert len(references) > 40
    for path, name in references:
        assert (ROOT / path).exists(), path
        assert not name or name in defined_names(ROOT / path), f"{path}: {name}"

    for row in re.findall(r"^\| which .*$", text, re.MULTILINE):
        _, registries, places = (cell.strip() for cell in row.strip("|").split("|"))
        paths = [ROOT / place for place in re.findall(r"`([\w/.]+)`", places)]
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
        names = set().union(*map(defined_names, files))
        assert set(re.findall(r"`(\w+)`", registries)) <= names, row


def keys_of(section: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section, and of all sections below it."""
    for field in fields(section):
        key = f"{prefix}{field.name}"
        yield key
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from keys_of(value, f"{key}.")


@ON_EACH_PAGE
def test_config_keys_exist(page):
    """Every `section.key` that a page names in backticks, also `section.{one,other}` and `section.key=value`."""
    text = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    schemas = [getattr(importlib.import_module(entry), schema) for entry, schema in TRAINERS.items()]
    known = {"model.size", "model.streams", "loop.wandb_project"}  # old spellings
    known |= {key for schema in schemas for key in keys_of(schema())}
    sections = "model|loss|semantic|optim|data|loop|probe|network|validation|assets"
    for key in re.findall(rf"`((?:{sections})\.(?!safetensors)[\w.{{}},]+)", text):
        head, _, rest = key.partition("{")
        for name in rest.rstrip("}").split(","):
            assert f"{head}{name}" in known, f"{page}: {head}{name}"


def test_the_python_example_of_the_readme_runs(tmp_path, image_folder, world):
    """With tiny networks in the place of those of the quick start."""
    tokenizer_train, gpt_train = (importlib.import_module(f"{name}.train") for name in ("tokenizer", "autoregressive"))
    tokenizer_train.train(tiny.tokenizer_config(tmp_path / "tokenizer", image_folder), world)
    trained = importlib.import_module("tokenizer").load_tokenizer(tmp_path / "tokenizer")
    tiny.write_codes(tmp_path / "codes", trained.provenance.fingerprint)
    gpt_train.train(
        tiny.gpt_config(tmp_path / "gpt", tmp_path / "codes", tmp_path / "tokenizer", "loop.steps=1"), world
    )

    (example,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    names = {}
    exec(example.replace("runs/quickstart", str(tmp_path)).replace("range(10)", "range(2)"), names)
    assert names["images"].shape == (2, 3, 8, 8) and names["codes"].shape == names["tokens"].shape == (2, 4)


def test_the_page_about_python_runs(networks, tmp_path, monkeypatch):
    """All examples in one notebook, in their order, with tiny networks."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((30, 20), 60).save("photo.jpg")
    names = {}
    for example in re.findall(r"```python\n(.*?)```", TEXTS["docs/python.md"], re.DOTALL):
        exec(example.replace("runs/quickstart", str(networks)).replace("[3, 1, 4]", "[3, 1, 2]"), names)
    assert (tmp_path / "sample_2.png").is_file() and len(names["codes"]) == 1 and len(names["between"]) == 8
    assert (names["same"] == names["tokens"][1:]).all() and names["label"] == 0


def test_the_page_of_the_doctor_has_every_check():
    """Each by its name in the first cell of a row; a row may name several."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)
    listed = {name for cell in cells for name in re.sub(r" \(with `--data`\)", "", cell).split(", ")}
    of_data = set(re.findall(r'Finding\(\s*"([^"]+)"', inspect.getsource(evaluations.doctor.data)))
    assert len(of_data) > 3
    assert {*CHECKS, *of_data} <= listed


def test_the_pages_of_differences_have_every_option_that_departs_from_a_release():
    """The config keys whose explanation speaks of what was released, on the page of GigaTok or that of WeTok."""
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("fidelity.md", "wetok.md"))
    schemas = [importlib.import_module(module).__dict__[name] for module, name in TRAINERS.items()]
    explanations = "\n".join(describe(schema, "all") for schema in schemas)
    keys = re.findall(r"^(\S+): .*\n    (?!accepted).*\breleased\b", explanations, re.MULTILINE)
    assert len(set(keys)) > 8
    missing = [key for key in keys if not re.search(rf"\b{key.rpartition('.')[2]}\b", pages)]
    assert not missing
