"""A fixed seed, so that no test depends on those before it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
