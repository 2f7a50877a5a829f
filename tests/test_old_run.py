"""Runs, codes and results of an older program, with the old spellings of keys and values, are read and continued.

`goldens/old_run/runs.tar.xz` was made at commit d22b545 from the two YAMLs in it: a tokenizer and a GPT of three steps,
the codes between them, and three results. Logs and cached statistics were left out.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import autoregressive.train
import evaluations.compare
import tokenizer.train
from autoregressive.codes import CodeStore
from autoregressive.loading import load_gpt, require_pair
from autoregressive.views import VIEWS
from engine.aliases import current_manifest, current_result
from engine.checkpoint.manifest import ORDER_KEY, newest_checkpoint, read_manifest
from engine.config import flatten, read_yaml
from engine.data.order import FIRST_ORDER
from evaluations.results import read_result
from tokenizer import load_tokenizer

ARCHIVE = Path(__file__).parent / "goldens" / "old_run" / "runs.tar.xz"
RENAMED = ("centre", "memorised", "factorised", "streams")


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The folder of the archive, to which its paths are relative."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_archive_has_the_old_spellings(old_run):
    """Else the tests below would show nothing; and it stays small."""
    texts = [path.read_text() for path in old_run.rglob("*") if path.suffix in (".yaml", ".json")]
    assert all(any(word in text for text in texts) for word in (*RENAMED, "base_channels"))
    assert ARCHIVE.stat().st_size < 1_000_000


def test_networks_and_codes_are_read(old_run):
    """The tokenizer is the one that made the codes, the GPT was trained on them."""
    network, gpt = load_tokenizer("tokenizer"), load_gpt("gpt")
    for split, size in (("train", 4500), ("val", 500)):
        store = CodeStore("codes", split)
        store.require(network.code_maker(), "tokenizer")
        assert store.manifest.shape == (size, 1, 4, 2) and store.tokens(0, 0).shape == (4, 2)
        assert VIEWS[store.manifest.views].center == 0
    require_pair(gpt, network)


def test_the_tokenizer_run_is_continued_under_new_names(old_run, entry):
    """With its YAML as it was; what the run folder then says has the present names."""
    code, _, err = entry(tokenizer.train.main, "--config", "tokenizer.yaml", "loop.steps=5")
    assert code == 0 and "resumed from step 3 of 5" in err
    assert "config changed since the checkpoint: loop.steps: 3 -> 5" in err and err.count("config changed") == 1
    saved = flatten(read_yaml("tokenizer/config.yaml"))
    assert saved["loss.discriminator.patchgan.base_channels"] == 4
    assert saved["model.quantizer.gq.entropy_form"] == "factorized"
    assert "loss.discriminator.base_channels" not in saved


def test_a_continued_run_keeps_the_order_of_its_samples(old_run, entry, monkeypatch):
    """Step 4 and 5 read the images of the table that the older program shuffled; the new checkpoint says so."""
    seen, item_of = [], tokenizer.train.training_item

    def noting_item(source, *args):
        item = item_of(source, *args)
        seen.append(len(source))
        return lambda index, position: (seen.append(index), item(index, position))[1]

    monkeypatch.setattr(tokenizer.train, "training_item", noting_item)
    config = read_yaml("tokenizer/config.yaml")
    assert entry(tokenizer.train.main, "--config", "tokenizer.yaml", "loop.steps=5")[0] == 0
    count, batch = seen[0], config.data.global_batch_size
    table = np.random.default_rng([config.loop.seed, 0]).permutation(count)
    assert seen[1:] == table[3 * batch : 5 * batch].tolist()
    manifest = read_manifest(newest_checkpoint(Path("tokenizer")))
    assert manifest["step"] == 5 and manifest[ORDER_KEY] == FIRST_ORDER


def test_the_gpt_run_is_continued(old_run, entry):
    code, _, err = entry(autoregressive.train.main, "--config", "gpt.yaml", "loop.steps=5")
    assert code == 0 and "resumed from step 3 of 5" in err
    assert "config changed since the checkpoint: loop.steps: 3 -> 5" in err and err.count("config changed") == 1


def test_an_old_override_means_the_new_key(old_run, entry):
    code, out, _ = entry(
        tokenizer.train.main, "--config", "tokenizer.yaml", "loss.discriminator.base_channels=8", "--print-config"
    )
    assert code == 0 and "base_channels: 8" in out
    code, out, _ = entry(autoregressive.train.main, "--config", "gpt.yaml", "model.width=16", "--print-config")
    assert code == 0 and "width: 16" in out


@pytest.mark.parametrize("name", ["reconstruction", "generation", "val_loss"])
def test_results_are_read(old_run, name, entry):
    """By the reader of results, and by a comparison; no old word is left."""
    path = old_run / "results" / f"{name}.json"
    assert read_result(path)["metrics"]
    text = json.dumps(current_result(json.loads(path.read_text())))
    assert not any(word in text for word in RENAMED)
    assert entry(evaluations.compare.main, path, path)[0] == 0


def test_manifests_of_codes_get_present_names(old_run):
    for path in Path("codes").rglob("manifest.json"):
        manifest = current_manifest(json.loads(path.read_text()))
        assert (manifest["codebook_sizes"], manifest["views"]) == ([4, 4], "center")
