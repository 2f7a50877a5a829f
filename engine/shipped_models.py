"""The small trained models that come with the program: `shipped:NAME` wherever a trained network is named.

    engine/shipped/NAME/tokenizer      config.yaml, model.safetensors, README.md (its card)
    engine/shipped/NAME/gpt            the same of the generator that was trained on its codes

`python -m evaluations.ship` makes them. Their numbers are stored in half precision, and float32 once they are loaded.
"""

from __future__ import annotations

from pathlib import Path

from engine.messages import UserError

PREFIX = "shipped:"
DEFAULT = f"{PREFIX}gigatok"  # what `vt sample` takes without arguments
SHIPPED = Path(__file__).parent / "shipped"
WEIGHTS_FILE = "model.safetensors"


def is_shipped(path: str | Path) -> bool:
    """Whether `path` is the name of a shipped model, as opposed to a folder or file."""
    return str(path).startswith(PREFIX)


def shipped_names() -> list[str]:
    """The models that this installation has, as they are typed."""
    return sorted(f"{PREFIX}{weights.parents[1].name}" for weights in SHIPPED.glob(f"*/tokenizer/{WEIGHTS_FILE}"))


def shipped_folder(path: str | Path, part: str) -> Path:
    """The folder of a shipped network; `part` is `tokenizer` or `gpt`.

    Raises UserError, with the names that there are, where this installation has no such network.
    """
    name = str(path).removeprefix(PREFIX)
    folder = SHIPPED / name / part
    if str(path) not in shipped_names() or not (folder / WEIGHTS_FILE).is_file():
        present = ", ".join(shipped_names()) or "none (python -m evaluations.ship makes them from two quick starts)"
        raise UserError(f"{path} is no model that comes with this installation; it has: {present}")
    return folder
