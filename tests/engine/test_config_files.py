"""The `base` of a YAML, and what every command over the shipped configs resolves to."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from recipes import CONFIGS, ENTRIES, name_of, recipes

from autoregressive.models.gpt import DEFAULT_SIZES
from autoregressive.models.registry import completed
from autoregressive.training.config import GPTTrainConfig
from engine.config import differences, load_config, load_sections, read_yaml
from engine.messages import ConfigError
from engine.yaml_files import read_layers
from tokenizer.training.config import PhaseConfig

BEFORE = json.loads((Path(__file__).parents[1] / "goldens" / "resolved_configs.json").read_text(encoding="utf-8"))
# Folders of YAML files that were never read without a base.
ADDED_LATER = (
    "tiny/", "open_magvit2/", "ibq/", "maskgit/", "rar/", "var/", "f16/",
    "quickstart/fsq/", "quickstart/ema/", "quickstart/rvq/", "quickstart/mcq/", "quickstart/rar/",
    "quickstart/decoder/", "quickstart/flexible/", "quickstart/maskgit/", "quickstart/var/", "gpt/MaskGIT",
    "quickstart/bar/", "gpt/GPT_bits",
    "quickstart/text/", "quickstart/text_reader.yaml", "eval/text_reader.yaml",
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Part:
    """A section."""

    width: int = 1
    sizes: list[int] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Root:
    """A root config."""

    count: int = 0
    note: str = ""
    part: Part = field(default_factory=Part)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def chain(tmp_path) -> list[Path]:
    """Three files, each laid over the one before, in different folders."""
    return [
        write(tmp_path / "a.yaml", "count: 1\nnote: a\npart: {width: 2, sizes: [1, 2]}\n"),
        write(tmp_path / "more" / "b.yaml", "# A comment.\nbase: ../a.yaml\nnote: b\npart: {sizes: [3]}\n"),
        write(tmp_path / "c.yaml", "base: more/b.yaml\npart: {width: 5}\n"),
    ]


# ---------------------------------------------------------------------------------------------------- the key `base`
def test_a_file_is_laid_over_its_base(chain):
    """Along a chain, with paths relative to the file that names them; later keys win, lists are replaced."""
    config = load_config(Root, [chain[2]], ["part.width=6"])
    assert config == Root(count=1, note="b", part=Part(width=6, sizes=[3]))
    assert read_yaml(chain[2]) == {"count": 1, "note": "b", "part": {"width": 5, "sizes": [3]}}
    assert [name for name, _ in read_layers(chain[2])] == [str(path) for path in chain]
    assert load_sections(Root, chain[2]) == Root(count=1, note="b", part=Part(width=5, sizes=[3]))


def test_the_base_of_a_later_file_is_left_out(chain, tmp_path, caplog):
    """So that an overlay fits whatever stands before it; the log says so, once per file."""
    caplog.set_level("INFO", "tokenizers")
    other = write(tmp_path / "other.yaml", "count: 9\nnote: other\n")
    config = load_config(Root, [other, chain[1]])
    assert config == Root(count=9, note="b", part=Part(sizes=[3]))
    assert caplog.messages == [f"{chain[1]}: its base {chain[0]} is left out, for it is laid over {other}"]


def test_a_null_takes_back_what_a_base_set(chain, tmp_path):
    path = write(tmp_path / "d.yaml", "base: a.yaml\npart: null\n")
    assert load_config(Root, [path]).part == Part()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count: 1\nbase: a.yaml\n", r"d\.yaml: base='a\.yaml' must be the first key of the file"),
        ("base: aa.yaml\n", r"the base of .*d\.yaml, .*aa\.yaml does not exist; did you mean .*a\.yaml\?"),
        ("base: [a.yaml]\n", r"d\.yaml: base=.* must be the path of a YAML file, relative to "),
        ("base: null\n", r"d\.yaml: base=null must be the path of a YAML file"),
        ("base: d.yaml\n", r"the bases form a circle: .*d\.yaml -> .*d\.yaml$"),
        ("base: more/../e.yaml\n", r"the bases form a circle: .*d\.yaml -> .*e\.yaml -> .*d\.yaml$"),
    ],
)
def test_a_base_that_cannot_be_is_named(chain, tmp_path, text, expected):
    write(tmp_path / "e.yaml", "base: d.yaml\n")
    path = write(tmp_path / "d.yaml", text)
    for read in (lambda: load_config(Root, [path]), lambda: load_sections(Root, path), lambda: read_yaml(path)):
        with pytest.raises(ConfigError, match=expected):
            read()


def test_a_problem_names_the_file_of_the_chain_that_has_it(chain):
    write(chain[0], "cuont: 1\n")
    with pytest.raises(ConfigError, match=r"^[^ ]*a\.yaml: cuont is not a known key .*; did you mean count\?$"):
        load_config(Root, [chain[2]])


# ---------------------------------------------------------------------------------------------------- shipped configs
def test_every_shipped_config_and_documented_pair_has_a_snapshot():
    """Alone; and two by two as documents showed them before files had a base."""
    names = set(BEFORE["configs"])
    last = {name.rpartition(" + ")[2] for name in names}
    assert {name for name in map(name_of, recipes()) if not name.startswith(ADDED_LATER)} == last
    assert sum(" + " in name for name in names) > 40


@pytest.mark.parametrize("name", BEFORE["configs"])
def test_a_command_resolves_as_before(name, monkeypatch):
    """Key by key what it was when overlays needed a second --config; an overlay alone is the same as over its base."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    kind, changed = BEFORE["configs"][name]
    schema, files = ENTRIES[kind][1], [CONFIGS / file for file in name.split(" + ")]
    saved = OmegaConf.create()
    for key, value in (BEFORE["defaults"][kind] | changed).items():
        if key == "phases":  # keys that phases have got since then
            value = [asdict(PhaseConfig(**phase)) for phase in value]
        OmegaConf.update(saved, key, value, force_add=True)
    assert differences(saved, with_default_sizes(load_config(schema, files))) == {}

    bases = [Path(layer) for layer, _ in read_layers(files[-1])][:-1]
    if len(files) == 2 and files[:1] == bases[-1:]:
        assert differences(saved, with_default_sizes(load_config(schema, files[-1:]))) == {}


def with_default_sizes(config: Any) -> Any:
    """A training of a generator with the sizes that its recipe leaves open: they were defaults when it was saved."""
    if isinstance(config, GPTTrainConfig):
        config.model = completed(config.model, DEFAULT_SIZES)
    return config
