"""The estimator of costs: arithmetic by hand, what it refuses, and that the page shows what the command prints."""

from dataclasses import replace

import pytest
import tiny
from estimates import PAGE, commands, output_of
from ranks import aside

from engine.flops import PartFlops
from engine.gpus import GPUS
from evaluations import estimate
from evaluations.cost_model import CostModel, Network

GPU = replace(GPUS["h100"], bf16=1e12, tf32=5e11, fp32=1e11, bandwidth=1e10, link=1e9)
NETWORK = Network(10**6, block_parameters=800_000, other_parameters=10**5, has_average=False, precision="bf16")
PARTS = [
    PartFlops("a", "matrix", 6 * 10**9, recomputed=True),
    PartFlops("b", "convolution", 4 * 10**9),
    PartFlops("c", "convolution", 6 * 10**8, full_precision=True),
]


def model(strategy="ddp", checkpointing=False, network=NETWORK, saved=2 * 10**7) -> CostModel:
    return CostModel(GPU, network, saved, strategy, checkpointing, network_gbit=1)


def test_computing_by_hand():
    """Matrix products at 60 %, convolutions at 40 %, float32 at 60 % of its own peak; saved bytes pass four times."""
    operations = 6e9 / 0.6e12 + 4e9 / 0.4e12 + 6e8 / 0.6e11
    traffic = 4 * 2e7 / 0.8e10
    assert model().image_seconds(PARTS) == pytest.approx(operations + traffic)
    again = model(checkpointing=True).image_seconds(PARTS) - model().image_seconds(PARTS)
    assert again == pytest.approx(6e9 / 3 / 0.6e12), "one forward pass of three, of what is in blocks"
    one = model().step(PARTS, images=3, gpus=1, grad_accum=1)
    assert one.computing == pytest.approx(3 * (operations + traffic)) and one.communication == 0 == one.exposed
    in_fp32 = replace(NETWORK, precision="fp32")
    assert model(network=in_fp32).image_seconds(PARTS[:1]) == pytest.approx(6e9 / 3e11 + traffic)


def test_tiny_steps_are_bound_by_reading_the_weights():
    """Three times the bytes of the weights, blocks in bf16 and the rest in float32."""
    step = model(saved=0).step([], images=2, gpus=1, grad_accum=2)
    assert step.computing == pytest.approx(2 * 3 * (2 * 800_000 + 4 * 200_000) / 0.8e10)
    assert step.updating == pytest.approx(40 * 1_100_000 / 0.8e10)
    averaged = model(network=replace(NETWORK, has_average=True)).step([], 1, 1, 1)
    assert averaged.updating == pytest.approx(52 * 1_100_000 / 0.8e10)


def test_communication_by_hand():
    """Rings inside a machine, all network cards between machines; shards are gathered twice and reduced once."""
    inside, between, card = 0.8e9, 0.8 * 8 * 1e9 / 8, 0.8e9 / 8
    ddp = model().step(PARTS, images=1, gpus=8, grad_accum=1)
    assert ddp.communication == pytest.approx(2 * 7 / 8 * 4.4e6 / inside)
    assert model().step(PARTS, 1, 16, 1).communication == pytest.approx(2 * 15 / 16 * 4.4e6 / min(inside, between))

    gathered = 2 * 800_000 + 4 * 200_000
    fsdp = model("fsdp").step(PARTS, images=2, gpus=4, grad_accum=2)
    per_micro_batch = 3 / 4 * (2 * gathered + 4e6) / inside
    assert fsdp.communication == pytest.approx(2 * per_micro_batch + 2 * 3 / 4 * 4e5 / inside)
    assert fsdp.updating == pytest.approx(40 * (1e6 / 4 + 1e5) / 0.8e10)

    hsdp = model("hsdp").step(PARTS, images=1, gpus=16, grad_accum=1)
    between_machines = 2 * 1 / 2 * 4e6 / 8 / card + 2 * 15 / 16 * 4e5 / min(inside, between)
    assert hsdp.communication == pytest.approx(7 / 8 * (2 * gathered + 4e6) / inside + between_machines)


def test_communication_beside_computing_costs_nothing():
    """An all-reduce hides behind the backward pass, two thirds of the computing; what is longer is waited for."""
    slow, fast = model(), CostModel(replace(GPU, link=1e15), NETWORK, 0, "ddp", False)
    assert fast.step(PARTS, 1, 8, 1).exposed == 0
    step = slow.step(PARTS, 1, 8, 1)
    heavy = replace(NETWORK, parameters=10**9)
    waited = model(network=heavy).step(PARTS, 1, 8, 1)
    assert waited.exposed == pytest.approx(waited.communication - waited.computing * 2 / 3)
    assert waited.total == pytest.approx(waited.computing + waited.updating + waited.exposed)
    assert step.exposed <= step.communication


@aside
def test_a_recipe_is_estimated_on_all_numbers_of_gpus(tmp_path, entry):
    """A batch that cannot be divided is told; with images per GPU it grows, and the steps fall."""
    (tmp_path / "r.yaml").write_text(tiny.GPT)
    options = ["--gpus", "1,4,64", "--device", "a100", "data.global_batch_size=8", "loop.steps=100"]
    code, out, err = entry(estimate.main, tmp_path / "r.yaml", *options)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["1", "4"]
    assert "64 GPUs: the batch of 8 images cannot be divided among them" in out
    grown = entry(estimate.main, tmp_path / "r.yaml", *options, "--images-per-gpu", "2")[1]
    assert [line.split()[0] for line in grown.splitlines()[4:7]] == ["1", "4", "64"] and "assumed: " in grown


@aside
def test_stages_of_a_tokenizer_have_their_own_operations(tmp_path, entry):
    """The discriminator's first step begins a new stage."""
    (tmp_path / "r.yaml").write_text(tiny.WETOK.replace("start_step: 1,", "start_step: 5,"))
    code, out, err = entry(estimate.main, tmp_path / "r.yaml", "--gpus", "2", "loop.steps=10")
    assert code == 0, err
    stages = [line for line in out.splitlines() if "operations per image" in line]
    assert [line.split()[0] for line in stages] == ["4", "6"]
    assert "discriminator" not in stages[0] and "discriminator" in stages[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        (["{recipe}", "--gpus", "0"], "--gpus"),
        (["{recipe}", "--gpus", "8,x"], "--gpus"),
        (["{recipe}", "--device", "h900"], "--device"),
        (["{other}"], "trains neither a tokenizer nor a generator"),
        (["{recipe}", "model.gpt.witdh=3"], "witdh"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, said, tmp_path, entry):
    (tmp_path / "r.yaml").write_text(tiny.GPT)
    (tmp_path / "o.yaml").write_text("probe: {epochs: 3}\n")
    places = {"recipe": tmp_path / "r.yaml", "other": tmp_path / "o.yaml"}
    code, _, err = entry(estimate.main, *(argument.format(**places) for argument in arguments))
    assert code == 2 and said in err and "Traceback" not in err


SHOWN = commands(PAGE.read_text(encoding="utf-8"))


def test_the_page_shows_commands():
    assert len(SHOWN) >= 4


def case(arguments, shown):
    """The largest network takes half a minute."""
    marks = [pytest.mark.slow] if "XLXXL" in arguments[0] else []
    return pytest.param(arguments, shown, marks=marks, id=" ".join(arguments)[:60])


@pytest.mark.parametrize(("arguments", "shown"), [case(*shown) for shown in SHOWN])
@aside
def test_the_page_shows_what_the_command_prints(arguments, shown):
    assert output_of(arguments) == shown, "run: python tests/estimates.py"
