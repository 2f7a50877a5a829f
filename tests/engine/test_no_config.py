"""What is said of a file that is no config: its name, and where the first fault is, but not what it holds."""

import pytest

from engine.config import load_config
from engine.messages import ConfigError
from evaluations.trainers import recipe_tree, trainer_of
from tokenizer.training.config import TokenizerTrainConfig

SECRET = "hunter2-very-secret"
FILES = {
    "an account": (
        f"password: {SECRET}\nhost: db\nport: 5\nuser: me\nname: x\n",
        "password, host, port and 2 more are",
    ),
    "prose": (f"Dear {SECRET}, see below.\n\nIt is: here: and there\n", "line 3, column"),
    "tabs": (f"a:\n\t{SECRET}: 1\n", "line 2, column 1"),
    "a tag": (f"a: !secret {SECRET}\n", "line 1, column 4"),
    "twice": (f"a: {SECRET}\na: 1\n", "line 2, column 1"),
    "a section": (f"optim: {{lr: 1, rte: {SECRET}}}\n", "optim.rte is not a known key"),
    "an interpolation": (f"init: ${{{SECRET}\n", "is not readable YAML"),
    "one long word": ("x" * 100 + SECRET, "is not a known key"),
    "a long value": (f"loop: {{steps: [{'x, ' * 5000}{SECRET}]}}\n", "must be a whole number"),
    "a long list": (f"loop: [{'x, ' * 5000}{SECRET}]\n", "must be a section"),
    "a large file": (f"init: a  # {SECRET}\n" + "# more\n" * 200_000, "is no config: it has 1,"),
    "a bad base": (f"base: [{SECRET * 100}]\n", "must be the path of a YAML file"),
    "plug-ins": (f"plugins: {{a: [{'x, ' * 5000}{SECRET}]}}\n", "must be a list of module names"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_config_is_not_echoed(kind, tmp_path):
    """By the trainings, and by the command that looks for the trainer of a recipe."""
    text, told = FILES[kind]
    path = tmp_path / "no.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(TokenizerTrainConfig, [path])
    messages = [str(caught.value)]
    assert told in messages[0], messages[0]
    try:
        trainer_of(recipe_tree([str(path)]), str(path))
    except ConfigError as error:  # some have the sections of a recipe
        messages.append(str(error))
    for message in messages:
        rest = message.replace(str(path), "")
        assert rest != message and len(rest) < 600 and "\n" not in rest
        assert SECRET not in rest or kind == "a bad base", rest  # the beginning of a value


def test_the_beginning_of_a_value_is_shown(tmp_path):
    """A short value is what the user looks for."""
    path = tmp_path / "yes.yaml"
    path.write_text("loop: {steps: many}\n")
    with pytest.raises(ConfigError, match=r"loop\.steps='many' must be a whole number"):
        load_config(TokenizerTrainConfig, [path])
