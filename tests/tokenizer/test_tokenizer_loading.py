"""A trained tokenizer comes back exactly, from its folder alone; anything else is one clear error."""

import shutil
import subprocess
import sys
from pathlib import Path

import mini
import pytest
import torch
from safetensors.torch import load_file, save_file

import tokenizer.train
from autoregressive.models.registry import build_generator
from autoregressive.training.config import GPTTrainConfig
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders
from engine.checkpoint.weights import fingerprint, read_weights
from engine.config import load_config
from engine.data.images import to_float
from engine.data.sources import SOURCES
from engine.messages import ConfigError, UserError
from engine.world import World
from evaluations.digits.model import Classifier, ClassifierConfig
from tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
GPT_OPTIONS = ["model.gpt={width: 16, layers: 1, heads: 2, vocab_size: 32, num_tokens: 8, num_classes: 4}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three updates with averaged weights and a random stand-in among its networks."""
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    config = mini.tokenizer_config(
        f"loop.run_dir={folder}",
        "loop.steps=3",
        "loop.save_every=2",
        "ema_decay=0.5",
        "optim.lr=0.01",
        "loss={perceptual: efficientnet_lite0, perceptual_weight: 0.1}",
        "assets.random_stand_in=true",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SOURCES["mnist5k"], "open", lambda config, split: mini.image_source(20))
        tokenizer.train.train(config, World(0, 1, 0, torch.device("cpu")))
    return folder


@pytest.fixture
def exported(tmp_path):
    config = mini.tokenizer_config()
    return mini.export(tmp_path / "exported", config, mini.tokenizer_of(config))


def images(count: int = 5):
    return to_float(mini.random_images(count, seed=4))


def test_the_public_face_is_imported_on_demand():
    """`import tokenizer` alone does not import torch; each public name is the one of its module."""
    code = "import sys, tokenizer; early = 'torch' in sys.modules; tokenizer.Tokenizer; sys.exit(early)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for name in tokenizer.__all__:
        assert getattr(tokenizer, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = tokenizer.absent


@pytest.mark.parametrize("kind", ["ema", "model"])
def test_run_checkpoint_and_export_give_the_same_network(run, tmp_path, kind):
    """Weights bit for bit those of the file; codes and images those of a network built by hand."""
    newest = checkpoint_folders(run)[-1]
    own = mini.tokenizer_of(mini.tokenizer_config(), seed=7).eval()
    own.load_state_dict(load_file(newest / f"{kind}.safetensors"))
    export = tmp_path / "export"
    export.mkdir()
    shutil.copy(newest / "config.yaml", export)
    shutil.copy(newest / f"{kind}.safetensors", export / "model.safetensors")
    loaded = [load_tokenizer(run, weights=kind), load_tokenizer(str(newest), weights=kind), load_tokenizer(export)]
    with torch.no_grad():
        expected = own.encode(images())
        for model in loaded:
            assert all(torch.equal(v, model.state_dict()[n]) for n, v in own.state_dict().items())
            coded = model.encode(images())
            assert torch.equal(coded.indices, expected.indices) and torch.equal(coded.z_q, expected.z_q)
            assert torch.equal(model.decode_indices(coded.indices), own.decode_indices(expected.indices))
    assert len({model.provenance.fingerprint for model in loaded}) == 1


def test_provenance_says_where_a_network_came_from(run):
    """Averaged weights by default; fingerprint of the parameters; the stamp of the run; the config."""
    model = load_tokenizer(run)
    facts = model.provenance
    assert facts.path == str(run / "checkpoints" / "step_00000003")
    assert facts.weights == "ema"
    assert facts.fingerprint == fingerprint(model) != load_tokenizer(run, weights="model").provenance.fingerprint
    assert facts.stamp["weights"] == "random" and facts.stamp["random"] == ["efficientnet_lite0"]
    assert facts.stamp["networks"] == {"efficientnet_lite0": "random"}
    assert facts.config.model == mini.tokenizer_config().model
    assert facts.config.data.image_size == 16
    first = load_tokenizer(run / "checkpoints" / "step_00000002")
    assert first.provenance.fingerprint != facts.fingerprint


def test_a_loaded_network_is_ready_for_inference(exported):
    model = load_tokenizer(exported)
    assert not model.training and not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert (model.provenance.weights, model.provenance.stamp) == ("model", {})


def test_the_fingerprint_is_that_of_the_parameters(exported):
    """Usage statistics do not enter it; the smallest change of any parameter does."""
    config = mini.tokenizer_config()
    model = mini.tokenizer_of(config)
    before = fingerprint(model)
    assert load_tokenizer(exported).provenance.fingerprint == before
    model.train()(images())
    assert fingerprint(model) == before
    seen = {before}
    for parameter in list(model.parameters())[::20]:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-5
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters())[::20])


def test_networks_of_another_kind_are_refused(tmp_path):
    """A GPT or a classifier in the place of a tokenizer: the message names the folder and what it is not."""
    gpt_config = load_config(GPTTrainConfig, overrides=GPT_OPTIONS)
    gpt = mini.export(tmp_path / "gpt", gpt_config, build_generator(gpt_config.model))
    classifier = mini.export(tmp_path / "cnn", ClassifierConfig(width=4), Classifier(ClassifierConfig(width=4)))
    (classifier / "config.yaml").write_text("model: {width: 4, num_classes: 10}\n", encoding="utf-8")
    for folder in (gpt, classifier):
        with pytest.raises(ConfigError, match=rf"{folder} is not a tokenizer: .*model"):
            load_tokenizer(folder)


def test_weights_of_another_size_are_refused_with_the_first_differences(exported):
    """Missing, unexpected and misshapen tensors are named with file and shapes; nothing loads partly."""
    state = load_file(exported / "model.safetensors")
    del state["quant_proj.bias"]
    state["stranger"] = torch.zeros(1)
    state["quantizer.codebook"] = torch.zeros(7, 4)
    save_file(state, exported / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(exported)
    for part in (str(exported), "missing: quant_proj.bias", "unexpected: stranger", "(7, 4), model has (32, 4)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_damaged_file_is_named(exported, keep):
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{path} cannot be read as safetensors"):
        load_tokenizer(exported)


def test_one_wrong_byte_in_a_checkpoint_is_found(run, tmp_path):
    """The manifest has the hash of the file."""
    copied = shutil.copytree(checkpoint_folders(run)[-1], tmp_path / "copied")
    path = copied / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path} is damaged"):
        load_tokenizer(copied)
    assert load_tokenizer(copied, weights="model").provenance.weights == "model"
    assert read_weights(path)  # as a safetensors file it is whole: only the hash tells


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder of weights"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors nor a finished"),
        (lambda folder: (folder / "config.yaml").unlink(), "is not a tokenizer: .*config.yaml does not exist"),
        (lambda folder: (folder / "config.yaml").write_text("model: ["), "is not a tokenizer: .*not readable YAML"),
        (lambda folder: (folder / "config.yaml").write_text("model: {name: vit}"), "model.name='vit' must be one of"),
    ],
)
def test_a_folder_that_lacks_something_is_named(exported, spoil, message):
    spoil(exported)
    with pytest.raises(UserError, match=message):
        load_tokenizer(exported)


@pytest.mark.parametrize(("weights", "message"), [("ema", "has no ema.safetensors"), ("best", "choose one of: auto")])
def test_weights_that_are_not_there_are_named(exported, weights, message):
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(exported, weights=weights)


def test_the_config_of_a_run_loads_where_its_data_cannot_be_found(exported):
    """Data folders of the training machine need not exist, and new sections of a config do not matter."""
    text = (exported / "config.yaml").read_text(encoding="utf-8").replace("name: mnist5k", "name: folder")
    text = text.replace("root: ''", "root: /not/here") + "future: {answer: 42}\n"
    (exported / "config.yaml").write_text(text, encoding="utf-8")
    assert load_tokenizer(exported).provenance.config.data.root == "/not/here"
    assert load_tokenizer(exported).provenance.stamp == {}
