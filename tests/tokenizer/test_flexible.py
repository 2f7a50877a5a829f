"""Flexible length: the laws of lengths, what the decoder sees, what codes and gradients depend on, validation."""

from collections import Counter

import mini
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from ranks import on_ranks

import tokenizer.train
from engine.messages import ConfigError, UserError
from engine.run_log import read_metrics
from evaluations import reconstruction
from evaluations.fingerprint import digests
from evaluations.report.lengths import lengths
from evaluations.report.run_folder import RunFolder
from evaluations.results import read_result
from tokenizer import load_tokenizer, reconstruct
from tokenizer.losses.semantic import semantic_loss
from tokenizer.models.flexible import (
    FlexibleConfig,
    Lengths,
    alignment_loss,
    semantic_weights,
    visible,
)
from tokenizer.training.task import TokenizerTask

UNIFORM = "model.hybrid.flexible={lengths: uniform}"
EVERYTHING = "model.hybrid.flexible={lengths: uniform, align_weight: 0.5, padding: 2}"


def network(*overrides: str):
    return mini.tokenizer_of(mini.tokenizer_config("model.hybrid.semantic_layer=null", *overrides))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def train(world, run_dir, folder, *overrides: str) -> None:
    tokenizer.train.train(tiny.tokenizer_config(run_dir, folder, *overrides), world)


# ------------------------------------------------------------------------------------------------ the laws
@pytest.mark.parametrize(
    ("law", "shares"),
    [
        ("uniform", dict.fromkeys(range(1, 17), 1 / 16)),
        ("pow2", dict.fromkeys((1, 2, 4, 8, 16), 1 / 5)),
        ("uniform_pow2", {1: 1 / 16, 2: 1 / 16, 4: 2 / 16, 8: 4 / 16, 16: 8 / 16}),
    ],
)
def test_the_laws_of_lengths(law, shares):
    """In closed form, and by the bits of 40,000 images: their order does not matter, because the law is a table."""
    lengths = Lengths(FlexibleConfig(lengths=law), 16)
    counts = Counter(lengths.equally_likely)
    assert {k: n / len(lengths.equally_likely) for k, n in counts.items()} == pytest.approx(shares)
    bits = torch.arange(40_000) * 53_687 % 2**31
    drawn = Counter(lengths.drawn(bits).tolist())
    assert drawn.keys() == shares.keys()
    assert all(drawn[k] / 40_000 == pytest.approx(share, abs=0.01) for k, share in shares.items())


def test_lengths_that_are_listed():
    lengths = Lengths(FlexibleConfig(lengths="listed", listed=[2, 8, 8]), 8)
    assert set(lengths.drawn(torch.tensor([0, 2**30, 2**31 - 1])).tolist()) <= {2, 8} and lengths.shown == (2,)
    assert Lengths(FlexibleConfig(lengths="uniform"), 8).shown == (1, 2, 4)
    assert visible(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]


# ------------------------------------------------------------------------------------------------ the decoder
def test_all_tokens_are_the_fixed_network(images):
    """Off, and with k = N: parameters, codes and reconstructions have the bits of a network of fixed length."""
    fixed, flexible = network(), network(UNIFORM)
    assert fixed.state_dict().keys() == flexible.state_dict().keys()
    one, two = fixed.eval()(images), flexible.eval()(images)
    assert torch.equal(one.reconstructions, two.reconstructions)
    assert torch.equal(one.quantized.indices, two.quantized.indices)
    everything = network("model.hybrid.flexible={lengths: listed, listed: [8], full_pass: false}")
    hidden_nothing = everything.train()(images, random_bits=torch.arange(4)).reconstructions
    assert torch.equal(hidden_nothing, fixed.train()(images).reconstructions)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_hidden_tokens_are_as_good_as_absent_ones(length, images):
    """The mask of training, fewer latents, fewer codes, and `num_tokens`."""
    model = network(f"model.hybrid.flexible={{lengths: listed, listed: [{length}], full_pass: false}}")
    masked = model.train()(images, random_bits=torch.arange(4)).reconstructions
    model.eval()
    quantized = model.encode(images)
    for images_of_prefix in (
        model.decode(quantized.z_q[:, :length]),
        model.decode_indices(quantized.indices[:, :length]),
        model(images, num_tokens=length).reconstructions,
        model.detokenize(quantized.indices[:, :length], clamp=False),
    ):
        torch.testing.assert_close(images_of_prefix, masked, rtol=1e-5, atol=2e-5)

    attention = model.query_decoder.transformer[0].multihead_attn
    queries, memory = torch.randn(2, 5, 16), torch.randn(2, 8, 16)
    hidden = attention(queries, memory, memory, visible(torch.tensor([length, length]), 8))
    absent = attention(queries, memory[:, :length], memory[:, :length])
    torch.testing.assert_close(hidden, absent, rtol=1e-6, atol=1e-6)


def test_codes_and_hidden_tokens_know_nothing_of_the_length(images):
    """Codes are the same for every draw; of tokens behind the first k the gradient is exactly 0."""
    model = network("model.hybrid.flexible={lengths: uniform, full_pass: false}").train()
    draws = [torch.arange(4) + shift * 2**28 for shift in range(4)]
    codes = [model(images, random_bits=bits).quantized.indices for bits in draws]
    assert all(torch.equal(codes[0], other) for other in codes)
    assert len({tuple(model.lengths.drawn(bits).tolist()) for bits in draws}) > 1

    output = model(images, random_bits=draws[1])
    output.quantized.z_q.retain_grad()
    output.reconstructions.square().mean().backward()
    size = output.quantized.z_q.grad.abs().sum(-1)
    seen = visible(model.lengths.drawn(draws[1]), 8)
    assert (size[~seen] == 0).all() and (size[:, 0] > 0).all() and not seen.all()


def test_other_numbers_of_tokens_are_refused(images):
    fixed, flexible = network().eval(), network(UNIFORM).eval()
    codes = flexible.encode(images).indices
    with pytest.raises(ValueError, match="decodes 8 tokens, found 3"):
        fixed.decode_indices(codes[:, :3])
    with pytest.raises(UserError, match="it takes 8"):
        fixed.detokenize(codes[:, :3])
    for wrong in (codes[:, :0], torch.cat([codes, codes], dim=1)):
        with pytest.raises((UserError, ValueError)):
            flexible.detokenize(wrong)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{lengths: some}", "lengths='some' must be one of: fixed, listed"),
        ("{lengths: listed}", "with lengths=listed one length or more"),
        ("{lengths: listed, listed: [0, 9]}", "lengths in 1..8"),
        ("{lengths: uniform, listed: [2]}", "flexible.listed"),
        ("{lengths: uniform, padding: 8}", "less than num_tokens=8"),
        ("{lengths: pow2, padding: 2}", "0 with lengths=pow2"),
        ("{align_weight: 1}", "0 without flexible lengths"),
        ("{lengths: uniform, full_pass: false, align_weight: 1}", "0 without flexible lengths and full_pass=true"),
        ("{lengths: uniform, semantic_by_length: linear}", "constant with semantic_layer=null"),
        ("{semantic_by_length: linear}", "constant with lengths=fixed"),
        ("{lengths: uniform, semantic_by_length: square}", "must be one of: constant, linear"),
    ],
)
def test_bad_settings_are_named(section, expected):
    with pytest.raises(ConfigError, match=expected):
        network(f"model.hybrid.flexible={section}")


def test_a_grid_of_tokens_has_one_length():
    with pytest.raises(ConfigError, match="fixed with layout=2d"):
        network(UNIFORM, "model.hybrid.layout=2d", "model.hybrid.block=vit", "model.hybrid.num_tokens=16")


# ------------------------------------------------------------------------------------------------ further options
def test_alignment_follows_all_tokens(images):
    """0 at k = N; by hand elsewhere: the first block's tokens and the mean of the visible latents, and no gradient of
    the features of all tokens.
    """
    settings = "model.hybrid.flexible={{lengths: listed, listed: [{}], align_weight: 1}}"
    same = network(settings.format(8)).train()(images, random_bits=torch.arange(4))
    assert same.losses["prefix_alignment"].item() == pytest.approx(0, abs=1e-6)

    model = network(settings.format(3)).train()
    output = model(images, random_bits=torch.arange(4))
    tokens = model.post_quant_proj(output.quantized.z_q)
    decoder = model.query_decoder
    early = []
    for part in (tokens[:, :3], tokens):
        mean = decoder.embed(decoder.ln_pre(part)).mean(1, keepdim=True)
        early.append(torch.cat([decoder.features(part, 1)[0], mean], dim=1))
    by_hand = 1 - F.cosine_similarity(*early, dim=-1).mean()
    torch.testing.assert_close(output.losses["prefix_alignment"], by_hand, rtol=1e-4, atol=1e-6)
    assert by_hand > 1e-4 and network(UNIFORM).train()(images, random_bits=torch.arange(4)).losses == {}

    output.quantized.z_q.retain_grad()
    output.losses["prefix_alignment"].backward()
    size = output.quantized.z_q.grad.abs().sum(-1)
    assert (size[:, 3:] == 0).all() and (size[:, :3] > 0).all()
    prefix, whole = (features.detach().requires_grad_() for features in early)
    alignment_loss(prefix, whole).backward()
    assert whole.grad is None and prefix.grad.any()


def test_padding_is_of_training_alone(images):
    """N + P tokens are coded in training, and only there; the first N have the codes of evaluation."""
    model = network("model.hybrid.flexible={lengths: listed, listed: [8, 10], padding: 2, full_pass: false}")
    assert model.query_decoder.latent_positional_embedding.shape == (10, 16)
    assert model.query_encoder.padding_positional_embedding.shape == (2, 16)
    in_training = model.train()(images, random_bits=torch.arange(4))
    in_evaluation = model.eval()(images)
    assert in_training.quantized.indices.shape == (4, 10) and model.num_tokens == 8
    assert torch.equal(in_training.quantized.indices[:, :8], in_evaluation.quantized.indices)
    assert torch.equal(model.encode(images).indices, in_evaluation.quantized.indices)
    torch.testing.assert_close(model.decode(in_evaluation.quantized.z_q), in_evaluation.reconstructions)
    assert all(source.read(images, None).shape[:2] == (4, 8) for source in list(model.feature_sources().values())[:2])

    # Lengths reach into the padding, and validation looks at those of an image. Hidden padding is absent padding.
    assert set(model.lengths.drawn(torch.arange(64) << 25).tolist()) == {8, 10} and model.shown_lengths == ()
    assert network("model.hybrid.flexible={lengths: uniform, padding: 2}").shown_lengths == (1, 2, 4)
    bits = next(bits for bits in range(64) if model.lengths.drawn(torch.tensor([bits << 25])) == 8)
    hidden = model.train()(images, random_bits=torch.full((4,), bits << 25)).reconstructions
    torch.testing.assert_close(hidden, in_evaluation.reconstructions, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("full_pass", [True, False])
def test_the_semantic_loss_falls_with_the_length(full_pass, images):
    """1 at one token, 0 at all: of the features of the first k tokens. By default it is that of all tokens."""
    assert semantic_weights(torch.tensor([1, 5, 9]), 9).tolist() == [1, 0.5, 0]
    assert semantic_weights(torch.tensor([1]), 1).tolist() == [1]
    targets = torch.randn(4, 16, 12, generator=torch.Generator().manual_seed(0))

    def trained(by_length: str) -> tuple:
        section = f"lengths: uniform, full_pass: {full_pass}, semantic_by_length: {by_length}"
        model = mini.tokenizer_of(mini.tokenizer_config(f"model.hybrid.flexible={{{section}}}")).train()
        return model, model(images, random_bits=torch.arange(4) << 28, semantic=True)

    model, output = trained("linear")
    lengths = model.lengths.drawn(torch.arange(4) << 28)
    tokens = model.post_quant_proj(output.quantized.z_q)
    by_hand = 0.0
    for row, length in enumerate(lengths.tolist()):
        _, features = model.query_decoder(tokens[row : row + 1, :length], semantic=True)
        by_hand += (1 - (length - 1) / 7) * semantic_loss(features, targets[row : row + 1]) / 4
    loss = semantic_loss(output.semantic_features, targets, output.semantic_weights)
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-6)
    assert len(set(lengths.tolist())) > 1 and trained("constant")[1].semantic_weights is None


# ------------------------------------------------------------------------------------------------ training
def test_with_all_tokens_the_second_pass_doubles_the_loss(image_folder, tmp_path, world):
    """full_pass and k = N: every picture term of the prefix equals that of the whole, which is that of fixed length."""
    options = ("loss.l1_weight=0.5", "loop.steps=2")
    train(world, tmp_path / "fixed", image_folder, *options)
    train(world, tmp_path / "run", image_folder, *options, "model.hybrid.flexible={lengths: listed, listed: [4]}")
    records, fixed = (
        [record for record in read_metrics(tmp_path / name) if "loss" in record] for name in ("run", "fixed")
    )
    for name in ("reconstruction_l1", "reconstruction_l2", "codebook", "commitment"):
        assert records[0][name] == fixed[0][name]
    for record in records:
        for name in ("l1", "l2"):
            assert record[f"prefix_{name}"] == pytest.approx(record[f"reconstruction_{name}"], rel=1e-5)
        pictures = 2 * (record["reconstruction_l2"] + 0.5 * record["reconstruction_l1"])
        rest = record["codebook"] + 0.25 * record["commitment"]
        assert record["loss"] == pytest.approx(pictures + rest, rel=1e-4)


def test_off_is_the_training_of_before(image_folder, tmp_path, world):
    for name, options in (("off", ["model.hybrid.flexible={lengths: fixed, full_pass: false}"]), ("plain", [])):
        train(world, tmp_path / name, image_folder, *options)
    assert digests(tmp_path / "off") == digests(tmp_path / "plain")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_folder, world):
    """A flexible tokenizer, trained without a stop."""
    folder = tmp_path_factory.mktemp("flexible") / "run"
    train(world, folder, image_folder, EVERYTHING, "loop.eval_every=3", *tiny.GAN)
    return folder


def test_validation_looks_at_every_length(trained):
    """PSNR from 1, 2 and 4 tokens, usage of the codes by token, for raw and averaged weights."""
    records = read_metrics(trained)
    assert all(-1e-6 < record["prefix_alignment"] < 2 for record in records if "loss" in record)
    record = [record for record in records if "val/psnr" in record][-1]
    for prefix in ("val", "val_ema"):
        assert {f"{prefix}/psnr_tokens_1", f"{prefix}/psnr_tokens_2"} <= record.keys()
        usages = [record[f"{prefix}/codebook_usage_from_token_{first}"] for first in (1, 2, 3)]
        assert all(0 < usage <= record[f"{prefix}/codebook_usage"] for usage in usages)


def test_a_run_goes_on_with_the_same_lengths(trained, image_folder, tmp_path, world):
    """Stopped in the middle: the same bits, because lengths are a function of seed and position."""
    options = (EVERYTHING, "loop.eval_every=3", *tiny.GAN)
    train(world, tmp_path / "run", image_folder, *options, "loop.stop_at=2")
    train(world, tmp_path / "run", image_folder, *options)
    assert digests(tmp_path / "run") == digests(trained)


def lengths_of(world, run_dir, folder, *overrides: str) -> None:
    """Trains, and writes the lengths of every step of this rank."""
    seen = []
    real = TokenizerTask.train_step

    def watched(self, batches, step):
        lengths = self.tokenizer.module.lengths
        seen.extend((b["position"].tolist(), lengths.drawn(b["random_bits"]).tolist()) for b in batches)
        return real(self, batches, step)

    TokenizerTask.train_step = watched
    try:
        train(world, run_dir, folder, *overrides)
    finally:
        TokenizerTask.train_step = real
    torch.save(seen, f"{run_dir}_{world.rank}.pt")


def test_two_processes_draw_the_same_lengths(image_folder, tmp_path, world):
    """Of the same images as one process with two micro-batches; the loss is the same to rounding, shards included."""
    options = (EVERYTHING, "loop.steps=3", "loop.eval_every=0")
    lengths_of(world, tmp_path / "one", image_folder, *options, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "ranks", lengths_of, tmp_path / "two", image_folder, *options, "loop.strategy=fsdp")

    def by_position(*names: str) -> dict[int, int]:
        parts = [part for name in names for part in torch.load(tmp_path / f"{name}.pt")]
        return {position: k for positions, ks in parts for position, k in zip(positions, ks, strict=True)}

    one = by_position("one_0")
    assert one == by_position("two_0", "two_1") and len(one) == 12 and len(set(one.values())) > 1
    losses = [[r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert load_tokenizer(tmp_path / "two").shown_lengths == (1, 2)


# ------------------------------------------------------------------------------------------------ commands and pictures
def test_reconstructions_of_fewer_tokens(trained, tmp_path, entry, monkeypatch, image_folder):
    """--num-tokens of both commands; a picture with a row for each length; in validation, too."""
    model = load_tokenizer(trained)
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    whole = model.reconstruct(pictures)
    model.use_tokens(2)
    part = model.reconstruct(pictures)
    assert torch.equal(part.indices, whole.indices[:, :2])
    assert torch.equal(part.images, model.decode_indices(whole.indices[:, :2]))
    with pytest.raises(ConfigError, match=r"must lie in 1\.\.4"):
        model.use_tokens(5)

    images = ("--vq-ckpt", trained, "--device", "cpu")
    flags = (*images, "--data-path", image_folder, "--num-images", 3)
    for folder, further in (("whole", ()), ("part", ("--num-tokens", 1))):
        code, _, err = entry(reconstruct.main, *flags, "--sample-dir", tmp_path / folder, *further)
        assert code == 0, err
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.png")]
    assert len(names) == 3 * 2 + 2 and all((tmp_path / "part" / name).is_file() for name in names)

    # Four rows of 8 px images and their margins: original, 1, 2 and 4 tokens; the grid of validation has as many.
    _, height = Image.open(tmp_path / "whole" / "lengths.png").size
    _, two_rows = Image.open(tmp_path / "whole" / "grid.png").size
    drawn = sorted((trained / "samples").glob("val_0*.png"))
    assert height > two_rows + 8 and Image.open(drawn[-1]).size[1] > two_rows + 8

    output = tmp_path / "result.json"
    measured = (*images, "--val-path", image_folder / "val", "--extractor", "none", "--output", output)
    code, _, err = entry(reconstruction.main, *measured, "--num-tokens", 2)
    assert code == 0, err
    assert read_result(output)["protocol"]["num_tokens"] == 2
    assert read_result(output)["metrics"]["bits_per_image"] == 2 * 4


def test_a_tokenizer_of_one_length_decodes_all(tmp_path, entry, image_folder):
    mini.export_networks(tmp_path)
    flags = ("--vq-ckpt", tmp_path / "tokenizer", "--data-path", image_folder, "--sample-dir", tmp_path / "out")
    code, _, err = entry(reconstruct.main, *flags, "--num-tokens", 2)
    assert code == 2 and "is no tokenizer of flexible length" in err


def test_the_report_draws_psnr_over_the_number_of_tokens(trained):
    page = lengths(RunFolder(trained))
    assert "PSNR by number of tokens" in page and ">weights" in page and "held out" not in page
