"""engine/data/classes: labels of two sets, or of a set and a network, are compared by class name, by one check."""

import logging

import numpy as np
import pytest
import tiny
from PIL import Image

import autoregressive.extract_codes
import autoregressive.sample
import autoregressive.train
import evaluations.classifier
import evaluations.generation
import tokenizer.train
from autoregressive import load_gpt
from autoregressive.codes import CodeStore
from autoregressive.loading import classes_of
from engine.data.base import replaced_images
from engine.data.classes import Classes, count_problem, labels_among, with_labels_of
from engine.data.folders import FolderSource
from engine.data.images import ImageError
from engine.data.sources import log_replaced, read_source
from engine.messages import UserError


def classes(names, owner="these", are_named=True) -> Classes:
    return Classes(tuple(names), owner, are_named)


# ---------------------------------------------------------------------------------------------- the check
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("bcd", "these and those have different classes: 3 against 3; class 0 is 'b' against 'a'; unknown .* 'd'"),
        ("abcde", "have different classes: 5 against 3; class 3 is 'd' against none; unknown to the second: 'd', 'e'"),
        ("xyzuvw", "class 0 is 'x' against 'a'; unknown to the second: 'x', 'y', 'z' and 3 more"),
    ],
)
def test_other_classes_are_refused_with_the_first_names_that_differ(names, message):
    with pytest.raises(UserError, match=message):
        labels_among(classes(names), classes("abc", "those"))


def test_labels_are_taken_by_name(caplog):
    """Some of the classes, or another order: each keeps the label that its name has; the log says what is missing."""
    assert labels_among(classes("abc"), classes("abc")).tolist() == [0, 1, 2]
    assert labels_among(classes("cab"), classes("abc")).tolist() == [2, 0, 1]
    with caplog.at_level(logging.INFO):
        assert labels_among(classes("bd"), classes("abcd", "those")).tolist() == [1, 3]
    assert "these has 2 of the 4 classes of those (without 'a', 'c'); its labels are taken by name" in caplog.text


def test_unknown_names_are_compared_by_their_number_which_is_said(caplog):
    """An old network, or tar files with numbers; numbers may be fewer than expected, names may not."""
    old = Classes.from_stamp({}, 3, "the old GPT")
    with caplog.at_level(logging.WARNING):
        assert labels_among(classes("abc"), old).tolist() == [0, 1, 2]
    assert "the old GPT does not say the names of its classes: compared with these by their number only" in caplog.text
    for few in ("ab", "abcd"):
        with pytest.raises(UserError, match=f"has {len(few)} classes, the old GPT has 3"):
            labels_among(classes(few), old)
    numbers = classes("01", "tar files", are_named=False)
    assert labels_among(numbers, old).tolist() == labels_among(numbers, classes("abc")).tolist() == [0, 1]
    with pytest.raises(UserError, match="tar files has 2 classes, these has 1"):
        labels_among(numbers, classes("a"))
    stamped = Classes.from_stamp(classes("abc").stamp(), 3, "the GPT")
    assert stamped == classes("abc", "the GPT") and stamped.label_of("c") == 2
    with pytest.raises(UserError, match="the GPT has no class 'd'; it has 3: 'a', 'b', 'c'"):
        stamped.label_of("d")
    with pytest.raises(UserError, match="does not know the names of its classes; give their numbers"):
        old.label_of("0")


def test_the_names_of_a_full_imagenet_are_compared():
    """21,841 names in another order, and most of them: each name is looked up, and no set is built for each."""
    names = [f"n{number:08d}" for number in range(21_841)]
    backwards = classes(reversed(names))
    assert np.array_equal(labels_among(backwards, classes(names)), np.arange(21_841)[::-1])
    assert np.array_equal(labels_among(classes(names[1:]), classes(names)), np.arange(1, 21_841))
    with pytest.raises(UserError, match="21842 against 21841; class 21841 is 'other' against none"):
        labels_among(classes([*names, "other"]), classes(names))


def test_a_network_that_is_not_trained_yet_is_compared_by_its_number():
    assert count_problem(classes("abc"), 3, "model.num_classes") is None
    assert count_problem(classes("abc", "x"), 5, "model.num_classes") == "model.num_classes=5, but x has 3 classes"


class OneBroken:
    """Images of no kind that this program knows, as of a plug-in; the second of four is unreadable."""

    def __init__(self):
        self.name, self.class_names, self.labels = "mine", ["b", "d"], np.array([0, 0, 1, 1])

    def __len__(self):
        return 4

    def image(self, index):
        if index == 1:
            raise ImageError("torn")
        return Image.new("RGB", (8, 8), (index, 0, 0))

    def where(self, index):
        return f"image {index}"


@pytest.mark.parametrize("is_relabeled", [False, True])
def test_replaced_images_are_told_for_every_source(is_relabeled, caplog):
    """Also where the labels of a set are taken by name, and for sources of plug-ins."""
    source = OneBroken()
    images = with_labels_of(source, classes("abcd")) if is_relabeled else source
    log_replaced(images)
    assert "could not be read" not in caplog.text
    for _ in range(2):
        image, index, num_passed = read_source(images, 1, skip_broken=True)
        assert (image.getpixel((0, 0))[0], index, num_passed) == (2, 2, 1)
    log_replaced(images)
    assert "mine: 1 images could not be read; the next readable ones took their place" in caplog.text
    assert replaced_images(source) == replaced_images(images) == {1}
    assert caplog.text.count("skipped unreadable image image 1") == 1  # not again each time it is read


def test_images_of_some_classes_get_the_labels_of_all(tmp_path):
    tiny.write_images(tmp_path, per_class=2, seed=0, classes=("d", "b"))
    source = FolderSource(tmp_path, "data.val_root")
    relabeled = with_labels_of(source, classes("abcd"))
    assert source.labels.tolist() == [0, 0, 1, 1] and relabeled.labels.tolist() == [1, 1, 3, 3]
    assert relabeled.class_names == list("abcd") and relabeled.identity() == source.identity()
    assert np.array_equal(np.asarray(relabeled.image(2)), np.asarray(source.image(2))) and len(relabeled) == 4
    assert with_labels_of(source, Classes.of(source)) is source


# ---------------------------------------------------------------------------------------------- in every entry
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Training images of the classes a, b, c; held-out ones of several sets of classes; a tokenizer."""
    root = tmp_path_factory.mktemp("classes")
    for split, names in {"train": "abc", "same": "abc", "some": "ac", "shifted": "bcd", "more": "abcde"}.items():
        tiny.write_images(root / split, per_class=4, seed=len(split), classes=tuple(names))
    return root


def tokenizer_flags(root, held_out, run):
    config = root / "tokenizer.yaml"
    config.write_text(tiny.TOKENIZER)
    data = ["data.name=folder", f"data.root={root / 'train'}", f"data.val_root={root / held_out}"]
    return ["--config", config, *data, f"loop.run_dir={run}", "loop.steps=2"]


@pytest.mark.parametrize(("held_out", "name"), [("shifted", "'d'"), ("more", "'d', 'e'")])
def test_a_tokenizer_refuses_other_held_out_classes_before_it_trains(trained, held_out, name, tmp_path, entry):
    code, _, err = entry(tokenizer.train.main, *tokenizer_flags(trained, held_out, tmp_path / "run"))
    assert code == 2 and "have different classes" in err and name in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def check_refuses_other_classes(entry, trained, extract, parts, tmp_path):
    """An evaluation looks at the reference, the codes and the classifier before it loads a network."""
    run, gpt, codes = parts
    extract[3] = tmp_path / "others"
    others = ["--data-path", trained / "more", "--split", "train"]
    assert entry(autoregressive.extract_codes.main, *extract, *others)[0] == 0
    small = ["model={num_classes: 3, width: 4}", "data.image_size=16", "data.global_batch_size=4", "loop.steps=1"]
    small += ["data.name=folder", f"loop.run_dir={tmp_path / 'classifier'}", "loop.device=cpu"]
    splits = [f"data.{key}={trained / 'shifted'}" for key in ("root", "val_root")]
    assert entry(evaluations.classifier.main, *small, *splits)[0] == 0
    measure = ["--vq-ckpt", run, "--gpt-ckpt", gpt, "--device", "cpu", "--random-stand-in", "--force", "--check"]
    measure += ["--output", tmp_path / "result.json"]
    assert entry(evaluations.generation.main, *measure, "--code-path", codes)[0] == 0
    wrong = ["--data-path", trained / "shifted", "--code-path", tmp_path / "others"]
    code, _, err = entry(evaluations.generation.main, *measure, *wrong, "--classifier", tmp_path / "classifier")
    assert code == 2 and "3 things are missing or wrong" in err
    for owner in (trained / "shifted", f"the codes {tmp_path / 'others' / 'train'}"):
        assert f"{owner} and the generator {gpt}" in err
    assert "and the classifier" in err and err.count("have different classes") == 3


def test_codes_generator_and_samples_mean_the_same_class(trained, tmp_path, entry):
    """From images to samples: held-out images of two of three classes are measured under their own labels."""
    run, codes, gpt = tmp_path / "tokenizer", tmp_path / "codes", tmp_path / "gpt"
    assert entry(tokenizer.train.main, *tokenizer_flags(trained, "some", run))[0] == 0

    # Extraction: refused before anything is written, or with the labels of the training images.
    extract = ["--vq-ckpt", run, "--code-path", codes, "--device", "cpu"]
    for held_out in ("shifted", "more"):
        code, _, err = entry(autoregressive.extract_codes.main, *extract, "--val-path", trained / held_out)
        assert code == 2 and "have different classes" in err and not codes.exists()
    assert entry(autoregressive.extract_codes.main, *extract, "--val-path", trained / "some")[0] == 0
    assert CodeStore(codes, "val").manifest.class_names == list("abc")
    assert CodeStore(codes, "val").labels.tolist() == [0] * 4 + [2] * 4
    alone = ["--val-path", trained / "more", "--split", "val"]
    (codes / "val").rename(tmp_path / "val")
    code, _, err = entry(autoregressive.extract_codes.main, *extract, *alone, "--check")
    assert code == 2 and f"the codes {codes / 'train'} have different classes: 5 against 3" in err
    (tmp_path / "val").rename(codes / "val")

    # Training: the labels of the held-out codes; the names go into the checkpoint.
    config = tmp_path / "gpt.yaml"
    config.write_text(tiny.GPT)
    flags = ["--config", config, f"data.codes={codes}", f"data.tokenizer={run}", f"loop.run_dir={gpt}"]
    flags += ["model.gpt.num_classes=3", "loop.steps=40", "loop.log_every=40"]
    assert entry(autoregressive.train.main, *flags)[0] == 0
    assert classes_of(load_gpt(gpt)).names == ("a", "b", "c")
    assert "classes" not in load_gpt(gpt).provenance.facts()["stamp"]

    # Codes of other classes that somebody puts in place.
    extract[3] = tmp_path / "shifted"
    shifted = ["--val-path", trained / "shifted", "--split", "val"]
    assert entry(autoregressive.extract_codes.main, *extract, *shifted)[0] == 0
    (codes / "val").rename(tmp_path / "val")
    (tmp_path / "shifted" / "val").rename(codes / "val")
    code, _, err = entry(autoregressive.train.main, *flags, "loop.run_dir=" + str(tmp_path / "other"))
    assert code == 2 and "class 0 is 'b' against 'a'" in err and not (tmp_path / "other").exists()

    check_refuses_other_classes(entry, trained, extract, [run, gpt, codes], tmp_path)

    # Samples by name.
    sample = ["--vq-ckpt", run, "--gpt-ckpt", gpt, "--device", "cpu", "--qual-num", "1"]
    by_name = [*sample, "--class-name", "c", "--sample-dir", tmp_path / "by_name"]
    by_number = [*sample, "--class-idx", "2", "--sample-dir", tmp_path / "by_number"]
    assert entry(autoregressive.sample.main, *by_name)[0] == entry(autoregressive.sample.main, *by_number)[0] == 0
    pictures = [(tmp_path / name / "class_2_c" / "000000.png").read_bytes() for name in ("by_name", "by_number")]
    assert pictures[0] == pictures[1]
    code, _, err = entry(autoregressive.sample.main, *sample, "--class-name", "d", "--sample-dir", tmp_path / "none")
    assert code == 2 and "has no class 'd'; it has 3: 'a', 'b', 'c'" in err


def test_classes_of_imagenet_go_by_their_words_too():
    """Published GPTs have 1,000 classes without names; folders of ImageNet are called by synsets."""
    synsets = Classes(tuple(f"n{label:08d}" for label in range(1000)), "x")
    for classes in (Classes.unknown(1000, "x"), synsets):
        assert classes.label_of("goldfish") == 1
        with pytest.raises(UserError, match="x has no class 'gold fish'; it has 1000: 'tench', 'goldfish', "):
            classes.label_of("gold fish")
    assert synsets.label_of("n00000007") == 7
    with pytest.raises(UserError, match="does not know the names of its classes"):
        Classes.unknown(10, "x").label_of("goldfish")
