"""Fixtures of the tests of engine/."""

import checkpoints
import pytest


@pytest.fixture
def thing(tmp_path, world):
    """A network after two updates, saved at step 2."""
    made = checkpoints.Thing(tmp_path / "run", world)
    made.train(range(2))
    made.save(2)
    return made
