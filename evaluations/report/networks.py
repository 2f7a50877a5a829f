"""What a network of a run is, in words: its kind, its quantizer, its data and its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoregressive.models.registry import GENERATORS
from engine.checkpoint.manifest import CheckpointError, newest_checkpoint
from engine.checkpoint.weights import read_header
from engine.config import load_sections
from engine.messages import UserError
from engine.without_storage import without_storage
from evaluations.report.curves import Training
from evaluations.report.run_folder import config_file_of, config_of
from tokenizer.models.registry import MODELS, QUANTIZERS, ModelConfig, build_quantizer


@dataclass(kw_only=True, slots=True)
class _Sections:
    """The part of a config that says which codebook a tokenizer has."""

    model: ModelConfig = field(default_factory=ModelConfig)


def network_facts(training: Training) -> list[str]:
    """What was trained, on what, as in `CNN and transformer ("hybrid")`, `data mnist5k, 32 px`, `1.8M weights`."""
    config = config_of(training.folder)
    model, data = config.get("model") or {}, config.get("data") or {}

    # What it is. The kind of a network that is trained in one form only has no name.
    kind = named_in_words(model, {**MODELS, **GENERATORS}, known_as=training.title)
    facts = [kind or training.purpose]
    if model.get("quantizer"):
        facts.append(f"quantizer: {named_in_words(model.quantizer, QUANTIZERS)}")

    # What it was trained on, and how large it is. A training on codes has settings of images, too, which say nothing.
    if data.get("codes") and data.get("tokenize") == "codes":
        facts.append(f"codes {'/'.join(Path(data.codes).parts[-2:])}")
    elif data.get("name"):
        size = f", {data.image_size} px" if data.get("image_size") else ""
        facts.append(f"data {data.name}{size}")
    weights = num_weights(training)
    if weights:
        facts.append(f"{weights / 1e9:.2f}B weights" if weights >= 1e9 else f"{weights / 1e6:.2f}M weights")
    return [fact for fact in facts if fact]


def named_in_words(section: Mapping[str, Any], components: Mapping[str, Any], known_as: str = "") -> str:
    """What the component that a section picks is, with its name: `CNN and transformer ("hybrid")`.

    The name is left out where the component is `known_as` just that, and stands alone for a component that says
    nothing of itself or is not registered now.
    """
    name = str(section.get("name") or "")
    words = getattr(components.get(name), "in_words", "")
    if not words or not name:
        return name
    return words if name.lower() == known_as.lower() else f'{words} ("{name}")'


def network_text(title: str, facts: Sequence[str]) -> str:
    """A network in one line: `tokenizer: CNN and transformer ("hybrid"); data mnist5k, 32 px; 1.8M weights`."""
    return f"{title}: {'; '.join(facts)}" if facts else title


def num_weights(training: Training) -> int:
    """The numbers in the newest checkpoint's network, by the header of its file; 0 where there is none."""
    folder = newest_checkpoint(training.folder)
    if folder is None:
        return 0
    try:
        tensors = read_header(folder / "model.safetensors")
    except CheckpointError:  # missing or damaged; whoever loads it says so
        return 0
    return sum(tensor.numel() for tensor in tensors.values())


def num_codes(training: Training) -> int | None:
    """How many codes the codebooks of a tokenizer have together.

    None where that is not known (another kind of network, or a plug-in that is not loaded), or where the codebooks have
    different sizes: the mean of their usage then says nothing about a number of codes.
    """
    try:
        config = load_sections(_Sections, config_file_of(training.folder)).model.quantizer
        with without_storage():
            sizes = build_quantizer(config).group_sizes
    except (UserError, OSError):
        return None
    return sum(sizes) if len(set(sizes)) == 1 else None
