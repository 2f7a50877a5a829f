"""engine/sharing: what leaves this machine with a network names no place."""

import socket
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
import torch
from omegaconf import OmegaConf

from autoregressive.training.config import GPTTrainConfig
from engine.checkpoint.manifest import file_sha256
from engine.checkpoint.weights import read_weights, write_weights
from engine.config import load_config
from engine.sharing import PRIVATE_KEYS, PRIVATE_SECTIONS, left_out, private_words, public_config, public_stamp
from tokenizer.training.config import TokenizerTrainConfig

# Keys with free texts that name components, sizes or devices of any machine; all others must be private.
PUBLIC_TEXTS = {
    "name", "size", "perceptual", "generator_loss", "discriminator_loss", "teacher", "schedule", "device", "precision",
    "head", "allow_unknown", "plugins", "trackers", "sha256", "lengths", "mask_schedule",
    "semantic_by_length",
}  # fmt: skip


def text_keys(section) -> set[str]:
    """The last parts of all keys of a config whose values are free texts."""
    keys = set()
    hints = get_type_hints(type(section))
    for field in fields(section):
        if field.name in PRIVATE_SECTIONS:
            continue
        value = getattr(section, field.name)
        if is_dataclass(value):
            keys |= text_keys(value)
        elif hints[field.name] in (str, str | None, list[str]):
            keys.add(field.name)
    return keys


def test_every_text_of_a_config_is_known_to_be_private_or_public(monkeypatch):
    """A new key of text has to be entered in one of the two lists."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    unknown = (text_keys(TokenizerTrainConfig()) | text_keys(GPTTrainConfig())) - PRIVATE_KEYS - PUBLIC_TEXTS
    assert not unknown


def test_a_config_loses_its_places_and_stays_a_recipe():
    config = load_config(
        GPTTrainConfig,
        overrides=[
            "data.codes=/home/someone/codes", "data.tokenizer=secret", "loop.run_dir=runs/secret", "optim.lr=3e-4",
            "loop.wandb_project=secret", "model.gpt={size: b}",
        ],
    )  # fmt: skip
    config.plugins = ["/home/someone/secret/mine.py#sha256=0123", "package.module#sha256=45"]
    public = public_config(config)
    text = OmegaConf.to_yaml(public)
    assert "secret" not in text and "someone" not in text
    assert public.plugins == ["mine.py#sha256=0123", "package.module#sha256=45"]
    again = load_config(GPTTrainConfig, overrides=["optim.lr=3e-4", "model.gpt={size: b}"])
    public.plugins = []
    assert OmegaConf.merge(OmegaConf.structured(GPTTrainConfig), public) == OmegaConf.structured(again)


def test_words_of_the_network_stay():
    """Keys that are private elsewhere: without `init: kmeans` its weights would not fit the network."""
    overrides = ["init=runs/secret", "model.hybrid.init=torch", "model.quantizer.vq={init: kmeans, warmup_steps: 9}"]
    public = public_config(load_config(TokenizerTrainConfig, overrides=overrides))
    assert (public.model.hybrid.init, public.model.quantizer.vq.init) == ("torch", "kmeans")
    assert "init" not in public


NAMES = ["timm/vit_small", "timm/vit.openai", "conv 3x3 / 2", "1/2", "and/or", "a\\b", "~", "/", "hf-hub:a/b", "~5 dB"]
PATHS = [
    "/home/someone/net.pt", "/data", "~/net", "~someone/net", "C:\\nets\\a.pt", "\\\\host\\share", "../net", "./net",
    "s3://bucket/net", "file:///net", "nets/teacher.pth", "from /home/someone/net",
]  # fmt: skip


def test_only_real_paths_leave_the_section_of_the_network():
    """A word with a slash may be what the network is built from; elsewhere in a config such a text is a place."""
    tree = OmegaConf.create({"model": {"name": "x", "x": {"part": NAMES[0]}}, "other": {"text": "a/b"}})
    assert public_config(tree) == {"model": tree.model, "other": {}}
    for values, expected in ((NAMES, NAMES), (PATHS, [])):
        tree = OmegaConf.create({"model": {"x": {"all": values, **{str(n): v for n, v in enumerate(values)}}}})
        section = public_config(tree).model.x
        assert section.pop("all") == expected and list(section.values()) == expected


def test_a_file_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = OmegaConf.create({"model": {"teacher": "nets/teacher"}})
    assert public_config(tree) == tree
    (tmp_path / "nets/teacher").mkdir(parents=True)
    assert public_config(tree) == {"model": {}}


def test_what_is_left_out_is_said():
    """By its keys; neither what is empty nor plug-ins, which keep their names."""
    config = {"model": {"a": "t/x", "b": "/etc/x", "c": ["/x/y", "z"]}, "data": {"root": "images", "val_root": ""},
              "plugins": ["/x/mine.py"], "loop": {"steps": 3}}  # fmt: skip
    tree = OmegaConf.create(config)
    assert left_out(tree, public_config(tree)) == ["model.b", "model.c", "data.root"]


def test_a_stamp_keeps_what_the_network_means():
    stamp = {
        "tokenizer_fingerprint": "ab", "classes": {"names": ["a/b", "c"], "are_named": True},
        "plugins": {"/home/someone/mine.py": "12", "C:\\x\\y.py": "34", "package.module": "56"},
        "tokenizer": {"networks": {"vgg16": "vgg16.pth sha256:12"}, "where": "/home/someone"}, "hub": {"commit": "1"},
    }  # fmt: skip
    assert public_stamp(stamp) == {
        "tokenizer_fingerprint": "ab", "classes": {"names": ["a/b", "c"], "are_named": True},
        "plugins": {"mine.py": "12", "y.py": "34", "package.module": "56"},
        "tokenizer": {"networks": {"vgg16": "vgg16.pth sha256:12"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["see /home/someone/x", "at /data/sets", "C:\\Users\\someone", "in ~/runs", "~someone/runs", "'/mnt/a/b'"]
)
def test_places_are_seen_in_texts(text):
    assert list(private_words(text))


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a/b",
        "1/2 and 3/4",
        "tokenizer/config.yaml",
        "<b>a</b></details>",
        "and/or",
        "[x](a/b)",
        "~ 5",
    ],
)
def test_ordinary_texts_name_no_place(text):
    assert list(private_words(text)) == []


def test_the_name_of_the_machine_is_seen(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    monkeypatch.delenv("HOSTNAME", raising=False)
    assert list(private_words("trained on node17.")) == ["node17"]
    assert list(private_words("node171")) == []


def test_the_same_weights_have_the_same_file(tmp_path):
    """Whoever publishes twice, or checks what somebody else published, compares the hashes of files."""
    stamp = {"classes": {"names": ["cat", "dog"], "are_named": True}, "tokenizer_fingerprint": "0" * 64}
    hashes = set()
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_weights(folder, {"model": {"b": torch.ones(3), "a": torch.zeros(2)}}, OmegaConf.create({}), stamp)
        hashes.add(file_sha256(folder / "model.safetensors"))
    assert len(hashes) == 1
    assert read_weights(folder / "model.safetensors")["b"].tolist() == [1.0, 1.0, 1.0]
