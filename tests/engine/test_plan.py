"""The memory plan: arithmetic checked by hand, and what the entries say."""

import pytest
import tiny
import torch
from ranks import aside
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import autoregressive.train
import evaluations.ar_probe
import evaluations.classifier
import evaluations.linear_probe
import tokenizer.train
from engine.loop import TrainLoopConfig
from engine.memory_plan import plan, saved_bytes, state_bytes


class Block(nn.Module):
    """4 -> 8 -> 4: 4 * 8 + 8 + 8 * 4 + 4 = 76 parameters."""

    parallel_unit = "shard"

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def network() -> nn.Module:
    """Two blocks and a layer of 4 * 3 + 3 = 15 parameters outside of them: 167 in all."""
    with torch.device("meta"):
        return nn.Sequential(Block(), Block(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("strategy", "gpus", "precision", "ema", "expected"),
    [
        ("ddp", 4, "fp32", False, 16 * 167),
        ("ddp", 4, "bf16", True, 20 * 167),
        ("fsdp", 4, "fp32", False, 16 * 167 // 4 + 8 * 15 + 2 * 8 * 76),
        ("fsdp", 4, "bf16", True, 20 * 167 // 4 + 8 * 15 + 2 * 6 * 76),
        ("fsdp", 1, "fp32", False, 16 * 167),
        ("hsdp", 32, "fp32", False, 16 * 167 // 8 + 8 * 15 + 2 * 8 * 76),
    ],
)
def test_bytes_of_the_state_by_hand(strategy, gpus, precision, ema, expected):
    """Weights, gradients and two moments are 16 bytes a parameter, averages 4; shards divide them and gather blocks."""
    assert state_bytes(network(), strategy, gpus, precision, ema) == expected


@pytest.mark.parametrize("batch", [1, 3])
@aside
def test_saved_bytes_by_hand(batch):
    """Each block saves its input (4 numbers) and the output of tanh (8), the last layer its input (4); recomputed, the
    inputs of both blocks (4 + 4), the input of the last layer (4) and the inside of one block (4 + 8)."""
    module = network()
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu")
        found = saved_bytes(module, lambda n: module(torch.zeros(n, 4)), "fp32", batch)
    everything = (4 + 8) + (4 + 8) + 4
    assert found == (4 * batch * everything, 4 * batch * (4 + 4 + 4 + 12))


@aside
def test_saved_bytes_are_those_that_autograd_holds():
    """A real forward pass holds the same number of bytes as the one without storage."""
    module = nn.Sequential(Block(), Block(), nn.Linear(4, 3))
    held = {}

    def pack(t):
        held[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = module(torch.zeros(5, 4))
    known = {p.untyped_storage().data_ptr() for p in module.parameters()}
    real = sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in known)
    del result
    fake = network()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake.to_empty(device="cpu")
        assert saved_bytes(fake, lambda n: fake(torch.zeros(n, 4)), "fp32", 5)[0] == real


def text_of(batch: int, gpus: int, beside: float = 0, **loop) -> list[str]:
    module = network()

    def forward(images: int):
        return module(torch.zeros(images * 10**7, 4))

    return plan(module, forward, TrainLoopConfig(**loop), batch, gpus, ema=False, beside=int(beside)).text.splitlines()


@aside
def test_the_report_says_whether_and_what_to_change():
    """1.12 GB an image kept, 0.96 recomputed: 100 images on one GPU are 112 GB, 2 parts of them fit."""
    lines = text_of(100, 1)
    assert "ddp" in lines[1] and "112.0" in lines[1] and "96.0" in lines[2]
    assert "needs 112.0 GB: it does not fit" in lines[-2]
    assert lines[-1] == "use loop.strategy=ddp loop.activation_checkpointing=false loop.grad_accum=2"
    assert text_of(100, 1, grad_accum=2)[-1].endswith("56.0 GB: it fits")
    assert "use more GPUs" in text_of(8, 8, beside=75e9)[-1]
    assert text_of(8, 8, beside=70e9)[-1].endswith("it fits")


@aside
def test_both_entries_plan_without_data_or_weights(tmp_path, entry):
    """A table of three strategies, each with and without recomputation; a wrong number of GPUs is refused."""
    for name, content, main in (
        ("t", tiny.TOKENIZER, tokenizer.train.main),
        ("g", tiny.GPT, autoregressive.train.main),
    ):
        (tmp_path / name).write_text(content)
        code, out, _ = entry(main, "--config", tmp_path / name, "--plan", "8", "data.global_batch_size=8")
        assert code == 0 and "it fits" in out, out
        assert [line.split()[0] for line in out.splitlines()[1:7]] == ["ddp", "ddp", "hsdp", "hsdp", "fsdp", "fsdp"]
        assert not (tmp_path / "runs").exists()
        assert entry(main, "--config", tmp_path / name, "--plan", "eight")[0] == 2


@aside
def test_a_plan_that_does_not_fit_ends_as_a_check_that_fails(tmp_path, entry):
    """With the same table; variables that are not set are told beside it."""
    (tmp_path / "t").write_text(tiny.TOKENIZER.replace("data: {", "data: {root: '${oc.env:NO_SUCH_VARIABLE}', "))
    codes, tables = [], []
    for batch in (8, 8_000_000):
        sizes = [f"data.global_batch_size={batch}", "loop.grad_accum=1"]
        code, out, _ = entry(tokenizer.train.main, "--config", tmp_path / "t", "--plan", "1", *sizes)
        codes.append(code)
        tables.append(out)
    assert codes == [0, 2] and "it fits" in tables[0] and "it does not fit" in tables[1]
    assert all(table.count("the environment variable NO_SUCH_VARIABLE is not set") == 1 for table in tables)
    assert [len(table.splitlines()) for table in tables] == [9, 10]


@pytest.mark.parametrize(
    ("main", "config", "said"),
    [
        (evaluations.linear_probe.main, "eval/linear_probe_gpt", ["a linear probe has no memory plan", "--dry-run"]),
        (evaluations.classifier.main, "quickstart/classifier", ["has no memory plan", "python -m tokenizer.train"]),
        (evaluations.ar_probe.main, "eval/ar_probe", ["gpt_configs", "python -m autoregressive.train --config FILE"]),
    ],
)
def test_what_has_no_plan_says_why(entry, main, config, said):
    """And what has one; not that there is no such flag."""
    code, out, err = entry(main, "--config", config, "--plan", "8")
    assert (
        code == 2 and err.startswith("error: --plan 8: ") and not out and not [part for part in said if part not in err]
    )
    assert "--plan" not in entry(main, "--help")[1]


@aside
def test_a_plan_leaves_nothing_behind(tmp_path, entry):
    """The rotary table of a planned GPT is a real one afterwards."""
    (tmp_path / "g").write_text(tiny.GPT)
    options = ["model.gpt.positions=rope2d", "model.gpt.heads=1"]
    assert entry(autoregressive.train.main, "--config", tmp_path / "g", "--plan", "2", *options)[0] == 0
    from autoregressive.models.gpt import GPT, GPTConfig

    gpt = GPT(GPTConfig(width=16, layers=1, heads=1, vocab_size=5, num_tokens=4, num_classes=2, positions="rope2d"))
    logits = gpt(torch.tensor([0]), torch.zeros(1, 4, dtype=torch.long))
    assert type(logits) is torch.Tensor and torch.isfinite(logits).all()
