"""evaluations/benchmarks/training.py: the plain loop is an oracle of the training step, and the stopwatch is right."""

import copy
import time
from itertools import repeat

import pytest
import torch

from evaluations.benchmarks import training
from evaluations.benchmarks.cases import OURS
from evaluations.benchmarks.training import PLAIN, PlainUpdate, Stopwatch

CPU = torch.device("cpu")


@pytest.mark.parametrize("first", [0, 900])
def test_steps_of_the_tokenizer_are_those_of_the_plain_loop(first):
    """Weights, averages and the usage of the codebook, with the shortcut and after it."""
    config, network = training.quickstart_tokenizer()
    task = training.tokenizer_task(config, CPU, network)
    update = PlainUpdate(copy.deepcopy(network), config.optim, config.loop.steps, config.ema_decay)
    damp(task.tokenizer.optimizer, update.optimizer)
    open_stream = training.digits(config, CPU)
    training.our_steps(task, open_stream(), first, 3)
    usage = training.plain_tokenizer_steps(task, update, open_stream(), first, 3)
    assert_same(task.tokenizer.module, update.network)
    assert_same(task.tokenizer.ema, update.ema)
    for name, value in task.inspect().items():
        assert value == pytest.approx(usage[name].item()), name


def test_steps_of_the_gpt_are_those_of_the_plain_loop():
    """Dropout draws the same numbers in both."""
    task, update, batch = training.gpt_forms(1, CPU)
    damp(task.trained.optimizer, update.optimizer)
    torch.manual_seed(3)
    training.our_steps(task, repeat(batch), 0, 2)
    torch.manual_seed(3)
    training.plain_gpt_steps(task, update, batch, 0, 2)
    assert_same(task.trained.module, update.network)
    assert_same(task.trained.ema, update.ema)


def damp(*optimizers: torch.optim.Optimizer) -> None:
    """With AdamW's tiny epsilon a gradient that is zero but for rounding becomes a whole step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["eps"] = 1e-3


def assert_same(network: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Equal up to rounding."""
    for (name, value), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=2e-5, msg=name)


def test_what_is_inside_of_watched_calls_counts():
    """Once, also where the call fails; afterwards everything is as before."""

    class Sleeper:
        def nap(self, seconds: float) -> None:
            time.sleep(seconds)
            if seconds > 0.02:
                raise ValueError

    sleeper, watch = Sleeper(), Stopwatch()
    with watch.watching(sleeper, "nap"):
        sleeper.nap(0.02)
        with pytest.raises(ValueError):
            sleeper.nap(0.03)
    sleeper.nap(0.02)
    assert watch.seconds >= 0.05 and "nap" not in vars(sleeper)
    backward = torch.Tensor.backward
    with watch.watching(torch.Tensor, "backward"):
        torch.ones(1, requires_grad=True).sum().backward()
    assert torch.Tensor.backward is backward


def test_the_rows_have_both_forms_and_a_share():
    """A repetition of each runs; what is outside of the networks is a share of the step."""
    tokenizer, outside, gpt = training.cases("quick", CPU)
    for case in (tokenizer, gpt):
        assert set(case.forms) == {OURS, PLAIN} and case.least_work["gemm"] > 0
    assert tokenizer.least_work["convolution"] > 0
    assert 0 < outside.read() < 0.5
