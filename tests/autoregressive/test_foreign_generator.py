"""A generator that is no GPT and no transformer: one file and one registry entry are enough for every entry."""

from dataclasses import dataclass, field

import mini
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import autoregressive.convert
import autoregressive.sample
import autoregressive.train
from autoregressive import generate, load_gpt
from autoregressive.guidance import UNGUIDED
from autoregressive.loading import require_pair
from autoregressive.models.base import Generator
from autoregressive.models.registry import GENERATORS
from autoregressive.sampling import greedy, probabilities, seeded_draw
from engine.checkpoint.manifest import checkpoint_folders
from engine.messages import ConfigError
from engine.run_log import read_metrics
from evaluations import val_loss
from evaluations.results import read_result
from tokenizer import load_tokenizer


@dataclass(kw_only=True, slots=True)
class BagConfig:
    """The section `model.bag`."""

    codebook_sizes: list[int] = field(default_factory=lambda: [16])
    num_tokens: int = 4
    num_classes: int = 2


class Bag(Generator):
    """Every token is drawn alone, from a table of logits per class and position."""

    config_class = BagConfig
    class_dropout_prob = 0.1
    num_layers = 1

    def __init__(self, config: BagConfig) -> None:
        super().__init__()
        self.num_classes, self.num_tokens = config.num_classes, config.num_tokens
        self.codebook_sizes = tuple(config.codebook_sizes)
        self.table = nn.Parameter(torch.zeros(self.num_classes + 1, self.num_tokens, self.codebook_sizes[0]))

    def forward(self, labels, tokens, drop=None):
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        return {"logits": self.table[labels]}

    def loss(self, outputs, tokens):
        return F.cross_entropy(outputs["logits"].flatten(0, 1), tokens.flatten())

    def image_losses(self, outputs, tokens):
        return F.cross_entropy(outputs["logits"].mT, tokens, reduction="none").mean(1)

    @torch.inference_mode()
    def sample(self, labels, *, draw, guidance=UNGUIDED, temperature=1.0, top_k=0, top_p=1.0):
        conditional, unconditional = self.table[labels], self.table[torch.full_like(labels, self.null_class)]
        tokens = []
        for t, scale in enumerate(guidance.scales(self.num_tokens)):
            logits = unconditional[:, t] + (conditional[:, t] - unconditional[:, t]) * scale
            tokens.append(draw(probabilities(logits, temperature, top_k, top_p), t))
        return torch.stack(tokens, dim=1)

    def features(self, labels, tokens, layer):
        return self.table[labels]


@pytest.fixture
def bag(monkeypatch):
    """What a plug-in does."""
    monkeypatch.setitem(GENERATORS, "bag", Bag)


@pytest.fixture
def run(bag, tmp_path, image_folder, world):
    """A tokenizer, codes, and a trained bag."""
    config = tiny.tokenizer_config(tmp_path / "unused", image_folder)
    mini.export(tmp_path / "tokenizer", config, mini.tokenizer_of(config))
    tiny.write_codes(tmp_path / "codes", load_tokenizer(tmp_path / "tokenizer").provenance.fingerprint)
    options = ["model={name: bag, gpt: null, bag: {num_classes: 2}}", "ema_decay=0.5", "loop.steps=60", "optim.lr=0.1"]
    options += ["validation.preview_classes=2", "data.global_batch_size=12"]
    config = tiny.gpt_config(tmp_path / "bag", tmp_path / "codes", tmp_path / "tokenizer", *options)
    autoregressive.train.train(config, world)
    return tmp_path


def test_it_trains_loads_and_samples(run):
    """Under its own name in checkpoints; random numbers and settings are those of all generators."""
    losses = [record["loss"] for record in read_metrics(run / "bag") if "loss" in record]
    assert losses[-1] < losses[0] - 0.2
    newest = checkpoint_folders(run / "bag")[-1]
    assert (newest / "ema.safetensors").is_file() and list((run / "bag").rglob("*.png")), "weights and sample grids"

    generator, tokenizer = load_gpt(run / "bag"), load_tokenizer(run / "tokenizer")
    assert isinstance(generator, Bag) and generator.provenance.config.model.name == "bag"
    require_pair(generator, tokenizer)
    draw = seeded_draw(0, torch.arange(3), generator.num_draws)
    tokens = generate(generator, torch.tensor([0, 1, 1]), draw=draw, temperature=2.0)
    assert tokens.shape == (3, *generator.token_shape)
    assert torch.equal(generate(generator, torch.tensor([0]), draw=greedy)[0], generator.table[0].argmax(-1))


def test_entries_take_it(run, entry):
    """Images of classes, and the validation loss."""
    pair = ["--vq-ckpt", run / "tokenizer", "--gpt-ckpt", run / "bag", "--device", "cpu"]
    code, _, err = entry(autoregressive.sample.main, *pair, "--qual-num", 4, "--sample-dir", run / "samples")
    assert code == 0, err
    assert len(list((run / "samples").rglob("*.png"))) == 4 + 2 + 1
    code, _, err = entry(val_loss.main, *pair, "--code-path", run / "codes", "--output", run / "loss.json")
    assert code == 0, err
    assert read_result(run / "loss.json")["metrics"]["val_loss"] > 0


def test_what_it_has_not_is_named(run, entry, world):
    """A published layout; and codes of other sizes than its own."""
    code, _, err = entry(autoregressive.convert.main, "--gpt-ckpt", run / "bag", "--output", run / "bag.pt")
    assert code == 2 and "model.name=bag: no published layout is known for it" in err
    assert "known for: adaln_gpt, gpt" in err
    options = ["model={name: bag, gpt: null, bag: {num_classes: 3, codebook_sizes: [8]}}"]
    config = tiny.gpt_config(run / "other", run / "codes", run / "tokenizer", *options)
    with pytest.raises(ConfigError) as caught:
        autoregressive.train.train(config, world)
    for part in ("model.bag has codebook_sizes=[8]", "has [16]", "model.bag has num_classes=3", "has 2"):
        assert part in str(caught.value)


def test_an_unknown_generator_is_named():
    with pytest.raises(ConfigError, match=r"model\.name='nobody' is not known; choose one of: adaln_gpt, gpt"):
        tiny.gpt_config("run", "codes", "tokenizer", "model.name=nobody")
