"""A fixed seed, so that no test depends on those before it; what the tests of probes share."""

import pytest
import torch
from probes import IMAGES, export_all

from engine.data.sources import SOURCES


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def probe_images(monkeypatch):
    """24 training and 14 held-out images of 4 classes under the name of a packaged set."""
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: IMAGES[split])


@pytest.fixture(scope="session")
def probed(tmp_path_factory):
    """A folder with the networks that are probed. Read only."""
    return export_all(tmp_path_factory.mktemp("probed"))
