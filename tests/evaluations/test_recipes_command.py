"""`python -m evaluations.recipes`: what it lists of the recipes, and the file that it shows."""

import json

import pytest
from recipes import CONFIGS, name_of, recipes

from engine.messages import UserError
from evaluations import recipes as command


@pytest.fixture
def printed(monkeypatch, capsys):
    """`printed(*arguments)`: what the command prints."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["recipes", *arguments])
        command.main()
        return capsys.readouterr().out

    return call


def test_every_recipe_is_listed_with_its_facts(printed):
    """Each with a family and the command that trains it; published numbers are those of the headers."""
    listed = {record["name"]: record for record in json.loads(printed("--json"))}
    assert list(listed) == [name_of(path).removesuffix(".yaml") for path in recipes()]
    assert all(record["family"] and record["summary"] for record in listed.values())
    facts = listed["vq/VQ_SS256"]["facts"]
    assert (facts["parameters"], facts["numbers"]["rFID"], facts["cost"][1]) == ("136M", {"": "1.01"}, 8)
    assert listed["gpt/GPT_B256"]["module"] == "autoregressive.train"
    assert listed["vq/ablation/vanilla"]["bases"] == [str(CONFIGS / "vq/VQ_SS256.yaml")]


def test_words_choose_recipes(printed):
    text = printed("WeTok", "generator")
    assert "gpt/GPT_wetok_B" in text and "vq/VQ_SS256" not in text
    assert "published: WeTok, factor 16: gFID 2.31, Inception Score 276.55, precision 0.84, recall 0.55" in text
    with pytest.raises(UserError, match="no recipe has the words 'no such'"):
        printed("no", "such")


def test_a_recipe_is_shown_as_it_is(printed):
    """So that it can be copied: nothing else goes to the standard output."""
    assert printed("--show", "VQ_SS256") == (CONFIGS / "vq/VQ_SS256.yaml").read_text()
    with pytest.raises(UserError, match="did you mean vq/VQ_SS256"):
        printed("--show", "VQ_SS25")
