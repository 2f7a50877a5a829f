"""The validation loss: a mean over images in nats per token, whatever the batches and ranks, and how it was made."""

import json
import sys

import mini
import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from autoregressive import load_gpt
from autoregressive.codes import CodesError
from autoregressive.extract_codes import extract_split
from engine.data.classes import Classes
from engine.data.images import to_float
from engine.data.sources import SOURCES
from engine.messages import UserError
from engine.world import World
from evaluations import val_loss
from evaluations.jobs import val_loss as jobs_val_loss
from evaluations.results import read_result
from tokenizer import load_tokenizer

IMAGES = mini.image_source(14, seed=2)


@pytest.fixture(autouse=True)
def packaged(monkeypatch):
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: IMAGES)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A tokenizer, another one, a GPT, and the tokenizer's held-out codes in views `flip` and `ten-crop`."""
    root = tmp_path_factory.mktemp("given")
    mini.export_networks(root)
    data, world = mini.tokenizer_config().data, World(0, 1, 0, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SOURCES["mnist5k"], "open", lambda config, split: IMAGES)
        for views in ("flip", "ten-crop"):
            extract_split(load_tokenizer(root / "tokenizer"), IMAGES, data, "val", views, root / views, 8, world)
        extract_split(load_tokenizer(root / "tokenizer"), IMAGES, data, "train", "flip", root / "train only", 8, world)
    return root


@pytest.fixture
def measure(given, tmp_path, monkeypatch, world):
    """`measure(*flags, ranks=1)`: the result of the command with these flags."""

    def run(*flags, ranks=1, tokenizer="tokenizer"):
        output = tmp_path / "v.json"
        own = ["--output", output, "--device", "cpu", "--vq-ckpt", given / tokenizer, "--gpt-ckpt", given / "gpt"]
        monkeypatch.setattr(sys, "argv", ["entry", *map(str, [*own, *flags])])
        args = val_loss.parse_args()
        output.unlink(missing_ok=True)
        try:
            if ranks == 1:
                val_loss.evaluate(args, world)
            else:
                mini.on_ranks(ranks, lambda w: val_loss.evaluate(args, w))
        except UserError:
            assert not output.exists()
            raise
        return read_result(output)

    return run


@pytest.fixture(scope="module")
def plain(given):
    """The loss of each image by itself, with its true class, in float64."""
    tokenizer, gpt = load_tokenizer(given / "tokenizer"), load_gpt(given / "gpt").double()
    losses = []
    for i in range(len(IMAGES)):
        image = torch.from_numpy(IMAGES.images[i : i + 1]).permute(0, 3, 1, 2)
        tokens = tokenizer.encode(to_float(image)).indices
        logits = gpt.output(gpt.norm(gpt.features(torch.tensor([IMAGES.labels[i]]), tokens, 2)))
        of_tokens = [-log_softmax(logits[0, n], 0)[tokens[0, n]].item() for n in range(8)]
        losses.append(sum(of_tokens) / 8)
    return np.array(losses)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_loss_is_the_mean_over_images(size, measure, plain):
    """Also where the last batch is smaller; dropout of the GPT (0.1 in its config) is off."""
    metrics = measure("--per-proc-batch-size", size)["metrics"]
    assert metrics["val_loss"] == pytest.approx(plain.mean(), rel=1e-6)
    assert metrics["val_loss_stderr"] == pytest.approx(plain.std(ddof=1) / 14**0.5, rel=1e-4)
    assert set(metrics) == {"val_loss", "val_loss_stderr"}


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_loss_is_bitwise_the_same_for_any_number_of_ranks(ranks, measure):
    """Whole batches are dealt; with five ranks one has nothing to do."""
    flags = ["--per-proc-batch-size", 4]
    assert measure(*flags, ranks=ranks)["metrics"] == measure(*flags)["metrics"]


def test_the_true_class_counts(measure, plain, monkeypatch):
    """With other labels the loss differs."""
    monkeypatch.setattr(IMAGES, "labels", (IMAGES.labels + 1) % 4)
    assert abs(measure()["metrics"]["val_loss"] - plain.mean()) > 1e-5


def test_codes_of_a_store_give_the_same_number(given, measure):
    """The centre view of the split `val`, though it holds its mirror image too."""
    from_images, from_codes = measure(), measure("--code-path", given / "flip")
    assert from_codes["metrics"] == pytest.approx(from_images["metrics"], rel=1e-6)
    of_images = {"content": "mnist5k 14", "skip_broken": False}  # a code store does not know its images' content
    assert from_codes["protocol"] | of_images == from_images["protocol"]
    ten_crop = measure("--code-path", given / "ten-crop")["protocol"]
    assert ten_crop["crop"] == "center of 1.1 times the size", "the middle one of ten crops shows a smaller part"


def test_result_says_how_it_was_made(given, measure, tmp_path):
    protocol = measure()["protocol"]
    expected = {"kind": "val_loss", "num_images": 14, "data": "mnist5k", "split": "val", "crop": "center"}
    expected |= {"labels": "true", "unit": "nats per token", "image_size": 16, "precision": "float32"}
    assert expected.items() <= protocol.items()
    assert protocol["tokenizer"]["fingerprint"] == load_tokenizer(given / "tokenizer").provenance.fingerprint
    assert protocol["gpt"]["fingerprint"] == load_gpt(given / "gpt").provenance.fingerprint
    json.loads((tmp_path / "v.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_what_does_not_belong_together_is_refused(given, measure, monkeypatch):
    """Each case names what is wrong; none leaves a result."""
    with pytest.raises(CodesError, match="codes of another tokenizer"):
        measure("--code-path", given / "flip", tokenizer="other")
    with pytest.raises(CodesError, match="val holds no codes"):
        measure("--code-path", given / "train only")
    with pytest.raises(UserError, match="either --code-path"):
        measure("--code-path", given / "flip", "--val-path", "somewhere")
    with pytest.raises(UserError, match=r"data\.val_root=.* is not a folder"):
        measure("--data", "folder")
    with pytest.raises(UserError, match=r"data\.val_root='nowhere' is not a folder"):
        measure("--data-path", "nowhere")  # as the published command names held-out images
    monkeypatch.setattr(IMAGES, "class_names", ["a", "b"])
    with pytest.raises(UserError, match=r"mnist5k has 2 classes, the generator .*gpt has 4"):
        measure()


def test_labels_are_those_that_the_generator_knows_by_name(given, measure, plain, monkeypatch):
    """Images and codes whose classes stand in another order give the same loss; other names are refused."""
    known = Classes(tuple("0123"), "the GPT")
    monkeypatch.setattr(jobs_val_loss, "classes_of", lambda generator: known)
    assert measure()["metrics"]["val_loss"] == pytest.approx(plain.mean(), rel=1e-6)
    turned = Classes(tuple("3012"), "the GPT")
    monkeypatch.setattr(jobs_val_loss, "classes_of", lambda generator: turned)
    of_images, of_codes = measure()["metrics"], measure("--code-path", given / "flip")["metrics"]
    assert of_images == pytest.approx(of_codes, rel=1e-6)
    monkeypatch.setattr(jobs_val_loss, "classes_of", lambda generator: known)
    monkeypatch.setattr(IMAGES, "labels", (IMAGES.labels + 1) % 4)
    assert measure()["metrics"] == pytest.approx(of_images, rel=1e-6)
    for names in ("012x", "01234"):
        monkeypatch.setattr(IMAGES, "class_names", list(names))
        with pytest.raises(UserError, match="mnist5k and the GPT have different classes"):
            measure()
