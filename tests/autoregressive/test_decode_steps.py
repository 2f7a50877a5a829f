"""Decode steps: static shapes and recorded ones give the tokens of the sliced cache, and none waits for the device."""

import pytest
import torch
from host_reads import HostReads, no_waiting
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models import decode_steps, rope
from autoregressive.models.adaln_gpt import AdaLNGPT
from autoregressive.models.decode_steps import RecordedStepsByRows, StaticSteps
from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
from autoregressive.models.token_by_token import TokenByToken
from autoregressive.sampling import SAMPLING_KEY, SeededDraw, seeded_draw
from engine.seeds import counter_rng

NUM_TOKENS = 9
VARIANTS = {
    "learned": {"vocab_size": 32},
    "rope2d": {"vocab_size": 32, "positions": "rope2d", "qk_norm": True},
    "factorized": {"codebook_sizes": [5, 7, 3]},
    "factorized, rope2d": {"codebook_sizes": [4, 4], "positions": "rope2d"},
    "modulated": {"vocab_size": 32, "positions": "rope2d"},
    "any order": {"vocab_size": 32, "mlp_width": 32},
}
CLASSES = {"modulated": AdaLNGPT, "any order": RAR}  # variants that are no plain GPT
# Guided to the end, and with unconditional rows that are dropped on the way.
GUIDANCES = {"guided": Guidance(scale=2.0), "dropped": Guidance(scale=2.0, last_guided=3), "unguided": Guidance()}


def new_gpt(variant: str) -> TokenByToken:
    kind = CLASSES.get(variant, GPT)
    sizes = {"width": 16, "layers": 2, "heads": 2, "num_tokens": NUM_TOKENS, "num_classes": 5}
    return kind(kind.config_class(**sizes, **VARIANTS[variant]))


def gpt_of(variant: str) -> TokenByToken:
    torch.manual_seed(0)
    gpt = new_gpt(variant)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return gpt.eval()


def tokens_of(gpt: TokenByToken, count: int = 4, guidance: Guidance = GUIDANCES["dropped"]) -> torch.Tensor:
    labels = torch.arange(count) % 5
    return generate(gpt, labels, draw=seeded_draw(0, torch.arange(count), gpt.num_draws), guidance=guidance)


class Replayed:
    """What a recorded function does, without a GPU: all calls read the same inputs and write the same output."""

    count = 0

    def __init__(self, function, inputs):
        Replayed.count += 1
        self.function = function
        self.inputs = [value.clone() for value in inputs]
        for _ in range(3):
            function(*self.inputs)
        self.output = function(*self.inputs).clone()

    def __call__(self, *values):
        for held, value in zip(self.inputs, values, strict=True):
            held.copy_(value)
        self.output.copy_(self.function(*self.inputs))
        return self.output


@pytest.fixture
def recorded(monkeypatch):
    """`recorded(gpt)` makes a generator sample with recorded steps."""
    monkeypatch.setattr(decode_steps, "RecordedFunction", Replayed)
    monkeypatch.setattr(Replayed, "count", 0)

    def prepare(gpt: TokenByToken) -> RecordedStepsByRows:
        by_rows = RecordedStepsByRows(gpt.step_functions())
        monkeypatch.setattr(gpt, "decode_steps", lambda rows, order=None: by_rows.of(rows))
        return by_rows

    return prepare


# ---------------------------------------------------------------------------------------------- equal tokens
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_static_and_recorded_steps_give_the_tokens_of_slices(variant, guidance, recorded, monkeypatch):
    """For every head and kind of positions, also where rows are dropped; recorded ones bit for bit like static ones."""
    gpt = gpt_of(variant)
    expected = tokens_of(gpt, guidance=guidance)

    monkeypatch.setattr(gpt, "decode_steps", lambda rows, order=None: StaticSteps(gpt.step_functions(), rows))
    assert torch.equal(tokens_of(gpt, guidance=guidance), expected)

    recorded(gpt)
    assert torch.equal(tokens_of(gpt, guidance=guidance), expected)


@pytest.mark.parametrize("variant", ["learned", "factorized, rope2d", "modulated", "any order"])
@torch.inference_mode()
def test_static_shapes_change_hidden_states_by_rounding_only(variant):
    gpt = gpt_of(variant)
    steps = gpt.decode_steps(3), StaticSteps(gpt.step_functions(), 3)
    inputs = torch.arange(3)
    for position in range(NUM_TOKENS):
        sliced, static = (s.hidden(inputs, position) for s in steps)
        torch.testing.assert_close(static, sliced, atol=1e-5, rtol=1e-5)
        inputs = torch.zeros(3, *gpt.token_shape[1:], dtype=torch.long)


def test_recorded_steps_serve_batch_after_batch(recorded):
    """A batch of a known size records nothing; two sizes are held, with and without unconditional rows; what a spoiled
    batch left in the cache does not reach the next one.
    """
    gpt = gpt_of("learned")
    expected = {count: tokens_of(gpt, count) for count in (4, 3)}
    by_rows = recorded(gpt)
    assert torch.equal(tokens_of(gpt, 4), expected[4])
    assert Replayed.count == 4, "hidden states and logits, of 8 rows and of 4"
    with torch.inference_mode():
        for steps in by_rows._by_rows.values():
            steps.cache.keys.fill_(torch.nan)
            steps.cache.values.fill_(torch.nan)
    assert torch.equal(tokens_of(gpt, 4), expected[4])
    assert Replayed.count == 4

    assert torch.equal(tokens_of(gpt, 3), expected[3])
    assert list(by_rows._by_rows) == [6, 3]


# ---------------------------------------------------------------------------------------------- random numbers
def test_the_table_of_random_numbers_is_that_of_single_samples():
    """By seed, sample and position; a draw is the inverse transform with the number of its position."""
    ids = torch.tensor([5, 0, 2**40])
    draw = seeded_draw(7, ids, 6)
    expected = [counter_rng(7, SAMPLING_KEY, int(i)).random(6) for i in ids]
    assert draw.table.tolist() == [row.tolist() for row in expected]

    p = torch.full((3, 1000), 1e-3, dtype=torch.float64)
    assert draw(p, 4).tolist() == [int(row[4] * 1000) for row in expected]


class Transfers(TorchDispatchMode):
    """Lists copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.ndim > 0]  # numbers travel with a launch
        if isinstance(result, torch.Tensor) and any(t.device != result.device for t in tensors):
            self.copies.append(function.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_token_waits_for_the_device(variant):
    """No value is read back between the first token and the last."""
    gpt = gpt_of(variant)
    draw = seeded_draw(0, torch.arange(2), gpt.num_draws)
    with no_waiting(torch.device("cpu")):
        gpt.sample(torch.arange(2), draw=draw, guidance=GUIDANCES["dropped"], top_k=3, top_p=0.9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_gets_one_copy_per_batch(variant, monkeypatch):
    """On a pretended GPU: every operation has its tensors on one device, and only the table of random numbers is copied
    to it.
    """
    monkeypatch.setattr(rope, "rope2d_table", rope._rope2d_table)  # the held one is of real memory
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # it looks at what it has drawn
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device("cuda"):
        gpt = new_gpt(variant).eval()
        labels = torch.zeros(3, dtype=torch.long)
        table = mode.from_tensor(torch.rand(3, gpt.num_draws, dtype=torch.float64, device="cpu"))
        with HostReads() as reads, Transfers() as transfers:
            tokens = generate(gpt, labels, draw=SeededDraw(table), guidance=GUIDANCES["dropped"], top_k=3, top_p=0.9)
    assert tokens.device.type == "cuda" and tokens.shape == (3, *gpt.token_shape)
    assert reads.seen == []
    assert len(transfers.copies) == 1 and "to" in transfers.copies[0]


# ---------------------------------------------------------------------------------------------- a real GPU
@pytest.mark.gpu
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_graphs_give_the_tokens_of_launched_kernels(variant, guidance):
    """Bit for bit, over several batches, the last one smaller."""
    gpt = gpt_of(variant).cuda()

    def batches() -> list[torch.Tensor]:
        tokens = []
        for first, count in ((0, 4), (4, 4), (8, 3)):
            ids = torch.arange(first, first + count)
            draw = seeded_draw(0, ids, gpt.num_draws)
            tokens.append(generate(gpt, (ids % 5).cuda(), draw=draw, guidance=guidance))
        return tokens

    launched = batches()
    gpt.record_steps = True
    for expected, actual in zip(launched, batches(), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("record_steps", [False, True])
def test_a_gpu_is_never_waited_for(record_steps):
    """A second batch, whose table is on the device, samples under torch's own check for synchronization."""
    gpt = gpt_of("learned").cuda()
    gpt.record_steps = record_steps
    draw = seeded_draw(0, torch.arange(4), gpt.num_draws)
    labels = torch.arange(4, device="cuda")
    gpt.sample(labels, draw=draw, guidance=GUIDANCES["dropped"])
    with no_waiting(torch.device("cuda")):
        gpt.sample(labels, draw=draw, guidance=GUIDANCES["dropped"])
