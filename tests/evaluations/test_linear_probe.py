"""The linear probe: its optimizer and schedule, exact sums, restarts, and what it refuses."""

import copy
import json
import math
import os
import shutil
import threading
from types import SimpleNamespace

import mini
import numpy as np
import pytest
import torch
from probes import IMAGES, config_of
from ranks import on_ranks
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, read_manifest
from engine.checkpoint.weights import find_weights, read_weights
from engine.config import load_config, save_config
from engine.data.sources import SOURCES
from engine.messages import ConfigError, UserError
from engine.meters import METERS
from engine.run_log import read_metrics
from evaluations import linear_probe
from evaluations.probes import features as probe_features
from evaluations.probes.config import LinearProbeConfig
from evaluations.probes.lars import lars, lr_fraction
from evaluations.probes.task import ProbeTask
from evaluations.probes.training import train
from evaluations.results import read_result
from tokenizer import load_tokenizer

DRAWING = threading.Lock()  # ranks that are threads share the random numbers


pytestmark = pytest.mark.usefixtures("probe_images")


def task_of(records, world, *overrides, dim=None, classes=4, steps=6) -> ProbeTask:
    """A task whose held-out records are given; the epochs are those of its config."""
    config = load_config(LinearProbeConfig, overrides=["probe={epochs: 3, warmup_epochs: 1}", *overrides])
    config.loop.steps = steps
    network = SimpleNamespace(dim=dim or records["features"].shape[1])
    with DRAWING:
        torch.manual_seed(0)
        return ProbeTask(network, lambda: records, classes, config, world)


def records_of(features: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    records = np.empty(len(labels), dtype=[("features", np.float32, (features.shape[1],)), ("label", np.int64)])
    records["features"], records["label"] = features.numpy(), labels.numpy()
    return records


# ---------------------------------------------------------------------------------------------- optimizer, schedule
def test_lars_is_the_formula_of_mae(world):
    """Of weights: gradient x 0.001 |w| / |g| where both norms are above 0, then momentum 0.9; of biases: momentum."""
    heads = {0.5: nn.Linear(6, 3), 2.0: nn.Linear(6, 3)}
    nn.init.zeros_(heads[2.0].weight)  # no trust ratio for a zero weight
    expected = [p.detach().clone() for head in heads.values() for p in head.parameters()]
    moments = [torch.zeros_like(p) for p in expected]
    optimizer = lars(heads)
    own = [p for head in heads.values() for p in head.parameters()]
    assert [g["base_lr"] for g in optimizer.param_groups] == [0.5, 0.5, 2.0, 2.0]
    for step in range(6):
        gradients = [torch.randn_like(p) if step != 3 else torch.zeros_like(p) for p in own]
        for p, gradient, group in zip(own, gradients, optimizer.param_groups, strict=True):
            p.grad, group["lr"] = gradient, 0.3 * (step + 1)
        optimizer.step()
        for p, m, g in zip(expected, moments, gradients, strict=True):
            trusted = p.ndim > 1 and p.norm() > 0 and g.norm() > 0
            m.mul_(0.9).add_(g * (0.001 * p.norm() / g.norm() if trusted else 1.0))
            p.sub_(0.3 * (step + 1) * m)
        for p, wanted in zip(own, expected, strict=True):
            torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_schedule_rises_linearly_from_0_and_falls_as_a_cosine_to_0():
    """Per update, with MAE's 10 of 90 epochs of 156 updates."""
    share = [lr_fraction(step, 90 * 156, 10 * 156) for step in range(90 * 156)]
    assert share[0] == 0 and share[780] == 0.5 and share[1560] == 1 == max(share)
    assert share[1560 + 80 * 78] == pytest.approx(0.5) and 0 < share[-1] < 1e-7
    assert share[1560 + 80 * 39] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert lr_fraction(0, 10, 0) == 1


def test_learning_rates_scale_with_the_batch(world):
    """Base rate x batch / 256 x share of the schedule, set before the update."""
    records = records_of(torch.randn(8, 5), torch.arange(8) % 4)
    task = task_of(records, world, "probe.base_lrs=[0.1, 2.0]", "data.global_batch_size=512")
    batch = {"features": torch.randn(8, 5), "labels": torch.arange(8) % 4}
    for step, share in enumerate([0, 0.5, 1.0, 0.5 * (1 + math.cos(math.pi / 4))]):
        before = copy.deepcopy(task.module.state_dict())
        assert task.train_step([batch], step)["lr_share"] == pytest.approx(share)
        rates = [group["lr"] for group in task.optimizer.param_groups]
        assert rates == pytest.approx([0.2 * share, 0.2 * share, 4 * share, 4 * share])
        moved = [n for n, v in task.module.state_dict().items() if "heads" in n and not torch.equal(v, before[n])]
        assert len(moved) == (0 if step == 0 else 4)


def test_heads_start_alike_and_as_the_protocol_says(world):
    """Truncated normal of deviation 0.01, no bias, batch norm without parameters and with epsilon 1e-6."""
    task = task_of(None, world, "probe.base_lrs=[0.1, 1, 10]", dim=400, classes=100)
    first, *others = task.heads.values()
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.02) and not first.bias.any()
    assert all(torch.equal(first.weight, head.weight) for head in others)
    assert (task.norm.eps, task.norm.affine) == (1e-6, False)


# ---------------------------------------------------------------------------------------------- training
def test_batch_norm_is_that_of_the_global_batch(world):
    """Outputs and running statistics of BatchNorm1d on all images: for one rank, micro-batches, and two ranks."""
    x = torch.randn(24, 5) * torch.tensor([1.0, 1e-3, 5, 1, 0]) + torch.tensor([0, 3.0, -100, 0.1, 7])
    expected = nn.BatchNorm1d(5, affine=False, eps=1e-6).double()
    wanted = expected(x.double()).float()

    def normalized(own_world):
        task = task_of(None, own_world, dim=5)
        share = 24 // own_world.size
        return task.normalize(x[own_world.rank * share :][:share]), task.norm.state_dict()

    for ranks in (1, 2, 3):
        found = mini.on_ranks(ranks, normalized) if ranks > 1 else [normalized(world)]
        torch.testing.assert_close(torch.cat([y for y, _ in found]), wanted, rtol=1e-5, atol=1e-5)
        for _, state in found:
            for name, value in expected.state_dict().items():
                torch.testing.assert_close(state[name].double(), value.double(), rtol=1e-6, atol=1e-7)


def test_training_does_not_depend_on_ranks_or_micro_batches(world):
    """Four updates of 24 images: one rank = two micro-batches = two ranks = both, in weights and in results."""
    features, labels = torch.randn(96, 5) + torch.arange(96)[:, None] % 4, torch.arange(96) % 4
    records = records_of(torch.randn(30, 5), torch.arange(30) % 4)

    def run(own_world, micro=1):
        task = task_of(records, own_world, "probe.base_lrs=[1.0, 30.0]", "data.global_batch_size=24")
        size = 24 // (own_world.size * micro)
        for step in range(4):
            chunks = [24 * step + size * (m * own_world.size + own_world.rank) for m in range(micro)]
            batches = [{"features": features[c : c + size], "labels": labels[c : c + size]} for c in chunks]
            task.train_step(batches, step)
        return task.module.state_dict(), task.result()

    state, result = run(world)
    result, errors = result
    for other, (same, same_errors) in (run(world, 2), *mini.on_ranks(2, run), *mini.on_ranks(3, lambda w: run(w, 2))):
        for name, value in state.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
        assert same.pop("val_loss") == pytest.approx(result["val_loss"], rel=1e-5)
        assert same == {name: value for name, value in result.items() if name != "val_loss"}
        assert same_errors == errors and errors["top1"].value == result["top1"]


def test_a_rate_learns_the_same_alone_and_in_a_sweep(world):
    """Bit for bit: heads share batches and nothing else, also where one diverges; a state can be put back."""
    features, labels = torch.randn(40, 5), torch.arange(40) % 4
    records = records_of(features, labels)
    states = []
    for rates in ("[3.0]", "[1e30, 3.0, 0.1]"):
        task = task_of(records, world, f"probe.base_lrs={rates}", "data.global_batch_size=40")
        for step in range(6):
            task.train_step([{"features": features, "labels": labels}], step)
        states.append((task.heads[3.0].state_dict(), task.measure()[3.0]))
    assert all(torch.equal(states[0][0][name], states[1][0][name]) for name in ("weight", "bias"))
    assert states[0][1] == states[1][1]
    other = task_of(records, world, f"probe.base_lrs={rates}")
    other.load_state_dict(copy.deepcopy(task.state_dict()))
    for part, named in task.state_dict().items():
        assert all(torch.equal(v, other.state_dict()[part][n]) or v.isnan().any() for n, v in named.items())
    result, _ = task.result()
    assert result["best_base_lr"] != 1e30 and set(result["top1_per_lr"]) == {"1e+30", "3", "0.1"}


def test_only_heads_that_did_not_diverge_count(world):
    records = records_of(torch.full((8, 3), torch.nan), torch.zeros(8, dtype=torch.long))
    with pytest.raises(UserError, match=r"all heads diverged, or the features are not finite"):
        task_of(records, world).result()


def test_separable_features_are_learned(world):
    """100 % on held-out features of 12 classes; top-5 beside top-1."""
    centers, labels = torch.randn(12, 16) * 3, torch.arange(240) % 12
    features = centers[labels] + 0.1 * torch.randn(240, 16)
    held_out = records_of(centers[labels] + 0.1 * torch.randn(240, 16), labels)
    own = ["probe={base_lrs: [0.01, 10.0], epochs: 60, warmup_epochs: 5}", "data.global_batch_size=240"]
    task = task_of(held_out, world, *own, classes=12, steps=60)
    for step in range(60):
        task.train_step([{"features": features, "labels": labels}], step)
    result, errors = task.result()
    assert errors["top1"].se == 0 and errors["top1"].parts == (1.0,) * 10
    assert (result["top1"], result["top5"], result["best_base_lr"]) == (1.0, 1.0, 10.0)
    assert result["top1_per_lr"]["10"] == 1.0 and result["val_loss"] < math.log(12)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_held_out_image_counts_once(ranks, world):
    """Against a plain count over all at once: 600 images in batches of 256, so that shares differ."""
    features, labels = torch.randn(600, 6), torch.randint(0, 12, (600,))

    def measured(own_world):
        task = task_of(records_of(features, labels), own_world, classes=12)
        task.norm.running_mean += torch.arange(6) / 7
        return task.measure()[0.1], task

    (found, task), *rest = mini.on_ranks(ranks, measured) if ranks > 1 else [measured(world)]
    logits = task.heads[0.1]((features - task.norm.running_mean) / (1 + 1e-6) ** 0.5)
    order = logits.argsort(1, descending=True)
    assert found["top1"] == (order[:, 0] == labels).double().mean().item()
    assert found["top5"] == (order[:, :5] == labels[:, None]).any(1).double().mean().item()
    assert found["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert all(other == found for other, _ in rest)


# ---------------------------------------------------------------------------------------------- whole runs
def final(run_dir, tmp_path) -> dict:
    """The training state after update 6, and every record without its clock."""
    folder = checkpoint_folders(run_dir)[-1]
    assert read_manifest(folder)["step"] == 6
    dcp_to_torch_save(folder / "state", tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=False)["probe"]
    tensors = {f"{part}.{name}": value.clone() for part in state for name, value in state[part].items()}
    clocks = ("time", *METERS)
    records = [{k: v for k, v in r.items() if k not in clocks} for r in read_metrics(run_dir)]
    return {"tensors": tensors, "records": records, "result": read_result(run_dir / "result.json")}


VARIANTS = {
    "cached": [],
    "augmented with dropout": ["probe.features=augmented", "network.gpt_dropout=true", "loop.grad_accum=2"],
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_restart_is_exact(variant, probed, tmp_path, world):
    """From update 3: weights, momentum, running statistics, records and the result are bit for bit those of one go."""
    config = config_of(probed, tmp_path / "a", *VARIANTS[variant])
    train(config, world)
    expected = final(tmp_path / "a", tmp_path)
    assert any(name.startswith("momentum") and value.any() for name, value in expected["tensors"].items())
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step_00000006")
    (tmp_path / "a" / "result.json").unlink()
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    train(config, world)
    found = final(tmp_path / "a", tmp_path)
    assert found["tensors"].keys() == expected["tensors"].keys()
    assert all(torch.equal(value, found["tensors"][name]) for name, value in expected["tensors"].items())
    assert (found["records"], found["result"]) == (expected["records"], expected["result"])
    (tmp_path / "a" / "result.json").unlink()
    train(config, world)  # finished: the result alone is written again
    assert read_result(tmp_path / "a" / "result.json") == expected["result"]


def test_a_probe_that_ends_early_has_no_result(probed, tmp_path, world):
    """Its number would be taken for one of all epochs; the rest of the steps brings it."""
    train(config_of(probed, tmp_path / "a", "loop.stop_at=4"), world)
    assert not (tmp_path / "a" / "result.json").exists()
    for name in "ab":
        train(config_of(probed, tmp_path / name), world)
    one, other = (final(tmp_path / name, tmp_path) for name in "ab")
    assert all(torch.equal(value, other["tensors"][name]) for name, value in one["tensors"].items())
    assert one["result"] == other["result"]
    with pytest.raises(ConfigError, match=r"loop\.stop_at=7 must be at most 6, the steps of the training"):
        train(config_of(probed, tmp_path / "c", "loop.stop_at=7"), world)


@pytest.mark.parametrize("features", ["cached", "augmented"])
def test_two_processes_train_the_same_probe(features, probed, tmp_path, world):
    """Order, crops, flips and statistics belong to positions and to the global batch."""
    options = [f"probe.features={features}"]
    train(config_of(probed, tmp_path / "one", *options), world)
    on_ranks(2, tmp_path / "a", lambda w: train(config_of(probed, tmp_path / "two", *options), w))
    x, y = (read_weights(find_weights(tmp_path / name, "model", "probe").path) for name in ("one", "two"))
    for name, value in x.items():
        torch.testing.assert_close(value, y[name], rtol=1e-4, atol=1e-6)
    one, two = (read_result(tmp_path / name / "result.json") for name in ("one", "two"))
    assert one["metrics"].pop("val_loss") == pytest.approx(two["metrics"].pop("val_loss"), rel=1e-5)
    assert one == two


def test_augmented_images_change_from_epoch_to_epoch(probed, tmp_path, world, monkeypatch):
    """Each epoch shows every image once, in other crops; cached features never change."""
    seen = []
    step = ProbeTask.train_step
    monkeypatch.setattr(ProbeTask, "train_step", lambda s, b, n: seen.append(b[0]) or step(s, b, n))
    train(config_of(probed, tmp_path / "a", "probe.features=augmented"), world)
    train(config_of(probed, tmp_path / "b"), world)
    for name, fresh, batches in (("images_u8", True, seen[:6]), ("features", False, seen[6:])):
        epochs = [torch.cat([b[name] for b in part]).flatten(1).tolist() for part in (batches[:3], batches[3:])]
        assert (sorted(epochs[0]) != sorted(epochs[1])) == fresh
        labels = [torch.cat([b["labels"] for b in part]).sort().values for part in (batches[:3], batches[3:])]
        assert torch.equal(labels[0], labels[1]) and labels[0].tolist() == sorted(IMAGES["train"].labels)


def test_result_says_how_it_was_made(probed, tmp_path, world):
    train(config_of(probed, tmp_path / "a", "network.random_weights=true"), world)
    text = (tmp_path / "a" / "result.json").read_text()
    result = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    metrics, protocol = result["metrics"], result["protocol"]
    interval = {"top1_se", "top1_low", "top1_high"}
    assert set(metrics) == {"top1", "val_loss", "best_base_lr", "top1_per_lr", *interval}, "no top-5 of four classes"
    assert metrics["top1_se"] == pytest.approx((metrics["top1"] * (1 - metrics["top1"]) / 13) ** 0.5)
    assert result["intervals"]["ids"] == "images 0 to 13" and len(result["intervals"]["parts"]["top1"]["values"]) == 10
    assert (
        metrics["top1"]
        == metrics["top1_per_lr"][f"{metrics['best_base_lr']:g}"]
        == max(metrics["top1_per_lr"].values())
    )
    expected = {
        "kind": "linear_probe", "source": "gpt", "layer": 1, "num_images": 14, "num_train_images": 24, "epochs": 2,
        "steps": 6, "warmup_epochs": 1, "batch_size": 8, "base_lrs": [1.0, 10.0], "features": "cached",
        "gpt_dropout": False, "crop": "center", "train_crop": "center", "precision": "fp32", "data": "mnist5k",
        "seed": 0,
    }  # fmt: skip
    assert expected.items() <= protocol.items()
    assert protocol["gpt"]["weights"] == "random" and protocol["tokenizer"]["weights"] == "model"
    assert read_manifest(checkpoint_folders(tmp_path / "a")[-1])["stamp"]["weights"] == "random"


# ---------------------------------------------------------------------------------------------- bad input
@pytest.fixture
def refused(probed, tmp_path, entry):
    """`refused(override, ..., says=...)`: the command ends with code 2 and one message; no result is left."""

    def check(*overrides, says, run_dir="refused"):
        save_config(config_of(probed, tmp_path / run_dir), tmp_path / "probe.yaml")
        arguments = ["--config", tmp_path / "probe.yaml", *overrides]
        code, _, err = entry(linear_probe.main, *arguments)
        assert code == 2 and says in err and "Traceback" not in err, err
        assert not (tmp_path / run_dir / "result.json").exists()

    return check


def test_what_does_not_fit_is_refused(refused, probed, monkeypatch):
    """Every message names the key, what was found and what is accepted."""
    tokenizer = ["network.source=tokenizer", "network.gpt=''"]
    decoder = ["network.source=decoder", "network.gpt=''"]
    cnn = f"network.tokenizer={probed / 'cnn'}"
    refused("network.layer=3", says="network.layer=3 must lie in 1..2, the layers of the gpt")
    refused("network.layer=0", says="network.layer=0 must be 1 or more")
    refused(*decoder, "network.layer=9", says="must lie in 1..2, the layers of the decoder")
    refused(
        *decoder, f"network.tokenizer={probed / 'headless'}", says="has no semantic layer; set network.layer to 1..2"
    )
    refused(*decoder, cnn, says="cnn has no features 'decoder'; it has: encoder")
    refused(*tokenizer, cnn, "network.after_projection=true", says="has no features 'encoder_projection'")
    refused(*tokenizer, "network.layer=1", says="network.layer=1 must be null for source=tokenizer")
    refused(*tokenizer, "network.gpt_dropout=true", says="network.gpt_dropout=true must be false for source=tokenizer")
    refused("network.after_projection=true", says="network.after_projection=true must be false for source=gpt")
    refused("network.source=tokenizer", says="must be empty for source=tokenizer")
    refused("network.gpt=''", "network.tokenizer=''", says="network.tokenizer='' must be the path of a tokenizer")
    refused("network.gpt=''", says="network.gpt='' must be the path of a GPT for source=gpt")
    refused("network.weights=best", says="network.weights='best' must be one of: auto, ema, model")
    refused("network.gpt_dropout=true", says="network.gpt_dropout needs probe.features=augmented")
    refused("network.source=teacher", says="teacher")
    refused(
        f"network.tokenizer={probed / '2d'}",
        says="is for 8 tokens of 32 codes per image, the tokenizer gives 16 tokens of 32 codes",
    )
    refused("data.name=folder", "data.root=x", says="data.val_root is empty: the probe is measured on held-out images")
    refused("data.image_size=32", says="data.image_size=32, but the tokenizer is for 16")
    refused("data.global_batch_size=32", says="size=32 is more than the data have: 24 training images")
    refused("data.global_batch_size=1", says="data.global_batch_size must be 2 or more")
    refused("loop.steps=5", says="loop.steps=5: leave it out; probe.epochs=2 are 6 steps")
    refused("probe.base_lrs=[]", says="probe.base_lrs=[] must be different learning rates above 0")
    refused("probe.base_lrs=[1,-1]", says="must be different learning rates above 0")
    refused("probe.warmup_epochs=2", says="probe.warmup_epochs=2 must be in [0, 1]")
    refused("probe.read_batch_size=0", says="probe.read_batch_size=0 must be 1 or more")
    other = {"train": IMAGES["train"], "val": mini.image_source(4, classes=5)}
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: other[split])
    refused(says="different classes")


def test_a_gpt_of_other_codes_is_refused(refused, probed, tmp_path, monkeypatch):
    """By the fingerprint that its checkpoint carries, not by sizes."""
    load = probe_features.load_gpt

    def stamped(*args, **options):
        gpt = load(*args, **options)
        gpt.provenance.stamp["tokenizer_fingerprint"] = load_tokenizer(probed / "other").provenance.fingerprint
        return gpt

    monkeypatch.setattr(probe_features, "load_gpt", stamped)
    refused(says="was trained on codes of tokenizer")


def test_a_run_goes_on_only_with_the_same_features_and_settings(probed, tmp_path, world):
    """Another layer, network, batch or rate: refused before anything is read; the run stays as it was."""
    train(config_of(probed, tmp_path / "a"), world)
    kept = sorted(p.name for p in (tmp_path / "a").iterdir())
    for override, says in (
        ("network.layer=2", "stamp features"),
        ("network.random_weights=true", "stamp weights"),
        ("data.global_batch_size=4", "data.global_batch_size: checkpoint 8, now 4"),
        ("probe.base_lrs=[5.0]", "probe.base_lrs"),
        ("loop.seed=1", "loop.seed"),
    ):
        with pytest.raises(CheckpointError, match=says):
            train(config_of(probed, tmp_path / "a", override), world)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == kept
