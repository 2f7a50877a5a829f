"""The benchmark: its plain formulations compute what ours do, its rows are judged rightly, its files say so."""

import importlib
import inspect
import json
import math
import os
import pkgutil

import pytest
import torch
import torch.nn.functional as F

from engine.messages import UserError
from evaluations import benchmarks
from evaluations.benchmarks import __main__ as benchmark
from evaluations.benchmarks import limits, quantizers
from evaluations.benchmarks.cases import OURS, Case, Reading, Target
from evaluations.benchmarks.changes import slower_rows
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.page import seconds_text, verdict
from evaluations.benchmarks.topics import TOPICS, Topic
from evaluations.forked import in_fork
from tokenizer.quantizers.entropy_assignment import LOG_P_FLOOR, assignment_entropies
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

CPU = torch.device("cpu")
RATES = Limits(read=1e9, gemm=1e9, gemm_bf16=1e9, convolution=1e9)


# ------------------------------------------------------------------------------------------------ plain formulations
def same_gradients(first, second, inputs):
    """Two scalars have equal gradients with respect to `inputs`."""
    for ours, plain in zip(torch.autograd.grad(first, inputs), torch.autograd.grad(second, inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=2e-5 * max(1.0, plain.abs().max().item()))


@pytest.mark.parametrize("floor", [None, LOG_P_FLOOR])
def test_plain_entropies(floor):
    torch.manual_seed(0)
    codes = F.normalize(torch.randn(64, 8), dim=1).requires_grad_()
    z = quantizers.latents_near_codes(40, codes.detach(), noise=0.3).requires_grad_()
    ours = assignment_entropies(z, codes, 0.05)
    plain = quantizers.plain_entropies(z, codes, 0.05, floor)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    same_gradients(ours[0] - ours[1], plain[0] - plain[1], [z, codes])


def test_plain_vq():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(VQConfig(codebook_size=32, codebook_dim=4, rotation_trick=False)).train()
    z = torch.randn(1, 20, 4, requires_grad=True)
    out = quantizer(z)
    z_q, losses = quantizers.plain_vq(z[0], quantizer.codebook)
    torch.testing.assert_close(out.z_q[0], z_q)
    same_gradients(
        out.z_q.square().sum() + out.losses["codebook"] + out.losses["commitment"],
        z_q.square().sum() + losses,
        [z, quantizer.codebook],
    )


def test_plain_simvq():
    torch.manual_seed(0)
    quantizer = SimVQ(SimVQConfig(codebook_size=32, codebook_dim=4)).train()
    z = torch.randn(1, 20, 4, requires_grad=True)
    out = quantizer(z)
    z_q, losses = quantizers.nearest_by_distance(z[0], quantizer.projection(quantizer.codebook))
    torch.testing.assert_close(out.z_q[0], z_q)
    inputs = [z, *quantizer.projection.parameters()]
    same_gradients(out.z_q.sum() + out.losses["codebook"] + out.losses["commitment"], z_q.sum() + losses, inputs)


def test_plain_ibq():
    torch.manual_seed(0)
    quantizer = IBQ(IBQConfig(codebook_size=32, codebook_dim=4, entropy_temperature=0.5)).train()
    z = torch.randn(1, 20, 4, requires_grad=True)
    out = quantizer(z, entropy=True)
    z_q, losses = quantizers.plain_ibq(z[0], quantizer.codebook, 0.5)
    torch.testing.assert_close(out.z_q[0], z_q)
    ours = out.z_q.square().sum() + out.losses["codebook"] + out.losses["commitment"] + out.losses["entropy"]
    same_gradients(ours, z_q.square().sum() + losses, [z, quantizer.codebook])


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 5], [3, 2]])
def test_plain_fsq(levels):
    torch.manual_seed(0)
    quantizer = FSQ(FSQConfig(levels=levels)).train()
    z = (2 * torch.randn(1, 50, len(levels))).requires_grad_()
    out = quantizer(z)
    z_q, indices = quantizers.plain_fsq(z[0], levels)
    torch.testing.assert_close(out.z_q[0], z_q)
    assert torch.equal(out.indices[0], indices)
    same_gradients(out.z_q.square().sum(), z_q.square().sum(), [z])


# ------------------------------------------------------------------------------------------------ rows
def test_the_ratio_follows_the_direction_of_the_target():
    """`at most`: our time over the other one; `at least`: the gain. A form that does more is slower."""
    small, large = torch.randn(64, 64), torch.randn(512, 512)
    forms = {OURS: lambda: small @ small, "other": lambda: large @ large}
    fast = Case("fast", forms, "other", Target("at most", 1.0)).measure(3, RATES, CPU)
    gain = Case("gain", forms, "other", Target("at least", 1.0)).measure(3, RATES, CPU)
    assert fast["time"]["value"] < 1 < gain["time"]["value"]
    assert fast["time"]["target"] == "at most 1" and verdict(fast) == verdict(gain) == "reached"
    assert fast["seconds"].keys() == {OURS, "other"}


def test_a_row_is_reached_only_where_all_its_targets_are():
    """The share of the limit is least work / rate / time: here far above any machine, so that it is missed."""
    small = torch.randn(8, 8)
    forms = {OURS: lambda: small @ small, "other": lambda: [small @ small for _ in range(200)]}
    row = Case(
        "both", forms, "other", Target("at most", 1.0), least_work={"gemm": 1e-3}, limit_target=Target("at least", 0.8)
    ).measure(3, RATES, CPU)
    assert row["share_of_limit"]["value"] == pytest.approx(1e-3 / 1e9 / row["seconds"][OURS])
    assert row["time"]["reached"] and not row["share_of_limit"]["reached"] and verdict(row) == "missed"


def test_memory_is_what_a_form_adds():
    """64 MiB against 256 MiB: the ratio is 1/4, also where freed memory of the process would have served."""
    freed = [torch.ones(2**18) for _ in range(300)]  # 1 MiB each, which an allocator keeps for later
    del freed
    forms = {OURS: lambda: torch.ones(16 * 2**20).sum(), "other": lambda: torch.ones(64 * 2**20).sum()}
    row = Case("memory", forms, "other", memory_target=Target("at most", 0.3)).measure(1, RATES, CPU)
    if row["mib"][OURS] is None:
        pytest.skip("this system does not say how much memory a process holds")
    assert row["mib"]["other"] == pytest.approx(256, abs=4) and row["mib"][OURS] == pytest.approx(64, abs=4)
    assert row["memory"]["reached"]


def test_a_process_that_is_killed_is_not_waited_for():
    with pytest.raises(RuntimeError, match="without an answer"):
        in_fork(lambda: os._exit(9))


def test_a_reading_is_the_median():
    values = iter([5.0, 1.0, 3.0])
    row = Reading("count", "reads", lambda: next(values), Target("at most", 3)).measure(3, RATES, CPU)
    assert row["reading"] == {"value": 3.0, "target": "at most 3", "reached": True} and row["spread"] == 4 / 3


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (0.0123, "12.3 ms"), (1.5e-6, "1.5 us"), (2e-9, "2 ns")]
)
def test_seconds_for_people(seconds, text):
    assert seconds_text(seconds) == text


# ------------------------------------------------------------------------------------------------ what got slower
def result(rows, **facts):
    return {"size": "quick", "device": "cpu", "topics": {"All": rows}, **facts}


def row(name, ours, plain=1.0, **facts):
    return {"name": name, "seconds": {OURS: ours, "plain": plain}, "against": "plain", "time": {"value": ours}, **facts}


def test_slower_rows_are_named_by_their_ratio():
    """A machine that is twice as slow slows both forms; a row that loses against its plain form is named."""
    old = result([row("same", 0.5), row("slower", 0.5), row("larger", 0.5, mib={OURS: 10, "plain": 99})])
    new = result(
        [
            row("same", 1.0, plain=2.0),
            row("slower", 1.0),
            row("larger", 0.5, mib={OURS: 20, "plain": 99}),
            row("new", 9.0),
        ]
    )
    assert list(slower_rows(old, new)) == [
        "slower: time over plain 0.5 -> 1 (2.00x)",
        "larger: MiB 10 -> 20 (2.00x)",
    ]
    assert list(slower_rows(old, old)) == []


def test_a_row_that_fails_now_is_named():
    failed = {"name": "a", "error": "RuntimeError: out of memory"}
    assert list(slower_rows(result([row("a", 0.5)]), result([failed]))) == ["a: failed (RuntimeError: out of memory)"]
    assert list(slower_rows(result([failed]), result([row("a", 0.5)]))) == []


def test_unlike_benchmarks_are_not_compared():
    with pytest.raises(UserError, match="differ in size: 'long' and 'quick'"):
        list(slower_rows(result([], size="long"), result([])))
    with pytest.raises(UserError, match="no row in common"):
        list(slower_rows(result([row("a", 1)]), result([row("b", 1)])))


# ------------------------------------------------------------------------------------------------ the command
@pytest.fixture
def small_topics(monkeypatch):
    """Topics of a few milliseconds: one row each that is reached, missed, failed and without a target."""

    def fail():
        raise RuntimeError("no such kernel\nand more")

    def cases(size, device):
        assert size == "quick" and device == CPU
        forms = {OURS: lambda: None, "plain": lambda: torch.randn(1000).sum(), "third": lambda: None}
        yield Case("won", forms, "plain", Target("at most", 1.0), facts={"difference": 0.125})
        yield Reading("lost", "reads", lambda: 3, Target("at most", 0), where_missed="it reads three times")
        yield Case("broken", {OURS: fail, "plain": fail}, "plain")
        yield Reading("counted", "bytes", lambda: math.pi)

    for name, value in (("READ_BYTES", 2**20), ("REPETITIONS", 1), ("CONV_CHANNELS", 8)):
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(limits, "GEMM_SIZE", {"cpu": 64})
    monkeypatch.setattr(benchmark, "TOPICS", {"small": Topic("Small parts", cases)})


def test_the_command_writes_result_and_page(small_topics, entry, tmp_path):
    """A row that fails is in both, stops nothing, and makes the command end with 1."""
    output, page = tmp_path / "new" / "b.json", tmp_path / "page.md"
    code, out, err = entry(benchmark.main, "--quick", "--device", "cpu", "--output", output, "--page", page)
    assert code == 1, err
    saved = json.loads(output.read_text())
    assert [verdict(r) for r in saved["topics"]["Small parts"]] == ["reached", "missed", "failed", ""]
    assert saved["limits"].keys() == {"read", "gemm", "gemm_bf16", "convolution"}
    text = page.read_text()
    assert text.strip() in out
    assert "1 reached, 1 missed, 1 failed; 1 rows have none" in text
    assert "| lost | 3 reads |" in text and "- lost: missed: it reads three times." in text
    assert "RuntimeError: no such kernel |" in text and "and more" not in text
    assert "difference 0.125" in text and "third " in text

    # Compared with itself, nothing is slower; with a faster result, a row is named.
    saved["topics"]["Small parts"][3]["reading"]["value"] = 1.0
    output.write_text(json.dumps(saved))
    code, out, _ = entry(
        benchmark.main, "--quick", "--device", "cpu", "--output", tmp_path / "again.json", "--compare", output
    )
    assert code == 1 and "slower: counted: bytes 1 -> 3.14 (3.14x)" in out


@pytest.mark.parametrize("text", ["{", "[]", '{"size": "quick"}'])
def test_a_file_that_is_no_result_is_refused(small_topics, entry, tmp_path, text):
    """Before anything is measured."""
    (tmp_path / "old.json").write_text(text)
    arguments = ("--quick", "--output", tmp_path / "b.json", "--compare", tmp_path / "old.json")
    code, _, err = entry(benchmark.main, *arguments)
    assert code == 2 and "old.json" in err and not (tmp_path / "b.json").exists()


def test_every_module_with_rows_is_a_topic():
    """A module of evaluations/benchmarks that yields rows, and is in no topic, would never be measured."""
    modules = (
        importlib.import_module(f"{benchmarks.__name__}.{m.name}") for m in pkgutil.iter_modules(benchmarks.__path__)
    )
    with_rows = {module.cases for module in modules if inspect.isfunction(getattr(module, "cases", None))}
    assert with_rows == {topic.cases for topic in TOPICS.values()}
