"""docs/numbers.md: the tests that it names exist, every thread has a rule, and what it says of the bootstrap is so."""

import ast
import re
from pathlib import Path

import numpy as np

from evaluations.metrics.frechet import frechet_distance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
CHAPTERS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
NAMED_TEST = re.compile(r"^- `(tests/[\w/]+\.py): (\w+)`$", re.MULTILINE)


def test_every_named_test_exists():
    """As a function of that file."""
    named = NAMED_TEST.findall(PAGE)
    assert len(named) >= 25
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}: {name}"


def test_every_cause_has_a_rule_and_a_test():
    """Each chapter with threads; no thread stands in two of them."""
    threads = []
    for chapter in CHAPTERS:
        rows = [row for row in re.findall(r"^\| ([^|]+) \|", chapter, re.MULTILINE) if "#" in row]
        assert not rows or "**Rule.**" in chapter, chapter.splitlines()[0]
        assert NAMED_TEST.search(chapter), chapter.splitlines()[0]
        threads += rows
    assert len(threads) >= 25 and len(set(threads)) == len(threads)


def test_a_bootstrap_adds_the_bias_of_a_distance_again():
    """Between Gaussians of 16 features: 300 images are too far by a bias; drawn again, they are by about twice of it.
    So the percentile interval of the bootstrap does not even hold the number that it belongs to.
    """
    rng = np.random.default_rng(0)
    dim, count = 16, 300
    reference = np.zeros(dim), np.eye(dim)

    def distance(rows: np.ndarray) -> float:
        return frechet_distance((rows.mean(0), np.cov(rows, rowvar=False)), reference)

    sets = [rng.standard_normal((count, dim)) for _ in range(20)]
    bias = np.mean([distance(rows) for rows in sets])  # the true distance is 0
    drawn_again = [[distance(rows[rng.integers(count, size=count)]) for _ in range(40)] for rows in sets]
    assert 1.7 * bias < np.mean(drawn_again) < 2.6 * bias
    held = [np.percentile(again, 2.5) <= distance(rows) for rows, again in zip(sets, drawn_again, strict=True)]
    assert np.mean(held) < 0.5
