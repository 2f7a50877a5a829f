"""engine/hub: a typed address is fetched from that repository alone, at a commit, and nothing of it runs."""

import pytest
from loopback_hub import loopback_hub, use_hub

import tokenizer.reconstruct
from autoregressive.models.base import Generator
from engine import hub as hub_module
from engine.checkpoint.manifest import CheckpointError, file_sha256
from engine.messages import UserError
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.loading import survey_tokenizer

ADDRESS = "hf-hub:someone/net"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with loopback_hub() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def repository(hub, networks):
    """The tokenizer of the tests, in a repository with files that are none of our business."""
    folder = networks / "tokenizer"
    files = {name: (folder / name).read_bytes() for name in ("config.yaml", "model.safetensors")}
    other = {
        "README.md": b"# A card",
        "run_me.py": b"raise SystemExit(3)",
        "model.bin": b"x",
        "sub/model.safetensors": b"",
    }
    return hub.seed("someone/net", files | other, is_private=True)


def test_only_config_weights_and_card_are_fetched(hub, repository, networks):
    loaded = Tokenizer.from_pretrained(ADDRESS)
    assert hub.fetched() == {"config.yaml", "model.safetensors", "README.md"}
    assert all("someone/net" in path or path.startswith("/api/agent") for _, path in hub.requests)

    # The commit and the hashes are stamped, and the weights are the same.
    assert loaded.provenance.path == f"{ADDRESS}@{repository}"
    files = {name: file_sha256(networks / "tokenizer" / name) for name in ("config.yaml", "model.safetensors")}
    assert loaded.provenance.stamp["hub"] == {"repository": "someone/net", "commit": repository, "sha256": files}
    assert loaded.provenance.fingerprint == load_tokenizer(networks / "tokenizer").provenance.fingerprint


def test_a_revision_is_resolved_before_anything_is_fetched(hub, repository, networks):
    newer = hub.seed("someone/net", {"model.safetensors": (networks / "other" / "model.safetensors").read_bytes()})
    assert load_tokenizer(ADDRESS).provenance.path.endswith(newer)
    assert load_tokenizer(f"{ADDRESS}@{repository}").provenance.stamp["hub"]["commit"] == repository
    for address, message in (
        (f"{ADDRESS}@v3", "someone/net has no revision 'v3'"),
        ("hf-hub:someone/else", "there is no such repository, or it is private and you are not logged in"),
        ("hf-hub:net", "is no address of the hub, which are hf-hub:organization/name"),
        ("hf-hub:../net", "is no address of the hub"),
    ):
        with pytest.raises(UserError, match=message):
            load_tokenizer(address)


def test_a_hub_that_does_not_answer_is_one_clear_error(hub, tmp_path, monkeypatch):
    hub.endpoint = "http://127.0.0.1:9"  # nobody listens there
    use_hub(hub, tmp_path / "cache", monkeypatch)
    with pytest.raises(UserError, match=r"hf-hub:someone/net cannot be reached: .*refused"):
        load_tokenizer(ADDRESS)


def test_offline_only_the_cache_is_read(hub, repository, tmp_path, monkeypatch):
    use_hub(hub, tmp_path / "cache", monkeypatch, offline=True)
    with pytest.raises(UserError, match="is not in the cache of huggingface_hub, and HF_HUB_OFFLINE forbids to fetch"):
        load_tokenizer(ADDRESS)
    assert hub.requests == []

    # Once it is there, by its branch and by its commit.
    use_hub(hub, tmp_path / "cache", monkeypatch)
    load_tokenizer(ADDRESS)
    use_hub(hub, tmp_path / "cache", monkeypatch, offline=True)
    hub.requests.clear()
    for address in (ADDRESS, f"{ADDRESS}@{repository}"):
        assert load_tokenizer(address).provenance.stamp["hub"]["commit"] == repository
    assert hub.requests == []

    # The variable alone counts too, though the library has read it at its import.
    use_hub(hub, tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert hub_module.is_offline()


def test_a_cached_file_that_was_changed_is_refused(hub, repository):
    copy = hub_module.fetch(ADDRESS)
    file = copy.folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # a bit of the last weight
    file.resolve().write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: it has another hash than when it was fetched"):
        load_tokenizer(ADDRESS)
    assert survey_tokenizer(ADDRESS).num_tokens == 8  # sizes alone do not read it


@pytest.mark.parametrize(
    "line",
    ["base: ../../secret.yaml", '"base" : ../../secret.yaml', "note: ${oc.env:HOME}", 'note: "\\x24{oc.env:HOME}"'],
)
def test_a_config_that_reads_this_machine_is_refused(hub, repository, line):
    text = hub.contents[hub.repos["someone/net"].commits[-1][1]["config.yaml"]].decode()
    hub.seed("someone/net", {"config.yaml": f"{line}\n{text}".encode()})
    with pytest.raises(UserError, match=r"its config.yaml must hold plain values"):
        load_tokenizer(ADDRESS)


def test_plugins_that_are_named_there_are_never_imported(hub, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit(3)")
    text = hub.contents[hub.repos["someone/net"].commits[-1][1]["config.yaml"]].decode()
    hub.seed("someone/net", {"config.yaml": text.replace("plugins: []", "plugins: [evil.py]").encode()})
    assert "plugins: [evil.py]" in hub.contents[hub.repos["someone/net"].commits[-1][1]["config.yaml"]].decode()
    assert load_tokenizer(ADDRESS).num_tokens == 8
    assert "evil.py" not in hub.fetched()


def test_commands_take_addresses(hub, repository, entry, tmp_path):
    flags = ["--vq-ckpt", ADDRESS, "--data", "mnist5k", "--num-images", "2", "--sample-dir", tmp_path / "rec"]
    code, _, err = entry(tokenizer.reconstruct.main, *flags, "--device", "cpu")
    assert code == 0, err
    assert (tmp_path / "rec" / "000001.png").is_file()
    code, out, err = entry(tokenizer.reconstruct.main, *flags[:2], *flags[2:-1], tmp_path / "rec2", "--check")
    assert code == 0 and f"--vq-ckpt: {ADDRESS} (8 tokens, 16 px)" in out, err


def test_a_repository_of_two_networks_gives_each(hub, networks):
    files = {
        f"{part}/{name}": (networks / part / name).read_bytes()
        for part in ("tokenizer", "gpt")
        for name in ("config.yaml", "model.safetensors")
    }
    hub.seed("someone/both", files)
    assert Generator.from_pretrained("hf-hub:someone/both").num_classes == 4
    assert hub.fetched() == {"gpt/config.yaml", "gpt/model.safetensors"}
    assert Tokenizer.from_pretrained("hf-hub:someone/both").num_tokens == 8
    hub.seed("someone/nothing", {"a.txt": b"x"})
    with pytest.raises(UserError, match=r"holds no network of this program: it has no config.yaml"):
        Tokenizer.from_pretrained("hf-hub:someone/nothing")
