"""A config is the tree that OmegaConf makes of it, in a fraction of the time."""

import threading
from dataclasses import dataclass, field

import pytest
import tiny
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.config_trees import default_tree, has_missing, tree_of
from tokenizer.training.config import TokenizerTrainConfig


@dataclass
class Part:
    rate: float = 1.0
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class LargerPart(Part):
    more: int = 3


@dataclass
class Whole:
    needed: int
    part: Part = field(default_factory=Part)
    parts: list[Part] = field(default_factory=list)
    other: Part | None = None
    free: dict[str, int] = field(default_factory=dict)
    text: str = "${oc.env:NO_SUCH_NAME}/train"


WHOLES = {
    "defaults": Whole(3),
    "nothing needed": Whole("???"),
    "a whole number of a rate": Whole(3, Part(rate=1)),
    "minus nothing": Whole(3, Part(rate=-0.0)),
    "other lists": Whole(3, Part(names=["1", "b"]), parts=[Part(), Part(2.0)]),
    "other sections": Whole(3, LargerPart(), other=LargerPart(2.0), free={"a": 1}),
    "a text that is looked up, and one that is not": Whole(3, Part(names=["${needed}"]), text=r"\${needed}"),
}


def described(node) -> list:
    """All that a tree knows of its nodes."""
    facts = [repr(node._metadata), node._is_none() or node._is_missing() or OmegaConf.is_config(node) or node._value()]
    if OmegaConf.is_config(node) and not node._is_none() and not node._is_missing():
        keys = node if OmegaConf.is_dict(node) else range(len(node))
        facts += [(key, described(node._get_node(key))) for key in keys]
    return facts


@pytest.mark.parametrize("name", WHOLES)
def test_the_tree_is_that_of_omegaconf(name):
    config = WHOLES[name]
    assert described(tree_of(config)) == described(OmegaConf.structured(config))


@pytest.mark.parametrize(
    ("schema", "text"), [(TokenizerTrainConfig, tiny.WETOK), (GPTTrainConfig, tiny.GPT)], ids=["tokenizer", "GPT"]
)
def test_the_tree_of_a_training_is_that_of_omegaconf(schema, text, tmp_path):
    (tmp_path / "tiny.yaml").write_text(text)
    config = load_config(schema, [tmp_path / "tiny.yaml"])
    assert described(tree_of(config)) == described(OmegaConf.structured(config))


def test_a_value_of_another_type_is_an_error():
    with pytest.raises(ValidationError):
        tree_of(Whole("three"))


def test_a_tree_is_nobody_elses():
    """What is set in one is in no other; and each thread copies defaults of its own."""
    tree_of(Whole(3)).part.names.append("b")
    assert tree_of(Whole(3)).part.names == ["a"] and default_tree(Whole).part.names == ["a"]

    trees = []
    thread = threading.Thread(target=lambda: trees.append(default_tree(Whole)))
    thread.start()
    thread.join()
    assert trees[0] == default_tree(Whole) and trees[0] is not default_tree(Whole)


def test_missing_values_are_noticed():
    """At any depth; what looks up another value may be missing too."""
    assert has_missing(default_tree(Whole))
    assert not has_missing(OmegaConf.create({"a": {"b": [1, None]}}))
    assert has_missing(OmegaConf.create({"a": {"b": [1, {"c": "???"}]}}))
    assert has_missing(OmegaConf.create({"a": {"b": "${c}"}, "c": 1}))
