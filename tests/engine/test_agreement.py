"""engine/agreement.py: when several processes ask each other whether to stop, on ranks that are threads."""

import mini
import pytest

from engine.agreement import STOP_STEPS, StopAgreement, steps_between


def ask(world, seconds: dict[int, list[float]], wish: tuple[int, int] | None = None) -> tuple[list[int], int | None]:
    """The steps after which this rank asks, and the one after which it stops.

    `seconds` are those of each step by rank; `wish` is the rank that gets a signal, and in which step.
    """
    now = [0.0]
    agreement = StopAgreement(world, clock=lambda: now[0])
    asked = []
    for step, duration in enumerate(seconds[world.rank], start=1):
        now[0] += duration
        if agreement.is_due():
            asked.append(step)
            if agreement.ask(wish is not None and wish[0] == world.rank and step >= wish[1]):
                return asked, step
    return asked, None


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.0, STOP_STEPS), (1.0, STOP_STEPS), (30 / 16, STOP_STEPS), (2.0, 15), (10.0, 3), (29.0, 1), (1e4, 1)],
)
def test_questions_are_at_most_16_steps_and_30_seconds_apart(seconds, steps):
    assert steps_between(seconds) == steps


def test_the_slowest_rank_decides_when_all_ask():
    """Steps of a second on one rank and of ten on the other: three steps at a time, on both."""
    seconds = {0: [1.0] * 12, 1: [10.0] * 12}
    assert mini.on_ranks(2, lambda world: ask(world, seconds)) == [([1, 4, 7, 10], None)] * 2


def test_a_slow_first_step_is_not_the_measure_of_all():
    """As of a network that is compiled in it."""
    seconds = {rank: [100.0] + [0.1] * 40 for rank in range(2)}
    assert mini.on_ranks(2, lambda world: ask(world, seconds)) == [([1, 2, 18, 34], None)] * 2


@pytest.mark.parametrize(("rank", "step", "stop"), [(1, 1, 1), (0, 2, 17), (1, 16, 17), (1, 18, 33)])
def test_all_ranks_stop_after_the_same_step(rank, step, stop):
    """A signal to one of them reaches all at the next question."""
    seconds = {rank: [0.1] * 60 for rank in range(2)}
    results = mini.on_ranks(2, lambda world: ask(world, seconds, (rank, step)))
    assert [stopped for _, stopped in results] == [stop, stop]


def test_a_single_process_stops_at_once(world):
    assert ask(world, {0: [100.0] * 9}, (0, 4)) == ([1, 2, 3, 4], 4)
