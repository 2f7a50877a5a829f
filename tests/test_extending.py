"""Every worked file of docs/extending.md does what the page says: it is copied out of the page, loaded and used."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from worked_files import FILES, PAGE, REGISTRIES, restored_registries, write_file

import autoregressive.train
import tokenizer.train
from autoregressive import load_gpt
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.sampling import seeded_draw
from engine import plugins
from engine.data.sources import kind_of, open_path
from engine.messages import ConfigError, UserError
from engine.run_log import read_metrics
from evaluations import compare, reconstruction
from evaluations.results import read_result
from tokenizer import load_tokenizer
from tokenizer.models.registry import QUANTIZERS


@pytest.fixture
def write(tmp_path):
    """`write(name)` copies a file out of the page and returns its path; registries are as before afterwards."""
    with restored_registries():
        yield lambda name: write_file(name, tmp_path)


@pytest.fixture
def load(write):
    """`load(name)` copies a file out of the page and imports it as `--plugin` does."""

    def load_file(name: str) -> Path:
        path = write(name)
        plugins.load([str(path)])
        return path

    return load_file


def train_tokenizer(run: Path, images: Path, world, *overrides: str):
    """Trains a tiny tokenizer; the losses of its last step."""
    tokenizer.train.train(tiny.tokenizer_config(run, images, *overrides), world)
    return [record for record in read_metrics(run) if "loss" in record][-1]


def test_the_page_has_a_file_for_every_registry():
    registered = re.findall(r'^(\w+)\["\w+"\] = ', "\n".join(FILES.values()), re.MULTILINE)
    assert sorted(registered) == sorted(REGISTRIES) and len(FILES) == len(REGISTRIES)


def test_a_quantizer_named_in_a_yaml_trains_by_command(write, entry, tmp_path, image_folder):
    """The path is relative to the YAML; the run stamps the plug-in, and a loader without it says what to add."""
    write("random_codebook.py")
    tree = OmegaConf.create(tiny.TOKENIZER)
    tree.plugins = ["random_codebook.py"]
    tree.model.quantizer = {"name": "random_codebook", "random_codebook": {"codebook_size": 16, "codebook_dim": 4}}
    OmegaConf.save(tree, tmp_path / "tiny.yaml")
    overrides = [*tiny.folder_data(image_folder), f"loop.run_dir={tmp_path / 'run'}"]
    code, _, error = entry(tokenizer.train.main, "--config", tmp_path / "tiny.yaml", *overrides)
    assert code == 0, error

    record = [record for record in read_metrics(tmp_path / "run") if "commitment" in record][-1]
    assert {"commitment", "codebook_usage"} <= record.keys() and not {"codebook", "entropy"} & record.keys()
    trained = load_tokenizer(tmp_path / "run")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.inference_mode():
        encoded = trained.encode(images)
        torch.testing.assert_close(trained.quantizer.decode_indices(encoded.indices), encoded.z_q)

    # Without the plug-in.
    del QUANTIZERS["random_codebook"]
    plugins._loaded.clear()
    with pytest.raises(ConfigError, match=r"add --plugin .*random_codebook\.py"):
        load_tokenizer(tmp_path / "run")


def test_the_shown_command_passes_all_checks(write, entry, tmp_path, monkeypatch):
    """The first command of the page, as a dry run, in a folder that holds the file."""
    write("random_codebook.py")
    page = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"python -m tokenizer\.train (.*)", page)
    arguments = command.replace("configs/", f"{PAGE.parents[1]}/configs/").split()
    monkeypatch.chdir(tmp_path)
    code, out, error = entry(tokenizer.train.main, *arguments, "--dry-run")
    assert code == 0 and "the config is valid" in out, error


def test_a_tokenizer_trains_and_is_probed(load, tmp_path, image_folder, world):
    """Its codes decode to its own reconstruction, and every layer of both feature sources can be read."""
    load("patch_tokenizer.py")
    section = "{patch: 4, width: 16, layers: 2, heads: 2}"
    model = f"model={{name: patches, hybrid: null, patches: {section}, quantizer: {{vq: {{codebook_size: 16}}}}}}"
    train_tokenizer(tmp_path / "run", image_folder, world, model)
    trained = load_tokenizer(tmp_path / "run")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.inference_mode():
        decoded = trained.decode_indices(trained.tokenize(images))
        torch.testing.assert_close(decoded, trained(images).reconstructions, atol=1e-4, rtol=1e-4)
    for source in trained.feature_sources().values():
        layers = [source.read(images, layer) for layer in (1, 2)]
        assert all(tokens.shape == (2, 4, 16) for tokens in layers) and not torch.equal(*layers)


def test_a_discriminator_trains(load, tmp_path, image_folder, world):
    load("two_scale.py")
    section = "{name: two_scale, start_step: 2, two_scale: {base_channels: 4}}"
    record = train_tokenizer(tmp_path / "run", image_folder, world, f"loss.discriminator={section}")
    assert record["discriminator"] > 0 and "adversarial" in record


def test_a_teacher_trains(load, tmp_path, image_folder, world):
    """Its width must be that of the semantic head."""
    load("pixel_teacher.py")
    semantic = ["semantic.teacher=pixels", "model.hybrid.semantic_layer=1"]
    record = train_tokenizer(tmp_path / "run", image_folder, world, *semantic, "model.hybrid.semantic_dim=48")
    assert -1 <= record["semantic"] <= 1
    with pytest.raises(ConfigError, match="pixels has 48 channels"):
        tokenizer.train.validate(tiny.tokenizer_config(tmp_path / "other", image_folder, *semantic))


def test_a_generator_trains_validates_and_samples(load, tmp_path, image_folder, world):
    """A sample does not depend on its batch."""
    load("masked.py")
    train_tokenizer(tmp_path / "tokenizer", image_folder, world)
    trained = load_tokenizer(tmp_path / "tokenizer")
    tiny.write_codes(tmp_path / "codes", trained.provenance.fingerprint)
    section = "{codebook_size: 16, num_tokens: 4, num_classes: 2, width: 16, layers: 2, heads: 2, passes: 3}"
    model = f"model={{name: masked, gpt: null, masked: {section}}}"
    config = tiny.gpt_config(tmp_path / "run", tmp_path / "codes", tmp_path / "tokenizer", model, "loop.steps=3")
    autoregressive.train.train(config, world)
    assert 0 < read_metrics(tmp_path / "run")[-1]["val/loss"] < 10

    generator = load_gpt(tmp_path / "run")
    labels = torch.tensor([0, 1, 1])
    guidance = Guidance(scale=1.5)
    tokens = generate(generator, labels, draw=seeded_draw(0, torch.arange(3), 4), guidance=guidance)
    alone = generate(generator, labels[2:], draw=seeded_draw(0, torch.tensor([2]), 4), guidance=guidance)
    assert tokens.shape == (3, 4) and tokens.max() < 16
    assert torch.equal(tokens[2:], alone)
    with torch.inference_mode():
        assert generator.features(labels, tokens, 1).shape == (3, 4, 16)


def test_a_metric_is_computed_on_request_and_ranked(write, entry, tmp_path, image_folder, world):
    path = write("edge_error.py")
    results = []
    for seed in (0, 1):
        train_tokenizer(tmp_path / f"run_{seed}", image_folder, world, f"loop.seed={seed}")
        results.append(tmp_path / f"{seed}.json")
        flags = ["--vq-ckpt", tmp_path / f"run_{seed}", "--val-path", image_folder / "val", "--extractor", "none"]
        flags += ["--device", "cpu", "--plugin", path, "--metrics", "edge_error", "--output", results[-1]]
        code, _, error = entry(reconstruction.main, *flags)
        assert code == 0, error
        metrics = read_result(results[-1])["metrics"]
        assert metrics["edge_error_low"] < metrics["edge_error"] < metrics["edge_error_high"]
        assert metrics["edge_error_se"] > 0
    code, out, error = entry(compare.main, "--plugin", path, *results)
    assert code == 0 and re.search(r"edge_error .*\*", out), out + error


def test_a_source_trains_and_is_recognized(load, tmp_path, world):
    """Broken files are errors that name the key."""
    load("npz_source.py")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images = rng.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(8) % 2)
    data = ["data.name=npz", f"data.root={tmp_path / 'train.npz'}", f"data.val_root={tmp_path / 'val.npz'}"]
    config = tiny.tokenizer_config(tmp_path / "run", tmp_path, *data)
    tokenizer.train.train(config, world)
    assert "val/psnr" in read_metrics(tmp_path / "run")[-1]
    assert kind_of(tmp_path / "val.npz") == "npz" and len(open_path(tmp_path / "val.npz", "--data-path")) == 8
    (tmp_path / "broken.npz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"--data-path=.*broken\.npz must be an npz file"):
        open_path(tmp_path / "broken.npz", "--data-path")
