"""engine/schedules.py and trained_model.py: learning rates, and the TrainedModel against PyTorch and plain formulas."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from engine.messages import ConfigError
from engine.optim import OptimConfig
from engine.schedules import SCHEDULES, learning_rate
from engine.skipped_updates import NonFiniteError
from engine.trained_model import TrainedModel, _move_averages


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 2))


def inputs(step: int) -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(100 + step))


def updater(world, *, total_steps: int = 100, ema_decay: float = 0.0, **config) -> TrainedModel:
    return TrainedModel(network(), OptimConfig(**config), total_steps=total_steps, world=world, ema_decay=ema_decay)


def run(trained: TrainedModel, steps: range, scale: float = 1.0) -> list[dict[str, float]]:
    """Some updates on a made-up loss."""
    infos = []
    for step in steps:
        loss = trained.wrapped(inputs(step)).square().sum() * scale
        loss.backward()
        infos.append({k: v.item() for k, v in trained.step(step, {"loss": loss.detach()}).items()})
    return infos


def equal_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------- schedules
@pytest.mark.parametrize(
    ("warmup", "total", "end", "values"),
    [
        (5000, 1_500_000, 1e-5, {0: 1.0e-6, 1: 1.0198e-6, 2500: 5.05e-5, 4999: 9.99802e-5, 5000: 1e-4}),
        (5000, 1_500_000, 1e-5, {750_000: 5.523641e-5, 1_499_999: 1e-5}),
        (0, 1_000_000, 1e-5, {250_000: 8.681981e-5, 500_000: 5.5e-5, 0: 1e-4}),
    ],
)
def test_cosine_has_the_published_values(warmup, total, end, values):
    """Values of the released GigaTok schedule, with its warm-up from 1 % of the rate."""
    config = OptimConfig(lr=1e-4, end_lr=end, warmup_steps=warmup, schedule="cosine")
    for step, expected in values.items():
        assert learning_rate(step, total, config) == pytest.approx(expected, rel=1e-6), step


def test_wsd_has_the_published_values():
    """Warm-up, constant, and 1 - sqrt over the last 20 % of 1.5 M steps."""
    config = OptimConfig(lr=1e-4, warmup_steps=5000, schedule="wsd", decay_fraction=0.2)
    values = {1_199_999: 1e-4, 1_200_000: 1e-4, 1_200_001: 9.981743e-5, 1_203_000: 9e-5, 1_275_000: 5e-5}
    values |= {1_350_000: 2.928932e-5, 1_499_999: 1.666668e-10, 0: 1e-6, 5000: 1e-4, 700_000: 1e-4}
    for step, expected in values.items():
        assert learning_rate(step, 1_500_000, config) == pytest.approx(expected, rel=1e-6), step


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_schedules_start_at_the_rate_and_do_not_rise(schedule):
    """After the warm-up, every schedule goes from lr towards end_lr, monotonically and within both."""
    config = OptimConfig(lr=1e-3, end_lr=1e-5, warmup_steps=10, schedule=schedule)
    rates = [learning_rate(step, 200, config) for step in range(201)]
    assert rates[0] == pytest.approx(1e-5) and rates[10] == pytest.approx(1e-3)
    assert all(b > a for a, b in pairwise(rates[:11]))
    assert all(b <= a for a, b in pairwise(rates[10:]))
    assert rates[200] == pytest.approx(1e-3 if schedule == "constant" else 1e-5)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("total", [1, 2, 5])
def test_schedules_survive_short_runs(schedule, total):
    """A run of one step, or one that is no longer than its warm-up, has finite rates within 0..lr."""
    config = OptimConfig(lr=1e-3, warmup_steps=2, schedule=schedule)
    assert all(0 <= learning_rate(step, total, config) <= 1e-3 for step in range(total + 1))


def test_the_rate_is_set_before_the_update(world):
    """Update k uses the rate of step k, and reports it: a first rate of 0 moves nothing."""
    trained = updater(world, lr=1e-2, schedule="linear", total_steps=4, weight_decay=0.0)
    rates = []
    trained.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    infos = run(trained, range(4))
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert [info["lr"] for info in infos] == pytest.approx(rates)


def test_weight_decay_rises_along_a_cosine(world):
    """From 0.05 at the first step to 0.08 at the last one, half of it in the middle; what does not decay stays at 0."""
    settings = {"weight_decay": 0.05, "end_weight_decay": 0.08, "decay_params": "matrices", "total_steps": 5}
    trained = updater(world, lr=1e-2, **settings)
    seen = []
    trained.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([group["weight_decay"] for group in optimizer.param_groups])
    )
    run(trained, range(5))
    decays, others = zip(*seen, strict=True)
    root = 0.5**0.5
    assert decays == pytest.approx([0.05, 0.065 - 0.015 * root, 0.065, 0.065 + 0.015 * root, 0.08])
    assert set(others) == {0.0}


def test_compat_sets_the_rate_after_the_update(world):
    """`lr_after_step`: the first update runs at the full rate although the warm-up says 1 %, later ones lag by one."""
    before, after = (
        updater(world, lr=1e-2, warmup_steps=10, weight_decay=0.0, schedule="constant", lr_after_step=compat)
        for compat in (False, True)
    )
    start = copy.deepcopy(before.module)
    first = [run(each, range(1))[0]["lr"] for each in (before, after)]
    moved = [max_change(each.module, start) for each in (before, after)]
    assert first == pytest.approx([1e-4, 1e-4])  # what stands in the optimizer after the update
    assert moved == pytest.approx([1e-4, 1e-2], rel=1e-3)  # Adam's first update moves every weight by its rate
    second = copy.deepcopy(after.module)
    run(after, range(1, 2))
    assert max_change(after.module, second) < 2e-4  # the rate of step 0, not that of step 1


def max_change(module: nn.Module, reference: nn.Module) -> float:
    pairs = zip(module.parameters(), reference.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


# ---------------------------------------------------------------------------------------------- updates
def test_an_update_is_adamw(world):
    """Five updates equal torch's fused AdamW with the same settings bit for bit, and its plain one up to rounding."""
    settings = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    trained = updater(world, schedule="constant", max_grad_norm=0.0, **settings)
    run(trained, range(5))
    for fused in (True, False):
        plain = network()
        optimizer = torch.optim.AdamW(plain.parameters(), **settings, fused=fused)
        for step in range(5):
            optimizer.zero_grad()
            plain(inputs(step)).square().sum().backward()
            optimizer.step()
        assert equal_state(trained.module, plain) or not fused
        for p, expected in zip(trained.module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e9])
def test_clipping_is_by_the_global_norm(world, limit):
    """The norm runs over all parameters together; it is reported before clipping, and 0 switches clipping off."""
    trained = updater(world, max_grad_norm=limit, lr=0.0, schedule="constant")
    kept = {}
    trained.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in trained.module.named_parameters()})
    )
    info = run(trained, range(1), scale=1e3)[0]
    plain = network()
    (plain(inputs(0)).square().sum() * 1e3).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in plain.parameters()))
    assert info["grad_norm"] == pytest.approx(norm, rel=1e-5)
    factor = limit / norm if 0 < limit < norm else 1.0
    for name, p in plain.named_parameters():
        torch.testing.assert_close(kept[name], p.grad * factor, rtol=1e-4, atol=1e-9)


def test_ema_is_the_plain_formula(world):
    """After every update: ema = d * ema + (1 - d) * weights, for each parameter; buffers are copied."""
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    trained = TrainedModel(module, OptimConfig(lr=1e-1), total_steps=9, world=world, ema_decay=0.7)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    for step in range(4):
        module.train()
        run(trained, range(step, step + 1))
        expected = {n: 0.7 * expected[n] + 0.3 * p.detach() for n, p in module.named_parameters()}
    for name, p in trained.ema.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-5, atol=1e-7)
        assert not p.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(trained.ema.buffers(), module.buffers(), strict=True))
    assert trained.ema[1].running_mean.abs().sum() > 0 and not trained.ema.training


@pytest.mark.parametrize(("decay_params", "vectors_decay"), [("all", True), ("matrices", False)])
def test_weight_decay_groups(world, decay_params, vectors_decay):
    """`matrices` exempts biases and norm gains; with gradients of 0, decay shrinks weights by 1 - lr * wd."""
    trained = updater(world, lr=0.1, weight_decay=0.5, schedule="constant", decay_params=decay_params)
    with torch.no_grad():
        for p in trained.module.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    trained.step(0, {})
    for p in trained.module.parameters():
        decays = vectors_decay or p.ndim >= 2
        torch.testing.assert_close(p, torch.full_like(p, 0.95 if decays else 1.0))


def test_frozen_parameters_are_left_alone(world):
    module = network()
    module[0].requires_grad_(False)
    before = copy.deepcopy(module)
    trained = TrainedModel(module, OptimConfig(lr=0.1, weight_decay=0.5), total_steps=9, world=world)
    run(trained, range(3))
    assert torch.equal(module[0].weight, before[0].weight) and not torch.equal(module[3].weight, before[3].weight)


# ---------------------------------------------------------------------------------------------- non-finite guard
class HalfFrozen(nn.Sequential):
    """A network whose first layer stays in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self[0].eval()
        return self


def test_parts_that_stay_in_evaluation_mode_do_so_from_the_first_step_on(world):
    """Regression: before the first validation, a frozen quantizer remembered tokens, and a resume showed it."""
    module = HalfFrozen(nn.BatchNorm1d(4), nn.Linear(4, 4))
    assert module[0].training
    trained = TrainedModel(module, OptimConfig(), total_steps=10, world=world)
    assert trained.train_mode().training and not trained.module[0].training
    trained.module.eval()
    assert trained.train_mode().training and not trained.module[0].training


def moments(trained: TrainedModel) -> list[torch.Tensor]:
    """Copies of both moments and of the count of steps of every parameter."""
    return [value.clone() for state in trained.optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_non_finite_gradient_skips_the_update(world, poison):
    """Weights, moments and EMA stay as they were, the skip is counted, and the next good update goes on."""
    trained, clean = (updater(world, ema_decay=0.5, max_bad_steps=3) for _ in range(2))
    for each in (trained, clean):
        run(each, range(2))
    before = moments(trained)
    info = run(trained, range(2, 3), scale=poison)[0]
    assert info["skipped_steps"] == 1 and not math.isfinite(info["grad_norm"])
    assert equal_state(trained.module, clean.module) and equal_state(trained.ema, clean.ema)
    assert all(torch.equal(a, b) for a, b in zip(before, moments(trained), strict=True))
    assert run(trained, range(3, 4))[0]["skipped_steps"] == 1
    run(clean, range(3, 4))
    assert equal_state(trained.module, clean.module) and equal_state(trained.ema, clean.ema)
    assert all(torch.equal(a, b) for a, b in zip(moments(clean), moments(trained), strict=True))


def test_the_run_stops_after_n_bad_steps_in_a_row(world):
    """A good update in between starts the count again; the message names the first term that is not finite."""
    trained = updater(world, max_bad_steps=3)
    for step in (0, 1, 3, 4):
        run(trained, range(step, step + 1), scale=math.nan)
        if step == 1:
            run(trained, range(2, 3))
        trained.require_progress()
    trained.wrapped(inputs(5)).mul(math.nan).sum().backward()
    terms = {"pixels": torch.tensor(1.0), "perceptual": torch.tensor(math.inf), "loss": torch.tensor(math.nan)}
    trained.step(5, terms)
    with pytest.raises(NonFiniteError, match=r"step 5: 3 updates in a row .*optim\.max_bad_steps.*: perceptual\."):
        trained.require_progress()


def test_what_stops_a_run_is_remembered_until_somebody_looks(world):
    """Good updates after it do not hide it: whether a run ends does not depend on how often it is looked at."""
    trained = updater(world, max_bad_steps=2)
    for step, scale in enumerate([1.0, math.nan, math.nan, math.nan, 1.0, math.nan]):
        run(trained, range(step, step + 1), scale=scale)
    for look in (trained.require_progress, trained.weights):
        with pytest.raises(NonFiniteError, match=r"step 2: 2 updates in a row .* loss term: loss"):
            look()


def test_an_overflow_of_the_gradient_alone_is_said(world):
    trained = updater(world, max_bad_steps=1)
    trained.wrapped(inputs(0)).mul(math.nan).sum().backward()
    trained.step(0, {"loss": torch.tensor(1.0)})
    with pytest.raises(NonFiniteError, match="the gradient itself overflows"):
        trained.require_progress()


@pytest.mark.parametrize("decay", [0.6, 0.9, 0.9999])
def test_averages_move_as_by_linear_interpolation_unless_the_step_is_bad(decay):
    """`torch.lerp` bit for bit; nothing changes in a bad step, also where the weights are not finite."""
    averages, weights = [torch.randn(3, 5), torch.randn(7)], [torch.randn(3, 5), torch.randn(7)]
    expected = [a.lerp(w, 1 - decay) for a, w in zip(averages, weights, strict=True)]
    _move_averages(averages, weights, 1 - decay, torch.tensor(False))
    assert all(map(torch.equal, averages, expected))
    _move_averages(averages, [w * math.nan for w in weights], 1 - decay, torch.tensor(True))
    assert all(map(torch.equal, averages, expected))


# ---------------------------------------------------------------------------------------------- state
@pytest.mark.parametrize("compat", [False, True])
def test_the_state_is_all_that_the_next_update_depends_on(world, compat):
    """Three updates, state into a fresh TrainedModel, three more: bitwise the same as six; counters travel too."""
    settings = {"ema_decay": 0.9, "warmup_steps": 4, "lr": 1e-2, "lr_after_step": compat, "decay_params": "matrices"}
    settings |= {"weight_decay": 0.1, "end_weight_decay": 2.0}
    straight, first = updater(world, **settings), updater(world, **settings)
    for each in (straight, first):
        run(each, range(2))
        run(each, range(2, 3), scale=math.nan)
    second = updater(world, **settings)
    with torch.no_grad():
        for p in second.module.parameters():
            p.zero_()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.skipped.state().tolist() == [1, 1]
    run(straight, range(3, 6))
    run(second, range(3, 6))
    assert equal_state(straight.module, second.module) and equal_state(straight.ema, second.ema)


def test_taking_the_state_changes_nothing(world):
    """Regression: torch makes missing moments by an empty update, which counted; a network that starts to train later
    (a discriminator) then trained differently after every save.
    """
    looked_at, untouched = updater(world, ema_decay=0.5), updater(world, ema_decay=0.5)
    looked_at.module.requires_grad_(False)
    names_before = set(flat(looked_at.state_dict()))
    looked_at.module.requires_grad_(True)
    looked_at.state_dict()
    for each in (looked_at, untouched):
        run(each, range(2))
    assert equal_state(looked_at.module, untouched.module)
    assert names_before == set(flat(looked_at.state_dict())), "a state has other entries before the first update"


def flat(tree: dict, prefix: str = "") -> list[str]:
    return [n for k, v in tree.items() for n in (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"])]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"schedule": "cosnie"}, "schedule='cosnie' must be one of: constant, cosine, linear, wsd"),
        ({"lr": -1.0}, "lr=-1.0 must be 0 or more"),
        ({"lr": math.nan}, "lr=nan must be 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas=[0.9, 1.0] must be two numbers in [0, 1)"),
        ({"decay_fraction": 1.5}, "decay_fraction=1.5 must be in [0, 1]"),
        ({"hold_fraction": 1.0}, "hold_fraction=1.0 must be in [0, 1)"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be 0 or more"),
        ({"max_bad_steps": 0}, "max_bad_steps=0 must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_named(setting, problem):
    """One line for each wrong value: the key, what was found, what is accepted."""
    with pytest.raises(ConfigError) as caught:
        OptimConfig(**setting)
    assert str(caught.value) == problem


@pytest.mark.parametrize("network", ["module", "ema"])
def test_parameters_that_are_not_finite_are_neither_saved_nor_resumed(world, network):
    """A checkpoint with them would push good ones out; the message names the parameter."""
    trained = updater(world, ema_decay=0.5)
    with torch.no_grad():
        next(getattr(trained, network).parameters()).view(-1)[0] = math.nan
    name = ("" if network == "module" else "ema.") + next(n for n, _ in trained.module.named_parameters())
    with pytest.raises(NonFiniteError, match=rf"the parameter {name} is not finite .*; nothing was saved"):
        trained.weights()
    spoiled = copy.deepcopy(trained.state_dict())
    with pytest.raises(NonFiniteError, match=rf"the parameter {name} is not finite .*older checkpoint"):
        updater(world, ema_decay=0.5).load_state_dict(spoiled)
