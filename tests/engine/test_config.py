"""engine/config.py: dataclass defaults <- YAML files <- key=value, and what a user reads when something is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from omegaconf import OmegaConf
from recipes import load, name_of, recipes

from autoregressive import train as gpt_train
from engine.config import differences, load_config, load_sections, merge_config, read_yaml, to_yaml
from engine.messages import ConfigError
from engine.registry import lookup, selected_section
from engine.validation import Section, at_least, raise_problems
from tokenizer import train as tokenizer_train

ROOT = Path(__file__).parents[2]


@dataclass(kw_only=True, slots=True)
class Small:
    """A section."""

    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    pair: tuple[float, float] = (0.5, 0.9)
    limit: int | None = None


@dataclass(kw_only=True, slots=True)
class Variants:
    """`name` picks one of two sections."""

    name: str = "one"
    one: Small = field(default_factory=Small)
    two: Small = field(default_factory=Small)


@dataclass(kw_only=True, slots=True)
class Root:
    """A root."""

    count: int = 3
    flag: bool = False
    folder: str = ""
    inner: Small = field(default_factory=Small)
    model: Variants = field(default_factory=Variants)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        # What is beneath a wrong value is that of the recipe, not a default of another size: 40 px fit its factor.
        (["model.hybrid.cnn.channel_multipliers=[]", "data.image_size=40", "model.hybrid.num_tokens=1"], 1),
        (["model.hybrid.cnn.channel_multipliers=[]", "data.image_size=41", "model.hybrid.num_tokens=1"], 2),
        # A section of which a value is wrong is not accused as a whole besides.
        (["model.hybrid.encoder.heads=7"], 1),
        (["model.hybrid.decoder.size=big"], 4),
        # A value of another type, and a key that does not exist, hide nothing.
        (["model.hybrid.z_channels=a", "model.hybrid.widht=3", "data.image_size=33"], 3),
    ],
)
def test_a_wrong_value_neither_hides_nor_makes_other_problems(overrides, lines):
    with pytest.raises(ConfigError) as caught:
        load_config(tokenizer_train.TokenizerTrainConfig, [ROOT / "configs/quickstart/tokenizer.yaml"], overrides,
                    check=tokenizer_train.validate)  # fmt: skip
    problems = caught.value.problems
    assert len(problems) == lines and all("model." in line or "data.image_size" in line for line in problems), problems


def test_later_sources_win(tmp_path):
    """Defaults, then files in their order, then the command line; what nobody names keeps its default."""
    first = write(tmp_path / "first.yaml", "count: 5\ninner: {rate: 0.2, sizes: [7]}\n")
    second = write(tmp_path / "second.yaml", "inner: {rate: 0.3}\nflag: true\n")
    config = load_config(Root, [first, second], ["inner.limit=4", "flag=false"])
    assert (config.count, config.flag, config.inner.rate, config.inner.limit) == (5, False, 0.3, 4)
    assert config.inner.sizes == [7] and config.inner.pair == (0.5, 0.9) and isinstance(config.inner, Small)


def test_section_of_the_command_line_merges_and_does_not_replace():
    """`inner={rate: 1}` changes the rate and leaves the rest of the section alone."""
    config = load_config(Root, [], ["inner.limit=4", "inner={rate: 1.0}"])
    assert (config.inner.rate, config.inner.limit) == (1.0, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuont: 5\n", ["cuont", "accepted here: count, flag, folder, inner, model"]),
        ("inner: {rte: 0.2}\n", ["inner.rte", "accepted here: kind, limit, pair, rate, sizes"]),
        ("model: {one: {rte: 0.2}}\n", ["model.one.rte", "accepted here: kind, limit, pair, rate, sizes"]),
        ("model: {three: {rate: 0.2}}\n", ["model.three", "accepted here: name, one, two"]),
        ("count: many\n", ["count='many'", "must be a whole number"]),
        ("inner: {rate: fast}\n", ["inner.rate='fast'", "must be a number"]),
        ("inner: {rate: null}\n", ["inner.rate=null", "must be a number"]),
        ("inner: {sizes: [1, x]}\n", ["inner.sizes=[1, 'x']", "must be a list of whole numbers"]),
        ("inner: {sizes: 3}\n", ["inner.sizes=3", "must be a list of whole numbers"]),
        ("inner: {pair: [1]}\n", ["inner.pair=[1]", "must be a list of 2 numbers"]),
        ("inner: {pair: [1, x]}\n", ["inner.pair=[1, 'x']", "must be a list of 2 numbers"]),
        ("inner: {pair: 1}\n", ["inner.pair=1", "must be a list of 2 numbers"]),
        ("inner: {kind: c}\n", ["inner.kind='c'", "must be one of: a, b"]),
        ("flag: perhaps\n", ["flag='perhaps'", "must be true or false"]),
        ("inner: 3\n", ["inner=3", "must be a section with some of: kind, limit, pair, rate, sizes"]),
        ("count: [1]\n", ["count=[1]", "must be a whole number"]),
    ],
)
@pytest.mark.parametrize("place", ["file", "command line"])
def test_a_wrong_key_or_value_is_named(tmp_path, text, expected, place):
    """One line: the source, the dotted key, what was found, and for an unknown key what is accepted there."""
    if place == "file":
        path = write(tmp_path / "wrong.yaml", text)
        call, source = (lambda: load_config(Root, [path])), str(path)
    else:
        tree = OmegaConf.create(text)
        key = ""
        while OmegaConf.is_dict(tree):
            (name,) = tree
            key, tree = f"{key}.{name}".lstrip("."), tree[name]
        value = "null" if tree is None else str(tree)
        call, source = (lambda: load_config(Root, [], [f"{key}={value}"])), "command line"
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{source}: {expected[0]}"), message
    assert all(part in message for part in expected), message
    assert "\n" not in message


@pytest.mark.parametrize("item", ["count", "--count=3", "-x=1", "inner.rate 0.2"])
def test_an_override_that_is_not_key_value_is_named(item):
    with pytest.raises(ConfigError, match=r"command line: .* is not of the form key=value") as caught:
        load_config(Root, [], [item])
    assert repr(item) in str(caught.value)


def test_a_missing_file_suggests_the_nearest_name(tmp_path):
    write(tmp_path / "VQ_SS256.yaml", "count: 1\n")
    with pytest.raises(ConfigError, match=r"VQ_SS265\.yaml does not exist; did you mean .*VQ_SS256\.yaml\?"):
        read_yaml(tmp_path / "VQ_SS265.yaml")
    with pytest.raises(ConfigError, match=r"nothing_like_it\.yaml does not exist$"):
        read_yaml(tmp_path / "nothing_like_it.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "no_such_folder" / "VQ_SS256.yaml")


@pytest.mark.parametrize("content", ["count: [1\n", "count: 1\n count: 2\n", "- 1\n- 2\n", "count: 1\ncount: 2\n"])
def test_a_file_that_is_not_a_yaml_mapping_is_named(tmp_path, content):
    path = write(tmp_path / "broken.yaml", content)
    with pytest.raises(ConfigError) as caught:
        load_config(Root, [path])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_binary_files_and_folders_are_no_config(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "binary.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_yaml(path)


def test_an_unset_environment_variable_is_named(tmp_path, monkeypatch):
    """The message says which variable, which key wants it, and what to do."""
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    path = write(tmp_path / "c.yaml", 'folder: "${oc.env:NO_SUCH_FOLDER}/train"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(Root, [path])
    assert all(part in str(caught.value) for part in ("folder", "NO_SUCH_FOLDER", "set_env_vars.sh"))
    monkeypatch.setenv("NO_SUCH_FOLDER", "/data")
    assert load_config(Root, [path]).folder == "/data/train"


def test_a_changed_section_that_is_not_in_use_is_an_error():
    """Settings of a variant that is not picked would be ignored in silence."""
    registry = {"one": 1, "two": 2}
    assert selected_section(load_config(Root, [], ["model.one.rate=2"]).model, registry, "model").rate == 2
    with pytest.raises(ConfigError, match=r"model\.two is set, but model\.name='one' does not use it.*model\.name=two"):
        selected_section(load_config(Root, [], ["model.two.rate=2"]).model, registry, "model")
    with pytest.raises(ConfigError, match=r"model\.name='three' is not known; choose one of: one, two"):
        selected_section(load_config(Root, [], ["model.name=three"]).model, registry, "model")


def test_lookup_lists_what_is_accepted():
    assert lookup({"b": 1, "a": 2}, "b", "x.name") == 1
    with pytest.raises(ConfigError, match=r"^x\.name='c' is not known; choose one of: a, b$"):
        lookup({"b": 1, "a": 2}, "c", "x.name")


@dataclass(kw_only=True, slots=True)
class Part:
    """The sections that a reader needs: all of `inner`, and of `model` only the name."""

    @dataclass(kw_only=True, slots=True)
    class Name:
        """A part of `Variants`."""

        name: str = "one"

    inner: Small = field(default_factory=Small)
    model: Name = field(default_factory=Name, metadata={"partial": True})


def test_load_sections_leaves_the_rest_alone(tmp_path, monkeypatch):
    """A part of a training config is readable where the rest cannot be resolved; the part itself is still checked."""
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    path = write(
        tmp_path / "c.yaml",
        'folder: "${oc.env:NO_SUCH_FOLDER}"\nunheard_of: 1\ninner: {rate: 2.0}\nmodel: {name: two, two: {rate: 1}}\n',
    )
    part = load_sections(Part, path)
    assert (part.inner.rate, part.inner.sizes, part.model.name) == (2.0, [1, 2], "two")
    write(path, "inner: {rte: 2.0}\n")
    with pytest.raises(ConfigError, match=r"inner\.rte"):
        load_sections(Part, path)


def test_a_saved_config_loads_to_the_same_config(tmp_path):
    """YAML text -> config -> YAML text is a fixed point, with interpolations resolved and tuples kept."""
    config = load_config(Root, [], ["inner.limit=4", "inner.pair=[0.1,0.2]", "model.name=two", "flag=true"])
    path = write(tmp_path / "saved.yaml", to_yaml(config))
    assert load_config(Root, [path]) == config
    assert differences(OmegaConf.load(path), config) == {}


def test_differences_names_every_changed_key():
    """Changed, added and removed keys; a list and a tuple of equal values are the same, so is a key with its default
    that an older program did not save.
    """
    config = load_config(Root, [], [])
    old = OmegaConf.create(to_yaml(config))
    old.count, old.gone = 9, 1
    old.inner.sizes = [1, 2, 3]
    del old.inner["limit"], old["flag"]
    new = load_config(Root, [], ["inner.limit=4"])
    assert differences(old, new) == {
        "count": (9, 3),
        "gone": (1, None),
        "inner.limit": (None, 4),
        "inner.sizes": ([1, 2, 3], [1, 2]),
    }


@dataclass(kw_only=True, slots=True)
class Item(Section):
    """One of a list; both keys are required."""

    steps: int
    rate: float

    def problems(self):
        yield from at_least(self, "steps", 1)


@dataclass(kw_only=True, slots=True)
class Checked(Section):
    """A root whose values have limits."""

    count: int = 3
    size: int = 8
    folder: str = ""
    inner: Small = field(default_factory=Small)
    items: list[Item] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)

    def problems(self):
        yield from at_least(self, "count", 1)


def divisible(config: Checked) -> None:
    """A check of two keys at once."""
    raise_problems([f"size={config.size} is no multiple of {n}" for n in (2, config.count) if config.size % n])


def problems_at(files, overrides, check=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Checked, files, overrides, check)
    text = str(caught.value)
    assert all(line in text for line in caught.value.problems)
    assert len(caught.value.problems) == 1 or text.startswith(f"the config has {len(caught.value.problems)} problems:")
    return caught.value.problems


def test_everything_that_is_wrong_is_told_at_once(tmp_path, monkeypatch):
    """Unknown keys, wrong types, missing and unresolved values, values out of range, of all files and the command line,
    and what does not fit together; each line has its source or key, the value, and what is accepted.
    """
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    first = write(tmp_path / "first.yaml", "cuont: 5\nsize: 9\nfolder: ${oc.env:NO_SUCH_FOLDER}\n")
    second = write(tmp_path / "second.yaml", "inner: {rate: fast, sizes: [1, x], one: 1, two: 2}\n")
    overrides = ["count=0", "items=[{steps: 0, rate: 1}, {steps: a}, 7]", "weights={a: b}", "novalue", "inner.kind=c"]
    assert problems_at([first, second], overrides, divisible) == [
        f"{first}: cuont is not a known key (accepted here: count, folder, inner, items, size, weights);"
        " did you mean count?",
        f"{second}: inner.one, inner.two are not known keys (accepted here: kind, limit, pair, rate, sizes)",
        f"{second}: inner.rate='fast' must be a number",
        f"{second}: inner.sizes=[1, 'x'] must be a list of whole numbers",
        "command line: 'novalue' is not of the form key=value",
        "command line: items[1].steps='a' must be a whole number",
        "command line: items[2]=7 must be a section with some of: rate, steps",
        "command line: weights={'a': 'b'} must be a mapping of names to numbers",
        "command line: inner.kind='c' must be one of: a, b",
        "folder='${oc.env:NO_SUCH_FOLDER}': the environment variable NO_SUCH_FOLDER is not set; "
        "source set_env_vars.sh or export it",
        "items[1].rate is missing; it must be a number",
        "count=0 must be 1 or more",
        "items[0].steps=0 must be 1 or more",
        "size=9 is no multiple of 2",
    ]


def test_a_check_of_several_keys_is_asked_without_those_that_are_wrong():
    """Its lines about a wrong key, which has its default there, would mislead; without problems it is not asked."""
    assert problems_at([], ["size=9", "count=0"], divisible) == [
        "count=0 must be 1 or more",
        "size=9 is no multiple of 2",
    ]
    assert problems_at([], ["size=wide"], divisible) == ["command line: size='wide' must be a whole number"]
    assert load_config(Checked, [], ["size=9"], divisible).size == 9


def test_a_wrong_key_hides_no_line_about_a_longer_name():
    """`inner.rate` is wrong: lines about it or below it are left out, those about `inner.rates` and others stay."""
    lines = ["inner.rates=1 is told", "with size=2, inner.rate is not told", "outer.inner.rate=3 is told"]

    def check(config: Checked) -> None:
        raise_problems(lines)

    expected = ["command line: inner.rate='fast' must be a number", lines[0], lines[2]]
    assert problems_at([], ["inner.rate=fast"], check) == expected


def test_a_mapping_of_names_is_merged_name_by_name(tmp_path):
    path = write(tmp_path / "c.yaml", "weights: {a: 1, b: 2}\n")
    assert load_config(Checked, [path], ["weights.b=3", "weights.c=4"]).weights == {"a": 1.0, "b": 3.0, "c": 4.0}


def test_items_of_a_list_are_sections(tmp_path):
    path = write(tmp_path / "c.yaml", "items: [{steps: 1, rate: 2}]\n")
    assert load_config(Checked, [path]).items == [Item(steps=1, rate=2.0)]
    assert problems_at([path], ["items=[{rate: 1, steps: 0}]"]) == ["items[0].steps=0 must be 1 or more"]


def test_all_problems_are_reported_together():
    raise_problems([])
    with pytest.raises(ConfigError, match=r"^only one$"):
        raise_problems(["only one"])
    with pytest.raises(ConfigError, match=r"(?s)first.*second"):
        raise_problems(["first", "second"])


def test_an_entry_reports_without_a_traceback_and_with_code_2(entry):
    """A `UserError` becomes `error: ...` on stderr and exit code 2; a bug still shows its traceback."""

    def refuse():
        raise ConfigError("optim.lr=-1 must be 0 or more")

    assert entry(refuse) == (2, "", "error: optim.lr=-1 must be 0 or more\n")

    def crash():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        entry(crash)


def test_print_config_shows_every_resolved_key(entry, tmp_path):
    """`--print-config` prints YAML that loads to the same config, and does nothing else."""
    path = write(tmp_path / "c.yaml", "model: {gpt: {width: 8, layers: 1, heads: 1}}\noptim: {lr: 2e-4}\n")
    code, out, _ = entry(gpt_train.main, "--config", path, "loop.steps=7", "--print-config")
    assert code == 0
    shown = merge_config(gpt_train.GPTTrainConfig, [("printed", OmegaConf.create(out))])
    assert (shown.optim.lr, shown.loop.steps, shown.model.gpt.width) == (2e-4, 7, 8)
    assert len(differences(OmegaConf.create(out), shown)) == 0


# ---------------------------------------------------------------------------------------------- the YAML files
@pytest.mark.parametrize("path", recipes(), ids=name_of)
def test_every_recipe_loads_and_its_model_builds(path, monkeypatch):
    """Every YAML file under configs/ has only known keys, and its network builds (on the meta device)."""
    monkeypatch.setenv("IMGNET_ROOT", "/imagenet")
    model = load(path)[1]
    assert model is None or all(p.is_meta for p in model.parameters())
    assert path.read_text().startswith("#"), "a recipe opens with what it is for"


def test_there_are_recipes():
    """The test above would pass on an empty folder."""
    names = {p.name for p in recipes()}
    assert {"VQ_SS256.yaml", "GPT_B256.yaml", "tokenizer.yaml", "gpt.yaml", "full.yaml", "classifier.yaml"} <= names
    assert {"linear_probe_gpt.yaml", "linear_probe_tokenizer.yaml"} <= names


@pytest.mark.parametrize(
    ("file", "count"),
    [("vq/VQ_SS256.yaml", 136_073_227), ("gpt/GPT_B256.yaml", 111_085_824)],
)
def test_published_parameter_counts(file, count, monkeypatch):
    """The recipes build networks with exactly as many parameters as the released ones."""
    monkeypatch.setenv("IMGNET_ROOT", "/imagenet")
    model = load(ROOT / "configs" / file)[1]
    assert sum(p.numel() for p in model.parameters()) == count
    assert next(model.parameters()).device == torch.device("meta")


def test_a_bad_combination_lists_all_problems_at_once(monkeypatch):
    """`validate` collects what does not fit together, so that one run of --dry-run shows everything."""
    monkeypatch.setenv("IMGNET_ROOT", "/imagenet")
    overrides = ["semantic.teacher=efficientnet_lite0", "data.image_size=100", "loop.steps=5"]
    overrides += ["model.quantizer.vq.warmup_steps=5"]
    config = load_config(tokenizer_train.TokenizerTrainConfig, [ROOT / "configs/vq/VQ_SS256.yaml"], overrides)
    with pytest.raises(ConfigError) as caught:
        tokenizer_train.validate(config)
    for part in ("semantic_dim=768", "data.image_size=100", "multiple of 16", "warmup_steps=5", "loop.steps=5"):
        assert part in str(caught.value)


def test_null_takes_back_what_a_file_set_in_a_section(tmp_path):
    """So that a recipe's variant can be swapped on a command line: `model.quantizer.vq=null`."""
    path = write(tmp_path / "c.yaml", "inner: {limit: 4}\n")
    assert load_config(Root, [path], ["inner=null"]).inner == Root().inner
    assert load_config(Root, [path]).inner.limit == 4
