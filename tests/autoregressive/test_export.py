"""Exported parts of networks give what the networks give; files that do not get no name."""

import importlib.util
import itertools
import json
import math
from types import SimpleNamespace

import mini
import pytest
import small_networks
import torch
import torch.export
from mains import refused
from torch import nn

from autoregressive import export
from autoregressive.exporting.formats import EXPORT_FORMATS, OnnxGraph, TorchProgram, traced
from autoregressive.exporting.generator_parts import GENERATOR_PARTS, parts_of
from autoregressive.exporting.parts import CodeComparison, Comparison
from autoregressive.exporting.tokenizer_parts import TOKENIZER_PARTS, DecodePart
from autoregressive.exporting.verification import Tolerance, largest_difference, verify
from autoregressive.models.maskgit import MaskGIT, MaskGITConfig
from engine import installation
from engine.checkpoint.manifest import file_sha256
from engine.messages import UserError
from tokenizer import load_tokenizer
from tokenizer.models.registry import MODELS, QUANTIZERS

EVERY_TOKENIZER = small_networks.PAIRS
# Programs take seconds each. Every model and every quantizer is in a quick test, side by side through both lists; their
# other pairs are slow ones; so are the generators of which "factorized, rotary" has both the head and the positions.
SIDE_BY_SIDE = (
    [model for model in reversed(MODELS) if model != "var_vae"],  # the largest is not the one that comes twice
    [quantizer for quantizer in QUANTIZERS if quantizer != "multi_scale"],
)
QUICK_TOKENIZERS = {
    ("var_vae", "multi_scale"),
    *itertools.islice(zip(*map(itertools.cycle, SIDE_BY_SIDE), strict=False), max(map(len, SIDE_BY_SIDE))),
}
SLOW_GENERATORS = {"rotary", "factorized"}
WITHOUT_STEP = {"any order", "masked", "masked bits"}  # there is no step that could be exported
EXPORTED_GENERATORS = [kind for kind in small_networks.GENERATORS if kind not in WITHOUT_STEP]
OTHER_FORMS = {  # what changes the path of a tensor, beside the name of a network
    "2d, vit": ("hybrid", "vq", "model.hybrid={layout: 2d, block: vit, num_tokens: 64}"),
    "2d, qformer": ("hybrid", "fsq", "model.hybrid={layout: 2d, block: qformer, num_tokens: 64, qk_norm: true}"),
    "noise": ("wetok", "gq", "model.wetok.generative_decoder=true"),
    "other indices": ("wetok", "gq", "model.quantizer.gq={l2_norm: true, index_bits: [1, 5]}"),
    "plain distances": ("llamagen", "vq", "model.quantizer.vq={l2_norm: false, rotation_trick: false}"),
}


def slow_where(is_slow, *values):
    """A case of a test, marked `slow` if `is_slow`."""
    return pytest.param(*values, marks=[pytest.mark.slow] if is_slow else [], id="-".join(values))


def small_tokenizer(model, quantizer, *overrides):
    """A tokenizer with one of everything: what takes time is the number of layers."""
    overrides = (f"model.{model}.cnn.mid_blocks=1", *overrides)
    return mini.tokenizer_of(small_networks.tokenizer_config(model, quantizer, *overrides)).eval().requires_grad_(False)


def small_generator(kind):
    torch.manual_seed(0)
    _, generator = small_networks.generator(kind)
    for output in small_networks.output_layers(generator):
        nn.init.normal_(output.weight)
    return generator.eval().requires_grad_(False)


def written(part, name, folder):
    """What the verification measured of the file of a part, which it accepts, and the file."""
    kind = EXPORT_FORMATS[name]()
    path = folder / f"{part.name}.{name}"
    kind.write(part, path)
    return verify(part, kind.open(part, path), kind.tolerance), path


def traced_and_measured(part):
    """The program of a part, and what the verification measured of it, which it accepts."""
    program = traced(part)
    module = program.module()
    return program, verify(part, lambda *inputs: (module(*inputs),), TorchProgram.tolerance)


# ------------------------------------------------------------------------------------------------ every network
@pytest.mark.parametrize(
    ("model", "quantizer"), [slow_where(pair not in QUICK_TOKENIZERS, *pair) for pair in EVERY_TOKENIZER]
)
def test_every_tokenizer_becomes_a_program(model, quantizer):
    """Both halves, each without the tensors of the other; for batches of any size."""
    tokenizer = small_tokenizer(model, quantizer)
    num_tensors = len(tokenizer.state_dict())
    for part in TOKENIZER_PARTS.values():
        program, measured = traced_and_measured(part(tokenizer))
        assert measured["batches"][:5] == [1, 2, 5, 8, 16]
        assert part is DecodePart or measured["tokens"] >= 2048
        num_tensors -= len(program.state_dict)
    assert num_tensors >= -4  # a codebook is needed twice


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_every_form_becomes_a_program(form):
    """As it is traced: that a file gives the same is tested for decode steps and by the command."""
    tokenizer = small_tokenizer(*OTHER_FORMS[form])
    for part in TOKENIZER_PARTS.values():
        traced_and_measured(part(tokenizer))


@pytest.mark.parametrize("kind", [slow_where(kind in SLOW_GENERATORS, kind) for kind in EXPORTED_GENERATORS])
def test_every_decode_step_becomes_a_program(kind, tmp_path):
    """Its logits are those of a pass over all tokens at once, too."""
    generator = small_generator(kind)
    names = ["step", "head"] if len(generator.codebook_sizes) > 1 else ["step"]
    for part in (GENERATOR_PARTS[name] for name in names):
        measured, _ = written(part(generator), "pt2", tmp_path)
        assert measured["batches"] == [1, 2, 5, 8]
        assert all(value < 1e-5 for value in measured["largest_difference_from_all_tokens_at_once"].values())


@pytest.mark.parametrize("sizes", [[8], [8, 6]])
def test_a_pass_of_a_masked_generator_becomes_a_program(sizes, tmp_path):
    """Masked are the indices that are no code; the logits are those of the network with that mask."""
    torch.manual_seed(0)
    generator = MaskGIT(
        MaskGITConfig(width=16, layers=2, heads=2, codebook_sizes=sizes, num_tokens=4, num_classes=4)
    ).eval()
    for output in generator.requires_grad_(False).outputs:
        nn.init.normal_(output.weight)
    part = GENERATOR_PARTS["pass"](generator)
    measured, path = written(part, "pt2", tmp_path)
    assert measured["batches"] == [1, 2, 5, 8]

    labels, tokens = part.example(3)
    mask = tokens == (torch.tensor(sizes) if len(sizes) > 1 else sizes[0])
    assert mask.any() and not mask.all()
    expected = generator(labels, tokens.masked_fill(mask, 0), mask=mask).logits.view(3, 4, -1, 8)
    logits = torch.export.load(path).module()(labels, tokens).view(3, 4, -1, 8)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in OnnxGraph.packages),
    reason="onnx, onnxscript or onnxruntime is not installed",
)


@ONNX
@pytest.mark.slow
@pytest.mark.parametrize(("model", "quantizer"), EVERY_TOKENIZER, ids=str)
def test_every_tokenizer_becomes_a_graph(model, quantizer, tmp_path):
    tokenizer = small_tokenizer(model, quantizer)
    for part in TOKENIZER_PARTS.values():
        written(part(tokenizer), "onnx", tmp_path)


@ONNX
@pytest.mark.slow
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_every_form_becomes_a_graph(form, tmp_path):
    tokenizer = small_tokenizer(*OTHER_FORMS[form])
    for part in TOKENIZER_PARTS.values():
        written(part(tokenizer), "onnx", tmp_path)


@ONNX
@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTED_GENERATORS)
def test_every_decode_step_becomes_a_graph(kind, tmp_path):
    generator = small_generator(kind)
    names = ["step", "head"] if len(generator.codebook_sizes) > 1 else ["step"]
    for part in (GENERATOR_PARTS[name] for name in names):
        written(part(generator), "onnx", tmp_path)


@ONNX
@pytest.mark.parametrize(("part", "network"), [(part, None) for part in TOKENIZER_PARTS] + [("step", "plain")])
def test_a_graph_for_other_programs(part, network, tmp_path):
    """Of each kind one; all are in the slow tests."""
    loaded = small_generator(network) if network else small_tokenizer("wetok", "gq")
    written((TOKENIZER_PARTS | GENERATOR_PARTS)[part](loaded), "onnx", tmp_path)


# ------------------------------------------------------------------------------------------------ the command
def test_the_command_writes_a_file_and_its_facts(networks, entry, tmp_path):
    """The file runs without our code; what exists is replaced on request only."""
    output = tmp_path / "new" / "encode.pt2"
    flags = [networks / "tokenizer", "--part", "encode", "--output", output]
    code, _, err = entry(export.main, *flags)
    assert code == 0, err
    assert sorted(path.name for path in output.parent.iterdir()) == ["encode.pt2", "encode.pt2.json"]

    # The file.
    tokenizer = load_tokenizer(networks / "tokenizer")
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    assert torch.equal(torch.export.load(output).module()(images), tokenizer.tokenize(images))

    # The facts beside it, which say nothing of this machine.
    text = output.with_name("encode.pt2.json").read_text()
    facts = json.loads(text)
    assert facts["network"]["fingerprint"] == tokenizer.provenance.fingerprint
    assert facts["sha256"] == file_sha256(output)
    assert facts["inputs"][0]["shape"] == ["batch", 3, 16, 16] and facts["inputs"][0]["dtype"] == "float32"
    assert facts["measured"]["tokens"] >= 2048 and facts["measured"]["tokens_with_other_codes"] == 0
    assert str(tmp_path) not in text and str(networks) not in text

    # A second time.
    assert "exists already (--replace replaces it); nothing is overwritten" in refused(entry(export.main, *flags))
    output.write_text("old")
    assert entry(export.main, *flags, "--replace")[0] == 0
    assert file_sha256(output) == json.loads(output.with_name("encode.pt2.json").read_text())["sha256"]


WRONG = {
    "another suffix": (["tokenizer", "--part", "encode", "--output", "x.pt"], "ends in .pt2 or .onnx"),
    "two formats": (["tokenizer", "--part", "encode", "--output", "x.pt2", "--format", "onnx"], "ends in .onnx"),
    "a part of the other kind": (["tokenizer", "--part", "step", "--output", "x.pt2"], "is not a generator"),
    "a head of one index": (["gpt", "--part", "head", "--output", "x.pt2"], "has none: it has --part step"),
    "a pass of a GPT": (["gpt", "--part", "pass", "--output", "x.pt2"], "has none: it has --part step"),
    "an image size": (["tokenizer", "--part", "encode", "--output", "x.pt2", "--image-size", "32"], "is for 16"),
    "pixels of a generator": (["gpt", "--part", "step", "--output", "x.pt2", "--image-size", "32"], "has no images"),
    "nothing there": (["other_name", "--part", "encode", "--output", "x.pt2"], "is not a folder of weights"),
}


PARTS_OF_GENERATORS = {  # kind of generator -> what the message says that it has
    "plain": "it has --part step",
    "factorized": "it has --part step and --part head",
    "masked": "it has --part pass",
    "masked bits": "no part of it can be exported; --part encode and --part decode of its tokenizer can",
    "any order": "no part of it can be exported; --part encode and --part decode of its tokenizer can",
}


@pytest.mark.parametrize("kind", PARTS_OF_GENERATORS)
def test_a_part_that_a_generator_lacks_is_refused_with_those_that_it_has(kind):
    generator = small_generator(kind)
    generator.provenance = SimpleNamespace(path="runs/mine")
    for name in set(GENERATOR_PARTS) - set(parts_of(generator)):
        with pytest.raises(
            UserError, match=f"--part {name} is .* the generator runs/mine .*{PARTS_OF_GENERATORS[kind]}"
        ):
            GENERATOR_PARTS[name](generator)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags_are_refused(case, networks, entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name, *flags), message = WRONG[case]
    assert message in refused(entry(export.main, networks / name, *flags))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(networks, entry, tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxGraph, "packages", ("onnx", "no_such_package"))
    flags = [networks / "tokenizer", "--part", "encode", "--output", tmp_path / "x.onnx"]
    for is_checkout, command in ((True, "bash env_install.sh --extras export"), (False, "pip install 'onnx>=")):
        monkeypatch.setattr(installation, "IS_CHECKOUT", is_checkout)
        monkeypatch.setattr(installation, "requires", lambda name: ['onnx>=1.17; extra == "export"'])
        told = f"--format onnx needs no_such_package (the extra `export`); run: {command}"
        assert told in refused(entry(export.main, *flags))


# ------------------------------------------------------------------------------------------------ the comparison
def test_a_file_that_is_off_gets_no_name(networks, entry, tmp_path, monkeypatch):
    """Images that differ too much: the error says by how much, and nothing stays."""

    def off_by_a_little(self, part, path):
        return lambda indices: (part.module(indices) + 1e-5,)

    monkeypatch.setattr(TorchProgram, "open", off_by_a_little)
    flags = [networks / "tokenizer", "--part", "decode", "--output", tmp_path / "decode.pt2"]
    assert "images differ by up to 1e-05; accepted are 1e-06" in refused(entry(export.main, *flags))
    assert list(tmp_path.iterdir()) == []


class CodesOnly:
    """A part whose comparison is given."""

    def __init__(self, num_tokens, gaps):
        differs = torch.zeros(1, num_tokens, dtype=torch.bool)
        differs[0, : len(gaps)] = True
        all_gaps = torch.tensor([gaps + [0.0] * (num_tokens - len(gaps))])
        self.comparison = Comparison(1, {}, CodeComparison(differs, all_gaps))

    def compare(self, run):
        yield self.comparison


@pytest.mark.parametrize(
    ("gaps", "problem"),
    [
        ([5e-5], None),
        ([5e-5, 2e-4], "farther from its latent than the network's choice by 0.0002"),
        ([0.0] * 3, "3 of 2000 tokens have other codes; accepted are 0.1%"),
        ([float("nan")], "farther from its latent than the network's choice by nan"),
    ],
)
def test_other_codes_must_be_near_ties(gaps, problem):
    tolerance = Tolerance(values=1e-3, ties=1e-4)
    if problem is None:
        assert verify(CodesOnly(2000, gaps), None, tolerance)["tokens_with_other_codes"] == 1
        return
    with pytest.raises(UserError, match=problem):
        verify(CodesOnly(2000, gaps), None, tolerance)


def test_differences_of_numbers():
    """Equal infinities are equal; NaN and other shapes never are."""
    inf = torch.tensor([-torch.inf, 1.0])
    assert largest_difference(inf, inf.clone()) == 0
    assert largest_difference(inf, torch.tensor([0.0, 1.0])) == math.inf
    assert math.isnan(largest_difference(inf, torch.tensor([-torch.inf, math.nan])))
    assert largest_difference(inf, inf[:1]) == math.inf


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_choice_of_a_quantizer_is_the_nearest(quantizer):
    """By the distance that says how near two codes are."""
    network = small_tokenizer("wetok", quantizer).quantizer
    count = (network.grid_side or 7) ** 2
    latents = torch.randn(1, count, network.codebook_dim, generator=torch.Generator().manual_seed(0))
    chosen = network.choice_distances(latents, network(latents).indices)
    others = network.choice_distances(latents, network(latents.flip(1)).indices)
    assert (chosen <= others + 1e-6).all() and (chosen < others).any()
