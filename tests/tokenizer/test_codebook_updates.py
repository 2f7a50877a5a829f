"""Codebooks of averages, and codes that start anew: closed forms, another program, ranks, micro-batches, the EMA."""

import copy
import json
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch import Tensor

import tokenizer.train
from engine.loop import TrainLoopConfig
from engine.messages import ConfigError
from engine.optim import OptimConfig
from engine.parallel import local_part, whole
from engine.run_log import read_metrics
from engine.trained_model import TrainedModel
from engine.world import World
from evaluations.report.write import write_report
from tokenizer.quantizers import codebook_updates
from tokenizer.quantizers.ibq import IBQConfig
from tokenizer.quantizers.mcq import MCQConfig, ProductVQ
from tokenizer.quantizers.rvq import ResidualVQ, RVQConfig
from tokenizer.quantizers.simvq import SimVQConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

GOLDEN = Path(__file__).parents[1] / "goldens" / "quantizers" / "ema.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
GOOD, BAD = torch.tensor(False), torch.tensor(True)
RULES = [
    {"update": update, "restart": restart, "restart_threshold": 0.5, "decay": 0.6}
    for update in ("gradient", "ema")
    for restart in ("none", "random", "nearest")
][1:]
NAMES = [f"{rule['update']} {rule['restart']}" for rule in RULES]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=NAMES)


def quantizer(size: int = 16, dim: int = 4, seed: int = 0, **options) -> VectorQuantizer:
    torch.manual_seed(seed)
    return VectorQuantizer(VQConfig(codebook_size=size, codebook_dim=dim, **options)).train()


def batch(step: int, count: int = 24, dim: int = 4) -> Tensor:
    """Latents (1, count, dim) around two points, so that most codes are unused."""
    generator = torch.Generator().manual_seed(step)
    latents = 0.3 * torch.randn(count, dim, generator=generator)
    latents[::2] += 1.0
    return latents[None]


def state(vq: VectorQuantizer) -> dict[str, Tensor]:
    """Codebook and statistics, as copies."""
    return {name: value.clone() for name, value in vq.state_dict().items() if not name.startswith("recent")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------- averages
def test_one_batch_without_memory_gives_the_means_of_clusters():
    """decay=0: each code is the mean of its latents, and one without latents stays where it is."""
    vq, z = quantizer(update="ema", decay=0.0, l2_norm=False), batch(0)
    before = vq.codebook.detach().clone()
    indices = vq(z).indices[0]
    vq.after_update(0, 0, GOOD)
    counts = torch.bincount(indices, minlength=16)
    assert 1 < (counts > 0).sum() < 16
    for code in range(16):
        expected = z[0][indices == code].mean(0) if counts[code] > 0 else before[code]
        torch.testing.assert_close(vq.codebook[code], expected, rtol=2e-5, atol=1e-6)
    assert torch.equal(vq.cluster_size, counts.float())


def test_a_constant_batch_is_approached_at_the_rate_of_the_decay():
    """From N = 1, M = e: after t updates N = g^t + (1 - g^t) n and M = g^t e + (1 - g^t) n z."""
    vq = quantizer(2, 3, update="ema", decay=0.9, l2_norm=False)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[1.0, 0.0, 0.0], [-50.0, 0.0, 0.0]]))
    vq.cluster_sum = vq.codebook.detach().clone()
    z = torch.tensor([1.0, 2.0, -1.0])
    for step in range(7):
        vq(z.expand(1, 5, 3))
        vq.after_update(step, 0, GOOD)
    left = 0.9**7
    expected = (left * torch.tensor([1.0, 0.0, 0.0]) + (1 - left) * 5 * z) / (left + (1 - left) * 5)
    torch.testing.assert_close(vq.codebook[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vq.codebook[1], torch.tensor([-50.0, 0.0, 0.0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=["distance", "cosine"])
def test_averages_of_another_program(case):
    """Five updates of vector-quantize-pytorch: the same choices, and codebook and counts to 1e-6."""
    k, c = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(1, 4, dtype=torch.float64)
    vq = quantizer(6, 3, update="ema", decay=0.8, l2_norm=case["cosine"])
    start = torch.cos(1.1 * k * c + 0.2 * c).float()
    with torch.no_grad():
        vq.codebook.copy_(F.normalize(start, dim=-1) if case["cosine"] else start)
    vq.cluster_sum = vq.codebook.detach().clone()
    for step, expected in enumerate(case["indices"]):
        i = torch.arange(20, dtype=torch.float64)[:, None] + 20 * step
        assert vq((1.5 * torch.sin(0.7 * i * c + 0.3 * c)).float()[None]).indices[0].tolist() == expected
        vq.after_update(step, 0, GOOD)
    torch.testing.assert_close(vq.cluster_size, torch.tensor(case["cluster_size"]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vq.codebook.detach(), torch.tensor(case["codebook"]), rtol=1e-6, atol=1e-6)


def test_a_codebook_of_averages_has_no_loss_and_no_gradient():
    vq = quantizer(update="ema")
    out = vq(batch(0).requires_grad_(), entropy=True)
    assert "codebook" not in out.losses and {"commitment", "entropy"} <= out.losses.keys()
    assert vq.loss_names == {"commitment", "entropy"} and not vq.codebook.requires_grad
    assert quantizer().loss_names == {"codebook", "commitment", "entropy"}
    sum(out.losses[name] for name in ("commitment", "entropy")).backward()
    assert vq.codebook.grad is None


def test_k_means_starts_the_averages():
    vq = quantizer(4, update="ema", init="kmeans", warmup_steps=1)
    vq(batch(0), quantize=False)
    assert vq.after_update(0, 0, GOOD) == {}, "nothing is chosen in a warm-up"
    vq.cluster_size = vq.cluster_size * 3
    vq.finish_warmup()
    assert torch.equal(vq.cluster_sum, vq.codebook) and torch.equal(vq.cluster_size, torch.ones(4))


# ---------------------------------------------------------------------------------------------- restarts
def test_an_unused_code_goes_to_its_nearest_latent_and_a_used_one_stays():
    """CVQ: 99.9 % of the way from p = 0, and not a bit at p = 1 / K."""
    vq = quantizer(8, restart="nearest", l2_norm=False)
    with torch.no_grad():
        vq.codebook.copy_(torch.randn(8, 4))
        vq.codebook[0] = 40.0  # nobody chooses it
    before, z = vq.codebook.detach().clone(), batch(0)
    vq(z)
    vq.usage_ema = torch.full((8,), 1 / 8 / 0.99)  # 1 / 8 and more after this update
    vq.usage_ema[0] = 0.0
    moved = vq.after_update(0, 0, GOOD)[vq.codebook]
    assert moved.tolist() == [True] + [False] * 7
    assert torch.equal(vq.codebook[1:], before[1:])
    target = z[0][(z[0] - before[0]).square().sum(1).argmin()]
    share = ((vq.codebook[0] - before[0]) / (target - before[0])).detach()
    torch.testing.assert_close(share, torch.full((4,), 0.9990005), rtol=0, atol=1e-5)
    assert vq.usage()["restarted_codes"] == 1


def test_the_step_towards_the_nearest_latent_follows_the_formula():
    """a = exp(-10 K p / (1 - g) - 0.001), in float64 and one code at a time."""
    vq = quantizer(8, restart="nearest", decay=0.9, l2_norm=False)
    with torch.no_grad():
        vq.codebook.copy_(torch.randn(8, 4))
    vq.usage_ema = torch.linspace(0, 2e-3, 8)
    before, use, z = vq.codebook.detach().double(), vq.usage_ema.double(), batch(3)
    counts = torch.bincount(vq(z).indices[0], minlength=8)
    vq.after_update(0, 0, GOOD)
    for code in range(8):
        p = 0.9 * use[code] + 0.1 * counts[code] / 24
        a = torch.exp(-10 * 8 * p / 0.1 - 1e-3)
        nearest = z[0].double()[(z[0].double() - before[code]).square().sum(1).argmin()]
        expected = (1 - a) * before[code] + a * nearest
        torch.testing.assert_close(vq.codebook[code].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_become_different_latents_of_the_batch(update):
    """Those below the threshold, and no others; they begin with the least use that lets them stay."""
    vq, z = quantizer(update=update, restart="random", restart_threshold=0.5, decay=0.4, l2_norm=False), batch(0)
    before, counts = vq.codebook.detach().clone(), torch.bincount(vq(z).indices[0], minlength=16)
    rows = vq.after_update(5, 7, GOOD)[vq.codebook]
    least = 0.5 * 24 / 16
    use = 0.4 * 1 + 0.6 * counts if update == "ema" else 24 * (0.4 / 16 + 0.6 * counts / 24)
    is_dead = use < least
    assert 3 < is_dead.sum() < 16
    assert torch.equal(rows, is_dead if update == "gradient" else torch.ones(16, dtype=torch.bool))
    distances = torch.cdist(vq.codebook[is_dead], z[0])
    assert (distances.amin(1) == 0).all() and len(distances.argmin(1).unique()) == is_dead.sum()
    if update == "gradient":
        assert torch.equal(vq.codebook[~is_dead], before[~is_dead])
        torch.testing.assert_close(vq.usage_ema[is_dead], torch.full((int(is_dead.sum()),), 0.5 / 16))
    else:
        torch.testing.assert_close(vq.cluster_size[is_dead], torch.full((int(is_dead.sum()),), least))
        torch.testing.assert_close(vq.cluster_sum[is_dead], least * vq.codebook[is_dead])
    assert vq.usage()["restarted_codes"] == is_dead.sum()


def test_random_latents_depend_on_seed_and_step_alone():
    """Not on the state of torch's generator, which is left alone."""
    drawn = []
    for seed, step, torch_seed in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3)):
        vq = quantizer(restart="random", restart_threshold=1.0)
        torch.manual_seed(torch_seed)
        random_state = torch.get_rng_state()
        vq(batch(0))
        vq.after_update(step, seed, GOOD)
        assert torch.equal(torch.get_rng_state(), random_state)
        drawn.append(vq.codebook.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])


def test_fewer_latents_than_dead_codes_are_taken_again():
    vq, z = quantizer(restart="random", restart_threshold=1.0, l2_norm=False), batch(0, count=3)
    vq(z)
    is_dead = vq.after_update(0, 0, GOOD)[vq.codebook]
    assert is_dead.sum() > 3
    nearest = torch.cdist(vq.codebook[is_dead], z[0])
    assert (nearest.amin(1) == 0).all() and nearest.argmin(1).unique().tolist() == [0, 1, 2]


# ---------------------------------------------------------------------------------------------- one update
@EACH_RULE
def test_a_skipped_update_changes_nothing_and_leaves_nothing_behind(rule):
    """Also with latents that are not finite; the next update is as if the skipped one had never been."""
    vq, clean = quantizer(**rule), quantizer(**rule)
    for each in (vq, clean):
        each(batch(0))
        each.after_update(0, 0, GOOD)
    before = state(vq)
    vq(batch(1).fill_(torch.nan))
    assert not vq.after_update(1, 0, BAD)[vq.codebook].any()
    assert same(state(vq), before)
    for each in (vq, clean):
        each(batch(2))
        each.after_update(2, 0, GOOD)
    assert same(state(vq), state(clean)) and not same(state(vq), before)


@EACH_RULE
def test_micro_batches_are_one_batch(rule):
    """Bit for bit."""
    one, two = quantizer(**rule), quantizer(**rule)
    for step in range(4):
        z = batch(step)
        one(z)
        two(z[:, :12])
        two(z[:, 12:])
        one.after_update(step, 3, GOOD)
        two.after_update(step, 3, GOOD)
    assert same(state(one), state(two))
    if rule["restart"] != "none":
        assert one.usage()["restarted_codes"] > 4


@EACH_RULE
def test_evaluation_is_not_followed(rule):
    vq = quantizer(**rule)
    before = state(vq)
    vq.eval()(batch(0))
    assert vq.after_update(0, 0, GOOD) == {} and same(state(vq), before)


def updates_on_ranks(world: World, folder: Path) -> None:
    """Each rank has a half of each micro-batch."""
    results = []
    for rule in RULES:
        vq = quantizer(**rule)
        for step in range(4):
            for micro_batch in batch(step).chunk(2, dim=1):
                vq(micro_batch.chunk(world.size, dim=1)[world.rank])
            vq.after_update(step, 3, GOOD)
        results.append(state(vq))
    torch.save(results, folder / f"{world.rank}_of_{world.size}.pt")


def test_two_ranks_are_one_rank(tmp_path, world):
    """Counts bit for bit, codes and sums to 1e-6, and both ranks the same bits."""
    on_ranks(2, tmp_path, updates_on_ranks, tmp_path)
    updates_on_ranks(world, tmp_path)
    files = ("0_of_1.pt", "0_of_2.pt", "1_of_2.pt")
    for one, first, second in zip(*(torch.load(tmp_path / name, weights_only=True) for name in files), strict=True):
        assert same(first, second) and first.keys() == one.keys()
        for name, value in one.items():
            exact = name in ("cluster_size", "usage_ema", "num_restarts")
            torch.testing.assert_close(first[name], value, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


def test_passes_without_updates_are_an_error_and_not_a_leak(monkeypatch):
    monkeypatch.setattr("tokenizer.quantizers.followed_codebook.MAX_PENDING", 3)
    vq = quantizer(update="ema")
    for _ in range(3):
        vq(batch(0))
    with pytest.raises(RuntimeError, match=r"3 training passes without an update: call quantizer\.after_update"):
        vq(batch(0))
    plain = quantizer()
    for _ in range(5):
        plain(batch(0))
    assert codebook_updates.MAX_PENDING > 1000


@EACH_RULE
@pytest.mark.parametrize("kind", [RVQConfig, MCQConfig])
def test_several_codebooks_are_updated_each(kind, rule):
    """As a codebook alone that sees the latents of its level or group; restarts are added up."""
    torch.manual_seed(0)
    sizes = {"levels": 2, "codebook_dim": 4} if kind is RVQConfig else {"groups": 2, "codebook_dim": 2}
    network = {RVQConfig: ResidualVQ, MCQConfig: ProductVQ}[kind](kind(codebook_size=16, **sizes, **rule)).train()
    alone = copy.deepcopy(network.books[1])
    for step in range(4):
        z = batch(step)
        if kind is RVQConfig:
            rest = z - network.books[0].eval()(z).z_q
            network.train()
        else:
            rest = z[..., 2:]
        network(z)
        alone(rest)
        rows = network.after_update(step, 3, GOOD)
        alone.after_update(step, 4, GOOD)
        assert len(rows) == 2
    assert same(state(network.books[1]), state(alone))
    assert ("codebook" in network.loss_names) == (rule["update"] == "gradient")
    if rule["restart"] != "none":
        counts = [book.restarts()["restarted_codes"] for book in (network.books[0], alone)]
        assert network.usage()["restarted_codes"] == sum(counts) > counts[0] and not network.can_restart_codes
    else:
        assert "restarted_codes" not in network.usage() and network.can_restart_codes


def test_a_compiled_network_is_not_compiled_for_each_micro_batch():
    """Regression: the list of latents grew inside the graph, which was compiled anew for each of its lengths."""
    vq = quantizer(update="ema", restart="random")
    compiled, graphs = torch.compile(vq, backend="eager"), torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(6):
        compiled(batch(0).requires_grad_())
    assert len(vq._followed) == 6 and graphs["unique_graphs"] - before < 6


# ---------------------------------------------------------------------------------------------- optimizer and EMA
def trained(world: World, rule: dict, parallel: TrainLoopConfig | None = None, steps: int = 4) -> TrainedModel:
    """A quantizer after some updates with AdamW and averaged weights, and its last restarts."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), quantizer(**rule))
    optim = OptimConfig(lr=1e-2, eps=1e-3)
    model = TrainedModel(network, optim, total_steps=9, world=world, ema_decay=0.9, parallel=parallel)
    for step in range(steps):
        vq = model.module[1]
        for z in model.micro_batches([batch(step).chunk(world.size, dim=1)[world.rank]]):
            out = model.wrapped(z)
            (sum(out.losses.values()) + out.z_q.square().mean()).backward()

        def after_update(is_bad: Tensor, vq=vq, step=step):
            model.new_rows = vq.after_update(step, 3, is_bad)
            return model.new_rows

        model.step(step, {}, after_update)
    return model


@EACH_RULE
def test_restarted_rows_lose_their_moments_and_are_their_own_averages(rule, world):
    """All other rows keep both; a codebook of averages is copied, with its statistics."""
    model = trained(world, rule)
    vq, averaged = model.module[1], model.ema[1]
    is_new = model.new_rows[vq.codebook]
    assert torch.equal(averaged.codebook[is_new], vq.codebook[is_new])
    if rule["update"] == "ema":
        assert is_new.all() and vq.codebook not in model.optimizer.state
    else:
        moments = model.optimizer.state[vq.codebook]["exp_avg"]
        assert (moments[is_new] == 0).all() and (moments[~is_new] != 0).any()
        assert is_new.any() and (averaged.codebook[~is_new] != vq.codebook[~is_new]).any()
    for name, value in vq.named_buffers():
        assert torch.equal(averaged.get_buffer(name), value), name


def train_in_shards(world: World, folder: Path) -> None:
    results = []
    for rule in RULES:
        model = trained(world, rule, TrainLoopConfig(strategy="fsdp"))
        assert len(local_part(model.module[1].codebook)) == 8
        tensors = {**state(model.module[1]), **{f"ema.{name}": v for name, v in state(model.ema[1]).items()}}
        tensors["moments"] = model.optimizer.state.get(model.module[1].codebook, {}).get("exp_avg", torch.zeros(1))
        results.append({name: whole(value) for name, value in tensors.items()})
    if world.is_main:
        torch.save(results, folder / "shards.pt")


def test_shards_are_one_process(tmp_path, world):
    """FSDP2: codebook, averages, moments and statistics of two ranks, each with half of the rows."""
    on_ranks(2, tmp_path, train_in_shards, tmp_path)
    for rule, shards in zip(RULES, torch.load(tmp_path / "shards.pt", weights_only=True), strict=True):
        model = trained(world, rule)
        tensors = {**state(model.module[1]), **{f"ema.{name}": v for name, v in state(model.ema[1]).items()}}
        tensors["moments"] = model.optimizer.state.get(model.module[1].codebook, {}).get("exp_avg", torch.zeros(1))
        assert tensors.keys() == shards.keys()
        for name, value in tensors.items():
            torch.testing.assert_close(shards[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------- for people
def test_restarts_are_in_the_records_the_log_and_the_report(tmp_path, image_folder, world):
    """Counted from the start of the run; a run without restarts has no such record and no chart."""
    for name, options in (("restarts", ["model.quantizer.vq.restart=nearest"]), ("plain", [])):
        run = tmp_path / name
        tokenizer.train.train(tiny.tokenizer_config(run, image_folder, "loop.steps=4", *options), world)
        counts = [record["restarted_codes"] for record in read_metrics(run) if "restarted_codes" in record]
        page = write_report([run]).read_text(encoding="utf-8")
        told = ["restarted_codes" in (run / "log.txt").read_text(), "Restarted codes" in page]
        assert told == [name == "restarts"] * 2 and len(counts) == (4 if name == "restarts" else 0)
        assert counts == sorted(counts) and all(count == int(count) for count in counts)
        assert not counts or counts[0] > 0


# ---------------------------------------------------------------------------------------------- options
def test_without_an_option_there_is_no_state():
    assert state(quantizer()).keys() == {"codebook"}
    assert quantizer().after_update(0, 0, GOOD) == {} and "restarted_codes" not in quantizer().usage()
    assert state(quantizer(update="ema")).keys() == {"codebook", "cluster_size", "cluster_sum"}


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (VQConfig, {"update": "ema", "decay": 1.0}, r"decay=1.0 must be in \[0, 1\)"),
        (VQConfig, {"restart": "random", "restart_threshold": 0.0}, r"restart_threshold=0.0 must be in \(0, 1\]"),
        (RVQConfig, {"shared": True, "restart": "random"}, "restart='random' must be nearest or none with shared"),
        (IBQConfig, {"update": "ema"}, "update='ema' must be gradient: every update moves all codes"),
        (SimVQConfig, {"restart": "nearest"}, "restart='nearest' must be none: every update moves all codes"),
    ],
)
def test_settings_that_cannot_be_are_named(section, options, message):
    with pytest.raises(ConfigError, match=message):
        section(**options)
