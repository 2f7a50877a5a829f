"""Residual and product codes: sums and chunks of vector quantizers, level dropout, k-means, usage per codebook."""

import itertools

import mini
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import load_config
from engine.data.samples import training_item, with_random_bits
from engine.messages import ConfigError, UserError
from engine.run_log import read_metrics
from engine.seeds import RANDOM_BITS
from evaluations.doctor.evidence import RunEvidence
from evaluations.report.curves import curves
from evaluations.report.run_folder import RunFolder
from tokenizer import load_tokenizer, train
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.mcq import MCQConfig, ProductVQ
from tokenizer.quantizers.rvq import ResidualVQ, RVQConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig
from tokenizer.training.checks import validate, warnings_of
from tokenizer.training.config import TokenizerTrainConfig

ALL_BITS = 2**RANDOM_BITS


def residual(spread: float = 0.6, **options) -> ResidualVQ:
    """Levels with normal codes, each level smaller than the one before."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(RVQConfig(**{"levels": 4, "codebook_size": 16, "codebook_dim": 6} | options))
    for level, book in enumerate(quantizer.books):
        nn.init.normal_(book.codebook, std=spread**level)
    return quantizer


def product(**options) -> ProductVQ:
    torch.manual_seed(0)
    return ProductVQ(MCQConfig(**{"groups": 3, "codebook_size": 16, "codebook_dim": 4} | options))


def latents(channels: int = 6, count: int = 4) -> Tensor:
    return torch.randn(count, 8, channels, generator=torch.Generator().manual_seed(1))


def bits_for(levels: list[int], of: int = 4) -> Tensor:
    """Random bits with which images keep so many of the first levels, with `level_dropout=1`."""
    return torch.tensor([int((level - 0.5) / of * ALL_BITS) for level in levels])


def assert_trained_alike(one: Quantizer, other: Quantizer, z: Tensor, **arguments) -> None:
    """In training, both give the same bits: codes, latents, losses, and the gradients of all of them together."""
    results = []
    for quantizer in (one, other):
        given = z.clone().requires_grad_()
        out = quantizer.train()(given, **arguments)
        weights = torch.linspace(-1, 1, out.z_q.numel()).view_as(out.z_q)
        loss = (out.z_q * weights).sum() + sum(out.losses.values())
        gradients = torch.autograd.grad(loss, [given, *quantizer.parameters()], allow_unused=True)
        results.append((out, gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.z_q, theirs.z_q)
    assert ours.losses.keys() == theirs.losses.keys()
    assert all(torch.equal(value, theirs.losses[name]) for name, value in ours.losses.items())
    for gradient, expected in zip(our_gradients, their_gradients, strict=True):
        assert torch.equal(gradient, expected)
    assert torch.equal(one.decode_indices(ours.indices), other.decode_indices(theirs.indices))


# ---------------------------------------------------------------------------------------------- residual codes
def test_latents_are_their_codes_and_the_last_rest():
    """z = z_q + r_levels; level k takes the code nearest to what the levels before leave."""
    quantizer, z = residual().eval(), latents()
    out = quantizer(z)
    assert out.indices.shape == (4, 8, 4) and quantizer.group_sizes == (16,) * 4

    rest = z.clone()
    for level, book in enumerate(quantizer.books):
        codes = book.codebook.detach()
        nearest = torch.cdist(rest.double(), codes.double()).argmin(-1)
        assert torch.equal(nearest, out.indices[..., level])
        rest = rest - codes[nearest]
    largest = z.abs().max().item()
    torch.testing.assert_close(out.z_q + rest, z, atol=3e-7 * largest, rtol=0)
    torch.testing.assert_close(quantizer.decode_indices(out.indices), out.z_q, atol=3e-7 * largest, rtol=0)
    assert rest.square().mean() < 0.5 * z.square().mean(), "the case shows nothing"


@pytest.mark.parametrize("shared", [False, True])
def test_with_a_zero_code_no_level_adds_to_the_error(shared):
    """Also where codes are far too long for the rests; without a zero code they add much."""
    z = latents(count=64)

    def errors(quantizer: ResidualVQ) -> list[float]:
        indices = quantizer.eval()(z).indices
        of_levels = [indices.masked_fill(torch.arange(4) > last, -1) for last in range(4)]
        return [(z - quantizer.decode_indices(some)).square().mean().item() for some in of_levels]

    quantizer = residual(spread=3.0, zero_code=True, shared=shared)
    with_zero = errors(quantizer)
    assert all(after <= before for before, after in itertools.pairwise(with_zero))
    assert quantizer.code_vectors(torch.zeros(1, 1, 4, dtype=torch.long)).tolist() == [[[0.0] * 6]]
    without = errors(residual(spread=3.0))
    assert without[-1] > without[0]


@pytest.mark.parametrize(("entropy", "rotation"), [(False, False), (True, True)])
def test_one_level_is_vector_quantization(entropy, rotation):
    """Bit for bit, from the same random numbers on."""
    options = {"codebook_size": 16, "codebook_dim": 6, "rotation_trick": rotation}
    torch.manual_seed(5)
    plain = VectorQuantizer(VQConfig(l2_norm=False, **options))
    torch.manual_seed(5)
    assert_trained_alike(ResidualVQ(RVQConfig(levels=1, **options)), plain, latents(), entropy=entropy)


def test_losses_are_means_over_levels_and_the_gradient_passes_the_sum_once():
    quantizer, z = residual().train(), latents().requires_grad_()
    out = quantizer(z)
    rest, expected = z.detach(), 0.0
    for level, column in enumerate(out.indices.unbind(-1)):
        rest = rest - F.embedding(column, quantizer.books[level].codebook.detach())
        expected += rest.square().mean() / 4
        left = (rest.square().sum((1, 2)) / z.detach().square().sum((1, 2))).mean()
        torch.testing.assert_close(out.losses[f"rest_level_{level}"], left)
    for name, reached, other in (
        ("codebook", [*quantizer.parameters()], z),
        ("commitment", [z], quantizer.books[0].codebook),
    ):
        torch.testing.assert_close(out.losses[name].detach(), expected)
        gradients = torch.autograd.grad(out.losses[name], [*reached, other], allow_unused=True, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients[:-1]) and gradients[-1] is None
    weights = torch.randn(z.shape)
    assert torch.equal(torch.autograd.grad((out.z_q * weights).sum(), z)[0], weights)


def test_a_shared_codebook_serves_all_levels():
    """The same codes as with a copy of it per level; its gradient is the sum of theirs."""
    shared, apart = residual(shared=True).train(), residual().train()
    for book in apart.books:
        book.codebook.data = shared.books[0].codebook.detach().clone()
    z = latents()
    ours, theirs = shared(z), apart(z)
    assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.z_q, theirs.z_q)
    gradients = torch.autograd.grad(theirs.losses["codebook"], [*apart.parameters()])
    torch.testing.assert_close(torch.autograd.grad(ours.losses["codebook"], [*shared.parameters()])[0], sum(gradients))
    assert [name for name in shared.state_dict() if "codebook" in name] == ["books.0.codebook"]


def test_the_distance_of_a_choice_is_its_regret_along_its_own_path():
    """0 for the own choice, above for any other; another choice of equal distance at the first level costs nothing."""
    quantizer, z = residual().eval(), latents()
    with torch.no_grad():
        quantizer.books[0].codebook[9] = quantizer.books[0].codebook[3]  # a tie, of which the first is chosen
        indices = quantizer(z).indices
        assert quantizer.choice_distances(z, indices).abs().max() < 1e-5
        assert (quantizer.choice_distances(z, (indices + 1) % 16) > 1e-3).all()
        tied = indices.clone()
        tied[..., 0][indices[..., 0] == 3] = 9
        assert not torch.equal(tied, indices)
        assert quantizer.choice_distances(z, tied).abs().max() < 1e-5


# ---------------------------------------------------------------------------------------------- level dropout
def test_dropped_levels_add_nothing_and_are_not_counted():
    """Image i keeps i + 1 levels: indices of -1 beyond, the sum of the codes kept, losses of those alone."""
    quantizer, z = residual(level_dropout=1.0).train(), latents().requires_grad_()
    full = residual().train()(z)
    out = quantizer(z, random_bits=bits_for([1, 2, 3, 4]))
    is_kept = torch.arange(4) < torch.arange(1, 5)[:, None]  # (image, level)
    assert torch.equal(out.indices, torch.where(is_kept[:, None], full.indices, -1))
    torch.testing.assert_close(out.z_q, quantizer.decode_indices(out.indices), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.z_q[3], full.z_q[3])

    # The losses, by hand: zeros of dropped levels are part of the mean.
    rest, errors = z.detach(), []
    for book, column in zip(quantizer.books, full.indices.unbind(-1), strict=True):
        rest = rest - F.embedding(column, book.codebook.detach())
        errors.append(rest.square().mean((1, 2)))
    expected = (torch.stack(errors, 1) * is_kept).mean()
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(out.losses[name].detach(), expected)
    (of_last,) = torch.autograd.grad(out.losses["codebook"], [quantizer.books[3].codebook])
    assert set(of_last.abs().sum(1).nonzero()[:, 0].tolist()) == set(full.indices[3, :, 3].tolist())

    # The window knows how many tokens each level had.
    window = quantizer.recent_indices
    assert [(window[:, level] >= 0).sum().item() for level in range(4)] == [32, 24, 16, 8]
    usage = quantizer.usage()
    for level in range(4):
        used = out.indices[..., level].unique()
        assert usage[f"codebook_usage_group_{level}"].item() == (used >= 0).sum().item() / 16


def test_dropout_at_the_last_level_is_none():
    """All levels kept by chance, by the fraction or in evaluation: the bits of a quantizer without level dropout."""
    z, numbers = latents(), bits_for([4, 4, 4, 4])
    plain = residual()
    for quantizer, bits in (
        (residual(level_dropout=1.0), numbers),
        (residual(level_dropout=0.5), torch.full((4,), ALL_BITS // 2)),
        (residual(level_dropout=1.0), None),
    ):
        assert_same_output(quantizer.train()(z, random_bits=bits), plain.train()(z))
    assert_same_output(residual(level_dropout=1.0).eval()(z, random_bits=bits_for([1] * 4)), plain.eval()(z))
    assert not residual().takes_random_bits


def assert_same_output(actual, expected) -> None:
    assert torch.equal(actual.indices, expected.indices) and torch.equal(actual.z_q, expected.z_q)
    assert all(torch.equal(actual.losses[name], value) for name, value in expected.losses.items())


@pytest.mark.parametrize("dropout", [0.25, 1.0])
def test_kept_levels_are_uniform_among_the_chosen_images(dropout):
    """Of evenly spread bits: `dropout` / levels for each number of levels, the rest keeps all."""
    quantizer = residual(level_dropout=dropout).train()
    bits = torch.arange(4096) * (ALL_BITS // 4096)
    kept = quantizer._kept_levels(bits)
    counts = torch.bincount(kept, minlength=5)[1:]
    expected = torch.tensor([dropout / 4] * 3 + [1 - 0.75 * dropout]) * 4096
    assert (counts - expected).abs().max() <= 1
    assert quantizer._kept_levels(torch.tensor([0, ALL_BITS - 1])).tolist() == [1, 4]


def test_random_bits_belong_to_the_place_of_an_image(monkeypatch):
    """A function of seed and position, beside a sample that is otherwise as it was; uniform."""
    source, config = mini.image_source(8), mini.tokenizer_config().data
    plain = training_item(source, config, seed=3)
    item = with_random_bits(plain, seed=3)
    sample, again, other = item(1, 5), with_random_bits(plain, seed=3)(2, 5), item(1, 6)
    assert torch.equal(sample["random_bits"], again["random_bits"]) and sample["random_bits"].dtype == torch.int64
    assert not torch.equal(sample["random_bits"], other["random_bits"])
    assert not torch.equal(sample["random_bits"], with_random_bits(plain, seed=4)(1, 5)["random_bits"])
    assert all(torch.equal(value, sample[name]) for name, value in plain(1, 5).items())
    bits = torch.stack([item(0, position)["random_bits"] for position in range(500)])
    assert bits.min() >= 0 and bits.max() < ALL_BITS
    assert abs(bits.double().mean().item() / ALL_BITS - 0.5) < 0.05 and len(bits.unique()) == 500


# ---------------------------------------------------------------------------------------------- product codes
def test_each_chunk_has_its_codebook():
    """Codes, latents and losses are those of a `VectorQuantizer` per chunk; losses are their means."""
    quantizer, z = product().train(), latents(12)
    out = quantizer(z, entropy=True)
    parts = [book(chunk, entropy=True) for book, chunk in zip(quantizer.books, z.split(4, -1), strict=True)]
    assert torch.equal(out.indices, torch.stack([part.indices for part in parts], -1))
    assert torch.equal(out.z_q, torch.cat([part.z_q for part in parts], -1))
    for name in ("codebook", "commitment", "entropy", "sample_entropy", "codebook_entropy"):
        torch.testing.assert_close(out.losses[name], sum(part.losses[name] for part in parts) / 3)
    torch.testing.assert_close(quantizer.decode_indices(out.indices), out.z_q, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.z_q.unflatten(-1, (3, 4)).norm(dim=-1), torch.ones(4, 8, 3))
    assert quantizer.health()["code_power"] == pytest.approx(out.z_q.detach().square().mean().item(), rel=1e-5)
    own = quantizer.choice_distances(z, out.indices)
    assert (quantizer.choice_distances(z, (out.indices + 1) % 16) > own).all()


def test_one_group_is_vector_quantization():
    """Bit for bit, from the same random numbers on."""
    options = {"codebook_size": 16, "codebook_dim": 6}
    torch.manual_seed(5)
    plain = VectorQuantizer(VQConfig(rotation_trick=False, **options))
    torch.manual_seed(5)
    assert_trained_alike(ProductVQ(MCQConfig(groups=1, **options)), plain, latents(), entropy=True)


# ---------------------------------------------------------------------------------------------- warm-up
def test_k_means_of_a_level_is_that_of_the_rests_before_it():
    """Level by level, each as a `VectorQuantizer` alone would start from these rests."""
    options = {"codebook_size": 8, "codebook_dim": 6, "warmup_steps": 1, "init": "kmeans"}
    torch.manual_seed(0)
    quantizer, z = ResidualVQ(RVQConfig(levels=3, **options)).train(), latents(count=12)
    out = quantizer(z, quantize=False)
    assert torch.equal(out.z_q, z) and out.losses == {}
    assert quantizer.finish_warmup()

    rests = z.flatten(0, 1)
    for book in quantizer.books:
        alone = VectorQuantizer(VQConfig(l2_norm=False, **options)).train()
        alone.init_from(rests)
        assert torch.equal(book.codebook, alone.codebook)
        rests = rests - alone.decode_indices(alone.eval()(rests[None]).indices[0])
    assert quantizer.empty_windows()["books.0.recent_latents"].count_nonzero() == 0
    with pytest.raises(ConfigError, match=r"k-means for 8 codes has 7 latents; raise the quantizer's warmup_steps"):
        quantizer.require_warmup(7)


def test_k_means_of_a_group_is_that_of_its_chunks():
    quantizer, z = product(warmup_steps=1, init="kmeans").train(), latents(12, count=12)
    out = quantizer(z, quantize=False)
    torch.testing.assert_close(out.z_q, F.normalize(z.unflatten(-1, (3, 4)), dim=-1).flatten(2))
    out.z_q.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in quantizer.parameters())
    assert quantizer.finish_warmup()
    for book, chunk in zip(quantizer.books, z.split(4, -1), strict=True):
        alone = VectorQuantizer(VQConfig(codebook_size=16, codebook_dim=4, warmup_steps=1, init="kmeans")).train()
        alone(chunk, quantize=False)
        alone.init_from_latents()
        assert torch.equal(book.codebook, alone.codebook)
    windows = quantizer.empty_windows()
    assert windows.keys() == {"recent_indices", *(f"books.{group}.recent_latents" for group in range(3))}


# ---------------------------------------------------------------------------------------------- from config to run
RVQ = "model.quantizer={vq: null, name: rvq, rvq: {levels: 3, codebook_size: 8, codebook_dim: 4, level_dropout: 0.8}}"
MCQ = "model.quantizer={vq: null, name: mcq, mcq: {groups: 2, codebook_size: 8, codebook_dim: 2}}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rvq: {levels: 0}", r"rvq\.levels=0 must be 1 or more"),
        ("rvq: {l2_norm: true}", r"rvq\.l2_norm=true must be false: a sum of codes has no length"),
        ("rvq: {level_dropout: 1.5}", r"rvq\.level_dropout=1\.5"),
        ("rvq: {shared: true, init: kmeans, warmup_steps: 2}", r"rvq\.init='kmeans' must be random with shared"),
        ("mcq: {groups: 0}", r"mcq\.groups=0 must be 1 or more"),
        ("mcq: {codebook_size: 1}", r"mcq\.codebook_size=1"),
    ],
)
def test_impossible_settings_name_their_key(override, message):
    name = override.partition(":")[0]
    with pytest.raises(ConfigError, match=message):
        load_config(TokenizerTrainConfig, overrides=[f"model.quantizer={{name: {name}, {override}}}"])


def test_a_tokenizer_that_passes_no_random_bits_is_refused(monkeypatch):
    config = mini.tokenizer_config(RVQ)
    validate(config)

    def forward(self, images, *, quantize=True, entropy=False, shortcut=False, semantic=False):
        raise NotImplementedError

    monkeypatch.setattr("tokenizer.models.hybrid.HybridTokenizer.forward", forward)
    with pytest.raises(ConfigError, match=r"rvq takes random numbers of each image .* tokenizer hybrid does not pass"):
        validate(config)
    validate(mini.tokenizer_config(RVQ, "model.quantizer.rvq.level_dropout=0"))


def test_codebooks_that_nothing_moves_are_told():
    (warning,) = warnings_of(mini.tokenizer_config(MCQ, "loss.codebook_weight=0"))
    assert "no loss term moves quantizer.books.0.codebook, quantizer.books.1.codebook" in warning
    assert warnings_of(mini.tokenizer_config(RVQ)) == []


def test_a_first_part_of_the_levels_can_be_decoded(tmp_path):
    """-1 from Python: a coarser image of the same tokens. Other quantizers have no such code."""
    config = mini.tokenizer_config(RVQ)
    mini.export(tmp_path / "rvq", config, mini.tokenizer_of(config))
    network = load_tokenizer(tmp_path / "rvq")
    tokens = network.tokenize(mini.random_images(2))
    assert tokens.shape == (2, 8, 3)
    first = tokens.clone()
    first[..., 1:] = -1
    expected = network.decode(network.quantizer.books[0].decode_indices(tokens[..., 0]))
    assert torch.equal(network.detokenize(first, clamp=False), expected)
    assert not torch.equal(network.detokenize(tokens, clamp=False), expected)
    with pytest.raises(UserError, match=r"the code -2 \(image 0, token 0, index 2\) is not in -1\.\.7"):
        network.detokenize(first.masked_fill(torch.tensor([False, False, True]), -2))

    config = mini.tokenizer_config(MCQ)
    mini.export(tmp_path / "mcq", config, mini.tokenizer_of(config))
    with pytest.raises(UserError, match=r"the code -1 .* is not in 0\.\.7"):
        load_tokenizer(tmp_path / "mcq").detokenize(first[..., :2])


def test_a_run_with_level_dropout_goes_on_bit_for_bit(tmp_path, image_folder, world):
    """Six steps, and three and three; usage of each level is recorded, in training and validation."""
    section = "model.quantizer={vq: null, name: rvq, rvq: {levels: 3, codebook_size: 8, codebook_dim: 4, "
    section += "level_dropout: 0.8, warmup_steps: 2, init: kmeans}}"
    options = [section, "ema_decay=0.9", "loop.eval_every=3", "loss.entropy_weight=0.02"]
    for name, stops in (("whole", [6]), ("parts", [3, 6])):
        for stop in stops:
            config = tiny.tokenizer_config(tmp_path / name, image_folder, *options, f"loop.stop_at={stop}")
            train.train(config, world)
    for weights in ("model", "ema"):
        one, other = (load_tokenizer(tmp_path / name, weights=weights).state_dict() for name in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    record = read_metrics(tmp_path / "whole")[-1]
    names = {f"{prefix}codebook_usage_group_{level}" for prefix in ("", "val/", "val_ema/") for level in range(3)}
    names |= {"rest_level_0", "val/rest_level_2"}
    assert names <= {name for record in read_metrics(tmp_path / "whole") for name in record}
    assert record["step"] == 6
    window = one["quantizer.recent_indices"]
    counts = (window >= 0).sum(0)
    assert counts[0] > counts[1] > counts[2] > 0, "no level was dropped"

    # The doctor counts what each level has; the report draws a line per level.
    of_levels = RunEvidence(tmp_path / "whole").code_counts
    quantized = (window[-4 * 4 * 4 :] >= 0).sum(0)  # four steps after the warm-up, of four images with four tokens
    assert [of_levels[level].sum() for level in range(3)] == quantized.tolist()
    page = curves(RunFolder(tmp_path / "whole"))
    assert "Codebook usage by index" in page and "Rest after each level" in page and "rest_level_2" in page
