"""Entries end with one clear error for networks that are not finite and for values without a meaning; no traceback."""

import mini
import pytest
import torch
from mains import refused
from safetensors.torch import load_file, save_file

from autoregressive import extract_codes, sample
from autoregressive.loading import load_gpt
from engine.messages import UserError
from evaluations import generation
from tokenizer import load_tokenizer, reconstruct

SAMPLER = [
    (["--seed", str(2**64)], "seed=18446744073709551616 must be in 0..18446744073709551615"),
    (["--seed=-1"], "seed=-1 must be in 0.."),
    (["--temperature", "nan"], "temperature=nan must be above 0"),
    (["--cfg-scale", "nan"], "guidance.scale=nan must be 1 (off) or more"),
    (["--unguided-scale=-3"], "guidance.unguided_scale=-3.0 must be 0 or more"),
    (["--cfg-schedule", "step", "--step-start-ratio", "nan"], "guidance.start=nan must be a finite number"),
]


@pytest.mark.parametrize(("flags", "message"), SAMPLER, ids=lambda value: str(value)[:30])
def test_values_of_the_sampler_are_refused(networks, entry, tmp_path, flags, message):
    pair = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", networks / "gpt", "--device", "cpu"]
    where = ["--sample-dir", tmp_path / "samples"]
    assert message in refused(entry(sample.main, *pair, *where, *flags))
    more = ["--labels", "random", "--num-fid-samples", "2", "--force", "--output", tmp_path / "g.json"]
    assert message in refused(entry(generation.main, *pair, *more, *flags))
    assert not (tmp_path / "g.json").exists()


def test_a_negative_number_of_images_is_refused(networks, entry, tmp_path):
    flags = ["--vq-ckpt", networks / "tokenizer", "--data", "mnist5k", "--sample-dir", tmp_path, "--num-images", "-1"]
    assert "--num-images: '-1' is not a whole number from 0" in refused(entry(reconstruct.main, *flags))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["tokenizer", "gpt"])
def test_networks_that_are_not_finite_are_refused_by_name(networks, entry, tmp_path, part, bad):
    """`tests/tokenizer/test_other_files.py` has published files; here are folders, through each entry that loads."""
    mini.export_networks(tmp_path)
    path = tmp_path / part / "model.safetensors"
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = bad
    save_file(state, path)

    load = load_gpt if part == "gpt" else load_tokenizer
    with pytest.raises(UserError, match=f"not finite:\n  .*{name}"):
        load(tmp_path / part)
    vq = ["--vq-ckpt", tmp_path / "tokenizer", "--device", "cpu"]
    commands = [(sample.main, [*vq, "--gpt-ckpt", tmp_path / "gpt", "--sample-dir", tmp_path / "s"])]
    if part == "tokenizer":
        commands += [
            (reconstruct.main, [*vq, "--data", "mnist5k", "--num-images", "2", "--sample-dir", tmp_path / "r"]),
            (extract_codes.main, [*vq, "--code-path", tmp_path / "codes"]),
        ]
    for main, flags in commands:
        err = refused(entry(main, *flags))
        assert "weights that are not finite" in err and name in err
