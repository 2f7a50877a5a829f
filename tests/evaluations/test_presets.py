"""Presets of protocols: what they set, what a result says of what was changed, and what is not available."""

import dataclasses
import json
import sys
from pathlib import Path

import mini
import numpy as np
import pytest
from test_trust import Pixels, images

from engine.assets import AssetsConfig
from engine.data.sources import SOURCES
from evaluations import compare, generation, measure, reconstruction, search_cfg
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.protocols import __main__ as command
from evaluations.protocols import presets
from evaluations.protocols.preset import CHANGED, differences
from evaluations.protocols.presets import PRESETS, TF_RESIZE, presets_for, presets_named
from evaluations.protocols.registry import PROTOCOLS
from evaluations.results import read_result

ROOT = Path(__file__).parents[2]
NETWORKS = ["--vq-ckpt", "t", "--gpt-ckpt", "g"]


class KnownPixels(Pixels):
    """In the place of Inception, as if its weights were the published ones."""

    input_resize, has_published_weights = TF_RESIZE, True


@pytest.fixture
def pixels(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "inception", KnownPixels)


def flags_of(module, monkeypatch, *flags):
    """The flags that an entry takes from a command line."""
    monkeypatch.setattr(sys, "argv", ["entry", *map(str, flags)])
    return module.parse_args()


def measured(tmp_path, entry, name, *flags, count=20):
    """(exit code, output, result) of `evaluations.measure` for images of 8 px against as many training images."""
    np.savez(tmp_path / "samples.npz", arr_0=images(count))
    np.savez(tmp_path / "reference.npz", arr_0=images(count, seed=1), kind=np.array("train"))
    output = tmp_path / f"{name}.json"
    arguments = ["--samples", tmp_path / "samples.npz", "--gt-npz-path", tmp_path / "reference.npz", "--output", output]
    code, out, err = entry(measure.main, *arguments, "--device", "cpu", *flags)
    return code, out + err, read_result(output) if output.is_file() else None


# ------------------------------------------------------------------------------------------------ the records
def test_every_record_says_how_it_was_verified_or_why_not():
    """By a test that exists, or with the reason; its extractor and rules are there; records are frozen."""
    for preset in PRESETS:
        assert preset.reason and preset.title and preset.reference, preset.name
        assert preset.extractor in EXTRACTORS and (preset.rules is None or preset.rules in PROTOCOLS)
        file, _, _ = preset.reason.partition(":")
        assert (ROOT / file).is_file() == preset.verified, preset.name
        assert preset.missing or preset.measured != "reconstruction" or preset.rules or preset.crop is None
    assert len({(preset.name, preset.measured) for preset in PRESETS}) == len(PRESETS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS[0].count = 10


def test_names_stand_for_what_is_measured():
    """One name for both kinds of images gives each command its own record; files get that of the generation."""
    assert presets_for("generation")["gigatok"].reference_kind == "train"
    assert presets_for("reconstruction")["gigatok"].reference_kind == "val"
    assert presets_for()["gigatok"].measured == presets_for()["adm"].measured == "generation"
    assert "wetok" not in presets_for("generation") and "torch_fidelity" in presets_for("generation")
    assert [preset.measured for preset in presets_named("rae")] == ["generation", "reconstruction"]
    first, second = presets_for()["adm"], presets_for()["var"]
    assert differences(first, second) == [
        "label_rule: 'random', then 'balanced'", "rounding: 'uint8(clamp(127.5 (x + 1)))', then None",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ what they set
def test_a_preset_sets_all_flags_and_typed_ones_win(monkeypatch):
    sampled = [*NETWORKS, "--output", "r.json"]
    for module in (generation, search_cfg):
        args = flags_of(module, monkeypatch, *sampled, "--protocol", "gigatok")
        assert (args.extractor, args.labels, args.num_fid_samples) == ("inception", "random", 50_000)
        assert (args.image_size_eval, args.reference_kind, args.preset.name) == (256, "train", "gigatok")
    args = flags_of(generation, monkeypatch, *sampled, "--labels", "balanced", "--protocol", "gigatok")
    assert args.labels == "balanced" and args.extractor == "inception"
    args = flags_of(generation, monkeypatch, *sampled)
    assert args.preset is None and (args.extractor, args.labels) == (None, "balanced")

    reconstructed = ["--vq-ckpt", "t", "--output", "r.json"]
    args = flags_of(reconstruction, monkeypatch, *reconstructed, "--protocol", "wetok")
    assert (args.protocol, args.extractor, args.image_size_eval) == ("wetok", "inception", None)
    args = flags_of(reconstruction, monkeypatch, *reconstructed, "--protocol", "gigatok")
    assert (args.protocol, args.extractor, args.image_size_eval) == ("adm", "inception", 256)
    args = flags_of(reconstruction, monkeypatch, *reconstructed, "--protocol", "adm", "--original-resolution")
    assert args.image_size_eval is None
    args = flags_of(reconstruction, monkeypatch, *reconstructed)
    assert (args.protocol, args.extractor, args.preset) == ("adm", None, None)

    files = ["--samples", "s.npz", "--gt-npz-path", "r.npz", "--output", "r.json"]
    assert flags_of(measure, monkeypatch, *files, "--protocol", "wetok").measured == "reconstruction"
    assert (
        flags_of(measure, monkeypatch, *files, "--protocol", "rae", "--measured", "reconstruction").reference_kind
        == "val"
    )
    assert flags_of(measure, monkeypatch, *files).measured == "generation"
    assert flags_of(measure, monkeypatch, *files, "--protocol", "edm2").extractor == "dinov2_l_edm2"


# ------------------------------------------------------------------------------------------------ what a result says
def test_a_result_names_every_fact_that_differs_from_its_preset(tmp_path, entry, monkeypatch, pixels):
    """Also what no flag has changed, as the number of images; a preset that was followed has its plain name."""
    code, text, result = measured(tmp_path, entry, "a", "--protocol", "adm")
    assert code == 0, text
    assert result["protocol"]["preset"] == {
        "name": f"adm{CHANGED}",
        "changed": ["count: 50000, then 20", "image_size: 256, then 8"],
        "not_known": ["crop", "rounding", "label_rule"],
    }
    smaller = tuple(dataclasses.replace(preset, count=20, image_size=8) for preset in PRESETS)
    monkeypatch.setattr(presets, "PRESETS", smaller)
    code, text, result = measured(tmp_path, entry, "b", "--protocol", "adm")
    assert code == 0 and result["protocol"]["preset"] == {
        "name": "adm", "not_known": ["crop", "rounding", "label_rule"],
    }  # fmt: skip
    assert "preset" not in measured(tmp_path, entry, "c")[2]["protocol"]

    # Another extractor, and weights that nobody vouches for.
    monkeypatch.setattr(KnownPixels, "has_published_weights", False)
    result = measured(tmp_path, entry, "d", "--protocol", "adm")[2]
    assert result["protocol"]["preset"]["changed"] == ["weights: 'published', then 'pixels'"]
    flags = ["--extractor", "efficientnet_lite0", "--force"]
    result = measured(tmp_path, entry, "e", "--protocol", "adm", *flags)[2]
    assert "extractor: 'inception', then 'efficientnet_lite0'" in result["protocol"]["preset"]["changed"]


def test_a_preset_of_the_other_kind_of_images_is_said(tmp_path, entry, pixels):
    """WeTok's resize is not that of files here either."""
    flags = ["--protocol", "wetok", "--measured", "generation", "--reference-kind", "train"]
    changed = measured(tmp_path, entry, "a", *flags)[2]["protocol"]["preset"]["changed"]
    assert "measured: 'reconstruction', then 'generation'" in changed
    assert any(line.startswith("resize: 'torch bilinear") for line in changed)


def test_compare_names_presets_and_ranks_by_their_facts(tmp_path, entry, monkeypatch, pixels):
    """A preset is a name only: results with and without it are ranked where the facts agree."""
    monkeypatch.setattr(presets, "PRESETS", tuple(dataclasses.replace(p, count=20, image_size=8) for p in PRESETS))
    for name, flags in {"a": ["--protocol", "adm"], "b": [], "c": ["--protocol", "mar"]}.items():
        measured(tmp_path, entry, name, *flags)
    files = [tmp_path / f"{name}.json" for name in "abc"]
    code, out, _ = entry(compare.main, *files)
    assert code == 0 and "the protocols are equal" in out
    assert "published protocols that were followed:" in out
    assert f"{tmp_path.name}/a: adm\n" in out and f"{tmp_path.name}/c: mar" in out
    measured(tmp_path, entry, "d", "--protocol", "adm", "--extractor", "inception", count=25)
    code, out, _ = entry(compare.main, files[0], tmp_path / "d.json")
    assert code == 3 and f"d: adm{CHANGED} (count: 20, then 25)" in out and "d: num_images: 20, then 25" in out


# ------------------------------------------------------------------------------------------------ what is not available
def test_a_preset_without_its_weights_is_unavailable_and_never_replaced(tmp_path, entry, monkeypatch):
    """The file is named, also where another extractor would work; so is a part that is not computed here."""
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("ALLOW_DOWNLOAD", raising=False)
    code, text, result = measured(tmp_path, entry, "a", "--protocol", "edm2", "--force")
    assert (code, result) == (2, None) and "vit_large_patch14_dinov2.lvd142m.safetensors" in text
    code, text, result = measured(tmp_path, entry, "a", "--protocol", "clean_fid", "--force")
    assert (code, result) == (2, None) and "weights-inception-2015-12-05-6726825d.pth" in text
    partly = tuple(dataclasses.replace(preset, missing="its crop is not computed here") for preset in PRESETS)
    monkeypatch.setattr(presets, "PRESETS", partly)
    code, text, result = measured(tmp_path, entry, "a", "--protocol", "clean_fid", "--force")
    assert (code, result) == (2, None) and "--protocol clean_fid is unavailable: its crop is not computed here" in text
    monkeypatch.setattr(presets, "PRESETS", PRESETS)
    network = ["--vq-ckpt", tmp_path, "--val-path", tmp_path, "--output", tmp_path / "r.json", "--device", "cpu"]
    code, _, err = entry(reconstruction.main, *network, "--protocol", "gigatok")
    assert code == 2 and "weights-inception-2015-12-05-6726825d.pth" in err
    reasons = {preset.name: preset.unavailable(AssetsConfig(pretrained_dir=str(tmp_path))) for preset in PRESETS}
    assert all(reasons.values()) and "dinov2_l" in reasons["gpic"]


# ------------------------------------------------------------------------------------------------ the command
def test_the_command_prints_the_table_one_preset_two_or_json(tmp_path, entry, monkeypatch):
    (tmp_path / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"only looked for")
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path))
    code, out, _ = entry(command.main)
    assert code == 0
    for preset in PRESETS:
        assert preset.title in out and (preset.verified or preset.reason in out)
    assert "unavailable: pretrained weights 'dinov2_l' are missing" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith(" ")}
    assert rows["adm"].endswith("available") and not rows["adm"].endswith("unavailable")
    assert rows["edm2"].endswith("unavailable") and rows["gpic"].endswith("unavailable")

    records = json.loads(entry(command.main, "--json")[1])
    assert [record["name"] for record in records] == [preset.name for preset in PRESETS]
    assert records[0]["unavailable"] is None and records[0]["verified"] is True and records[0]["k"] == 3
    assert "rounding" in entry(command.main, "adm")[1]
    assert "label_rule: 'random', then 'balanced'" in entry(command.main, "gigatok", "var")[1]
    code, _, err = entry(command.main, "amd")
    assert code == 2 and "protocol 'amd' is not known; choose one of: adm, gigatok" in err
    assert entry(command.main, "adm", "var", "mar")[0] == 2


@pytest.mark.parametrize(("module", "networks_used"), [(generation, ("vq", "gpt")), (reconstruction, ("vq",))])
def test_images_that_are_made_here_stamp_their_preset(
    tmp_path, monkeypatch, networks, entry, pixels, module, networks_used
):
    """Labels, rounding and crop are known there. GigaTok's are followed; the rest is named."""
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: mini.image_source(20, seed=len(split)))
    folders = {"vq": "tokenizer", "gpt": "gpt"}
    flags = [part for name in networks_used for part in (f"--{name}-ckpt", networks / folders[name])]
    flags += ["--output", tmp_path / "r.json", "--device", "cpu", "--protocol", "gigatok"]
    flags += ["--num-fid-samples", 16] if module is generation else []
    code, _, err = entry(module.main, *flags)
    assert code == 0, err
    preset = read_result(tmp_path / "r.json")["protocol"]["preset"]
    count = 16 if module is generation else 20
    assert preset["changed"] == [f"count: 50000, then {count}"]
    assert preset.get("not_known", []) == (["crop"] if module is generation else [])
