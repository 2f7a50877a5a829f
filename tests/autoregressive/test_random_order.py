"""Random orders of prediction (RAR): closed forms, chain rules, equalities, and exact training in any arrangement."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import mini
import numpy as np
import pytest
import tiny
import torch
from ranks import on_ranks
from torch import Tensor

from autoregressive import load_gpt
from autoregressive.codes import CHOICES_KEY, CodeStore, choices_at, code_batch
from autoregressive.generate import generate
from autoregressive.models.adaln_gpt import AdaLNGPT, AdaLNGPTConfig
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.random_order import (
    OrderConfig,
    draw_order,
    in_order,
    in_raster,
    input_rows,
    mixed_orders,
)
from autoregressive.models.rar import RAR, RARConfig
from autoregressive.models.token_by_token import TokenByToken
from autoregressive.sampling import greedy
from autoregressive.train import train
from engine.messages import ConfigError, UserError
from engine.run_log import read_metrics
from engine.seeds import counter_rng
from engine.world import World
from tokenizer import load_tokenizer

SIZES = {"width": 16, "layers": 2, "heads": 2, "num_classes": 3}
KINDS = {
    "gpt": lambda **sizes: GPT(GPTConfig(**SIZES, target_positions=True, **sizes)),
    "rotary": lambda **sizes: GPT(GPTConfig(**SIZES, target_positions=True, positions="rope2d", **sizes)),
    "adaln": lambda **sizes: AdaLNGPT(AdaLNGPTConfig(**SIZES, target_positions=True, positions="rope2d", **sizes)),
    "adaln, learned": lambda **sizes: AdaLNGPT(AdaLNGPTConfig(**SIZES, target_positions=True, **sizes)),
    "rar": lambda **sizes: RAR(RARConfig(**SIZES, mlp_width=32, **sizes)),
}
named = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, *, num_tokens: int = 4, vocab_size: int = 5, seed: int = 0) -> TokenByToken:
    """A small generator in evaluation mode, all of whose parameters matter."""
    generator = KINDS[kind](num_tokens=num_tokens, vocab_size=vocab_size)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return generator.eval()


def inputs(generator: TokenByToken, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Labels with the null class among them, tokens, and an order for each sample."""
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(batch) % (generator.num_classes + 1)
    tokens = torch.randint(generator.codebook_sizes[0], (batch, *generator.token_shape), generator=random)
    orders = torch.stack([torch.randperm(generator.num_tokens, generator=random) for _ in range(batch)])
    return labels, tokens, orders


# ------------------------------------------------------------------------------------------------ orders
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.5, 0.75, [1.0, 1.0, 1.0, 0.5, 0.0]),
        (0.0, 1.0, [1.0, 0.75, 0.5, 0.375, 0.25]),
        (0.0, 0.0, [0.0, 0.0, 0.0, 0.0, 0.0]),
        (1.0, 1.0, [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_share_of_random_orders_falls_as_published(start, end, expected):
    """All up to `random_start`, none from `random_end` on, linear between."""
    order = OrderConfig(random_start=start, random_end=end)
    assert [order.share(progress) for progress in (0.0, 0.25, 0.5, 0.625, 0.75)] == pytest.approx(expected)
    assert order.is_random == (end > 0)


def test_values_go_into_an_order_and_back():
    order = torch.tensor([[2, 0, 1], [0, 1, 2]])
    values = torch.tensor([[10, 11, 12], [20, 21, 22]])
    assert in_order(values, order).tolist() == [[12, 10, 11], [20, 21, 22]]
    assert torch.equal(in_raster(in_order(values, order), order), values)
    assert input_rows(order).tolist() == [[0, 3, 1], [0, 1, 2]]
    deep = torch.randn(2, 3, 4)
    assert torch.equal(in_raster(in_order(deep, order), order), deep)
    assert mixed_orders(order, torch.tensor([False, True])).tolist() == [[0, 1, 2], [0, 1, 2]]


# ------------------------------------------------------------------------------------------------ networks
@named
def test_the_raster_order_is_the_plain_pass_bit_for_bit(kind):
    """Also where the table of targets is zero, which is how the GPT begins: then it is the GPT without one."""
    generator = network(kind)
    labels, tokens, orders = inputs(generator)
    raster = torch.arange(4).expand_as(orders)
    assert torch.equal(generator(labels, tokens, order=raster), generator(labels, tokens))
    if kind != "rar":
        torch.nn.init.zeros_(generator.target_embedding)
        plain = type(generator)(replace(generator.config, target_positions=False)).eval()
        plain.load_state_dict({n: t for n, t in generator.state_dict().items() if n != "target_embedding"})
        assert torch.equal(generator(labels, tokens, order=raster), plain(labels, tokens))
        assert not KINDS[kind](num_tokens=4, vocab_size=5).target_embedding.any()


@named
def test_probabilities_of_all_sequences_sum_to_one_in_any_order(kind):
    """The chain rule: 3 codes on 4 cells are 81 sequences, in raster and in two other orders."""
    generator = network(kind, vocab_size=3).double()
    tokens = torch.tensor(list(itertools.product(range(3), repeat=4)))
    labels = torch.ones(len(tokens), dtype=torch.int64)
    for order in (None, [2, 0, 3, 1], [3, 2, 1, 0]):
        orders = None if order is None else torch.tensor(order).expand(len(tokens), -1)
        log_p = generator(labels, tokens, order=orders).double().log_softmax(-1)
        of_tokens = log_p.gather(-1, tokens[..., None])[..., 0].sum(1)
        assert of_tokens.exp().sum().item() == pytest.approx(1, abs=1e-6)


@named
def test_cached_decoding_in_an_order_is_teacher_forcing_in_it(kind):
    """Each draw sees the probabilities of the cell whose turn it is; tokens come back in raster."""
    generator = network(kind)
    labels, tokens, _ = inputs(generator)
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        expected = generator(labels, tokens, order=order.expand(3, -1)).softmax(-1)

        def draw(p, position, order=order, expected=expected):
            assert torch.allclose(p, expected[:, order[position]], atol=1e-6)
            return tokens[:, order[position]]

        assert torch.equal(generate(generator, labels, draw=draw, order=order), tokens)
    drawn = generate(generator, [0, 1], seed=3)
    assert torch.equal(generate(generator, [0, 1], seed=3, order=range(4)), drawn)


@pytest.mark.parametrize("kind", ["gpt", "adaln, learned", "rar"])
def test_merged_tables_give_the_same_raster_logits(kind):
    generator = network(kind)
    labels, tokens, orders = inputs(generator)
    merged = generator.with_merged_positions()
    assert torch.allclose(merged(labels, tokens), generator(labels, tokens), atol=1e-6)
    assert not torch.allclose(merged(labels, tokens, order=orders), generator(labels, tokens, order=orders), atol=1e-2)
    assert torch.equal(generate(merged, labels, draw=greedy), generate(generator, labels, draw=greedy))
    for without in (merged, network("rotary")):
        with pytest.raises(ConfigError, match="two tables to merge"):
            without.with_merged_positions()


@pytest.mark.parametrize("kind", ["gpt", "rar"])
def test_the_names_of_cells_do_not_matter(kind):
    """Cells that are renamed in tokens, orders and tables alike have the same logits."""
    generator = network(kind)
    labels, tokens, orders = inputs(generator)
    before = generator(labels, tokens, order=orders)
    new_name = torch.tensor([1, 3, 0, 2])
    tables = {
        "gpt": lambda g: [(g.positional_embedding, 1), (g.target_embedding, 0)],
        "rar": lambda g: [(g.positions[0], 2), (g.targets[0], 2)],
    }[kind](generator)
    with torch.no_grad():
        for table, first in tables:
            rows = table[first : first + 4].clone()
            table[first + new_name] = rows

    renamed = torch.empty_like(tokens)
    renamed[:, new_name] = tokens
    after = generator(labels, renamed, order=new_name[orders])
    assert torch.allclose(after[:, new_name], before, atol=1e-6)


@named
def test_a_later_token_never_changes_an_earlier_one(kind):
    generator = network(kind)
    labels, tokens, orders = inputs(generator)
    changed = tokens.clone()
    changed.scatter_(1, orders[:, 2:3], (tokens.gather(1, orders[:, 2:3]) + 1) % 5)
    before, after = (in_order(generator(labels, t, order=orders), orders) for t in (tokens, changed))
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.allclose(before[:, 3], after[:, 3])


def test_the_network_of_rar_starts_as_released():
    """Truncated normal weights and tables of 0.02, no bias, AdaLN at zero: every layer is the identity, and the output
    is not zero.
    """
    torch.manual_seed(0)
    generator = RAR(RARConfig(width=64, layers=2, heads=2, mlp_width=128, vocab_size=300, num_tokens=16))
    modulations = {name for name, _ in generator.named_parameters() if "modulation" in name}
    for name, parameter in generator.named_parameters():
        if name in modulations or name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25 if parameter.numel() < 100 else 0.05), name
    assert modulations and {"positions", "targets", "output.weight"} <= dict(generator.named_parameters()).keys()
    labels, tokens = torch.arange(3), torch.randint(300, (3, 16))
    assert torch.equal(generator.features(labels, tokens, 0), generator.features(labels, tokens, 2))


def test_orders_that_cannot_be_are_refused():
    plain = GPT(GPTConfig(**SIZES, num_tokens=4, vocab_size=5)).eval()
    with pytest.raises(UserError, match="in one order only"):
        generate(plain, [0], order=[3, 2, 1, 0])
    with pytest.raises(UserError, match=r"each of the cells 0\.\.3 once"):
        generate(network("gpt"), [0], order=[0, 1, 2, 2])
    with pytest.raises(ConfigError, match="target_positions=false must be true with random orders"):
        GPTConfig(**SIZES, order=OrderConfig(random_end=0.5))
    with pytest.raises(ConfigError, match=r"random_end=0\.2 must be at least random_start=0\.5"):
        OrderConfig(random_start=0.5, random_end=0.2)


# ------------------------------------------------------------------------------------------------ training
RANDOM = "model.gpt={target_positions: true, order: {random_start: 0.25, random_end: 0.75}}"
TRAINING = [
    "model.gpt={token_dropout: 0.0, residual_dropout: 0.0, class_dropout_prob: 0.5}", "loop={steps: 8, save_every: 5}",
    "data.global_batch_size=8", "optim.eps=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def codes(tmp_path_factory, image_folder):
    """Stored codes and their tokenizer."""
    root = tmp_path_factory.mktemp("codes")
    config = tiny.tokenizer_config(root / "unused", image_folder)
    mini.export(root / "tokenizer", config, mini.tokenizer_of(config))
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    return root / "codes", root / "tokenizer"


SEED = tiny.gpt_config(Path("run"), Path("codes"), Path("tokenizer")).loop.seed


def run(world, folder, codes, *overrides: str) -> None:
    train(tiny.gpt_config(folder, *codes, *TRAINING, *overrides), world)


def weights(folder) -> dict[str, Tensor]:
    return load_gpt(folder, weights="model").state_dict()


def test_choices_depend_on_seed_and_position_alone(codes):
    """They are drawn beside views and dropped labels, which are as without them."""
    store = CodeStore(codes[0], "train")
    config = GPTConfig(**SIZES, num_tokens=4, target_positions=True, order=OrderConfig(random_end=1.0))
    both, one = (
        code_batch(store, 5, 0.1, choices)(np.arange(4), range(7, 11))
        for choices in (GPT(config).training_choices(), None)
    )
    assert both.keys() - one.keys() == {"order", "order_chance"}
    assert all(torch.equal(both[name], one[name]) for name in one)
    for row, position in enumerate(range(7, 11)):
        rng = counter_rng(5, CHOICES_KEY, position)
        assert both["order"][row].tolist() == rng.permutation(4).tolist()
        assert both["order_chance"][row].item() == rng.random()
    assert choices_at(5, 7, None) == {}


def test_a_share_of_zero_is_the_plain_run_bit_for_bit(codes, world, tmp_path, monkeypatch):
    """Orders that are drawn with every sample and never taken change no sample, no weight and no dropped channel."""
    dropout = "model.gpt={token_dropout: 0.1, residual_dropout: 0.1, target_positions: true}"
    run(world, tmp_path / "plain", codes, dropout)
    monkeypatch.setattr(OrderConfig, "share", lambda self, progress: 0.0)
    run(world, tmp_path / "off", codes, dropout, RANDOM)
    plain, off = weights(tmp_path / "plain"), weights(tmp_path / "off")
    assert plain.keys() == off.keys() and all(torch.equal(plain[name], off[name]) for name in plain)
    assert not any("order" in name for record in read_metrics(tmp_path / "off") for name in record)


@pytest.fixture(scope="module")
def whole(codes, tmp_path_factory):
    """The folder of a run with random orders."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(World(0, 1, 0, torch.device("cpu")), folder, codes, RANDOM)
    return folder


def test_both_kinds_of_samples_are_logged_while_there_are_both(whole):
    """Their means, weighted by how many samples of the step have each, are the loss; a kind of no sample has none."""
    records = {record["step"]: record for record in read_metrics(whole) if "loss" in record}
    both = {step for step, record in records.items() if "loss_random_order" in record}
    assert both == {4, 5, 6}  # the finished fractions 3/8, 4/8, 5/8 lie between the ends of the annealing
    share = OrderConfig(random_start=0.25, random_end=0.75).share
    for step in both:
        drawn = [draw_order(4, counter_rng(SEED, CHOICES_KEY, 8 * (step - 1) + sample)) for sample in range(8)]
        num_random = sum(choice["order_chance"].item() < share((step - 1) / 8) for choice in drawn)
        counts = {"loss_random_order": num_random, "loss_raster_order": 8 - num_random}
        assert {name for name in counts if records[step][name] is not None} == {n for n, c in counts.items() if c}
        total = sum(count * records[step][name] for name, count in counts.items() if count)
        assert total / 8 == pytest.approx(records[step]["loss"], rel=1e-5)


def test_micro_batches_and_processes_change_nothing(whole, codes, world, tmp_path):
    """Losses of each step, those of both kinds among them, and the weights at the end."""
    run(world, tmp_path / "accumulated", codes, RANDOM, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "a", run, tmp_path / "two", codes, RANDOM)
    for other in ("accumulated", "two"):
        for expected, record in zip(read_metrics(whole), read_metrics(tmp_path / other), strict=True):
            for name in (name for name in expected if name.startswith("loss")):
                assert record[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (other, name)
        for name, tensor in weights(tmp_path / other).items():
            torch.testing.assert_close(tensor, weights(whole)[name], rtol=1e-4, atol=1e-6)


def test_a_run_that_goes_on_has_the_same_bits(whole, codes, world, tmp_path):
    """From the middle of the annealing."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000008")
    run(world, tmp_path / "run", codes, RANDOM)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(tmp_path / "run").items())


def test_images_that_become_codes_in_training_have_orders_too(image_folder, codes, world, tmp_path):
    config = tiny.online_config(tmp_path / "run", image_folder, codes[1], RANDOM, "loop={steps: 4}")
    train(config, world)
    assert any("loss_random_order" in record for record in read_metrics(tmp_path / "run"))


OTHERS = {  # generators beside the GPT -> their section
    "adaln_gpt": "{width: 16, layers: 2, heads: 2, token_dropout: 0.0, residual_dropout: 0.0, positions: rope2d}",
    "rar": "{width: 16, layers: 2, heads: 2, mlp_width: 32, dropout: 0.0, attention_dropout: 0.0, "
    "order: {random_start: 0.25, random_end: 0.75}}",
    "maskgit": "{width: 16, layers: 2, heads: 2, token_dropout: 0.0, residual_dropout: 0.0}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_generators_train_on_shards(name, codes, world, tmp_path):
    """Three updates and a preview while the network is sharded over two processes: as in one process."""
    section = ["model.gpt=null", f"model.name={name}", f"model.{name}={OTHERS[name]}", "loop={steps: 3, eval_every: 3}"]
    section += ["data.global_batch_size=8", "optim.eps=1e-3", "validation.preview_classes=2", "ema_decay=0.5"]

    def run_other(world, folder, *overrides):
        config = tiny.gpt_config(folder, *codes, *section, *overrides)
        train(config, world)

    run_other(world, tmp_path / "one")
    on_ranks(2, tmp_path / "a", run_other, tmp_path / "two", "loop.strategy=fsdp")
    for prefix in ("val", "val_ema"):
        assert (tmp_path / "two" / "samples" / f"{prefix}_00000003.png").is_file()
    for key, tensor in weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "one")[key], rtol=1e-4, atol=1e-6)
