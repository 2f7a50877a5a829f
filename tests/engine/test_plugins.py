"""engine/plugins.py: one file of the user's registers components, for every entry, and no checkpoint imports it."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import checkpoints
import pytest

from engine import plugins
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.cli import entry_parser, parse_cli
from engine.config import flatten, load_config, load_sections, save_config
from engine.config_help import describe
from engine.messages import ConfigError, UserError
from engine.registry import extended_schema, selected_section

PARTS: dict[str, Any] = {}


@dataclass(kw_only=True, slots=True)
class OneConfig:
    """The section of `One`."""

    width: int = 1


class One:
    """A component that ships with the program."""

    config_class = OneConfig


@dataclass(kw_only=True, slots=True)
class PartConfig:
    """`name` picks the part."""

    REGISTRY: ClassVar[Mapping[str, Any]] = PARTS

    name: str = "one"
    one: OneConfig = field(default_factory=OneConfig)


@dataclass(kw_only=True, slots=True)
class Model:
    """A section around it, with defaults of its own."""

    depth: int = 2
    part: PartConfig = field(default_factory=lambda: PartConfig(one=OneConfig(width=7)))


@dataclass(kw_only=True, slots=True)
class Loop:
    """As much of a loop as a command line needs."""

    run_dir: str = ""


@dataclass(kw_only=True, slots=True)
class Root:
    """A root config."""

    model: Model = field(default_factory=Model)
    loop: Loop = field(default_factory=Loop)
    plugins: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Sections:
    """What a loader reads."""

    model: Model = field(default_factory=Model)


SOURCE = """
from dataclasses import dataclass
from test_plugins import PARTS

@dataclass(kw_only=True, slots=True)
class MineConfig:
    \"\"\"A section of a user.\"\"\"

    speed: float = 0.5  # metres per second

class Mine:
    config_class = MineConfig

PARTS["mine"] = Mine
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No plug-in is loaded, the registry holds what ships, and what a test imports is forgotten after it."""
    monkeypatch.setattr(plugins, "_loaded", {})
    PARTS.clear()
    PARTS["one"] = One
    monkeypatch.setitem(sys.modules, "test_plugins", sys.modules[__name__])
    yield
    for name in [name for name in sys.modules if name.startswith("plugin_") or name == "my_part"]:
        del sys.modules[name]


@pytest.fixture
def plugin(tmp_path):
    """The file of a plug-in."""
    path = tmp_path / "my_part.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------------ sections
def test_a_foreign_component_gets_its_section(plugin):
    """At any depth, in a subclass that is the same object each time; defaults of the sections around it stay."""
    assert extended_schema(Root) is Root
    plugins.load([str(plugin)])
    extended = extended_schema(Root)
    assert extended is extended_schema(Root) and extended is extended_schema(extended) and issubclass(extended, Root)

    assert load_config(Root).model.part.one.width == 7
    config = load_config(Root, [], ["model.part.name=mine", "model.part.mine.speed=2", "model.part.one.width=1"])
    assert isinstance(config, Root) and isinstance(config.model.part, PartConfig)
    assert (config.model.part.mine.speed, config.model.depth) == (2.0, 2)
    assert selected_section(config.model.part, PARTS, "model.part").speed == 2.0
    again = ["model.part.name=mine", "model.part.mine={speed: 2}", "model.part.one={width: 1}"]
    assert config == load_config(Root, [], again)
    assert config != load_config(Root, [], again[:1])
    with pytest.raises(ConfigError, match=r"model\.part\.mine is set, but model\.part\.name='one' does not use it"):
        selected_section(load_config(Root, [], ["model.part.mine.speed=2"]).model.part, PARTS, "model.part")


def test_its_values_are_checked_and_explained(plugin):
    """An unknown name, an unknown key and a wrong type are named; --help-config shows the comments of the file."""
    with pytest.raises(ConfigError, match=r"^model\.part\.name='mine' is not known; choose one of: one$"):
        load_config(Root, [], ["model.part.name=mine"])
    plugins.load([str(plugin)])
    with pytest.raises(ConfigError) as caught:
        load_config(Root, [], ["model.part.mine.speed=fast", "model.part.mine.sped=1", "model.part.name=other"])
    for part in (
        "model.part.mine.speed='fast' must be a number",
        "model.part.mine.sped is not a known key (accepted here: speed); did you mean model.part.mine.speed?",
        "model.part.name='other' is not known; choose one of: mine, one",
    ):
        assert part in str(caught.value)

    text = describe(Root, "model.part.mine.speed")
    assert "metres per second" in text and "float" in text and "0.5" in text
    assert "A section of a user." in describe(Root, "model.part.mine")
    assert "one of: mine, one" in describe(Root, "model.part.name")


# ------------------------------------------------------------------------------------------------------ names
def test_a_path_in_a_yaml_is_relative_to_it(plugin, tmp_path, monkeypatch):
    """On a command line it is relative to the current folder; each file is imported once, whatever names it."""
    (tmp_path / "configs").mkdir()
    yaml = tmp_path / "configs" / "c.yaml"
    yaml.write_text("plugins: [../my_part.py]\nmodel: {part: {name: mine}}\n", encoding="utf-8")
    config = load_config(Root, [yaml])
    assert config.model.part.mine.speed == 0.5
    assert config.plugins == [f"{plugin}#sha256={sha256(plugin)}"]

    monkeypatch.chdir(tmp_path)
    assert load_config(Root, [yaml], ["plugins=[my_part.py]"]).plugins == config.plugins
    assert len(plugins.loaded()) == 1


def test_a_module_is_found_on_the_path(plugin, monkeypatch):
    """The same file by its path is the same plug-in."""
    monkeypatch.syspath_prepend(str(plugin.parent))
    config = load_config(Root, [], ["plugins=[my_part]", "model.part.name=mine"])
    assert config.plugins == [f"my_part#sha256={sha256(plugin)}"]
    plugins.load([str(plugin)])
    assert [p.name for p in plugins.loaded()] == ["my_part"]
    assert plugins.flags() == ["--plugin", "my_part"]


def test_plugins_of_a_base_and_of_what_is_laid_over_it_add_up(plugin, tmp_path):
    (tmp_path / "other_part.py").write_text("", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("plugins: [my_part.py]\n", encoding="utf-8")
    (tmp_path / "over.yaml").write_text("base: base.yaml\nplugins: [other_part.py]\n", encoding="utf-8")
    names = [text.partition("#")[0] for text in load_config(Root, [tmp_path / "over.yaml"]).plugins]
    assert names == [str(plugin), str(tmp_path / "other_part.py")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such.py", r"plug-in no_such\.py is no file \(looked for .*no_such\.py\)"),
        ("no_such_module", r"plug-in no_such_module is neither a module on PYTHONPATH nor the path of a \.py file"),
        ("no_such_package.part", r"plug-in no_such_package\.part cannot be found: .*no_such_package"),
        ("broken.py", r"plug-in .*broken\.py cannot be imported: ZeroDivisionError: .*broken\.py, line 2\)"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("x = 0\n1 / x\n", encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        plugins.load([name])
    assert plugins.loaded() == []


def test_a_list_of_plugins_that_is_none_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("plugins: my_part.py\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml: plugins='my_part\.py' must be a list of module names or paths"):
        load_config(Root, [path])


# ------------------------------------------------------------------------------------------------------ entries
def test_an_entry_imports_before_its_parser_is_built(entry, plugin):
    """`--plugin` in front of choices that come from a registry, and for the config of a training entry."""

    def sampling():
        parser = entry_parser("An entry.")
        parser.add_argument("--part", choices=sorted(PARTS))
        print(parser.parse_args().part)

    assert entry(sampling, "--part", "mine", "--plugin", plugin)[1] == "mine\n"

    def training():
        config, args = parse_cli(Root, "An entry.")
        print(config.model.part.mine.speed, args.plugin == [str(plugin)])

    assert entry(training, f"--plugin={plugin}", "model.part.name=mine", "model.part.mine.speed=3")[1] == "3.0 True\n"
    shown = entry(training, "--plugin", plugin, "--help-config", "model.part.mine.speed")[1]
    assert "metres per second" in shown
    code, _, message = entry(training, "--plugin", "nowhere.py")
    assert code == 2 and "plug-in nowhere.py is no file" in message


# ------------------------------------------------------------------------------------------------------ checkpoints
def saved_run(folder, plugin):
    """A config.yaml as a run with the plug-in writes it; then the process forgets the plug-in."""
    config = load_config(Root, [], [f"plugins=[{plugin}]", "model.part.name=mine", f"loop.run_dir={folder}"])
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    plugins._loaded.clear()
    del PARTS["mine"]
    return folder / "config.yaml"


def test_a_saved_config_says_which_plugin_to_add_and_imports_none(plugin, tmp_path):
    path = saved_run(tmp_path / "run", plugin)
    expected = (
        rf"it was trained with plug-in {plugin} \(sha256 {sha256(plugin)[:16]}\): add --plugin {plugin} \(from Python: "
    )
    with pytest.raises(ConfigError, match=expected):
        load_sections(Sections, path)
    assert plugins.loaded() == [] and "mine" not in PARTS

    plugins.load([str(plugin)])
    assert load_sections(Sections, path).model.part.name == "mine"


def test_a_resume_without_the_plugin_says_which_to_add(plugin, tmp_path):
    """The run folder that the command would continue knows it."""
    run = tmp_path / "run"
    saved_run(run, plugin)
    with pytest.raises(
        ConfigError, match=rf"is not known.*trained with plug-in {plugin} .*: add --plugin {plugin} \(from Python"
    ):
        load_config(Root, [], ["model.part.name=mine", f"loop.run_dir={run}"])
    with pytest.raises(ConfigError, match=r"choose one of: one$"):
        load_config(Root, [], ["model.part.name=mine", "loop.run_dir=elsewhere"])


def test_a_hash_in_a_config_pins_the_file(plugin, tmp_path):
    """A saved config used as --config imports the file it was made with, and no changed one."""
    path = saved_run(tmp_path / "run", plugin)
    plugin.write_text(SOURCE + "\n# changed\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"my_part\.py changed: the config names sha256 .*add --plugin {plugin}"):
        load_config(Root, [path])
    plugins.load([str(plugin)])
    assert flatten(load_config(Root, [path]))["model.part.mine.speed"] == 0.5


def test_a_checkpoint_names_its_plugins_and_a_changed_file_is_told(plugin, tmp_path, world, caplog):
    """In the stamp of the manifest; a resume with another file of that name says so in the log and goes on."""
    plugins.load([str(plugin)])
    thing = checkpoints.Thing(tmp_path / "run", world)
    thing.train(range(2))
    thing.save(2)
    stamp = read_manifest(checkpoint_folders(tmp_path / "run")[0])["stamp"]
    assert stamp["plugins"] == {str(plugin): sha256(plugin)}

    before = sha256(plugin)
    plugin.write_text(SOURCE + "\n# changed\n", encoding="utf-8")
    plugins._loaded.clear()
    caplog.set_level("INFO", "tokenizers")
    assert checkpoints.Thing(tmp_path / "run", world).load() == 2
    assert f"plug-in {plugin} (sha256 {before[:16]}) of the checkpoint is not loaded" in caplog.text
    plugins.load([str(plugin)])
    assert checkpoints.Thing(tmp_path / "run", world).load() == 2
    assert (
        f"plug-in {plugin} changed since the checkpoint: sha256 {before[:16]} -> {sha256(plugin)[:16]}" in caplog.text
    )


def test_without_plugins_nothing_is_stamped(thing):
    assert "plugins" not in read_manifest(checkpoint_folders(thing.store.run_dir)[0])["stamp"]
