"""Training a GPT: the loss, validation, and that it accepts the codes of its own tokenizer only."""

import math
import shutil
from types import SimpleNamespace

import mini
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from autoregressive import load_gpt
from autoregressive.code_writer import CodeWriter
from autoregressive.codes import FORMAT, CodesError, CodesManifest, CodeStore
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.loading import require_pair
from autoregressive.models.registry import build_generator
from autoregressive.models.token_by_token import next_token_loss
from autoregressive.sampling import seeded_draw
from autoregressive.train import train
from autoregressive.training.build import preview_grid
from autoregressive.training.task import GeneratorTask
from engine.checkpoint.manifest import CheckpointError
from engine.data.classes import Classes
from engine.messages import ConfigError, UserError
from engine.optim import OptimConfig
from engine.run_log import read_metrics
from engine.trained_model import TrainedModel
from tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def given(tmp_path_factory, image_folder):
    """A folder with a tokenizer, another one, and codes that the first is said to have made."""
    root = tmp_path_factory.mktemp("given")
    config = tiny.tokenizer_config(root / "unused", image_folder)
    for name, seed in (("tokenizer", 0), ("other", 1)):
        mini.export(root / name, config, mini.tokenizer_of(config, seed))
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    return root


def config_of(given, run, *overrides, codes=None, tokenizer=None):
    return tiny.gpt_config(run, codes or given / "codes", tokenizer or given / "tokenizer", *overrides)


def task_of(given, world, *overrides, ema_decay=0.0, batch_size=2, num_validation=100, preview=None) -> GeneratorTask:
    config = config_of(given, given / "unused", *overrides)
    torch.manual_seed(0)
    gpt = build_generator(config.model)
    nn.init.normal_(gpt.output.weight, std=0.5)
    updater = TrainedModel(gpt, OptimConfig(lr=0.01), total_steps=10, world=world, ema_decay=ema_decay)
    options = {"validation": CodeStore(given / "codes", "val"), "num_validation": num_validation}
    return GeneratorTask(
        updater, name="gpt", world=world, precision="fp32", batch_size=batch_size, preview=preview, **options
    )


def batch(count: int = 6):
    return {
        "tokens": torch.randint(0, 16, (count, 4)),
        "labels": torch.arange(count) % 2,
        "drop": torch.arange(count) % 3 == 0,
    }


# ---------------------------------------------------------------------------------------------- loss and update
def test_loss_is_the_mean_negative_log_probability_of_all_tokens():
    logits, tokens = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    terms = [-logits[b, n].log_softmax(0)[tokens[b, n]] for b in range(2) for n in range(3)]
    torch.testing.assert_close(next_token_loss(logits, tokens), sum(terms) / 6)


def test_an_update_trains_on_the_given_labels_tokens_and_drops(given, world):
    """Loss and gradients are those of one plain pass; without dropout nothing else enters."""
    task = task_of(given, world, "model.token_dropout=0", "model.residual_dropout=0")
    gpt, seen, step, made = task.trained.module, {}, task.trained.step, batch()
    labels = torch.where(made["drop"], 2, made["labels"])
    loss = F.cross_entropy(gpt(labels, made["tokens"]).transpose(1, 2), made["tokens"])
    expected = torch.autograd.grad(loss, list(gpt.parameters()))

    def watched(*args):
        seen.update({name: p.grad.clone() for name, p in gpt.named_parameters()})
        return step(*args)

    task.trained.step = watched
    torch.testing.assert_close(task.train_step([made], 0)["loss"], loss.detach())
    for gradient, (name, actual) in zip(expected, seen.items(), strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_training_has_dropout_and_validation_has_not(given, world):
    """Also right after each other: modes are set by the task."""
    task = task_of(given, world)
    task.evaluate(0)
    task.train_step([batch()], 0)
    assert task.trained.module.training
    first = task.evaluate(1)
    assert not task.trained.module.training
    assert task.evaluate(1) == first


def test_a_run_starts_at_the_logarithm_of_the_vocabulary_and_learns(given, tmp_path, world):
    """100 steps on 12 images: from ln 16 to less than two thirds of it; validation on random codes cannot improve."""
    no_dropout = ["model.token_dropout=0", "model.residual_dropout=0"]
    options = [*no_dropout, "loop.steps=100", "loop.eval_every=50", "data.global_batch_size=12", "ema_decay=0.5"]
    train(config_of(given, tmp_path / "run", *options), world)
    records = read_metrics(tmp_path / "run")
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[0] == pytest.approx(math.log(16), rel=1e-5)
    assert sum(losses[-5:]) / 5 < 2 / 3 * losses[0]
    looks = [r for r in records if "val/loss" in r]
    assert [r["step"] for r in looks] == [50, 100]
    assert all(r["val/loss"] > 0.9 * math.log(16) and r["val_ema/loss"] > 0.9 * math.log(16) for r in looks)


# ---------------------------------------------------------------------------------------------- validation
def test_validation_is_the_mean_over_held_out_images(given, world):
    """True classes, first view, no label drop; for raw and averaged weights; for any batch size and number of ranks."""
    task = task_of(given, world, ema_decay=0.5)
    task.train_step([batch()], 0)
    store = CodeStore(given / "codes", "val")
    tokens = torch.stack([store.tokens(i, 0) for i in range(12)])
    labels = torch.from_numpy(store.labels)
    results = []
    for size in (1, 5, 100):
        task.batch_size = size
        results.append(task.evaluate(1))
    with torch.no_grad():
        for prefix, network in (("val", task.trained.module), ("val_ema", task.trained.ema)):
            expected = next_token_loss(network.eval()(labels, tokens), tokens).item()
            assert [r[f"{prefix}/loss"] for r in results] == pytest.approx([expected] * 3, rel=1e-5)
    assert results[0].keys() == {"val/loss", "val_ema/loss"}
    assert results[0]["val/loss"] != pytest.approx(results[0]["val_ema/loss"], rel=1e-6)
    task.batch_size = 2

    def on_rank(rank_world):
        task_on_rank = GeneratorTask(
            task.trained,
            name="gpt",
            world=rank_world,
            precision="fp32",
            validation=store,
            num_validation=100,
            batch_size=2,
        )
        return task_on_rank.evaluate(1)["val/loss"]

    assert mini.on_ranks(2, on_rank) == pytest.approx([results[0]["val/loss"]] * 2, rel=1e-5)


def test_only_the_asked_number_of_images_is_validated(given, world):
    task = task_of(given, world, num_validation=5)
    store = CodeStore(given / "codes", "val")
    rows = task.rows
    assert len(set(rows.tolist())) == 5 and rows.tolist() != list(range(5)), "a choice over all classes"
    assert rows.tolist() == task_of(given, world, num_validation=5).rows.tolist(), "the same in every run"
    tokens = torch.stack([store.tokens(i, 0) for i in rows])
    with torch.no_grad():
        expected = next_token_loss(task.trained.module.eval()(torch.from_numpy(store.labels[rows]), tokens), tokens)
    assert task.evaluate(0)["val/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_ten_crops_are_validated_on_their_center(given, tmp_path, world):
    """The fifth view is the crop at the center: the one that stands for the image itself."""
    facts = {"num_views": 10, "num_tokens": 4, "codebook_size": 16, "image_size": 8, "views": "ten-crop"}
    manifest = CodesManifest(FORMAT, "f", "t", "val", "x", 6, class_names=["a", "b"], **facts)
    writer, values = CodeWriter(tmp_path, manifest, 6, 0), torch.randint(0, 16, (6, 10, 4))
    writer.create(np.arange(6) % 2)
    writer.write(writer.pending(0, 1)[0], values)
    writer.finish()
    task = task_of(given, world)
    options = {"precision": "fp32", "num_validation": 100, "batch_size": 4}
    crops = GeneratorTask(task.trained, name="gpt", world=world, validation=CodeStore(tmp_path, "val"), **options)
    with torch.no_grad():
        expected = next_token_loss(task.trained.module.eval()(torch.arange(6) % 2, values[:, 4]), values[:, 4]).item()
    assert crops.evaluate(0)["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_preview_shows_four_samples_of_each_class(given, world):
    """A named row of four for each class, from random numbers of the run's seed, decoded by the run's tokenizer."""
    config = config_of(given, given / "unused", "validation={preview_classes: 8, guidance_scale: 3}", "loop.seed=7")
    tokenizer, grids = load_tokenizer(given / "tokenizer"), []
    classes = Classes(("cat", "dog"), "these images")
    run = SimpleNamespace(save_grid=lambda *grid: grids.append(grid))
    task = task_of(given, world, preview=preview_grid(config, tokenizer, run, world, classes), ema_decay=0.5)
    task.trained.module.class_embedding.weight.data *= 50
    task.evaluate(12)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    draws = seeded_draw(7, torch.arange(8), 4)
    tokens = generate(task.trained.module, labels, draw=draws, guidance=Guidance(scale=3))
    assert [name for name, *_ in grids] == ["val_00000012", "val_ema_00000012"]
    assert grids[0][2:4] == (4, ["cat", "dog"])
    assert "one class per row, not selected; seed 7, guidance scale 3, temperature 1." in grids[0][4]
    assert torch.equal(grids[0][1], tokenizer.decode_indices(tokens))
    assert not torch.equal(grids[0][1], grids[1][1])
    config.validation.preview_classes = 0
    assert preview_grid(config, tokenizer, run, world, classes) is None


# ---------------------------------------------------------------------------------------------- what it refuses
def test_codes_of_another_tokenizer_are_refused_before_anything_is_written(given, tmp_path, world):
    """In either split; the message has both fingerprints."""
    prints = [load_tokenizer(given / name).provenance.fingerprint[:16] for name in ("tokenizer", "other")]
    with pytest.raises(CodesError, match=rf"train holds codes of another tokenizer: theirs {prints[0]}.*{prints[1]}"):
        train(config_of(given, tmp_path / "run", tokenizer=given / "other"), world)
    mixed = shutil.copytree(given / "codes", tmp_path / "mixed")
    tiny.write_codes(tmp_path / "foreign", "0" * 64)
    shutil.rmtree(mixed / "val")
    shutil.copytree(tmp_path / "foreign" / "val", mixed / "val")
    with pytest.raises(CodesError, match="val holds codes of another tokenizer: theirs 0000000000000000"):
        train(config_of(given, tmp_path / "run", codes=mixed), world)
    assert not (tmp_path / "run").exists()


def test_a_model_for_other_codes_names_every_key(given, tmp_path, world):
    """Vocabulary, number of tokens and classes at once, each with what the codes have."""
    wrong = ["model.vocab_size=17", "model.num_tokens=5", "model.num_classes=3"]
    with pytest.raises(ConfigError) as caught:
        train(config_of(given, tmp_path / "run", *wrong), world)
    for part in ("codebook_sizes=[17]", "has [16]", "num_tokens=5", "has 4", "num_classes=3", "has 2"):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("codes", "tokenizer", "message"),
    [
        ("", "tokenizer", "data.codes and data.tokenizer must name"),
        ("codes", "", "data.codes and data.tokenizer must name"),
        ("nowhere", "tokenizer", r"holds no codes; run: python -m autoregressive\.extract_codes"),
        ("codes", "nowhere", "is not a folder of weights"),
        ("codes", "codes", "holds neither model.safetensors nor a finished checkpoint"),
    ],
)
def test_missing_codes_or_tokenizer_are_named(given, tmp_path, world, codes, tokenizer, message):
    config = config_of(given, tmp_path / "run")
    config.data.codes, config.data.tokenizer = (str(given / name) if name else "" for name in (codes, tokenizer))
    with pytest.raises(UserError, match=message):
        train(config, world)


def test_codes_without_held_out_images_train_without_validation(given, tmp_path, world):
    shutil.copytree(given / "codes" / "train", tmp_path / "codes" / "train")
    train(config_of(given, tmp_path / "run", "loop.steps=1", codes=tmp_path / "codes"), world)
    assert "no validation" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert not any("val/loss" in r for r in read_metrics(tmp_path / "run"))


# ---------------------------------------------------------------------------------------------- loading
@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    from engine.world import distributed_world

    folder = tmp_path_factory.mktemp("run") / "gpt"
    with distributed_world("cpu") as world:
        train(config_of(given, folder, "ema_decay=0.9", "loop.steps=3"), world)
    return folder


def test_a_trained_gpt_knows_the_tokenizer_it_was_trained_on(given, run):
    """Its stamp has the fingerprint; it is refused beside any other tokenizer."""
    gpt, tokenizer = load_gpt(run), load_tokenizer(given / "tokenizer")
    assert gpt.provenance.stamp["tokenizer_fingerprint"] == tokenizer.provenance.fingerprint
    require_pair(gpt, tokenizer)
    with pytest.raises(ConfigError, match=r"was trained on codes of tokenizer .*, but .*other is"):
        require_pair(gpt, load_tokenizer(given / "other"))


def test_a_gpt_of_unknown_origin_must_at_least_have_the_sizes_of_the_tokenizer(given, run, tmp_path, image_folder):
    gpt = load_gpt(run)
    mini.export(tmp_path / "export", gpt.provenance.config, gpt)
    exported = load_gpt(tmp_path / "export")
    assert exported.provenance.stamp == {}
    require_pair(exported, load_tokenizer(given / "other"))
    config = tiny.tokenizer_config(tmp_path, image_folder, "model.quantizer.vq.codebook_size=17")
    mini.export(tmp_path / "larger", config, mini.tokenizer_of(config))
    with pytest.raises(
        ConfigError, match="is for 4 tokens of 16 codes per image, the tokenizer gives 4 tokens of 17 codes"
    ):
        require_pair(exported, load_tokenizer(tmp_path / "larger"))


def test_run_checkpoint_and_export_give_the_same_gpt(run, tmp_path):
    """Averaged weights by default, `model` by choice; the same samples after every way of loading."""
    from safetensors.torch import load_file

    newest = run / "checkpoints" / "step_00000003"
    mini.export(tmp_path / "export", load_gpt(run).provenance.config, load_gpt(run))
    loaded = [load_gpt(run), load_gpt(newest), load_gpt(str(tmp_path / "export")), load_gpt(run, weights="ema")]
    file = load_file(newest / "ema.safetensors")
    draws = seeded_draw(0, torch.arange(4), 4)
    tokens = [generate(gpt, torch.arange(4) % 2, draw=draws) for gpt in loaded]
    for gpt, made in zip(loaded, tokens, strict=True):
        assert all(torch.equal(value, file[name]) for name, value in gpt.state_dict().items())
        assert torch.equal(made, tokens[0])
        assert not gpt.training and not any(p.requires_grad for p in gpt.parameters())
        assert gpt.provenance.fingerprint == loaded[0].provenance.fingerprint
    raw = load_gpt(run, weights="model")
    assert (raw.provenance.weights, loaded[0].provenance.weights) == ("model", "ema")
    assert raw.provenance.fingerprint != loaded[0].provenance.fingerprint


def test_what_is_not_a_gpt_is_refused(given, run, tmp_path):
    """A tokenizer, a missing folder, a cut file: each is named."""
    with pytest.raises(ConfigError, match=rf"{given / 'tokenizer'} is not a generator: .*model"):
        load_gpt(given / "tokenizer")
    with pytest.raises(CheckpointError, match=r"generator .*nowhere is not a folder of weights"):
        load_gpt(tmp_path / "nowhere")
    gpt = load_gpt(run)
    path = mini.export(tmp_path / "export", gpt.provenance.config, gpt) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=rf"{path} cannot be read as safetensors"):
        load_gpt(tmp_path / "export")
    with pytest.raises(
        CheckpointError, match=r"does not fit this model:\n.*class_embedding\.weight: file has \(3, 16\)"
    ):
        config = gpt.provenance.config
        config.model.gpt.num_classes = 7
        load_gpt(mini.export(tmp_path / "wrong", config, gpt))
