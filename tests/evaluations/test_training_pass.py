"""The training passes of the benchmark: checkpointing changes no bit, parts add up, and rows say what they compare."""

import pytest
import torch

from evaluations.benchmarks.cases import OURS
from evaluations.benchmarks.growth import SMALLER, growth_case
from evaluations.benchmarks.memory_of_training import NARROW, RECIPE, Shape, checkpointing_case, saved_by_part
from evaluations.benchmarks.step_processes import StepProcesses
from evaluations.benchmarks.timing import tensor_memory
from evaluations.benchmarks.training_pass import TrainingPass, least_work, training_config

CPU = torch.device("cpu")
TINY = Shape(
    "tiny",
    (
        *NARROW,
        "model.hybrid.cnn={base_channels: 8, norm_groups: 8}",
        "model.hybrid.num_tokens=16",
        "model.hybrid.semantic_layer=1",
        "model.hybrid.semantic_dim=112",
        "data.image_size=64",
        "loss.perceptual=efficientnet_lite0",
        "semantic={teacher: efficientnet_lite0}",
    ),
    batch=2,
)


@pytest.fixture(scope="module")
def training():
    return TrainingPass(training_config(RECIPE, TINY.overrides), TINY.batch, CPU)


def gradients(training, checkpointing) -> dict[str, torch.Tensor]:
    """The loss, and the gradients of all trained networks."""
    task = training.task(checkpointing=checkpointing)
    torch.manual_seed(5)
    found = {"loss": training.run(task)}
    for model in (task.tokenizer, task.discriminator):
        found |= {
            f"{id(model) and type(model.module).__name__}.{n}": p.grad for n, p in model.module.named_parameters()
        }
    return found


def test_activation_checkpointing_changes_no_bit(training):
    """Of the loss and of every gradient, with all networks of the loss of S-S."""
    plain, again = gradients(training, False), gradients(training, True)
    assert plain.keys() == again.keys() and len(plain) > 200
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    moved = [name for name, value in plain.items() if value.abs().max() > 0]
    assert len(moved) > 0.9 * len(plain)


def test_the_parts_of_what_is_saved(training):
    """The decoder of the CNN saves more than the encoder, as it has more blocks; all of it grows with the batch."""
    parts = saved_by_part(training)
    assert parts["CNN decoder"] > parts["CNN encoder"] > 0 and all(value >= 0 for value in parts.values())
    half = saved_by_part(TrainingPass(training_config(RECIPE, TINY.overrides), 1, CPU))
    assert parts["CNN decoder"] == pytest.approx(2 * half["CNN decoder"], rel=0.01), (
        "what is saved grows with the batch"
    )


def test_the_rows_compare_the_same_work():
    """With and without checkpointing; a larger step with a smaller one, whose growth the operations say."""
    case = checkpointing_case(TINY, CPU)
    assert set(case.forms) == {OURS, case.against} and case.memory_target.value == 0.5 and case.target.value == 1.35
    losses = [form() for form in case.forms.values()]
    assert torch.equal(*losses)
    small = ["model.hybrid.cnn.base_channels=4"]
    case = growth_case("batch", small, small, CPU, batches=(1, 3))
    assert case.facts["growth of the operations"] == 3 and case.target.value == pytest.approx(3.3)
    assert set(case.forms) == {OURS, SMALLER} and case.forms[OURS]().isfinite()


def test_operations_by_the_limit_that_binds_them(training):
    image = training.task(checkpointing=False).work(training.step)
    work = least_work(image, 2)
    assert sum(work.values()) == 2 * sum(part.flops for part in image.parts) and min(work.values()) > 0


@pytest.mark.slow
def test_processes_take_a_step_together():
    """Two processes that wait between steps."""
    processes = StepProcesses(2, 16)
    processes.step()
    processes.step()


def test_the_memory_of_tensors_by_hand():
    """Two of three million bytes at a time, whatever the allocator keeps; what was there before does not count."""
    held = torch.zeros(500_000)

    def form():
        first = held + 1
        second = first + 1
        del first
        return second * 2

    for _ in range(2):
        assert tensor_memory(form, CPU) == pytest.approx(4e6 / 2**20, rel=0.01)
