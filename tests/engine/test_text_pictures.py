"""Pictures of drawn text: a function of their number, with boxes that hold the words; and the data set of them."""

import numpy as np
import pytest

from engine.data.config import DataConfig
from engine.data.identity import facts_of
from engine.data.sources import open_source, survey_source
from engine.data.text_pictures import (
    ALPHABET,
    KEYS,
    LUMA,
    MIN_CONTRAST,
    draw_picture,
    font_facts,
    height_of,
    heights_of,
)
from engine.messages import ConfigError, UserError


def pixels_of(picture) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


def test_a_picture_is_a_function_of_purpose_seed_number_and_size():
    one = draw_picture("evaluation", 3, 7, 64)
    again = draw_picture("evaluation", 3, 7, 64)
    assert np.array_equal(pixels_of(one), pixels_of(again)) and one.words == again.words
    others = [("evaluation", 4, 7, 64), ("evaluation", 3, 10, 64), *((purpose, 3, 7, 64) for purpose in KEYS)]
    others = [other for other in others if other != ("evaluation", 3, 7, 64)]
    texts = {tuple(word.text for word in draw_picture(*other).words) for other in others}
    assert len(texts) == len(others) and tuple(word.text for word in one.words) not in texts


def test_the_font_sizes_are_those_of_the_definition():
    """The smallest whose H is as high as asked, with Pillow's own font."""
    facts = font_facts(256)
    assert facts["font"] == "Aileron Regular"
    assert facts["font_sizes"] == [9, 10, 18, 23, 34, 45]
    assert all(high >= height for high, height in zip(facts["measured_heights"], heights_of(256), strict=True))


@pytest.mark.parametrize("side", [16, 32, 64, 128, 256])
def test_boxes_hold_all_the_ink_of_known_words(side):
    """Two colors of enough contrast, blended at edges; outside of the boxes there is the background alone."""
    numbers = range(2 * len(heights_of(side)))
    seen = {}
    for number in numbers:
        picture = draw_picture("val", 0, number, side)
        assert picture.image.size == (side, side) and picture.words and picture.height == height_of(number, side)
        seen.setdefault(picture.height, 0)
        seen[picture.height] += 1

        pixels = pixels_of(picture)
        ground = pixels[0, 0]
        outside = np.ones((side, side), dtype=bool)
        for word in picture.words:
            left, top, right, bottom = word.box
            inside = pixels[top:bottom, left:right]
            contrast = np.abs((inside - ground) @ np.array(LUMA))
            assert set(word.text) <= set(ALPHABET) and contrast.max() >= 0.6 * MIN_CONTRAST, word
            outside[top:bottom, left:right] = False
        assert np.array_equal(pixels[outside], np.broadcast_to(ground, pixels[outside].shape))
    assert seen == dict.fromkeys(heights_of(side), 2)


def test_words_are_random_and_short_in_small_pictures():
    """All letters occur about equally often: there is nothing to guess from."""
    large = [word.text for number in range(60) for word in draw_picture("train", 1, number, 256).words]
    small = [word.text for number in range(60) for word in draw_picture("train", 1, number, 64).words]
    assert {len(word) for word in large} == {3, 4, 5, 6} and {len(word) for word in small} == {1, 2, 3}
    counts = np.array(["".join(large).count(letter) for letter in ALPHABET])
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.5 * counts.mean()
    assert len(set(large)) > 0.99 * len(large)


def test_too_small_a_picture_is_refused():
    with pytest.raises(UserError, match="drawn text needs pictures of 16 px or more, not of 8"):
        heights_of(8)


# ---------------------------------------------------------------------------------------------- the data set
def test_the_data_set_is_drawn_at_the_size_of_the_crop():
    """Labels are the heights; both splits differ; a look draws nothing but knows the classes."""
    config = DataConfig(name="text", image_size=32, random_crop=False)
    train, val = (open_source(config, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6_000, 500) and train.class_names == ["8 px", "12 px", "16 px"]
    assert train.image(5).size == (32, 32)
    drawn = draw_picture("train", 0, 5, 32)
    assert np.array_equal(np.asarray(train.image(5)), pixels_of(drawn)) and drawn.height == 16 and train.labels[5] == 2
    assert not np.array_equal(np.asarray(val.image(5)), pixels_of(drawn))
    assert survey_source(config, "train").class_names == train.class_names
    assert facts_of(val)["classes"] == {"8 px": 167, "12 px": 167, "16 px": 166}
    assert train.identity() != val.identity() and open_source(config, "val").identity() == val.identity()


def test_a_path_beside_it_is_an_error():
    with pytest.raises(ConfigError, match=r"data.root='x' is set, but data.name='text' does not use it"):
        open_source(DataConfig(name="text", root="x", image_size=32), "train")
