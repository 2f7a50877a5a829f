"""How the cost of a training step grows: with the batch, the tokens, the codes, the size of the model, the processes.

Each row compares a larger step with a smaller one. A step that does r times the operations should take no more than r
times the time, with a tenth for what a measurement varies by. Fixed costs make a growing step cheaper than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from evaluations.benchmarks.cases import OURS, Case, Target
from evaluations.benchmarks.step_processes import TOKENIZER, StepProcesses
from evaluations.benchmarks.training_pass import TrainingPass, least_work, training_config

SMALLER = "smaller step"
MARGIN = 1.1  # of the growth of the operations
NUM_CODES = {"quick": (256, 4096), "default": (1024, 16384), "long": (16384, 131072)}

LARGER_TOKENIZER = (
    "model.hybrid.encoder={width: 256, layers: 4, heads: 4}",
    "model.hybrid.decoder={width: 256, layers: 4, heads: 4}",
    "model.hybrid.cnn.base_channels=16",
)
BATCH = 16


def cases(size: str, device: torch.device) -> Iterator[Case]:
    """The rows of all quantities that grow; that of processes is for CPUs."""
    few, many = NUM_CODES[size]
    codes = [f"model.quantizer.vq.codebook_size={count}" for count in (few, many)]
    yield growth_case("batch 16 to 64", [], [], device, batches=(BATCH, 4 * BATCH))
    yield growth_case("4 to 16 tokens", ["model.hybrid.num_tokens=4"], [], device)
    yield growth_case(f"{few:,} to {many:,} codes with entropies", codes[:1], codes[1:], device)
    yield growth_case("wider and deeper model", [], LARGER_TOKENIZER, device)
    if device.type == "cpu":
        yield processes_case()


def growth_case(
    what: str,
    smaller: Sequence[str],
    larger: Sequence[str],
    device: torch.device,
    batches: tuple[int, int] = (BATCH, BATCH),
) -> Case:
    """The quick start's tokenizer with the overrides `larger`, against the one with `smaller`."""
    # Both steps.
    passes = [
        TrainingPass(training_config(TOKENIZER, overrides), batch, device)
        for overrides, batch in zip((smaller, larger), batches, strict=True)
    ]
    tasks = [training.task(checkpointing=False) for training in passes]
    works = [task.work(training.step) for task, training in zip(tasks, passes, strict=True)]

    # How much more the larger one computes is how much longer it may take.
    flops = [batch * work.flops for batch, work in zip(batches, works, strict=True)]
    growth = flops[1] / flops[0]
    return Case(
        f"training step, {what}",
        {OURS: lambda: passes[1].run(tasks[1]), SMALLER: lambda: passes[0].run(tasks[0])},
        against=SMALLER,
        target=Target("at most", MARGIN * growth),
        least_work=least_work(works[1], batches[1]),
        facts={"growth of the operations": round(growth, 3), "10^9 operations": round(flops[1] / 1e9, 3)},
        where_missed="exponentials and comparisons of codes cost time, and are no counted operations",
    )


# ------------------------------------------------------------------------------------------------ processes
def processes_case() -> Case:
    """Two processes of one thread with half of the batch each, against one process of one thread with all of it.

    With two free cores half of the time is the best; what the processes exchange comes on top.
    """
    one, two = StepProcesses(1, 4 * BATCH), StepProcesses(2, 4 * BATCH)
    return Case(
        "training step, 1 to 2 processes of one thread",
        {OURS: two.step, SMALLER: one.step},
        against=SMALLER,
        target=Target("at most", 0.65),
        facts={"images per step": 4 * BATCH},
        where_missed="it needs two cores that nobody else uses",
    )
