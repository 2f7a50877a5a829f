"""The worked files of docs/extending.md, and how tests load them without leaving traces."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from autoregressive.models.registry import GENERATORS
from engine import plugins
from engine.data.sources import SOURCES
from evaluations.metrics.registry import METRICS
from tokenizer.discriminators.registry import DISCRIMINATORS
from tokenizer.losses.semantic import TEACHERS
from tokenizer.models.registry import MODELS, QUANTIZERS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES = dict(re.findall(r"```python\n(?=# (\w+\.py)\n)(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
REGISTRIES = {
    "QUANTIZERS": QUANTIZERS,
    "MODELS": MODELS,
    "DISCRIMINATORS": DISCRIMINATORS,
    "TEACHERS": TEACHERS,
    "GENERATORS": GENERATORS,
    "METRICS": METRICS,
    "SOURCES": SOURCES,
}


def write_file(name: str, folder: Path) -> Path:
    """Copies a file out of the page."""
    path = folder / name
    path.write_text(FILES[name], encoding="utf-8")
    return path


@contextmanager
def restored_registries() -> Iterator[None]:
    """Forgets afterwards which plug-ins were loaded and what they registered."""
    before = {name: dict(registry) for name, registry in REGISTRIES.items()}
    with mock.patch.object(plugins, "_loaded", {}):
        yield
    for name, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[name])
