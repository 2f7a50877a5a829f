"""Checkpoint files of other programs: containers, names of wrappers, and which weights are taken."""

import argparse
import collections
import io
import logging
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import omegaconf
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from engine.checkpoint.foreign.reader import read_checkpoint
from engine.checkpoint.foreign.wrappers import unwrapped
from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import load_strict


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)))


RAW, AVERAGED = network(0).state_dict(), network(1).state_dict()


def write(path, content, **options):
    torch.save(content, path, **options)
    return path


def equal(state, expected) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[k], v) for k, v in expected.items())


def prefixed(prefix: str, state) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


# ---------------------------------------------------------------------------------------------- containers
@pytest.mark.parametrize("name", ["x.pt", "x.PT", "x.pth.tar", "x", "x.safetensors", "last.ckpt"])
@pytest.mark.parametrize("style", ["new", "old", "safetensors"])
def test_a_file_is_recognized_by_its_content(name, style, tmp_path):
    path = tmp_path / name
    if style == "safetensors":
        save_file(RAW, path)
    else:
        write(path, {"model": RAW}, _use_new_zipfile_serialization=style == "new")
    assert equal(read_checkpoint(path).state, RAW)


@pytest.mark.parametrize("style", [True, False])
def test_every_type_of_numbers_and_every_layout_in_memory(style, tmp_path):
    """Views, shared storages, transposed and empty tensors, scalars, parameters, and all widths."""
    base = torch.arange(24.0).reshape(4, 6)
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    state = {str(dtype): base.to(dtype) for dtype in (*types, torch.int8, torch.uint8, torch.bool, torch.complex64)}
    state |= {"view": base[1:, 2:4], "transposed": base.T, "empty": base[:0], "scalar": torch.tensor(3)}
    state |= {"parameter": nn.Parameter(base), "expanded": torch.ones(1).expand(5)}
    read = read_checkpoint(write(tmp_path / "x", state, _use_new_zipfile_serialization=style)).state
    assert equal(read, state) and all(read[name].dtype == value.dtype for name, value in state.items())


def test_float8_is_read(tmp_path):
    state = {"x": torch.ones(3).to(torch.float8_e4m3fn)}
    assert torch.equal(read_checkpoint(write(tmp_path / "x", state)).state["x"].float(), torch.ones(3))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["is empty"]),
        (b"\n<!DOCTYPE html><html><head><title>Sign in", ["is a web page (HTML)", "download"]),
        (b"<html lang='en'>", ["is a web page (HTML)"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 1234567\n",
            ["Git LFS pointer to 1,234,567 bytes", "4d7a214614ab2935", "git lfs pull"],
        ),
        (b"\x1f\x8b\x08\x00" + bytes(30), ["gzip"]),
        (b"\x89HDF\r\n\x1a\n", ["HDF5"]),
        (bytes(257) + b"ustar\x0000", ["tar archive", "unpack"]),
        (b"Not found", ["truncated or not a PyTorch checkpoint"]),
        (b"PK\x03\x04 and nothing", ["truncated or not a PyTorch checkpoint"]),
    ],
)
def test_another_file_is_named_for_what_it_is(content, parts, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert all(part in str(caught.value) for part in [str(path), *parts])


def test_zip_files_that_are_no_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("photo.txt", "x")
    with pytest.raises(CheckpointError, match=r"zip file without one data\.pkl"):
        read_checkpoint(tmp_path / "a.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("style", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
def test_a_truncated_file_is_named(style, share, tmp_path):
    buffer = io.BytesIO()
    torch.save({"model": {"x": torch.ones(5000)}}, buffer, _use_new_zipfile_serialization=style)
    (tmp_path / "torn.pt").write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(CheckpointError, match=r"torn\.pt is truncated or not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "torn.pt")


def changed_byte(path, number: float) -> None:
    """Changes a bit of the first place in a file that holds a number."""
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", number))] ^= 1
    path.write_bytes(content)


def test_a_changed_bit_is_noticed_by_its_checksum(tmp_path):
    """Of the tensors that are taken, and of the pickle; files that were written without checksums are read."""
    content = {"model": {"x": torch.full((2,), 1.37)}, "optimizer": {"m": torch.full((2,), 2.21)}, "lr": 0.1}
    path = write(tmp_path / "x", content)
    changed_byte(path, 2.21)
    assert read_checkpoint(path).state["x"][0] == torch.tensor(1.37)
    changed_byte(path, 1.37)
    with pytest.raises(CheckpointError, match="is damaged: the checksum of x is wrong"):
        read_checkpoint(path)
    header = read_checkpoint(path, header_only=True).state["x"]
    assert header.is_meta and header.shape == (2,) and header.dtype == torch.float32

    path = write(tmp_path / "y", content)
    path.write_bytes(path.read_bytes().replace(b"optimizer", b"optimizes"))
    with pytest.raises(CheckpointError, match=r"is damaged: the checksum of '\w+/data\.pkl' is wrong"):
        read_checkpoint(path)

    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "z", content)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).state["x"][0] == torch.tensor(1.37)


@pytest.mark.parametrize("style", ["new", "old", "safetensors"])
def test_a_file_that_is_written_again_does_not_change_loaded_weights(style, tmp_path):
    """In place, as `cp` and rsync --inplace do; the weights of a network on the meta device are copies too."""
    path = tmp_path / "x"
    if style == "safetensors":
        save_file(RAW, path)
    else:
        write(path, {"model": RAW}, _use_new_zipfile_serialization=style == "new")
    with torch.device("meta"):
        net = network()
    load_strict(net, read_checkpoint(path).state, path, assign=True)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert equal(net.state_dict(), RAW)


# ---------------------------------------------------------------------------------------------- wrappers
@pytest.mark.parametrize(
    "name",
    [
        *("module.{}", "_orig_mod.module.{}", "module._orig_mod.module.{}", "_forward_module._orig_mod.{}"),
        *(
            "_fsdp_wrapped_module._checkpoint_wrapped_module.{}",
            "model._orig_mod.{}",
            "net.{}",
            "_orig_mod.model.module.{}",
        ),
    ],
)
def test_wrappers_are_removed_in_any_order(name, tmp_path):
    wrapped = {name.format(key): value for key, value in RAW.items()}
    assert equal(read_checkpoint(write(tmp_path / "x", {"state_dict": wrapped})).state, RAW)


def test_wrappers_inside_of_names_are_removed():
    assert unwrapped("layers.0._orig_mod.norm.weight") == ("layers.0.norm.weight", False)
    assert unwrapped("layers._fsdp_wrapped_module.0._checkpoint_wrapped_module.x") == ("layers.0.x", False)
    assert unwrapped("ema.module.x.model.y") == ("x.model.y", True)
    assert unwrapped("model_ema.encoderconv_inweight") == ("model_ema.encoderconv_inweight", False)
    assert unwrapped("modulelist.0.modules") == ("modulelist.0.modules", False)


def test_a_name_that_is_given_twice_is_refused(tmp_path):
    both = RAW | prefixed("module.", AVERAGED)
    with pytest.raises(CheckpointError, match=r"twice, as '0\.weight' and 'module\.0\.weight'"):
        read_checkpoint(write(tmp_path / "x", {"model": both}))


def test_pieces_of_fsdp_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="flattened pieces of FSDP"):
        read_checkpoint(write(tmp_path / "x", {"model": {"_fsdp_wrapped_module._flat_param": torch.ones(3)}}))


# ---------------------------------------------------------------------------------------------- which weights
@pytest.mark.parametrize("key", ["model", "module", "state_dict", "model_state_dict", "vae", None])
def test_model_means_the_only_raw_set(key, tmp_path):
    path = write(tmp_path / "x", {key: RAW, "epoch": 3} if key else RAW)
    for prefer in ("auto", "model"):
        found = read_checkpoint(path, prefer=prefer)
        assert equal(found.state, RAW) and found.kind == "model"
    with pytest.raises(CheckpointError, match="none of the weights ema; it holds: "):
        read_checkpoint(path, prefer="ema")
    with pytest.raises(CheckpointError, match="weights='raw' is not known; choose one of: auto, ema, model"):
        read_checkpoint(path, prefer="raw", is_wish=True)


def averaged_model() -> dict:
    """What torch's AveragedModel saves after one update: the averages are those of `AVERAGED`."""
    averaged = AveragedModel(network(0))
    averaged.update_parameters(network(1))
    averaged.module.load_state_dict(AVERAGED)
    return averaged.state_dict()


def pretend(name: str, state: dict) -> dict:
    """A file's content with averages `AVERAGED`, and raw weights `RAW` where the layout has both."""
    return {
        "gigatok": {"model": RAW, "ema": AVERAGED},
        "averaged": {"model": RAW, "ema": state},
        "bare averaged": state,
        "shadow": {"model": RAW, "ema": {"shadow": AVERAGED, "decay": 0.999}},
        "other key": {"checkpoint": {"model": RAW, "ema": AVERAGED}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        "nested": {"model": RAW, "ema": {"state_dict": AVERAGED, "decay": 0.999}},
        "nested twice": {"state_dict": RAW, "model_ema": {"ema": {"module": prefixed("module.", AVERAGED)}}},
        "timm": {"state_dict": RAW, "state_dict_ema": AVERAGED},
        "lightning": {"current_model_state": RAW, "state_dict": AVERAGED, "averaging_state": {"n_averaged": 3}},
        "one dict": {"state_dict": prefixed("model.", RAW) | prefixed("ema.", AVERAGED) | {"loss.w": torch.ones(1)}},
        "one bare dict": prefixed("model._orig_mod.", RAW) | prefixed("model_ema.module.", AVERAGED),
        "ema of two": {
            "model": RAW,
            "ema": prefixed("online_model.", RAW) | prefixed("ema_model.", AVERAGED) | {"step": torch.tensor(3)},
        },
    }[name]


LAYOUTS = (
    *("shadow", "other key", "gigatok", "averaged", "bare averaged", "nested", "nested twice", "timm", "lightning"),
    *("one dict", "one bare dict", "ema of two"),
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_averages_of_common_trainers(name, tmp_path):
    path = write(tmp_path / "x", pretend(name, averaged_model()))
    for prefer in ("auto", "ema"):
        found = read_checkpoint(path, prefer=prefer)
        assert equal(found.state, AVERAGED) and found.kind == "ema"
    if name == "bare averaged":
        with pytest.raises(CheckpointError, match="none of the weights model; it holds: a bare state dict of ema"):
            read_checkpoint(path, prefer="model")
    else:
        raw = read_checkpoint(path, prefer="model").state
        raw.pop("loss.w", None)
        assert equal(raw, RAW)


def test_safetensors_with_prefixes(tmp_path):
    save_file(prefixed("model.", RAW) | prefixed("ema.", AVERAGED), tmp_path / "x.safetensors")
    assert equal(read_checkpoint(tmp_path / "x.safetensors", prefer="model").state, RAW)
    assert equal(read_checkpoint(tmp_path / "x.safetensors", prefer="ema").state, AVERAGED)


PARAMETERS = [name for name, _ in network().named_parameters()]


@pytest.mark.parametrize("content", [list, tuple, lambda averages: {"decay": 0.9, "shadow_params": list(averages)}])
def test_averages_without_names_get_those_of_the_raw_weights(content, tmp_path):
    """Buffers have none. A layer norm instead of the batch norm: the statistics of the latter look like its weights."""
    torch.manual_seed(0)
    raw = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 4))
    raw.register_buffer("steps", torch.tensor(3))
    averages = [parameter.detach() + 1 for parameter in raw.parameters()]
    path = write(tmp_path / "x", {"model": raw.state_dict(), "ema": content(averages)})
    found = read_checkpoint(path, prefer="ema")
    named = dict(zip([name for name, _ in raw.named_parameters()], averages, strict=True))
    assert equal(found.state, raw.state_dict() | named) and found.kind == "ema"
    assert equal(read_checkpoint(path, prefer="model").state, raw.state_dict())


def test_averages_that_could_be_laid_in_two_ways_are_not_guessed(tmp_path):
    """Those of the batch norm may be its weights or its running statistics."""
    averages = [AVERAGED[name] for name in PARAMETERS]
    path = write(tmp_path / "x", {"model": RAW, "ema": {"shadow_params": averages}})
    with pytest.raises(CheckpointError, match=r"none of the weights ema; .* ema \(6 tensors without names\)"):
        read_checkpoint(path, prefer="ema")
    assert equal(read_checkpoint(path).state, RAW)


@pytest.mark.parametrize("empty", [{}, None, {"shadow_params": [torch.ones(2)]}, {"decay": torch.tensor(0.9)}])
def test_an_ema_without_named_tensors_is_none(empty, tmp_path, caplog):
    path = write(tmp_path / "x", {"model": RAW, "ema": empty})
    with caplog.at_level(logging.INFO):
        assert equal(read_checkpoint(path).state, RAW)
    assert "left out: ema" in caplog.text
    with pytest.raises(CheckpointError, match="none of the weights ema; it holds: model, ema"):
        read_checkpoint(path, prefer="ema")


def test_two_raw_sets_are_not_guessed(tmp_path):
    """Unless one is called `model`, as published readers look for it first."""
    with pytest.raises(CheckpointError, match=r"several sets of model weights \((student, teacher|teacher, student)\)"):
        read_checkpoint(write(tmp_path / "x", {"student": RAW, "teacher": AVERAGED}))
    with pytest.raises(CheckpointError, match=r"several sets of model weights \(module, state_dict\)"):
        read_checkpoint(write(tmp_path / "x", {"module": RAW, "state_dict": AVERAGED}))
    assert equal(read_checkpoint(write(tmp_path / "y", {"model": RAW, "module": AVERAGED})).state, RAW)


# ---------------------------------------------------------------------------------------------- foreign objects
class AttributeDict(dict):
    """As Lightning's: a dict of another class."""


def test_foreign_objects_are_left_out_by_name(tmp_path, caplog):
    content = {
        "model": collections.OrderedDict(RAW),
        "best": np.float64(3.5),
        "array": np.ones(3),
        "path": pathlib.PurePosixPath("a/b"),
        "config": omegaconf.OmegaConf.create({"lr": 1e-3}),
        "hparams": AttributeDict(lr=1e-3),
        "args": argparse.Namespace(lr=1e-3),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0, "params": [0]}]},
        "callbacks": collections.defaultdict(list, {"x": [1, (2, 3), {4}, frozenset({5})]}),
    }
    with caplog.at_level(logging.INFO):
        for style in (True, False):
            found = read_checkpoint(write(tmp_path / "x", content, _use_new_zipfile_serialization=style))
            assert equal(found.state, RAW)
    for part in ("took the weights 'model'", "optimizer", "hparams", "argparse.Namespace", "more"):
        assert part in caplog.text
    for part in ("scalar", "omegaconf.dictconfig.DictConfig", "PurePosixPath", "AttributeDict"):
        assert any(part in name for name in found.foreign), part


def test_weights_inside_of_a_foreign_dict_are_read(tmp_path):
    assert equal(read_checkpoint(write(tmp_path / "x", AttributeDict(state_dict=AttributeDict(RAW)))).state, RAW)


def test_a_network_that_was_pickled_whole_gives_its_tensors(tmp_path):
    for content in (network(0), {"model": nn.DataParallel(network(0))}):
        assert equal(read_checkpoint(write(tmp_path / "x", content)).state, RAW)


def test_a_file_without_weights_says_what_it_holds(tmp_path):
    with pytest.raises(CheckpointError, match="none of the weights ema, model; it holds: epoch, note"):
        read_checkpoint(write(tmp_path / "x", {"epoch": 3, "note": "hi"}))
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        read_checkpoint(write(tmp_path / "x", [1]))
    (tmp_path / "plain").write_bytes(pickle.dumps({"model": RAW}))
    with pytest.raises(CheckpointError, match=r"none of the weights .* a tensor of pickle\.dump \(use torch\.save\)"):
        read_checkpoint(tmp_path / "plain")


# ---------------------------------------------------------------------------------------------- strict and finite
def test_names_of_both_kinds_are_shown():
    """Three that are missing and three of the file's own, also where there are many of one kind."""
    state = {f"other.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(network(), state, "file", shown_as=lambda name: f"model.{name}")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:7]] == ["missing"] * 3 + ["unexpected"] * 3
    assert "model.other.0" in lines[4] and "more" in lines[7]


NAN, INF = float("nan"), float("inf")


def state_with(name: str, value: float) -> dict:
    """The weights of `network()` with one other number."""
    state = {key: tensor.clone() for key, tensor in network().state_dict().items()}
    state[name].view(-1)[-1] = value
    return state


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_other_numbers_never_become_weights(dtype):
    """They are finite and of the right shape, and say nothing."""
    state = network().state_dict() | {"0.bias": torch.ones(2, dtype=dtype)}
    with pytest.raises(CheckpointError, match=rf"numbers of 0\.bias: file has {str(dtype)[6:]}, model has float32"):
        load_strict(network(), state, "file")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_any_precision_becomes_that_of_the_network(dtype):
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in RAW.items()}
    with torch.device("meta"):
        net = network()
    load_strict(net, state, "file", assign=True)
    assert equal(net.state_dict(), {name: v.to(RAW[name].dtype) for name, v in state.items()})
    with pytest.raises(CheckpointError, match=r"not finite:\n  infinite numbers: 0\.bias"):
        load_strict(net, RAW | {"0.bias": torch.full((2,), 1e300, dtype=torch.float64)}, "file")


def test_a_buffer_may_hold_a_mask():
    load_strict(network(), state_with("1.1.running_mean", -INF), "file")
    with pytest.raises(CheckpointError, match="NaN"):
        load_strict(network(), state_with("1.1.running_mean", NAN), "file")


@pytest.mark.parametrize(
    ("name", "bad"),
    [("1.0.weight", NAN), ("1.0.weight", INF), ("1.0.weight", -INF), ("0.bias", NAN), ("1.1.running_var", INF)],
)
def test_weights_that_are_not_finite_are_refused_by_name(name, bad):
    net = network()
    state = state_with(name, bad)
    with pytest.raises(CheckpointError, match=rf"file holds weights that are not finite:\n  .*: {name}"):
        load_strict(net, state, "file")
    assert equal(net.state_dict(), network().state_dict())
