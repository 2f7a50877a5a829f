"""The memory of a training step beyond weights, gradients, optimizer and averages, with activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.saved_tensors import SavedTensorsMeter, storage_of
from evaluations.benchmarks.cases import OURS, Case, Target
from evaluations.benchmarks.timing import tensor_memory
from evaluations.benchmarks.training_pass import TrainingPass, training_config

PLAIN = "everything saved"  # the published step, without checkpointing
RECIPE = "vq/VQ_SS256.yaml"
MIB = 2**20

# The recipe's networks, smaller, and without the networks beside them, which checkpointing leaves as they are: in S-S
# they save 9 % of all, beside small networks it would be much more.
NARROW = (
    "model.hybrid.cnn.base_channels=64",
    "model.hybrid.encoder={size: null, width: 128, layers: 2, heads: 4}",
    "model.hybrid.decoder={size: null, width: 128, layers: 2, heads: 4}",
    "model.hybrid.semantic_layer=null",
)
ALONE = ("loss.perceptual_weight=0", "semantic.teacher=", "loss.discriminator={name: none}")


@dataclass(frozen=True)
class Shape:
    """A training step that is measured."""

    title: str
    overrides: tuple[str, ...]
    batch: int


SMALLEST = Shape(
    "S-S with half of the channels of the CNN, 64 px, pixel loss alone",
    (*NARROW, *ALONE, "data.image_size=64", "model.hybrid.num_tokens=16"),
    2,
)
SMALL = Shape(
    "S-S with half of the channels of the CNN, 128 px, pixel loss alone",
    (*NARROW, *ALONE, "data.image_size=128", "model.hybrid.num_tokens=64"),
    2,
)
WHOLE = Shape("S-S, 256 px, batch 1", (), 1)
SHAPES = {"quick": (SMALLEST,), "default": (SMALL,), "long": (SMALL, WHOLE)}


def cases(size: str, device: torch.device) -> Iterator[Case]:
    """The published step against ours."""
    for shape in SHAPES[size]:
        yield checkpointing_case(shape, device)


def checkpointing_case(shape: Shape, device: torch.device) -> Case:
    """Blocks that are computed again in the backward pass, against all activations saved."""
    training = TrainingPass(training_config(RECIPE, shape.overrides), shape.batch, device)
    ours, plain = training.task(checkpointing=True), training.task(checkpointing=False)
    return Case(
        f"training step of {shape.title}: activation checkpointing",
        {OURS: lambda: training.run(ours), PLAIN: lambda: training.run(plain)},
        against=PLAIN,
        target=Target("at most", 1.35),
        memory_target=Target("at most", 0.5),
        memory_of=tensor_memory,
        facts={f"MiB saved, {part}": number for part, number in saved_by_part(training).items()},
    )


# ------------------------------------------------------------------------------------------------ by part
def saved_by_part(training: TrainingPass) -> dict[str, float]:
    """MiB that the pass of the tokenizer saves for backward, by the part that saves it; checkpointing saves less."""
    # Whose tensors are told apart: the networks of the step.
    task = training.task(checkpointing=False)
    network = task.tokenizer.module.train()
    parts: dict[str, nn.Module] = {
        "CNN encoder": network.encoder,
        "transformer of the encoder": network.query_encoder,
        "transformer of the decoder": network.query_decoder,
        "CNN decoder": network.decoder,
    }
    if task.frozen.perceptual is not None:
        parts["perceptual network"] = task.frozen.perceptual
    if task.discriminator is not None:
        task.discriminator.module.train().requires_grad_(False)
        parts["discriminator"] = task.discriminator.module

    # The pass up to its losses; while they are alive, so is all that backward needs.
    with SavedTensors(parts) as saved:
        output = network(training.images, **task.requested_outputs(training.step))
        values = task.term_values(output, training.images, training.step)

    # Weights are held in any case.
    weights = [parameter for module in (network, *parts.values()) for parameter in module.parameters()]
    found = saved.mebibytes(weights)
    del output, values
    return {part: round(number, 1) for part, number in found.items()}


class SavedTensors(SavedTensorsMeter):
    """Records what is saved for backward inside of modules, by their names; what is outside of them is `the rest`.

    A module counts from the call of any of its submodules on. A storage that several parts save counts for the first.
    """

    REST = "the rest"

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = parts
        self._within: list[str] = [self.REST]  # the parts whose modules are being called
        self._storages: dict[int, tuple[str, Tensor]] = {}

    def follow_modules(self) -> Iterator[RemovableHandle]:
        for name, part in self.parts.items():
            for module in part.modules():
                yield module.register_forward_pre_hook(lambda *_, name=name: self._within.append(name))
                yield module.register_forward_hook(lambda *_: self._leave())

    def _leave(self) -> None:
        self._within.pop()

    def count(self, tensor: Tensor) -> None:
        self._storages.setdefault(storage_of(tensor), (self._within[-1], tensor))

    def mebibytes(self, weights: list[Tensor]) -> dict[str, float]:
        """MiB of each part, without those of `weights`."""
        of_weights = {storage_of(weight) for weight in weights}
        sizes = dict.fromkeys([*self.parts, self.REST], 0.0)
        for storage, (name, tensor) in self._storages.items():
            if storage not in of_weights:
                sizes[name] += tensor.untyped_storage().nbytes() / MIB
        return sizes
