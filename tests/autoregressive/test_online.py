"""`data.tokenize=online`: training on images that become tokens in each step, which is training on their codes."""

import math
import os
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from ranks import on_ranks
from torch import nn

from autoregressive import load_gpt
from autoregressive.extract_codes import extract_split
from autoregressive.loading import classes_of, require_pair
from autoregressive.models.registry import build_generator
from autoregressive.tokenized import RememberedTokens, Tokenization, tokens_of
from autoregressive.train import train, validate
from autoregressive.training.build import memory_model, memory_plan, tokenizer_of_plan
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.needs import training_needs
from autoregressive.training.online_codes import image_item
from autoregressive.training.sizes import with_sizes_of_present_codes
from autoregressive.training.task import GeneratorTask
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders
from engine.checkpoint.weights import num_parameters
from engine.config import differences, read_yaml
from engine.data.samples import training_item
from engine.data.sources import open_source
from engine.devices import autocast
from engine.memory_plan import Setting
from engine.messages import ConfigError, UserError
from engine.optim import OptimConfig
from engine.preflight import Preflight
from engine.run_log import read_metrics
from engine.skipped_updates import NonFiniteError
from engine.trained_model import TrainedModel
from evaluations.doctor.data import data_findings
from evaluations.fingerprint import digests, next_ids
from evaluations.workload import workloads_of
from tokenizer import load_tokenizer

PLAIN = ["data.random_crop=false", "data.flip_prob=0", "model.gpt.class_dropout_prob=0"]


@pytest.fixture(scope="module")
def tokenizer_dir(codes):
    return codes[1]


def config_of(run_dir, image_folder, tokenizer_dir, *overrides) -> GPTTrainConfig:
    return tiny.online_config(run_dir, image_folder, tokenizer_dir, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory, image_folder, tokenizer_dir, world):
    """A run of six steps, with random crops and all dropouts."""
    folder = tmp_path_factory.mktemp("online") / "run"
    train(config_of(folder, image_folder, tokenizer_dir, "ema_decay=0.9", "loop.eval_every=3"), world)
    return folder


# ------------------------------------------------------------------------------------------------ the same training
def test_it_is_the_training_on_extracted_codes(image_folder, tokenizer_dir, tmp_path, world):
    """Of center crops, bit for bit: the tokens of a step and of the validation are those that an extraction stores."""
    tokenizer = load_tokenizer(tokenizer_dir)
    data = tokenizer.provenance.config.data
    for split in ("train", "val"):
        extract_split(tokenizer, open_source(data, split), data, split, "center", tmp_path / "codes", 5, world)
    options = ["loop.eval_every=3", "model.gpt.class_dropout_prob=0"]
    train(tiny.gpt_config(tmp_path / "codes_run", tmp_path / "codes", tokenizer_dir, *options), world)
    train(config_of(tmp_path / "online_run", image_folder, tokenizer_dir, *PLAIN, *options), world)

    one, other = (digests(tmp_path / name) for name in ("codes_run", "online_run"))
    assert one == other
    numbers = [
        [[record.get(name) for name in ("loss", "val/loss", "grad_norm")] for record in read_metrics(tmp_path / name)]
        for name in ("codes_run", "online_run")
    ]
    assert numbers[0] == numbers[1]


def test_crops_are_those_of_a_tokenizers_training(image_folder, tokenizer_dir):
    """Of the same position; labels are dropped by random numbers of their own."""
    data = config_of("unused", image_folder, tokenizer_dir, "data.image_size=8").data
    source = open_source(data, "train")
    item, crop = image_item(source, data, 3, 0.5), training_item(source, data, 3)
    samples = [item(index, index + 7) for index in range(24)]
    for index, sample in enumerate(samples):
        expected = crop(index, index + 7)
        assert torch.equal(sample["images_u8"], expected["images_u8"]) and sample["labels"] == expected["labels"]
    assert len({item(0, position)["images_u8"].numpy().tobytes() for position in range(20)}) > 5
    drops = torch.tensor([item(0, position)["drop"] for position in range(400)])
    assert 0.4 < drops.float().mean() < 0.6
    never = image_item(source, data, 3, 0.0)
    assert not any(never(0, position)["drop"] for position in range(50))


def test_a_restart_is_exact(run, image_folder, tokenizer_dir, tmp_path, world):
    """From step 3: weights, EMA, moments, and every recorded loss."""
    config = config_of(tmp_path / "run", image_folder, tokenizer_dir, "ema_decay=0.9", "loop.eval_every=3")
    config.loop.save_every = 3
    train(config, world)
    shutil.rmtree(checkpoint_folders(tmp_path / "run")[-1])
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    train(config, world)
    assert digests(tmp_path / "run") == digests(run)
    losses = [[r["loss"] for r in read_metrics(folder) if "loss" in r] for folder in (run, tmp_path / "run")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_it_does_not_depend_on_processes_and_micro_batches(image_folder, tokenizer_dir, tmp_path, world):
    """Crops, flips and dropped labels belong to positions: with dropout off, the curves are equal."""
    options = ["model.gpt={token_dropout: 0, residual_dropout: 0, class_dropout_prob: 0.5}", "loop.eval_every=3"]
    options += ["data.global_batch_size=8", "optim.eps=1e-3"]

    def train_at(rank_world, name, *more):
        train(config_of(tmp_path / name, image_folder, tokenizer_dir, *options, *more), rank_world)

    train_at(world, "one")
    train_at(world, "accumulated", "loop.grad_accum=2", "data.num_workers=2")
    on_ranks(2, tmp_path / "ranks", train_at, "two")
    curves = [
        [[record.get(name) for name in ("loss", "val/loss")] for record in read_metrics(tmp_path / name)]
        for name in ("one", "accumulated", "two")
    ]
    for other in curves[1:]:
        for expected, found in zip(curves[0], other, strict=True):
            assert found == [None if value is None else pytest.approx(value, rel=1e-5) for value in expected]


# ------------------------------------------------------------------------------------------------ what others see
def test_checkpoints_name_tokenizer_and_classes(run, tokenizer_dir):
    """As those of stored codes do, so that samplers and evaluations need not know how a GPT was trained."""
    gpt = load_gpt(run)
    require_pair(gpt, load_tokenizer(tokenizer_dir))
    assert classes_of(gpt).names == ("cat", "dog")
    config = read_yaml(run / "config.yaml")
    assert config.data.image_size == 8, "the size of the crops is on record"


def test_the_records_say_how_long_tokens_took(run):
    """A share of the time beside the wait for data; validation, whose tokens are made once, is no part of it."""
    records = [record for record in read_metrics(run) if "loss" in record]
    assert all(0 < record["tokenize_share"] < 1 and 0 <= record["data_wait"] < 1 for record in records)
    assert all(record["skipped_images"] == 0 and record["model_tflops"] > 0 for record in records)


def test_fingerprint_and_doctor_read_its_images(run, image_folder):
    """The next sample ids, and what is wrong with the images of a run."""
    config = read_yaml(run / "config.yaml")
    assert len(next_ids(config, 6, 2)) == 8
    assert "tiny images" not in {finding.name for finding in data_findings(config, 100)}
    config.data.root = "nowhere"
    assert [finding.name for finding in data_findings(config, 100)] == ["missing data"]


def test_sizes_that_a_config_leaves_open_are_those_of_tokenizer_and_images(
    run, image_folder, tokenizer_dir, tmp_path, world
):
    """The same bits as with the sizes written down."""
    left_open = [f"model.gpt.{key}=null" for key in ("vocab_size", "num_tokens", "num_classes")]
    options = ["ema_decay=0.9", "loop.eval_every=3", *left_open]
    config = config_of(tmp_path / "run", image_folder, tokenizer_dir, *options)
    network = validate(with_sizes_of_present_codes(config))
    assert (network.codebook_sizes, network.num_tokens, network.num_classes) == ((16,), 4, 2)
    train(config, world)
    assert digests(tmp_path / "run") == digests(run)


def test_held_out_tokens_are_made_once(image_folder, tokenizer_dir, world, monkeypatch):
    """They are equal at every validation, and the same as those of one by one."""
    tokenizer = load_tokenizer(tokenizer_dir)
    source = open_source(config_of("unused", image_folder, tokenizer_dir).data, "val")
    held_out = RememberedTokens(source, tokenizer, world.device, skip_broken=False)
    rows = torch.arange(len(source)).numpy()
    tokens, labels = held_out.read(rows)
    monkeypatch.setattr(tokenizer, "encode", lambda images: pytest.fail("encoded again"))
    again = held_out.read(rows)
    monkeypatch.undo()
    assert torch.equal(tokens, again[0]) and labels.tolist() == list(source.labels)
    assert torch.equal(torch.cat([held_out.read(rows[i : i + 1])[0] for i in rows]), tokens)


def test_tokens_are_exact_inside_of_bf16(tokenizer_dir, world):
    """As those of an extraction, in float32."""
    tokenizer = load_tokenizer(tokenizer_dir)
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    with autocast(world.device, "bf16"):
        inside = tokens_of(tokenizer, images)
    assert torch.equal(inside, tokens_of(tokenizer, images))


def test_unreadable_images_give_way_and_are_counted(image_folder, tokenizer_dir, tmp_path, world):
    images = shutil.copytree(image_folder, tmp_path / "images")
    (images / "train" / "cat" / "003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cat/003\.png"):
        train(config_of(tmp_path / "strict", images, tokenizer_dir), world)
    train(config_of(tmp_path / "run", images, tokenizer_dir, "data.skip_broken=true"), world)
    assert read_metrics(tmp_path / "run")[-2]["skipped_images"] == 1


# ------------------------------------------------------------------------------------------------ latents
def test_an_update_on_broken_latents_is_skipped(image_folder, tokenizer_dir, world):
    """The weights stay as they were; several in a row stop the training with the cause."""
    config = config_of("unused", image_folder, tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    trained = TrainedModel(
        build_generator(config.model), OptimConfig(max_bad_steps=2), total_steps=9, world=world, ema_decay=0.9
    )
    options = {"precision": "fp32", "validation": None, "num_validation": 0, "batch_size": 4}
    task = GeneratorTask(
        trained, name="gpt", world=world, tokenization=Tokenization(tokenizer, world.device), **options
    )
    batch = {
        "images_u8": torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8),
        "labels": torch.arange(4) % 2,
        "drop": torch.zeros(4, dtype=torch.bool),
        "skipped_images": torch.zeros(4, dtype=torch.long),
    }
    assert task.train_step([batch], 0)["skipped_steps"] == 0
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    nn.init.constant_(tokenizer.quant_proj.bias, math.nan)
    for step in (1, 2):
        metrics = task.train_step([batch, batch], step)
    assert metrics["skipped_steps"] == 2 and metrics["loss"].isnan()
    assert all(torch.equal(value, before[name]) for name, value in trained.module.state_dict().items())
    with pytest.raises(NonFiniteError, match="first non-finite loss term: latents of the tokenizer"):
        task.inspect()


# ------------------------------------------------------------------------------------------------ before a start
def test_the_pre_flight_looks_for_tokenizer_and_images(image_folder, tokenizer_dir, tmp_path, world):
    """And tells at once what is missing or does not fit."""
    config = config_of(tmp_path / "run", image_folder, tokenizer_dir)
    preflight = Preflight()
    training_needs(config, validate(config), preflight)
    assert not preflight.problems
    ready = "\n".join(preflight.ready)
    for part in ("data.tokenizer: ", "(4 tokens)", "train images: ", "24 images, 2 classes", "val images: "):
        assert part in ready

    wrong = ["model.gpt={vocab_size: 17, num_classes: 3}", "data.image_size=16", f"data.root={tmp_path / 'nowhere'}"]
    config = config_of(tmp_path / "run", image_folder, tokenizer_dir, *wrong)
    preflight = Preflight()
    training_needs(config, validate(config), preflight)
    assert any("nowhere" in problem for problem in preflight.problems)
    assert any("data.image_size=16, but the tokenizer" in problem for problem in preflight.problems)
    config.data.image_size = 0
    config.data.root = str(image_folder / "train")
    preflight = Preflight()
    training_needs(config, validate(config), preflight)
    text = "\n".join(preflight.problems)
    for part in ("codebook_sizes=[17], but the tokenizer", "has [16]", "num_classes=3, but", "has 2 classes"):
        assert part in text
    with pytest.raises(ConfigError, match=r"codebook_sizes=\[17\], but the tokenizer"):
        train(config, world)
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_the_tokenizer(image_folder, tokenizer_dir):
    """Its weights, on every GPU; where it is not there, the plan says so."""
    config = config_of("unused", image_folder, tokenizer_dir)
    tokenizer, note = tokenizer_of_plan(config)
    setting = Setting("ddp", False, 1)
    alone, beside = (memory_model(config, validate(config), 8, network).state(setting) for network in (None, tokenizer))
    assert beside - alone == 4 * num_parameters(tokenizer) > 0 and note == ""

    # What encoding holds counts where it is more than the activations: here for images of 8 pixels, float32.
    model = memory_model(config, validate(config), 2, tokenizer_of_plan(config)[0])
    assert model.image_before >= 4 * 3 * 8 * 8
    assert replace(model, image_before=10**9).activations(setting) == 2 * 10**9, "of two images at a time"
    assert replace(model, image_before=0).activations(setting) == 2 * model.image.plain

    for path, said in (("nowhere", "without the tokenizer, which is not ready here: "), ("", "is empty")):
        config.data.tokenizer = path
        assert said in memory_plan(config, validate(config), 8).text


def test_an_estimate_counts_the_tokenizer(tokenizer_dir, tmp_path):
    """What encoding computes is a part of each step; the images need not be there."""
    recipe = tmp_path / "online.yaml"
    recipe.write_text(tiny.GPT.replace("data: {", "data: {tokenize: online, root: '${oc.env:NOWHERE}', "), "utf-8")
    parts = {}
    for path in (str(tokenizer_dir), "nowhere"):
        (workload,) = workloads_of([recipe], [f"data.tokenizer={path}"], 1)
        parts[path] = {part.name for part in workload.stages[0].parts}
    added = parts[str(tokenizer_dir)] - parts["nowhere"]
    assert added == {f"tokenizer's {name}" for name in ("encoder", "transformer", "quantizer")}
    assert "without the tokenizer" in workload.title


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.codes=codes"], r"data\.codes='codes' is set, but data\.tokenize=online makes codes in training"),
        (["data.name=mnist5k"], r"data\.root=.* is set, but data\.name='mnist5k' does not use it"),
        (["data.tokenize=codes"], r"data\.root=.* is set, but data\.tokenize=codes reads codes and no images"),
        (["data.tokenizer="], r"data\.tokenizer must name the tokenizer that makes the codes"),
        (["data.image_size=9"], r"data\.image_size=9, but the tokenizer .* is for 8 pixels; leave"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, message, image_folder, tokenizer_dir, tmp_path, world):
    """Before anything is written."""
    with pytest.raises(ConfigError, match=message):
        train(config_of(tmp_path / "run", image_folder, tokenizer_dir, *overrides), world)
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_how_its_tokens_are_made(run, codes, tmp_path, world):
    """Another `data.tokenize` at a resume is another run; an older run, which does not say it, reads codes."""
    shutil.copytree(run, tmp_path / "run")
    changed = tiny.gpt_config(tmp_path / "run", *codes, "ema_decay=0.9", "loop.steps=7")
    with pytest.raises(CheckpointError, match=r"data\.tokenize: checkpoint 'online', now 'codes'"):
        train(changed, world)

    older = OmegaConf.create(tiny.GPT)
    older.data.codes, older.data.tokenizer = (str(path) for path in codes)
    assert not [key for key in differences(older, changed) if key.startswith("data.")]
