"""Reads one set of weights from a checkpoint file of any program, and says what it took and what it left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint.foreign.containers import is_safetensors, read_content
from engine.checkpoint.foreign.tensors import StoredTensor, TensorFile
from engine.checkpoint.foreign.unnamed import list_of_tensors
from engine.checkpoint.foreign.weight_sets import BARE, WeightSet, as_mapping, find_sets
from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import check_weight_choice, read_weights
from engine.messages import logger

MAX_NAMED = 8  # things that the log names


@dataclass(frozen=True)
class Weights:
    """One set of weights of a file. The tensors of large files are memory-mapped."""

    state: dict[str, Tensor]  # under names without wrappers
    kind: str  # "model" (raw) or "ema"
    file_names: Mapping[str, str]  # name in `state` -> the file's own
    left_out: Sequence[str] = ()  # other content, in words
    foreign: Sequence[str] = ()  # classes and functions of objects that were not read


@dataclass(frozen=True)
class _Opened:
    """The content of a file: a tree, the bytes of its tensors (None where they are read), names of inert objects."""

    tree: Mapping[Any, Any]
    file: TensorFile | None = None
    foreign: tuple[str, ...] = ()


def read_checkpoint(
    path: str | Path,
    *,
    prefer: str = "auto",
    order: Sequence[str] = ("ema", "model"),
    is_wish: bool = False,
    is_quiet: bool = False,
    header_only: bool = False,
) -> Weights:
    """Reads a set of weights of a file of torch.save, old or new, or of safetensors, whatever its name is.

    `prefer` is `ema`, `model` (the raw weights), or `auto`: the first kind of `order` that the file has. With `is_wish`
    the file's only set is taken where it has none of the preferred kind, because it may hold both in one. With
    `header_only` the tensors are on the meta device: no number is read, and no checksum compared.

    Raises CheckpointError where the file is no checkpoint, is damaged, or has no such weights. Nothing in it is run.
    """
    check_weight_choice(prefer)
    path = Path(path)
    opened = _open(path)
    sets = find_sets(opened.tree, str(path))
    chosen = _choose(sets, opened, path, prefer, order, is_wish)

    left_out = _left_out(opened, sets, chosen)
    if not is_quiet:
        _announce(path, chosen, left_out)
    return Weights(_tensors(chosen, opened.file, header_only), chosen.kind, chosen.file_names, left_out, opened.foreign)


def _announce(path: Path, chosen: WeightSet, left_out: Sequence[str]) -> None:
    """Logs what is taken from a file and what is not."""
    suffix = f"; left out: {', '.join(left_out)}" if left_out else ""
    place = "" if chosen.key == chosen.kind else f" ({chosen.key})"
    logger.info("%s: took the weights %r%s, %d tensors%s", path, chosen.kind, place, len(chosen.tensors), suffix)


def _open(path: Path) -> _Opened:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")

    # safetensors, or a pickle that is read as inert data.
    with path.open("rb") as file:
        start = file.read(16)
    if is_safetensors(start):
        return _Opened(read_weights(path))
    content = read_content(path)

    # The mapping of names to tensors in it.
    try:
        tree = as_mapping(content.tree)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not tree:
        kind = type(content.tree).__name__
        if content.foreign:
            kind = ", ".join(_shortened(content.foreign))
        raise CheckpointError(f"{path} holds a {kind}, not a state dict")
    return _Opened(tree, content.file, content.foreign)


def _tensors(chosen: WeightSet, file: TensorFile | None, header_only: bool) -> dict[str, Tensor]:
    if file is not None:
        return file.read_header(chosen.tensors) if header_only else file.read(chosen.tensors)
    return {name: tensor.to("meta") if header_only else tensor for name, tensor in chosen.tensors.items()}


# ------------------------------------------------------------------------------------------------ which set
def _choose(
    sets: Sequence[WeightSet],
    opened: _Opened,
    path: Path,
    prefer: str,
    order: Sequence[str],
    is_wish: bool,
) -> WeightSet:
    """The set to read. Raises CheckpointError where there is none of the kind, or where it is not the only one."""
    kinds = list(order) if prefer == "auto" else [prefer]
    available = [found.kind for found in sets]
    if is_wish and available:
        kinds += order
    kind = next((kind for kind in kinds if kind in available), None)
    if kind is None:
        contents = _contents(opened, sets)
        raise CheckpointError(f"{path} has none of the weights {', '.join(kinds)}; it holds: {contents}")

    # A file that names one of them like its kind has decided.
    of_kind = [found for found in sets if found.kind == kind]
    named = [found for found in of_kind if found.key == kind]
    if len(of_kind) > 1 and not named:
        keys = ", ".join(found.key for found in of_kind)
        raise CheckpointError(f"{path} has several sets of {kind} weights ({keys}); which one counts is not known")
    return (named or of_kind)[0]


def _contents(opened: _Opened, sets: Sequence[WeightSet]) -> str:
    """What a file holds, for a message."""
    if [found.key for found in sets] == [BARE]:
        return f"a {BARE} of {sets[0].kind} weights"
    words = _shortened(_in_words(key, value) for key, value in opened.tree.items())
    return ", ".join([*words, *_foreign_words(opened)]) or "nothing"


def _foreign_words(opened: _Opened) -> list[str]:
    """The objects that are not read, as one entry of a list; none if there are none."""
    return [f"objects that are not read: {', '.join(_shortened(opened.foreign))}"] if opened.foreign else []


def _left_out(opened: _Opened, sets: Sequence[WeightSet], chosen: WeightSet) -> list[str]:
    """What a file holds beside the chosen weights, in words."""
    if chosen.key == BARE:
        words = [_in_words(key, value) for key, value in opened.tree.items() if not _is_tensor(value)]
    else:
        top = chosen.key.partition(".")[0]
        words = [_in_words(key, value) for key, value in opened.tree.items() if key != top]

    # The other set of the same state dict, and objects that are not read.
    words += [f"{other.kind} weights" for other in sets if other is not chosen and other.key == chosen.key]
    return [*_shortened(words), *_foreign_words(opened)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, StoredTensor))


def _in_words(key: Any, value: Any) -> str:
    """A key for a message, with a remark where it holds nothing, or tensors that nobody can name."""
    text = key[:60] if isinstance(key, str) else f"a key of type {type(key).__name__}"
    if value is None or (isinstance(value, (Mapping, list, tuple)) and len(value) == 0):
        return f"{text} (empty)"
    num_unnamed = len(list_of_tensors(value))
    return f"{text} ({num_unnamed} tensors without names)" if num_unnamed else text


def _shortened(words: Iterable[str]) -> list[str]:
    """The first words of a list, printable and short, and how many more there are."""
    words = ["".join(c if c.isprintable() else "?" for c in word[:80]) for word in words]
    if len(words) <= MAX_NAMED:
        return words
    return [*words[:MAX_NAMED], f"{len(words) - MAX_NAMED} more"]
