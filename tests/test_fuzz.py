"""Random input: config files and command lines, damaged checkpoints, broken images. Whatever comes, the answer is a
result or one clear error.
"""

import io
import json
import shutil

import numpy as np
import pytest
import tiny
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tokenizer.train
from autoregressive.training.config import GPTTrainConfig
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, find_damage, read_manifest
from engine.checkpoint.weights import find_weights, read_weights
from engine.config import flatten, load_config
from engine.data.images import ImageError, read_image
from engine.messages import ConfigError
from evaluations.probes.task import LinearProbeConfig
from tokenizer.training.config import TokenizerTrainConfig

SCHEMAS = [TokenizerTrainConfig, GPTTrainConfig, LinearProbeConfig]
KEYS = {schema: sorted(flatten(schema())) for schema in SCHEMAS}
SECTIONS = {s: sorted({k.rpartition(".")[0] for k in KEYS[s]} - {""}) for s in SCHEMAS}
ODD = [
    "",
    "null",
    "~",
    "[",
    "]",
    "{",
    "{a: 1}",
    "{a",
    "[1, [2]]",
    "1e400",
    "-1",
    "0",
    "nan",
    "-inf",
    "yes",
    "1_000",
    "0x10",
]
ODD += [
    "${x}",
    "${",
    "${oc.env:NOT_SET_HERE}",
    "${oc.env:",
    "${loop.steps}",
    "${loop}",
    "???",
    "'",
    '"',
    "!!python/object:x",
    "&a",
    "*a",
]
ODD += ["1" * 400, "a: b", "a=b", "- 1", "\t", "#", "é", "\x00", "\ud800"]


def quick(examples: int):
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )


values = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.integers().map(str), st.floats().map(str))


@st.composite
def lines(draw):
    """A schema and overrides: a key of the schema or nearly so, and any value."""
    schema = draw(st.sampled_from(SCHEMAS))
    known = st.sampled_from(KEYS[schema] + SECTIONS[schema])
    near = st.tuples(known, st.integers(0, 40), st.text(max_size=2)).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :])
    key = st.one_of(known, known, near, st.text(max_size=8))
    return schema, draw(st.lists(st.tuples(key, values).map("=".join), min_size=1, max_size=3))


def names_one_of(message: str, keys: list[str]) -> bool:
    """Whether a message has a key, or the section or last name of one, or the line itself."""
    parts = {p for key in keys for p in (key, key.partition("=")[0], key.partition("=")[0].rpartition(".")[2])}
    return any(p and p in message for p in parts) or "command line" in message


@quick(200)
@given(lines())
def test_any_command_line_is_a_config_or_an_error_that_names_the_key(case):
    schema, overrides = case
    try:
        load_config(schema, overrides=overrides)
    except ConfigError as error:
        assert str(error) and names_one_of(str(error), overrides), (overrides, str(error))


tree_keys = st.one_of(
    st.sampled_from(sorted({k for s in SCHEMAS for key in KEYS[s] for k in key.split(".")})),
    st.text(max_size=4),
    st.integers(),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(ODD[:-1]), st.dates()
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(tree_keys, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def sections(draw):
    """A tree that has the right names as far as it goes, and anything in their place."""
    schema = draw(st.sampled_from(SCHEMAS))
    tree: dict = {}
    for key in draw(st.lists(st.sampled_from(KEYS[schema] + SECTIONS[schema]), min_size=1, max_size=3)):
        node, *path = tree, *key.split(".")
        for name in path[:-1]:
            node = node.setdefault(name, {}) if isinstance(node.setdefault(name, {}), dict) else {}
        node[path[-1]] = draw(trees)
    return schema, tree


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "config.yaml"


def reads(schema, file) -> None:
    """The file is a config, or the error names it or the key."""
    try:
        load_config(schema, [file])
    except ConfigError as error:
        keys = [k for k in KEYS[schema] + SECTIONS[schema] if k in str(error)]
        assert str(file) in str(error) or keys, str(error)


@quick(150)
@given(case=st.one_of(sections(), st.tuples(st.sampled_from(SCHEMAS), trees)))
def test_any_yaml_tree_is_a_config_or_an_error_that_names_file_or_key(case, file):
    schema, tree = case
    file.write_text(yaml.safe_dump(tree, allow_unicode=False), encoding="utf-8", errors="surrogatepass")
    reads(schema, file)


@quick(100)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))))
def test_any_bytes_are_a_config_or_an_error_that_names_the_file(content, file):
    file.write_bytes(content)
    reads(TokenizerTrainConfig, file)


# ---------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, image_folder, world):
    """A tiny checkpoint with discriminator and EMA, and a place for damaged copies."""
    root = tmp_path_factory.mktemp("checkpoint")
    tokenizer.train.train(tiny.tokenizer_config(root / "run", image_folder, *tiny.GAN, "loop.steps=3"), world)
    return checkpoint_folders(root / "run")[-1], root / "copy" / "step_00000003"


@st.composite
def wounds(draw):
    """(which file, what is done to it, where as a share of its length, which bits)."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "extend", "remove", "zero", "swap"]))
    return draw(st.integers(0, 99)), kind, draw(st.floats(0, 0.999)), draw(st.integers(1, 255))


def hurt(path, kind: str, where: float, bits: int) -> None:
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    if kind == "remove":
        path.unlink()
        return
    if kind == "flip":
        content[at] ^= bits
    elif kind == "cut":
        del content[at:]
    elif kind == "extend":
        content += bytes([bits])
    elif kind == "zero":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    else:  # two blocks trade places
        content[at : at + 8], content[:8] = content[:8], content[at : at + 8]
    path.write_bytes(content)


@quick(120)
@given(wound=wounds())
def test_any_damage_of_a_checkpoint_is_found(wound, checkpoint):
    """Every file, the manifest too: `damage` names it, or what the files say is what they said before; and the weights
    are then refused or are the same.
    """
    healthy, copy = checkpoint
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(healthy, copy)
    files = sorted(p.relative_to(healthy) for p in healthy.rglob("*") if p.is_file())
    name = files[wound[0] % len(files)]
    hurt(copy / name, *wound[1:])
    if not (copy / name).is_file() or (copy / name).read_bytes() != (healthy / name).read_bytes():
        told = {k: (read_manifest(copy) or {}).get(k) for k in ("step", "stamp", "files")}
        same = name.name == "manifest.json" and told == {k: read_manifest(healthy)[k] for k in told}
        assert find_damage(copy) is not None or same
    try:
        found = read_weights(find_weights(copy, "auto", "network").path)
    except CheckpointError as error:
        assert str(copy) in str(error)
    else:
        truth = read_weights(healthy / "ema.safetensors")
        assert all(np.array_equal(found[k], truth[k]) for k in truth)


# ---------------------------------------------------------------------------------------------- images
def encoded(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    if kind in ("GIF", "palette"):
        image = image.convert("P")
    out = io.BytesIO()
    image.save(out, format="PNG" if kind == "palette" else kind)
    return out.getvalue()


KINDS = ["PNG", "JPEG", "GIF", "palette", "BMP", "WEBP", "TIFF", "PPM"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@quick(400)
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    keep=st.floats(0.05, 1),
)
def test_any_image_file_is_an_image_or_an_image_error(kind, changes, keep, tmp_path_factory):
    content = bytearray(encoded(kind))
    for where, value in changes:
        content[int(where * len(content))] = value
    check_image(bytes(content[: max(1, int(keep * len(content)))]), tmp_path_factory)


@pytest.mark.filterwarnings("ignore::UserWarning")
@quick(150)
@given(kind=st.sampled_from([*KINDS, ""]), tail=st.binary(max_size=80))
def test_any_bytes_are_an_image_or_an_image_error(kind, tail, tmp_path_factory):
    """Bytes behind the first few of a real file, so that a decoder is chosen."""
    check_image((encoded(kind)[:12] if kind else b"") + tail, tmp_path_factory)


def check_image(content: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.png"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except ImageError as error:
        assert str(path) in str(error)
    else:
        assert image.mode == "RGB" and min(image.size) > 0


def test_the_manifest_knows_its_own_hash(checkpoint):
    """A step or a stamp that a bit flip changed is damage. Regression: only the files that it lists were checked."""
    healthy, copy = checkpoint
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(healthy, copy)
    content = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(content | {"step": 4}))
    assert "manifest.json" in find_damage(copy)
