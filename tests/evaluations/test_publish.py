"""evaluations.publish: what is written says enough to be used, and nothing of who trained it and where."""

import json
import struct

import pytest
import tiny
import torch
from loopback_hub import TOKEN, loopback_hub, use_hub
from PIL import Image, PngImagePlugin

import autoregressive.train
import tokenizer.train
from autoregressive import GPT, generate
from engine.atomic_file import write_atomic
from engine.checkpoint.manifest import file_sha256
from engine.json_text import to_json
from evaluations import publish
from evaluations.results import write_result
from tokenizer import Tokenizer

MARKERS = ("markerfolder", "markeruser", "markerhost", "markerproject")
LICENSED = ["--license", "cc-by-4.0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, image_folder, world):
    """A pipeline of a tokenizer and a GPT, trained in a folder and from data with marker names, and their results."""
    root = tmp_path_factory.mktemp("markerfolder") / "markeruser"
    tokenizer_config = tiny.tokenizer_config(root / "tokenizer", image_folder, "loop.steps=2")
    tokenizer.train.train(tokenizer_config, world)
    trained = Tokenizer.from_pretrained(root / "tokenizer")
    tiny.write_codes(root / "codes", trained.provenance.fingerprint)
    gpt_config = tiny.gpt_config(root / "gpt", root / "codes", root / "tokenizer", "loop.steps=1", "ema_decay=0.5")
    autoregressive.train.train(gpt_config, world)

    # One result of each, and one of other weights.
    facts = {"tokenizer": trained.provenance.facts(), "data": str(root / "data"), "num_images": 6, "crop": "center"}
    of_gpt = {**facts, "gpt": GPT.from_pretrained(root / "gpt").provenance.facts(), "file": str(root / "x.npz")}
    write_result(root / "evaluations" / "reconstruction.json", {"psnr": 20.25, "codebook_usage": 0.5}, facts)
    write_result(root / "evaluations" / "val_loss.json", {"val_loss": 1.5, "val_loss_stderr": 0.25}, of_gpt)
    other = {**facts, "tokenizer": {**facts["tokenizer"], "fingerprint": "0" * 64}}
    write_result(root / "evaluations" / "other.json", {"psnr": 99.0}, other)
    return root


@pytest.fixture
def markers(monkeypatch, tmp_path):
    """The user and the host have marker names."""
    home = tmp_path / "markeruser"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "markeruser")
    monkeypatch.setenv("HOSTNAME", "markerhost")


def marked_picture(folder):
    """A PNG with a marker in a text chunk."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Source", "markerfolder/markeruser")
    path = folder / "markerproject.png"
    Image.effect_noise((8, 8), 50).convert("RGB").save(path, pnginfo=info)
    assert b"markeruser" in path.read_bytes()
    return path


def header_of(path):
    (size,) = struct.unpack("<Q", path.read_bytes()[:8])
    return json.loads(path.read_bytes()[8 : 8 + size])


# ------------------------------------------------------------------------------------------------ to a folder
def test_a_publication_in_a_folder_is_whole_and_names_no_place(run, entry, tmp_path, markers):
    target = tmp_path / "out"
    code, _, err = entry(
        publish.main, run, "--to", f"folder:{target}", *LICENSED, "--picture", marked_picture(tmp_path)
    )
    assert code == 0, err
    files = {str(path.relative_to(target)): path for path in target.rglob("*") if path.is_file()}
    networks = [f"{part}/{name}" for part in ("gpt", "tokenizer") for name in ("config.yaml", "model.safetensors")]
    assert sorted(files) == ["README.md", *networks[:2], "picture.png", *networks[2:]]
    for name, path in files.items():
        content = path.read_bytes()
        assert not any(marker.encode() in content for marker in MARKERS), name
        assert str(run).encode() not in content and b"/tmp/" not in content, name

    # It loads, and does what the run does.
    trained, shared = Tokenizer.from_pretrained(run), Tokenizer.from_pretrained(target)
    assert shared.provenance.fingerprint == trained.provenance.fingerprint
    gpt = GPT.from_pretrained(target)
    assert gpt.provenance.stamp["tokenizer_fingerprint"] == shared.provenance.fingerprint
    assert torch.equal(generate(gpt, ["dog"], seed=1), generate(GPT.from_pretrained(run), 1, seed=1))
    assert header_of(files["gpt/model.safetensors"])["__metadata__"].keys() == {"stamp"}

    # The config is a recipe: it fits the trainer.
    code, _, err = entry(
        tokenizer.train.main, "--config", files["tokenizer/config.yaml"], "data.root=x", "data.val_root=y", "--dry-run"
    )
    assert code == 0, err


def test_the_card_says_what_it_is_and_how_it_was_measured(run, entry, tmp_path):
    code, _, err = entry(publish.main, run, "--to", tmp_path / "out", *LICENSED, "--data-text", "Cats | <b>dogs</b>")
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "license: cc-by-4.0" in card
    for text in (
        "| tokens per image | 4 |", "| codes per token | 16 |", "2: cat, dog", "raw, after 2 updates",
        "averaged \\(EMA\\), after 1 updates", "24 in 2 classes", "Cats \\| &lt;b&gt;dogs&lt;/b&gt;",
        "| PSNR, dB | 20.25 |", "| codebook usage | 50.0% |", "| metric | value | standard error |",
        "| validation loss of the GPT, nats | 1.5 | 0.25 |", "crop: center", 'Tokenizer.from_pretrained("FOLDER")',
        file_sha256(tmp_path / "out" / "gpt" / "model.safetensors"),
    ):  # fmt: skip
        assert text in card, text
    assert "99" not in card.partition("## Results")[2].partition("<details>")[0]  # of other weights
    assert "result other is left out: it was measured with other weights" in err


def test_a_single_network_and_error_columns_of_any_name(run, entry, tmp_path):
    stored = json.loads((run / "evaluations" / "reconstruction.json").read_text())
    stored["interval_95"] = {"psnr": [20.0, 20.5]}
    write_atomic(tmp_path / "r.json", to_json(stored))
    code, _, err = entry(publish.main, run / "tokenizer", "--to", tmp_path / "out", "--results", tmp_path / "r.json")
    assert code == 0 and "no license is stated" in err, err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| metric | value | interval 95 |" in card and "| PSNR, dB | 20.25 | 20 to 20.5 |" in card
    assert "The publisher has not stated a license" in card and "GPT" not in card
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
    ]


def test_what_may_not_be_published_is_refused(run, entry, tmp_path):
    (tmp_path / "bare.json").write_text('{"metrics": {"psnr": 30.0}, "protocol": {}}')
    (tmp_path / "none.json").write_text('{"psnr": 30.0}')
    out = ["--to", tmp_path / "out"]
    for arguments, message in (
        (
            [run, *out, "--results", tmp_path / "bare.json"],
            "has no protocol stamp that says which weights were measured",
        ),
        ([run, *out, "--results", tmp_path / "none.json"], "is not a result of an evaluation"),
        (
            [run, *out, "--results", run / "evaluations" / "other.json"],
            "was measured with other weights (0000000000000000)",
        ),
        ([run, *out, "--data-text", "see /home/someone/pictures"], "README.md would tell '/home/someone/pictures'"),
        ([run, *out, "--license", "MIT License"], "must be a name of SPDX in lower case"),
        ([tmp_path / "missing", *out], "is not a folder of weights"),
        ([run / "evaluations", *out], "holds neither model.safetensors nor a finished checkpoint"),
        (["hf-hub:a/b", *out], "is on the hub already; name a folder here"),
    ):
        code, _, err = entry(publish.main, *arguments)
        assert code == 2 and message in err and "Traceback" not in err, (message, err)
    assert not (tmp_path / "out").exists()


def test_files_that_are_there_stay_unless_they_may_be_replaced(run, entry, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "README.md").write_text("mine")
    (target / "notes.txt").write_text("mine too")
    code, _, err = entry(publish.main, run / "tokenizer", "--to", target, "--check")
    assert code == 2 and "has README.md already; --replace replaces files" in err
    code, _, err = entry(publish.main, run / "tokenizer", "--to", target, "--replace")
    assert code == 0, err
    assert (target / "README.md").read_text() != "mine" and (target / "notes.txt").read_text() == "mine too"
    (target / "ema.safetensors").write_text("other weights")
    code, _, err = entry(publish.main, run / "tokenizer", "--to", target, "--replace")
    assert code == 2 and "holds ema.safetensors, which would be read in the place of what is published" in err


# ------------------------------------------------------------------------------------------------ to the hub
def test_publish_and_pull_give_the_same_bytes(run, entry, tmp_path, monkeypatch, markers):
    with loopback_hub() as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        code, out, err = entry(publish.main, run, "--to", "hf-hub:lab/net", "--check")
        assert code == 0 and "--to: hf-hub:lab/net (will be made, private)" in out and not hub.repos, err
        code, out, err = entry(publish.main, run, "--to", "hf-hub:lab/net", *LICENSED)
        assert code == 0, err
        repo = hub.repos["lab/net"]
        commit, files = repo.commits[-1]
        assert repo.is_private and f"published to hf-hub:lab/net@{commit}" in err

        # The token went to the hub by the library, and nowhere else.
        assert hub.tokens == {TOKEN} and TOKEN not in out + err
        contents = b"".join(hub.contents[digest] for digest in files.values())
        assert not any(marker.encode() in contents for marker in (*MARKERS, TOKEN))
        assert "# net" in hub.contents[files["README.md"]].decode()

        # What comes back is what was there.
        loaded = Tokenizer.from_pretrained("hf-hub:lab/net")
        assert loaded.provenance.fingerprint == Tokenizer.from_pretrained(run).provenance.fingerprint
        assert loaded.provenance.stamp["hub"]["sha256"]["model.safetensors"] == files["tokenizer/model.safetensors"]

        # Nothing is replaced unasked, and nothing is deleted.
        code, _, err = entry(publish.main, run, "--to", "hf-hub:lab/net")
        assert code == 2 and "has README.md, gpt/config.yaml, gpt/model.safetensors already" in err
        code, _, err = entry(publish.main, run, "--to", "hf-hub:lab/net", "--replace", "--title", "Another")
        assert code == 0 and "# Another" in hub.contents[repo.commits[-1][1]["README.md"]].decode(), err
        assert len(repo.commits) == 3 and repo.commits[-1][1].keys() == files.keys()

        # Offline nothing is tried; without the right to write the hub refuses.
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
        hub.seed("lab/public", {".gitattributes": b"x"})
        code, _, err = entry(publish.main, run, "--to", "hf-hub:lab/public")
        assert code == 2 and "the hub refuses" in err and "a token that may write" in err and "hf_reader" not in err
        use_hub(hub, tmp_path / "cache", monkeypatch, offline=True)
        code, _, err = entry(publish.main, run, "--to", "hf-hub:lab/net", "--check")
        assert code == 2 and "HF_HUB_OFFLINE forbids requests" in err
