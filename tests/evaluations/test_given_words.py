"""Words that another program has read: groups by ratio, the scores of TokBench, and files that are refused."""

import json
import math

import numpy as np
import pytest

from evaluations import tokbench
from evaluations.readback.given_words import GROUPS, GivenWord, group_of, score_words
from evaluations.result_intervals import difference_in
from evaluations.results import read_result


def word(ratio: float, read: str, truth: str, image: str = "a") -> GivenWord:
    return GivenWord(image, ratio, read, truth)


@pytest.mark.parametrize(
    ("setting", "ratio", "group"),
    [
        (256, 0.0199, None), (256, 0.02, 0), (256, 0.0299, 0), (256, 0.03, 1), (256, 0.04, 2), (256, 0.999, 2),
        (256, 1.0, None), (512, 0.01, 0), (512, 0.03, 2), (1024, 0.005, 0), (1024, 0.0049, None), (1024, 0.02, 2),
    ],
)  # fmt: skip
def test_groups_are_half_open(setting, ratio, group):
    assert group_of(ratio, GROUPS[setting]) == group


def test_the_mean_of_groups_is_not_weighted():
    """By hand: groups of 1, 0 and 1/2; distances over the longer text; upper and lower case told apart."""
    words = [
        *[word(0.025, "Cafe", "Cafe", image=str(i)) for i in range(8)],
        word(0.035, "cafe", "Cafe"),
        word(0.5, "ABCD", "AB"),
        word(0.5, "AB", "AB", image="b"),
        word(0.001, "", "left out"),
    ]
    measurement, facts = score_words(words, 256)
    metrics = measurement.metrics
    assert [metrics[f"t_acc_group_{i}"] for i in range(3)] == [1, 0, 0.5] and metrics["t_acc"] == 0.5
    assert [metrics[f"t_ned_group_{i}"] for i in range(3)] == [1, 0.75, 0.75]
    assert metrics["t_ned"] == pytest.approx(2.5 / 3)
    errors = measurement.errors
    assert errors["t_acc_group_0"].se == 0 and errors["t_acc_group_0"].freedom == 7
    assert errors["t_acc_group_2"].se == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert not {"t_acc", "t_acc_group_1"} & errors.keys(), "one group has a single image"
    assert facts == {"bounds": [0.02, 0.03, 0.04, 1.0], "words": [8, 1, 2], "images": [8, 1, 2], "left_out": 1}


def test_errors_are_over_images_and_of_differences_over_common_blocks(tmp_path, entry):
    """By hand: 40 images of two words in each group. Two readers of the same words differ by a paired interval, which
    does not depend on the order of the words."""
    rng = np.random.default_rng(0)
    truth = [(f"{image:02d}", ratio) for image in range(40) for ratio in (0.025, 0.025, 0.035, 0.035, 0.5, 0.5)]
    right = rng.random(len(truth)) < 0.6
    better = right | (rng.random(len(truth)) < 0.2)
    results = []
    for name, is_right, order in (("one", right, 1), ("two", better, -1)):
        rows = [
            {"image": image, "ratio": ratio, "read": "A" if ok else "B", "truth": "A"}
            for (image, ratio), ok in zip(truth, is_right, strict=True)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows[::order]))
        output = tmp_path / f"{name}.result.json"
        flags = ["--words", tmp_path / f"{name}.json", "--setting", 256, "--read-by", "x", "--output", output]
        code, _, err = entry(tokbench.main, *flags)
        assert code == 0, err
        results.append(read_result(output))

    per_image = right.reshape(40, 3, 2).mean(2)
    metrics = results[0]["metrics"]
    of_groups = per_image.std(0, ddof=1) / math.sqrt(40)
    assert [metrics[f"t_acc_group_{i}_se"] for i in range(3)] == pytest.approx(of_groups.tolist())
    assert metrics["t_acc"] == pytest.approx(right.mean())
    assert metrics["t_acc_se"] == pytest.approx(math.sqrt((of_groups**2).sum()) / 3)
    assert metrics["t_acc_low"] < metrics["t_acc"] < metrics["t_acc_high"]
    difference = difference_in(*results, "t_acc")
    assert difference.is_paired and difference.value == pytest.approx(better.mean() - right.mean())
    assert difference.half_width < math.hypot(*(2 * result["metrics"]["t_acc_se"] for result in results))


def test_an_empty_group_leaves_no_mean():
    measurement, _ = score_words([word(0.5, "A", "A")], 256)
    assert measurement.metrics == {"t_acc_group_2": 1.0, "t_ned_group_2": 1.0}
    assert measurement.unavailable.keys() == {
        "t_acc", "t_ned", "t_acc_group_0", "t_acc_group_1", "t_ned_group_0", "t_ned_group_1"
    }  # fmt: skip


def test_a_file_and_a_folder_give_the_same(tmp_path, entry):
    """In a folder the name of a file is the image; who read is in the protocol."""
    rows = [{"ratio": ratio, "read": "A", "truth": "A"} for ratio in (0.02, 0.03, 0.04)]
    (tmp_path / "words").mkdir()
    for name in ("x", "y"):
        (tmp_path / "words" / f"{name}.json").write_text(json.dumps(rows))
    together = [{"image": name, **row} for name in ("x", "y") for row in rows]
    (tmp_path / "words.json").write_text(json.dumps(together))
    results = []
    for source in ("words", "words.json"):
        output = tmp_path / f"{source}.result.json"
        flags = ["--words", tmp_path / source, "--setting", 256, "--read-by", "docTR PARSeq", "--output", output]
        code, _, err = entry(tokbench.main, *flags)
        assert code == 0, err
        results.append(read_result(output))
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["metrics"]["t_acc"] == 1
    facts = results[0]["protocol"]["given_words"]
    assert facts == results[1]["protocol"]["given_words"] and facts["read_by"] == "docTR PARSeq"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable JSON"),
        ('{"words": []}', "holds a dict; a list of words is needed"),
        ("[]", "holds no word"),
        ("[3]", "word 0 is 3; an object with image, ratio, read, truth is needed"),
        ('[{"ratio": 0.1, "read": "A"}]', "word 0 lacks truth; it has image, ratio, read"),
        ('[{"ratio": "big", "read": "A", "truth": "A"}]', "ratio='big' must be a number from 0"),
        ('[{"ratio": NaN, "read": "A", "truth": "A"}]', "ratio=nan must be a number from 0"),
        ('[{"ratio": 0.1, "read": null, "truth": "A"}]', "read=None and truth='A' must be texts"),
        ('[{"ratio": 0.1, "read": "A", "truth": ""}]', "must be texts, and truth not empty"),
    ],
)
def test_a_file_that_is_none_is_refused(content, message, tmp_path, entry):
    (tmp_path / "words.json").write_text(content)
    flags = ["--words", tmp_path / "words.json", "--setting", 256, "--read-by", "x", "--output", tmp_path / "r.json"]
    code, _, err = entry(tokbench.main, *flags)
    assert code == 2 and message in err and not (tmp_path / "r.json").exists()
