"""What a notebook does with a generator: classes by number or name, a scale and a seed; files."""

import numpy as np
import pytest
import torch

from autoregressive import GPT, generate, load_gpt
from autoregressive.guidance import Guidance
from autoregressive.models.base import Generator
from autoregressive.sampling import greedy, seeded_draw
from engine.messages import UserError
from tokenizer.loading import Provenance


@pytest.fixture(scope="module")
def gpt(networks):
    """Four classes, whose names it knows."""
    network = GPT.from_pretrained(networks)
    facts = {"classes": {"names": ["ant", "bee", "cat", "dog"], "are_named": True}}
    network.provenance = Provenance(
        network.provenance.path, "model", network.provenance.fingerprint, facts, network.provenance.config
    )
    return network


def test_the_short_call_draws_what_the_long_one_draws(gpt):
    labels = torch.arange(3)
    draw = seeded_draw(7, torch.arange(3), gpt.num_draws)
    expected = generate(gpt, labels, draw=draw, guidance=Guidance(scale=2.0))
    assert torch.equal(generate(gpt, labels, guidance_scale=2.0, seed=7), expected)
    assert not torch.equal(generate(gpt, labels, guidance_scale=2.0, seed=8), expected)

    # A sample does not depend on its batch.
    assert torch.equal(generate(gpt, [2], guidance_scale=2.0, seed=7, sample_ids=[2]), expected[2:])
    assert torch.equal(generate(gpt, labels), generate(gpt, labels, seed=0, guidance_scale=1.0))


def test_classes_by_number_and_by_name(gpt):
    expected = generate(gpt, torch.tensor([3, 0]), seed=1)
    for labels in ([3, 0], (np.int64(3), 0), ["dog", "ant"], ["dog", 0], np.array([3, 0]), torch.tensor([3, 0]).int()):
        assert torch.equal(generate(gpt, labels, seed=1), expected)
    one = generate(gpt, 3, seed=1)
    assert torch.equal(one, expected[:1])
    for label in ("dog", np.int64(3), torch.tensor(3), range(3, 4)):
        assert torch.equal(generate(gpt, label, seed=1), one)
    assert generate(gpt, 4).shape == (1, 8)  # the null class: any of them


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cow", "has no class 'cow'; it has 4: 'ant', 'bee', 'cat', 'dog'"),
        (5, r"label 5 is not known: the generator has the classes 0..3 \(and 4, which stands for any class\)"),
        ([0, -1], "label -1 is not known"),
        ([], "there are no labels"),
        ([0.5], "label=0.5 must be the number or the name of a class"),
        ([True], "label=True must be"),
        (0.5, "labels=0.5 must be numbers or names"),
        (torch.zeros(2), "labels are of type float32; whole numbers are accepted"),
        (torch.zeros(2, 2, dtype=torch.long), r"labels have shape \(2, 2\)"),
    ],
)
def test_wrong_labels_are_named(gpt, labels, message):
    with pytest.raises(UserError, match=message):
        generate(gpt, labels)


def test_names_that_nobody_knows(networks):
    with pytest.raises(UserError, match="does not know the names of its classes; give their numbers"):
        generate(load_gpt(networks / "gpt"), "ant")


def test_names_of_another_number_of_classes_are_refused(networks):
    network = load_gpt(networks / "gpt")
    network.provenance.stamp["classes"] = {"names": ["ant", "bee"], "are_named": True}
    with pytest.raises(UserError, match="has 4 classes, but its stamp names 2"):
        generate(network, "ant")


def test_nothing_is_said_twice(gpt):
    draw = seeded_draw(0, torch.arange(1), gpt.num_draws)
    for options, message in (
        ({"draw": draw, "seed": 0}, "give draw or seed"),
        ({"draw": greedy, "sample_ids": [0]}, "give draw or seed"),
        ({"guidance": Guidance(), "guidance_scale": 1.0}, "give guidance_scale or guidance, not both"),
        ({"sample_ids": [0, 1]}, "sample_ids must be 1 whole numbers from 0, one per label"),
        ({"guidance_scale": 0.5}, "scale=0.5 must be 1"),
        ({"seed": -1}, "seed=-1 must be in 0.."),
    ):
        with pytest.raises(UserError, match=message):
            generate(gpt, 0, **options)


def test_a_saved_generator_knows_its_classes(gpt, tmp_path):
    gpt.save_pretrained(tmp_path / "saved")
    again = GPT.from_pretrained(tmp_path / "saved")
    assert isinstance(again, Generator) and again.classes.names == ("ant", "bee", "cat", "dog")
    assert again.provenance.fingerprint == gpt.provenance.fingerprint
    assert torch.equal(generate(again, ["bee"], seed=3), generate(gpt, 1, seed=3))
    assert GPT is Generator
