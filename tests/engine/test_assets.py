"""engine/assets.py: pretrained weights come from where the user put them, or not at all."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from engine.assets import ASSETS, Asset, AssetError, AssetsConfig, allow_download, read_state, resolve, seeded
from engine.checkpoint.manifest import file_sha256
from engine.config import load_config
from engine.messages import ConfigError, UserError
from tokenizer.frozen.lite0 import lite0_features
from tokenizer.training.config import TokenizerTrainConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of weights with one file, the asset `known` that describes it, and no permission to download."""
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "known.pth")
    digest = file_sha256(tmp_path / "known.pth")
    monkeypatch.setitem(ASSETS, "known", Asset("known.pth", digest[:8], "https://example.org/known.pth"))
    monkeypatch.setitem(ASSETS, "other", Asset("known.pth", "00000000", "https://example.org/known.pth"))
    monkeypatch.setitem(ASSETS, "unrecorded", Asset("known.pth", "", "https://example.org/known.pth"))
    monkeypatch.setitem(ASSETS, "absent", Asset("absent.pth", "12345678", "https://example.org/absent.pth"))
    monkeypatch.delenv("ALLOW_DOWNLOAD", raising=False)
    return tmp_path


def test_a_known_file_is_taken_and_stamped(folder):
    """The stamp is the file's name with its full hash; it goes into checkpoints and results."""
    found = resolve("known", AssetsConfig(pretrained_dir=str(folder)))
    assert found.path == folder / "known.pth" and not found.random
    assert found.stamp == f"known.pth sha256:{file_sha256(folder / 'known.pth')}"
    assert torch.equal(read_state(found.path)["weight"], torch.arange(3.0))


def test_a_missing_file_is_named_with_place_and_source(folder):
    """Everything that a user needs: file, hash, folder, variable, address, and the way to allow a download."""
    with pytest.raises(AssetError) as caught:
        resolve("absent", AssetsConfig(pretrained_dir=str(folder)))
    for part in ("absent.pth", "12345678", str(folder), "PRETRAINED_DIR", "https://example.org/absent.pth"):
        assert part in str(caught.value)
    assert "ALLOW_DOWNLOAD=1" in str(caught.value)


def test_a_download_needs_permission(folder, monkeypatch):
    """Only ALLOW_DOWNLOAD=1 hands a missing file over to its library; a file that is there is used anyway."""
    for value, allowed in (("0", False), ("", False), ("yes", False), ("1", True)):
        monkeypatch.setenv("ALLOW_DOWNLOAD", value)
        assert allow_download() == allowed
    config = AssetsConfig(pretrained_dir=str(folder))
    assert resolve("absent", config).stamp == "download"
    assert resolve("known", config).path is not None


def test_another_hash_is_refused_unless_this_file_is_allowed(folder, caplog):
    """A file under the right name with other bytes; the message shows both hashes and the option. An exception is for
    one network: it does not lift the check of any other file."""
    digest = file_sha256(folder / "known.pth")
    for allowed in ([], ["vgg16", "unrecorded"]):
        with pytest.raises(AssetError) as caught:
            resolve("other", AssetsConfig(pretrained_dir=str(folder), allow_unknown=allowed))
        message = str(caught.value)
        assert "instead of 00000000" in message and digest in message
        assert "assets.allow_unknown=[other]" in message and "--allow-unknown-weights other" in message
    found = resolve("other", AssetsConfig(pretrained_dir=str(folder), allow_unknown=["other"]))
    assert found.stamp == f"known.pth sha256:{digest}"
    assert "other:" in caplog.text and "assets.allow_unknown" in caplog.text


def test_a_file_without_a_hash_on_record_is_taken_and_stamped(folder):
    """Its own hash goes into the stamp. DINOv2 is such a file, and the README's first ImageNet command needs it."""
    found = resolve("unrecorded", AssetsConfig(pretrained_dir=str(folder)))
    assert found.stamp == f"known.pth sha256:{file_sha256(folder / 'known.pth')}" and not found.random
    teacher = folder / ASSETS["dinov2_b"].file
    teacher.write_bytes(b"any bytes")
    assert resolve("dinov2_b", AssetsConfig(pretrained_dir=str(folder))).stamp.endswith(file_sha256(teacher))


def test_exceptions_are_a_list_of_known_names():
    """`true` would be an exception for all files; the answer says what to write. Old configs with `false` are read."""
    named = load_config(AssetsConfig, overrides=["allow_unknown=[vgg16,inception]"])
    assert named.allow_unknown == ["vgg16", "inception"]
    with pytest.raises(ConfigError, match=r"allow_unknown=\['vgg61'\] must be a list of names out of: .*vgg16"):
        load_config(AssetsConfig, overrides=["allow_unknown=[vgg61]"])
    assert load_config(TokenizerTrainConfig, overrides=["assets.allow_unknown=false"]).assets.allow_unknown == []
    with pytest.raises(ConfigError, match=r"assets.allow_unknown=true is no longer accepted.*=\[vgg16\]"):
        load_config(TokenizerTrainConfig, overrides=["assets.allow_unknown=true"])


def test_a_hash_that_the_user_states_makes_a_file_known(folder):
    """Of a file without one on record: checked in full. One on record is not to be replaced."""
    digest = file_sha256(folder / "known.pth")
    config = AssetsConfig(pretrained_dir=str(folder), sha256=[f"unrecorded={digest.upper()}"])
    assert resolve("unrecorded", config).is_known
    assert resolve("known", AssetsConfig(pretrained_dir=str(folder))).is_known
    assert not resolve("unrecorded", AssetsConfig(pretrained_dir=str(folder))).is_known
    wrong = AssetsConfig(pretrained_dir=str(folder), sha256=["unrecorded=" + "0" * 64])
    with pytest.raises(AssetError, match=f"has SHA-256 {digest} instead of 0000"):
        resolve("unrecorded", wrong)
    other = AssetsConfig(pretrained_dir=str(folder), allow_unknown=["other"])
    assert not resolve("other", other).is_known
    for text in ("unrecorded", f"other={digest}", f"unheard_of={digest}", "unrecorded=12ab"):
        with pytest.raises(ConfigError, match=r"sha256=\[.* must be a list of NAME=SHA256 .* clip_b"):
            AssetsConfig(sha256=[text])
    stated = load_config(AssetsConfig, overrides=[f"sha256=[dinov2_l={digest}]"])
    assert stated.stated_hash("dinov2_l") == digest and stated.stated_hash("dinov2_b") == ""


def test_an_unknown_asset_lists_the_known_ones(folder):
    with pytest.raises(ConfigError, match=r"asset='vgg61' is not known; choose one of: .*vgg16"):
        resolve("vgg61", AssetsConfig())


def test_the_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("PRETRAINED_DIR", "/weights")
    assert load_config(AssetsConfig).pretrained_dir == "/weights"
    monkeypatch.delenv("PRETRAINED_DIR")
    assert load_config(AssetsConfig).pretrained_dir == "pretrained"


def test_a_random_stand_in_is_announced_and_stamped(folder, caplog):
    """Even where the real file exists: who asks for random weights gets them, and every result says so."""
    found = resolve("known", AssetsConfig(pretrained_dir=str(folder), random_stand_in=True))
    assert found.random and found.stamp == "random" and found.path is None
    assert "RANDOM" in caplog.text and "weights: random" in caplog.text


def test_a_random_stand_in_is_seeded():
    """The same network every time, and the random numbers of the run go on as if nothing had happened."""
    config = AssetsConfig(random_stand_in=True)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, stamp = lite0_features(config, (16,))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(8)
    second, _ = lite0_features(config, (16,))
    assert stamp == "random"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(p.requires_grad for p in first.parameters())


def test_packaged_weights_are_not_random():
    """EfficientNet-Lite0 ships with a package; its stamp is its file."""
    network, stamp = lite0_features(AssetsConfig(), (16,))
    random, _ = lite0_features(AssetsConfig(random_stand_in=True), (16,))
    assert stamp.startswith("efficientnet-lite0-57934424.pth sha256:57934424")
    assert not torch.equal(next(network.parameters()), next(random.parameters()))
    network.train()
    assert not any(module.training for module in network.network.modules()), "frozen networks stay in evaluation mode"


def test_seeded_leaves_the_outer_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with seeded(5):
        inner = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(5):
        assert torch.equal(torch.rand(2), inner)


class Attack:
    """Unpickling this runs a command."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("style", ["torch", "pickle", "old torch"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, style):
    """Weight files come from the internet: nothing in them is executed."""
    marker, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = {"weight": torch.ones(2), "bomb": Attack(marker)}
    if style == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=style == "torch")
    with pytest.raises(AssetError, match=r"weights\.pth cannot be read as a state dict"):
        read_state(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if style != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the file is harmless; this test shows nothing"


def test_files_that_hold_no_state_dict_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AssetError, match=r"list\.pth holds a list, not a state dict"):
        read_state(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("Not found")
    with pytest.raises(AssetError, match=r"text\.pth cannot be read"):
        read_state(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("Not found")
    with pytest.raises(UserError, match=r"text\.safetensors cannot be read"):
        read_state(tmp_path / "text.safetensors")


def test_safetensors_are_read(tmp_path):
    save_file({"weight": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert torch.equal(read_state(tmp_path / "w.safetensors")["weight"], torch.arange(3.0))
