"""`--check` of every entry: ready where all is there, else all that is missing in one message; nothing is touched.

The commands below are complete: each would run. `test_every_entry_is_here` compares them with the modules that have a
`main`, so that a new entry without a check does not pass.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from mains import entry_modules, main_of

import autoregressive.train
import engine.preflight
import tokenizer.train
from engine import installation
from engine.messages import UserError
from engine.preflight import CHECKED_VARIABLE
from evaluations.results import write_result
from tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_folder, world):
    """A folder with a tokenizer, its codes, a GPT, and what evaluations read; `images` is a link to images."""
    root = tmp_path_factory.mktemp("place")
    (root / "images").symlink_to(image_folder)
    for name, content in (("tokenizer", tiny.TOKENIZER), ("gpt", tiny.GPT)):
        (root / f"{name}.yaml").write_text(content)
    for name in ("tokenizer", "second"):
        config = tiny.tokenizer_config(root / name, image_folder, "loop.steps=1", "loop.save_every=1")
        tokenizer.train.train(config, world)
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    config = tiny.gpt_config(root / "generator", root / "codes", root / "tokenizer", "loop.steps=1")
    autoregressive.train.train(config, world)
    (root / "pair").mkdir()
    for part, name in {"tokenizer": "tokenizer", "gpt": "generator"}.items():
        (root / "pair" / part).symlink_to(root / name)
    word = {"image": "1", "ratio": 0.05, "read": "A", "truth": "A"}
    (root / "words.json").write_text(json.dumps([word]))
    for name in ("a", "b"):
        write_result(root / f"{name}.json", {"psnr": 1.0}, {"kind": "reconstruction"})
    write_result(
        root / "measured.json", {"psnr": 1.0}, {"tokenizer": {"path": f"{root}/tokenizer", "fingerprint": "x"}}
    )
    return root


PAIR = "--vq-ckpt {root}/tokenizer --gpt-ckpt {root}/generator"
IMAGES = "data.name=folder data.root={root}/images/train data.val_root={root}/images/val"
SMALL = "data.image_size=8 data.global_batch_size=4"
WEIGHTS = "--random-stand-in"
FORCE = "--force"  # 24 images are too few for a distance
# Entry -> a command in which everything is there, and one in which things are missing, with their names.
COMMANDS = {
    "tokenizer.train": (
        f"--config {{root}}/tokenizer.yaml {IMAGES}",
        "--config {root}/tokenizer.yaml data.root={root}/no1 data.val_root={root}/no2 loss.perceptual_weight=1",
        ["no1", "no2", "vgg16"],
    ),
    "autoregressive.train": (
        "--config {root}/gpt.yaml data.codes={root}/codes data.tokenizer={root}/tokenizer",
        "--config {root}/gpt.yaml data.codes={root}/no1 data.tokenizer={root}/no2 data.global_batch_size=3 "
        "loop.grad_accum=2",
        ["no1", "no2", "data.global_batch_size=3"],
    ),
    "engine.index_images": (
        "--data-path {root}/images/train", "--data-path {root}/no1 --data folder", ["no1"]
    ),
    "evaluations.classifier": (
        f"{IMAGES} {SMALL} model.num_classes=2", "data.root={root}/no1 data.val_root={root}/no2", ["no1", "no2"]
    ),
    "evaluations.text_reader": (
        "loop.run_dir={root}/new", "loop.run_dir={root}/a.json data.global_batch_size=3 loop.grad_accum=2",
        ["a.json", "data.global_batch_size=3"],
    ),
    "evaluations.text_readback": (
        "--draw {root}/new",
        "--vq-ckpt {root}/no1 --text-reader {root}/no2 --output {root}/a.json/x.json", ["no1", "no2", "a.json"],
    ),
    "evaluations.linear_probe": (
        f"network.tokenizer={{root}}/tokenizer network.gpt={{root}}/generator {IMAGES} {SMALL}",
        "network.tokenizer={root}/no1 network.gpt={root}/no2 data.root={root}/no3 data.val_root={root}/no4",
        ["no1", "no2", "no3", "no4"],
    ),
    "evaluations.ar_probe": (
        f"--config quickstart/ar_probe tokenizer={{root}}/tokenizer run_dir={{root}}/new search_flags=[{FORCE}] "
        f"probe_overrides=[{','.join([*IMAGES.split(), *SMALL.split()])}]",
        "tokenizer={root}/no1 reference={root}/no2.npz probe_overrides=[data.root={root}/no3]",
        ["no1", "no2.npz", "no3"],
    ),
    "autoregressive.extract_codes": (
        "--vq-ckpt {root}/tokenizer --code-path {root}/new",
        "--vq-ckpt {root}/no1 --data-path {root}/no2 --val-path {root}/no3 --code-path {root}/a.json/x",
        ["no1", "no2", "no3", "a.json"],
    ),
    "autoregressive.sample": (
        f"{PAIR} --sample-dir {{root}}/new",
        "--vq-ckpt {root}/no1 --gpt-ckpt {root}/no2 --sample-dir {root}/a.json",
        ["no1", "no2", "a.json"],
    ),
    "autoregressive.convert": (
        "--gpt-ckpt {root}/generator --output {root}/new.pt",
        "--gpt-ckpt {root}/no1 --output {root}/a.json",
        ["no1", "a.json"],
    ),
    "tokenizer.convert": (
        "--vq-ckpt {root}/tokenizer --output {root}/new.pt",
        "--vq-ckpt {root}/no1 --output {root}/a.json",
        ["no1", "a.json"],
    ),
    "autoregressive.export": (
        "{root}/tokenizer --part encode --output {root}/new.pt2",
        "{root}/no1 --part encode --output {root}/a.json/x.pt2",
        ["no1", "a.json"],
    ),
    "tokenizer.reconstruct": (
        "--vq-ckpt {root}/tokenizer --data-path {root}/images --sample-dir {root}/new",
        "--vq-ckpt {root}/no1 --data-path {root}/no2",
        ["no1", "no2"],
    ),
    "evaluations.reconstruction": (
        f"--vq-ckpt {{root}}/tokenizer --output {{root}}/new.json {FORCE}",
        "--vq-ckpt {root}/no1 --val-path {root}/no2 --reference {root}/no3.npz --lpips --output {root}/new.json",
        ["no1", "no2", "no3.npz", "vgg16", "inception"],
    ),
    "evaluations.generation": (
        f"{PAIR} --code-path {{root}}/codes --output {{root}}/new.json {FORCE}",
        "--vq-ckpt {root}/no1 --gpt-ckpt {root}/no2 --reference {root}/no3.npz --code-path {root}/no4 "
        "--classifier {root}/no5 --output {root}/new.json",
        ["no1", "no2", "no3.npz", "no4", "no5", "inception"],
    ),
    "evaluations.search_cfg": (
        f"{PAIR} --output {{root}}/new.json {FORCE}",
        "--vq-ckpt {root}/no1 --gpt-ckpt {root}/no2 --reference {root}/no3.npz --output {root}/new.json",
        ["no1", "no2", "no3.npz", "inception"],
    ),
    "evaluations.val_loss": (
        f"{PAIR} --code-path {{root}}/codes --output {{root}}/new.json",
        "--vq-ckpt {root}/no1 --gpt-ckpt {root}/no2 --val-path {root}/no3 --output {root}/a.json/x.json",
        ["no1", "no2", "no3", "a.json"],
    ),
    "evaluations.measure": (
        f"--samples {{root}}/images --reference {{root}}/images --reference-kind val {WEIGHTS} {FORCE} "
        "--output {root}/new.json",
        "--samples {root}/no1.npz --gt-npz-path {root}/no2.npz --output {root}/new.json",
        ["no1.npz", "no2.npz", "inception"],
    ),
    "evaluations.make_reference": (
        f"--data-path {{root}}/images/val {WEIGHTS} --output {{root}}/new.npz",
        "--data-path {root}/no1 --output {root}/a.json",
        ["no1", "a.json", "inception"],
    ),
    "evaluations.visualize": (
        "--vq-ckpt {root}/tokenizer --vq-ckpt {root}/second --output {root}/new.npz",
        "--vq-ckpt {root}/no1 --vq-ckpt {root}/no2 --output {root}/new.npz",
        ["no1", "no2"],
    ),
    "evaluations.side_by_side": (
        "--vq-ckpt {root}/tokenizer --vq-ckpt {root}/second --data-path {root}/images --sample-dir {root}/new",
        "--vq-ckpt {root}/no1 --vq-ckpt {root}/no2 --data-path {root}/no3 --sample-dir {root}/a.json",
        ["no1", "no2", "no3", "a.json"],
    ),
    "evaluations.tokbench": (
        "--words {root}/words.json --setting 256 --read-by x --output {root}/new.json",
        "--words {root}/no1 --setting 256 --read-by x --output {root}/a.json/x.json",
        ["no1", "a.json"],
    ),
    "evaluations.compare": ("{root}/a.json {root}/b.json", "{root}/no1.json {root}/no2.json", ["no1", "no2"]),
    "evaluations.fingerprint": ("{root}/tokenizer", "{root}/no1", ["no1"]),
    "evaluations.benchmarks": (
        "--quick --output {root}/new.json",
        "--output {root}/a.json/x.json --compare {root}/no1.json --page {root}/b.json/x.md",
        ["a.json", "no1.json", "b.json"],
    ),
    "evaluations.data": (
        "{root}/images/train", "{root}/no1 --recipe {root}/no2 --output {root}/a.txt", ["no1", "no2", "a.txt"]
    ),
    "evaluations.init": (
        "{root}/images/train --output {root}/new", "{root}/no1 --output {root}/a.json", ["no1", "a.json"]
    ),
    "evaluations.own_data.example": ("--output {root}/new", "--output {root}/a.json", ["a.json"]),
    "evaluations.estimate": ("{root}/tokenizer.yaml", "{root}/no1.yaml", ["no1.yaml"]),
    "evaluations.memory": ("--output {root}/new.json", "--output {root}/a.json/x.json", ["a.json"]),
    "evaluations.ship": (
        "digits={root}/pair --output {root}/new", "digits={root}/no1 --output {root}/a.json", ["no1", "a.json"]
    ),
    "evaluations.methods": ("--runs-dir {root}/new --systems ema", "--runs-dir {root}/a.json", ["a.json"]),
    "evaluations.quickstart": ("--runs-dir {root}", "--runs-dir {root}/a.json", ["a.json"]),
    "evaluations.doctor": ("{root}/tokenizer", "{root}/no1 --recipe {root}/no2.yaml", ["no1", "no2.yaml"]),
    "evaluations.publish": (
        "{root}/tokenizer --to {root}/new",
        "{root}/no1 --results {root}/no2 --to {root}/a.json",
        ["no1", "no2", "a.json"],
    ),
    "evaluations.recipes": ("--show VQ_SS256", "--show {root}/no1.yaml", ["no1.yaml"]),
    "evaluations.paper_tables": (
        "wetok_3 --files {root} --images imagenet={root}",
        "no1 --files {root}/no2 --images imagenet={root}/no3",
        ["no1", "no2", "no3"],
    ),
    "evaluations.sweep": (
        "--config {root}/tokenizer.yaml --folder {root}/new --grid optim.lr=1,2",
        "--config {root}/no1.yaml --folder {root}/a.json --grid optim.lr=1,2",
        ["no1.yaml", "a.json"],
    ),
    "evaluations.probe_checkpoints": (
        "{root}/tokenizer --output {root}/new --probes linear_probe,ar_probe "
        "--linear-probe quickstart/linear_probe_tokenizer --ar-probe quickstart/ar_probe "
        f"--ar-probe-set search_flags=[{FORCE}] "
        f"--ar-probe-set probe_overrides=[{','.join([*IMAGES.split(), *SMALL.split()])}] "
        + " ".join(f"--linear-probe-set {item}" for item in [*IMAGES.split(), *SMALL.split()]),
        "{root}/no1 --output {root}/new", ["no1"],
    ),
    "evaluations.scaling": (
        "{root}/measured.json --plot psnr:parameters --output {root}/new",
        "{root}/no1.json --output {root}/a.json/x", ["no1.json", "a.json"],
    ),
    # The published scripts: at --scale tiny all is here, but for a place to write to.
    **{
        f"evaluations.{name}": (
            "--scale tiny --run-dir {root}/new", "--scale tiny --run-dir {root}/a.json loop.stepz=1",
            ["a.json", "stepz"],
        )
        for name in ("train_vq_and_eval", "train_c2i_and_eval")
    },
    "evaluations.eval_c2i": ("--scale tiny --run-dir {root}/new", "--scale tiny --run-dir {root}/a.json", ["a.json"]),
    "evaluations.lin_probe_and_eval": (
        "--scale tiny --run-dir {root}/new", "--probed lm --scale tiny --run-dir {root}/a.json probe.epoch=2",
        ["a.json", "probe.epoch"],
    ),
    "autoregressive.check_codes": (
        "--code-path {root}/codes --vq-ckpt {root}/tokenizer",
        "--code-path {root}/no1 --vq-ckpt {root}/no2",
        ["no1", "no2"],
    ),
    "evaluations.protocols": ("adm", "no1 adm", ["no1"]),
    "evaluations.report": ("{root}", "{root}/no1 {root}/no2", ["no1", "no2"]),
    "evaluations.atlas": (
        "{root}/tokenizer {root}/second --gpt-ckpt {root}/generator --output {root}/new.html",
        "{root}/no1 {root}/no2 --data-path {root}/no3 --scales 0 --output {root}/new.html",
        ["no1", "no2", "no3", "scale=0"],
    ),
}  # fmt: skip


def test_every_entry_is_here():
    assert entry_modules() == COMMANDS.keys()


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def check(entry, place, monkeypatch, tmp_path):
    """`check(name, command)`: the entry with --check, from the root of the repository; nothing in `place` changes."""
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path / "weights"))
    monkeypatch.delenv("ALLOW_DOWNLOAD", raising=False)
    monkeypatch.chdir(ROOT)

    def run(name, command):
        before = snapshot(place)
        outcome = entry(main_of(name), *command.format(root=place).split(), "--check")
        assert snapshot(place) == before
        return outcome

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_where_all_is_there_it_is_ready(name, check):
    code, out, err = check(name, COMMANDS[name][0])
    assert code == 0 and out.startswith("ready:\n"), out + err


@pytest.mark.parametrize("name", COMMANDS)
def test_all_that_is_missing_is_told_at_once(name, check):
    _, command, missing = COMMANDS[name]
    code, out, err = check(name, command)
    assert code == 2 and err.count("error: ") == 1 and "Traceback" not in err and not out, out + err
    assert not [part for part in missing if part not in err], err


@pytest.mark.parametrize("name", ["tokenizer.train", "autoregressive.train"])
def test_a_dry_run_lists_the_same_and_ends_well(name, place, entry, monkeypatch, tmp_path):
    """But for a wrong config, which still ends with 2."""
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path / "weights"))
    _, command, missing = COMMANDS[name]
    arguments = command.format(root=place).split()
    code, out, err = entry(main_of(name), *arguments, "--dry-run")
    assert code == 0 and "the config is valid" in out and not [part for part in missing if part not in out], out + err
    assert entry(main_of(name), *arguments, "--dry-run", "loop.steps=0")[0] == 2


RECIPES = {
    "tokenizer.train": "vq/VQ_SS256", "autoregressive.train": "gpt/GPT_B256 --config gpt/online",
    "evaluations.linear_probe": "eval/linear_probe_gpt",
}  # fmt: skip
VARIABLE = "the environment variable IMGNET_ROOT is not set"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("is_checkout", [True, False])
def test_a_recipe_is_looked_at_where_its_variables_are_not_set(name, is_checkout, entry, monkeypatch, tmp_path):
    """They are one of the things that are missing, told once; a wheel has no file that sets them. Nothing starts."""
    monkeypatch.delenv("IMGNET_ROOT", raising=False)
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path / "weights"))
    monkeypatch.setattr(installation, "IS_CHECKOUT", is_checkout)
    monkeypatch.chdir(tmp_path)
    main, arguments = main_of(name), ["--config", *RECIPES[name].split()]
    code, out, err = entry(main, *arguments, "--dry-run")
    assert code == 0 and "the config is valid" in out and out.count(VARIABLE) == 1, out + err
    assert ("set_env_vars.sh" in out) == is_checkout and "data.root='${oc.env:IMGNET_ROOT}/" in out
    assert out.count("ILSVRC2012_img_train") == 1 and "things are missing" in out  # nothing else is said of the place

    # A check and a start end with an error, which lists the rest too; so does a process that need not look.
    for flags in (["--check"], []):
        code, _, err = entry(main, *arguments, *flags)
        assert code == 2 and err.count("error: ") == 1 and VARIABLE in err and "things are missing" in err
    monkeypatch.setenv(CHECKED_VARIABLE, "1")
    code, _, err = entry(main, *arguments)
    assert code == 2 and VARIABLE in err and not list(tmp_path.iterdir())

    # The config as it is written, which can be loaded where the variable is set.
    code, out, err = entry(main, *arguments, "--print-config")
    assert code == 0 and "root: ${oc.env:IMGNET_ROOT}/ILSVRC2012_img_train" in out, err


def test_a_wrong_recipe_stays_wrong_without_its_variables(entry, monkeypatch):
    """Everything at once; a number cannot stand as it is written."""
    monkeypatch.delenv("IMGNET_ROOT", raising=False)
    arguments = ["--config", "vq/VQ_SS256", "--dry-run", "optim.lr=-1", "loop.steps=${oc.env:NO_SUCH_NUMBER}"]
    code, _, err = entry(tokenizer.train.main, *arguments)
    assert code == 2 and all(part in err for part in ("optim.lr=-1.0 must be", VARIABLE, "NO_SUCH_NUMBER is not set"))


def test_training_looks_before_it_starts(place, entry, tmp_path):
    """The same message without a flag, and no run folder."""
    arguments = COMMANDS["tokenizer.train"][1].format(root=place).split()
    code, _, err = entry(tokenizer.train.main, *arguments, f"loop.run_dir={tmp_path / 'run'}")
    assert code == 2 and "no1" in err and "no2" in err and not (tmp_path / "run").exists()


def test_weights_of_another_size_are_found_in_their_header(place, entry, tmp_path):
    """A GPT of another codebook; nothing of its weights is read."""
    wrong = [f"data.codes={place / 'codes'}", f"data.tokenizer={place / 'tokenizer'}", "model.gpt.vocab_size=17"]
    code, _, err = entry(autoregressive.train.main, "--config", place / "gpt.yaml", *wrong, "--check")
    assert code == 2 and "codebook_sizes=[17]" in err
    (weights,) = (place / "second").rglob("model.safetensors")
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-4])
        code, _, err = entry(main_of("tokenizer.convert"), "--vq-ckpt", place / "second", "--output", tmp_path / "x.pt",
                             "--check")  # fmt: skip
        assert code == 2 and "its size or hash is not that of manifest.json" in err
    finally:
        weights.write_bytes(content)


def test_hashes_are_compared_on_request(place, entry, tmp_path):
    """One byte changed, the size not."""
    (weights,) = (place / "second").rglob("model.safetensors")
    content = weights.read_bytes()
    command = [
        "--vq-ckpt",
        place / "second",
        "--sample-dir",
        tmp_path / "x",
        "--data-path",
        place / "images",
        "--check",
    ]
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert entry(main_of("tokenizer.reconstruct"), *command)[0] == 0
        code, _, err = entry(main_of("tokenizer.reconstruct"), *command, "--hash")
        assert code == 2 and "its size or hash is not that of manifest.json" in err
    finally:
        weights.write_bytes(content)


# ---------------------------------------------------------------------------------------------- before processes exist
def launch(script: str, *arguments: object, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """A script with a fake torchrun that leaves a marker."""
    torchrun = folder / "torchrun"
    torchrun.write_text(f'#!/bin/sh\necho "$PREFLIGHT_DONE" > {folder}/marker\n')
    torchrun.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "TORCH_RUN_PATH": str(torchrun), "VIRTUAL_ENV": sys.prefix,
                   "OMP_NUM_THREADS": "1", "HOME": str(folder), **variables}  # fmt: skip
    command = ["bash", str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_eight_processes_are_not_started_without_their_files(place, tmp_path):
    """GPUS=8 with three things missing: one message with all three, once, and torchrun never ran."""
    missing = [f"data.root={place}/no1", f"data.val_root={place}/no2", "loss.perceptual_weight=1"]
    options = ["data.global_batch_size=8", f"loop.run_dir={tmp_path}/run"]
    exported = {"PREFLIGHT_DONE": "1", "LOCAL_WORLD_SIZE": "2"}  # left by another command
    done = launch("train_vq.sh", place / "tokenizer.yaml", *missing, *options, folder=tmp_path, GPUS="8", **exported)
    assert done.returncode == 2 and not (tmp_path / "marker").exists(), done.stderr
    assert done.stderr.count("error: ") == 1 and "3 things" in done.stderr
    for name in ("no1", "no2", "vgg16-397923af.pth"):
        assert len(re.findall(rf"^  .*{name}", done.stderr, re.MULTILINE)) == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_where_all_is_there_the_processes_need_not_look_again(place, image_folder, tmp_path):
    options = [*tiny.folder_data(image_folder), f"loop.run_dir={tmp_path}/run"]
    done = launch("train_vq.sh", place / "tokenizer.yaml", *options, folder=tmp_path, GPUS="2")
    assert done.returncode == 0 and (tmp_path / "marker").read_text() == "1\n", done.stderr
    assert done.stderr.count("ready:") == 1


def test_one_error_of_several_processes_is_told_once(entry, tmp_path, monkeypatch):
    """The first process of an attempt that fails tells, another error too; the next attempt has a folder of its own."""
    told = []
    for attempt, rank, problem in ((0, 1, "no codes"), (0, 0, "no codes"), (0, 2, "no images"), (1, 0, "no codes")):

        def fails(problem=problem):
            raise UserError(problem)

        folder = tmp_path / f"attempt_{attempt}"
        (folder / str(rank)).mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / str(rank) / "error.json"))
        code, _, err = entry(fails)
        assert code == 2
        told.append(f"error: {problem}" in err)
    assert told == [True, False, True, True]


def test_the_first_process_of_a_machine_looks_for_all(monkeypatch):
    """Under a bare torchrun, where no script has looked before."""
    monkeypatch.delenv(engine.preflight.CHECKED_VARIABLE, raising=False)
    for rank, looks in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert engine.preflight._is_checked() != looks
