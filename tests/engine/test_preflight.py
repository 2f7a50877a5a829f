"""The pre-flight: all that is missing in one message; devices, with fakes for machines that are not here."""

import argparse
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from engine import devices
from engine.assets import AssetsConfig
from engine.data.config import DataConfig
from engine.devices import device_line, device_problem, pick_device
from engine.installation import REQUESTED_PROCESSES
from engine.loop import LoopConfig
from engine.messages import ConfigError, UserError
from engine.preflight import CHECKED_VARIABLE, Preflight, joint_preflight, network_bytes, require


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (
        CHECKED_VARIABLE,
        *REQUESTED_PROCESSES,
        "LOCAL_WORLD_SIZE",
        "NNODES",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.delenv(name, raising=False)


def flags(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"check": False, "hash": False, **given})


# ---------------------------------------------------------------------------------------------- the collector
def test_all_problems_are_in_one_message(tmp_path):
    """Not the first one alone; what two needs have in common is told once."""

    def needs(preflight):
        preflight.file(tmp_path / "absent.npz", "--reference")
        preflight.folder(tmp_path / "nowhere", "--data-path")
        preflight.file(tmp_path / "absent.npz", "--reference")
        with preflight.collecting():
            raise ConfigError("a and b", ["a=1 must be 2", "b=1 must be 2"])

    with pytest.raises(UserError) as caught:
        require(flags(), needs)
    heading, *lines = str(caught.value).splitlines()
    assert heading.startswith("4 things")
    assert lines == [
        f"  --reference: {tmp_path}/absent.npz does not exist",
        f"  --data-path: {tmp_path}/nowhere is not a folder",
        "  a=1 must be 2",
        "  b=1 must be 2",
    ]


def test_a_check_ends_and_says_what_was_found(tmp_path, capsys):
    (tmp_path / "a.npz").write_bytes(b"12345")
    with pytest.raises(SystemExit) as stop:
        require(flags(check=True), lambda preflight: preflight.file(tmp_path / "a.npz", "--reference"))
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ready:\n  --reference: {tmp_path}/a.npz (5 bytes)\n"


def test_a_dry_run_tells_what_another_machine_may_have(capsys):
    with pytest.raises(SystemExit) as stop:
        require(flags(dry_run=True), lambda preflight: preflight.problem("data.root is missing"))
    assert stop.value.code == 0 and capsys.readouterr().out == "on this machine: data.root is missing\n"


@pytest.mark.parametrize(("name", "value"), [(CHECKED_VARIABLE, "1"), ("LOCAL_RANK", "3")])
def test_a_process_that_need_not_look_does_not(monkeypatch, name, value):
    """Where the script has looked before, or the first process of the machine does; a check always looks."""
    monkeypatch.setenv(name, value)
    require(flags(), lambda preflight: preflight.problem("missing"))
    with pytest.raises(UserError, match="missing"):
        require(flags(check=True), lambda preflight: preflight.problem("missing"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, make, told):
    make(tmp_path / "x")
    preflight = Preflight()
    assert not preflight.file(tmp_path / "x", "--x")
    assert told in preflight.problems[0]


def test_places_for_results(tmp_path, monkeypatch):
    """A folder that can be made is ready and is not made; one below a file, or on a full disk, is not.

    What other outputs will take of the same disk counts.
    """
    (tmp_path / "file").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_000))
    preflight = Preflight()
    preflight.output(tmp_path / "a" / "b", "loop.run_dir", 1_900_000_000)
    assert not preflight.problems and not (tmp_path / "a").exists()
    preflight.output(tmp_path / "file" / "b", "--output")
    preflight.output(tmp_path / "c", "loop.run_dir", 3_000_000_000)
    assert preflight.problems == [
        f"--output: {tmp_path}/file is a file, so the folder {tmp_path}/file/b cannot be made",
        f"loop.run_dir: about 3.0 GB are needed in {tmp_path}/c (beside 1.9 GB of other outputs), 2.0 GB are free; "
        "free some space, or choose another folder",
    ]


def test_a_pipeline_asks_its_commands_what_they_need(tmp_path):
    """Each adds its own and ends instead of starting; what an earlier one writes need not be there."""
    preflight = Preflight()
    preflight.later[tmp_path / "run"] = "training"

    def needs(own: Preflight) -> None:
        assert own is preflight
        assert own.comes_later(tmp_path / "run" / "checkpoints", "--vq-ckpt")
        assert not own.comes_later(tmp_path / "runs", "--gpt-ckpt")
        own.problem("something is missing")

    args = argparse.Namespace(check=False, hash=False)
    with joint_preflight(preflight), pytest.raises(SystemExit) as stop:
        require(args, needs)
    assert stop.value.code == 0 and preflight.problems == ["something is missing"]
    assert preflight.ready == [f"--vq-ckpt: {tmp_path / 'run' / 'checkpoints'} (written by the stage 'training')"]
    with pytest.raises(UserError, match="something else"):
        require(args, lambda own: own.problem("something else"))


@pytest.mark.parametrize("name", ["", ".", "..", "folder"])
def test_a_folder_is_no_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    preflight = Preflight()
    preflight.output_file(Path(name), "--output")
    assert preflight.problems == [f"--output: {Path(name)} is a folder; the name of a file is needed"]
    preflight.output_file(Path("page.html"), "--output")
    assert len(preflight.problems) == 1


def test_room_for_checkpoints(tmp_path, monkeypatch):
    """1000 parameters with AdamW and EMA: 24,000 bytes a checkpoint, of which two stay and a third is written."""
    asked = []
    monkeypatch.setattr(Preflight, "output", lambda self, folder, name, num_bytes=0: asked.append(num_bytes))
    size = network_bytes(1000, ema=True)
    for loop in (LoopConfig(steps=10, save_every=1), LoopConfig(steps=10, save_every=5), LoopConfig(steps=1)):
        Preflight().training(loop, 4, size)
    assert asked == [3 * 24_000, 2 * 24_000, 24_000]


def test_classes_are_compared_by_name(tmp_path):
    """Training and held-out images: the first label with two names; no image is decoded."""
    for split, classes in (("train", ("a", "b", "c")), ("val", ("a", "c", "d"))):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.png").write_text("no image")
    preflight = Preflight()
    preflight.training_images(DataConfig(root=str(tmp_path / "train"), val_root=str(tmp_path / "val")))
    assert len(preflight.problems) == 1 and "class 1 is 'c' against 'b'" in preflight.problems[0]


def test_weights_are_read_only_with_hash(tmp_path):
    """A file under the right name is found; that it is another one, only its hash shows."""
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"another file")
    config = AssetsConfig(pretrained_dir=str(tmp_path))
    quick, thorough = Preflight(), Preflight(hashes=True)
    for preflight in (quick, thorough):
        preflight.assets(("vgg16", "alexnet"), config)
    assert len(quick.problems) == 1 and "alexnet-owt-7be5be79.pth" in quick.problems[0]
    assert len(thorough.problems) == 2 and "instead of 397923af" in thorough.problems[0]


def test_a_batch_is_divided_among_the_processes_that_were_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GPUS", "4")
    monkeypatch.setenv("NNODES", "2")

    def needs(preflight):
        preflight.training(LoopConfig(run_dir=str(tmp_path), device="cpu"), 12, 0)

    problem = "data.global_batch_size=12 is not divisible by 8 ranks x loop.grad_accum=1; use a multiple of 8"
    with pytest.raises(UserError, match=re.escape(problem)):
        require(flags(check=True), needs)
    with pytest.raises(UserError, match=re.escape(problem)):
        require(flags(), needs, starts_scripts=True)
    with pytest.raises(SystemExit):
        require(flags(dry_run=True), needs)
    assert capsys.readouterr().out == f"on this machine: {problem}\n"

    # A plain `python -m` is one process, whatever the shell exports; under torchrun it is one of those that run.
    require(flags(), needs)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    with pytest.raises(UserError, match="12 is not divisible by 5 ranks"):
        require(flags(), needs)


# ---------------------------------------------------------------------------------------------- devices
def machine(monkeypatch, tmp_path, *, files: int, usable: int, error: str = "", cuda: str | None = "13.0") -> None:
    """A machine with GPU files, of which `usable` GPUs work; torch explains by `error` why none does."""

    def init():
        if error:
            raise RuntimeError(error)

    for number in range(files):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(devices, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)


REASONS = {
    "no driver": ({"files": 0, "usable": 0, "error": "Found no NVIDIA driver"}, {}, "Found no NVIDIA driver"),
    "old driver": ({"files": 8, "usable": 0, "error": "driver is too old (found 11040)"}, {}, "too old (found 11040)"),
    "CPU build": ({"files": 8, "usable": 0, "cuda": None}, {}, "is a build for CPUs"),
    "hidden": ({"files": 8, "usable": 0}, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides all"),
}


@pytest.mark.parametrize("case", REASONS)
def test_why_no_gpu_can_be_used(case, monkeypatch, tmp_path):
    """`cuda`, which published recipes ask for, stops with the reason and the way around."""
    facts, variables, reason = REASONS[case]
    machine(monkeypatch, tmp_path, **facts)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        pick_device("cuda")
    assert reason in str(caught.value) and "loop.device=cpu" in str(caught.value)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("case", "takes_cpu"), {"no driver": True, "hidden": True, "old driver": False,
                                                 "CPU build": False}.items())  # fmt: skip
def test_auto_takes_the_cpu_only_where_no_gpu_is_meant(case, takes_cpu, monkeypatch, tmp_path):
    """Not beside GPUs that do not work; where the user has hidden them, that is a choice."""
    facts, variables, _ = REASONS[case]
    machine(monkeypatch, tmp_path, **facts)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (device_problem("auto") is None) == takes_cpu


def test_more_processes_than_gpus(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, files=4, usable=4)
    monkeypatch.setenv("GPUS", "8")
    preflight = Preflight(for_scripts=True)
    preflight.device("auto")
    assert "8 processes need 8 GPUs, but 4 are visible" in preflight.problems[0]
    alone = Preflight()
    alone.device("auto")
    assert not alone.problems and alone.ready == ["device auto: 1 process on this machine"]
    assert device_problem("cuda", 4) is None


def test_the_first_line_says_where_a_run_computes(monkeypatch, tmp_path):
    line = device_line(torch.device("cpu"), 2, "bf16")
    assert line.startswith("device: CPU, 2 processes") and f"torch {torch.__version__}; precision bf16" in line
    machine(monkeypatch, tmp_path, files=8, usable=8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    line = device_line(torch.device("cuda"), 1, "fp32")
    assert line.startswith("device: NVIDIA H100, 1 process, 1 of 8 visible GPUs used")


def test_a_run_begins_with_that_line(tmp_path, image_folder, entry):
    """On the console and in log.txt."""
    import tokenizer.train

    (tmp_path / "t.yaml").write_text(tiny.TOKENIZER)
    options = [*tiny.folder_data(image_folder), f"loop.run_dir={tmp_path / 'run'}", "loop.steps=1"]
    code, _, err = entry(tokenizer.train.main, "--config", tmp_path / "t.yaml", *options)
    assert code == 0 and err.startswith("device: CPU, 1 process"), err
    assert "device: CPU" in Path(tmp_path / "run" / "log.txt").read_text().splitlines()[0]
