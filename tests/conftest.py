"""Fixtures that all tests share: one thread, a world of one process, a few image files, the call of an entry.

At the end, the closest calls of the parity tests are reported.
"""

import contextlib
import logging
import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mini
import pytest
import tiny
import torch
from browser import browser, open_page  # noqa: F401  (fixtures)
from compared import COMPARISONS, GOLDENS

import tokenizer.train
from engine.cli import run_entry
from engine.config import load_config
from engine.stopping import STOP_SIGNALS
from engine.world import World
from tokenizer import load_tokenizer

# What ignores a signal at its start goes on ignoring it, as under nohup; the tests send all of them.
for number in STOP_SIGNALS:
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


OF_PYTEST = "PYTEST_CURRENT_TEST"  # pytest itself changes this one during a test


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Tiny tensors are fastest on one thread, and a forked process group needs it."""
    torch.set_num_threads(1)

    # The first backward pass of a process starts threads for all devices but the CPU. It comes before any test that
    # pretends to have a GPU, for whose threads no later test could fork.
    if not torch.cuda.is_available():
        torch.zeros((), requires_grad=True).backward()


@pytest.fixture(scope="session", autouse=True)
def no_power_cut():
    """Nothing waits for the disk: a process that is killed loses nothing of what it wrote, only a machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@contextlib.contextmanager
def same_environment():
    """Takes back what is changed in the environment meanwhile: a command that ran in this process may have set it."""
    before = dict(os.environ)
    yield
    mine = os.environ.get(OF_PYTEST)
    os.environ.clear()
    os.environ.update(before if mine is None else {**before, OF_PYTEST: mine})


@pytest.fixture(autouse=True, scope="module")
def environment_before_module():
    """Comes before the other fixtures of a module, which may run commands too."""
    with same_environment():
        yield


@pytest.fixture(autouse=True)
def environment_before_test():
    with same_environment():
        yield


@pytest.fixture(scope="session")
def world():
    """This process alone, on the CPU."""
    return World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """`train` and `val` in ImageNet layout: two classes of small PNG files. Read only."""
    root = tmp_path_factory.mktemp("images")
    tiny.write_images(root / "train", per_class=12, seed=1)
    tiny.write_images(root / "val", per_class=3, seed=2)
    return root


@pytest.fixture(scope="session")
def codes(tmp_path_factory, image_folder, world):
    """Random codes that carry the fingerprint of a tiny trained tokenizer, and that tokenizer. Read only."""
    root = tmp_path_factory.mktemp("codes")
    tokenizer.train.train(tiny.tokenizer_config(root / "tokenizer", image_folder, "loop.steps=1"), world)
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    return root / "codes", root / "tokenizer"


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """The folders of `mini.export_networks`. Read only."""
    root = tmp_path_factory.mktemp("networks")
    mini.export_networks(root)
    return root


@pytest.fixture(scope="session")
def text_reader(tmp_path_factory, world):
    """The folder of a small reader of drawn text in pictures of 64 px, trained in seconds. Read only."""
    from evaluations.readback import training

    folder = tmp_path_factory.mktemp("reader")
    overrides = [
        "model.width=16", "optim={lr: 1e-2, end_lr: 1e-5, warmup_steps: 30}", "loop={steps: 400, device: cpu}",
        "data={num_crops: 3200, num_held_out: 200, picture_sizes: [64], global_batch_size: 32}",
        f"loop.run_dir={folder}",
    ]  # fmt: skip
    training.train(load_config(training.ReaderTrainConfig, overrides=overrides), world)
    return folder


@pytest.fixture
def entry(monkeypatch, capfd):
    """`entry(main, *arguments)` runs an entry as its command would: (exit code, stdout, stderr)."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["entry", *map(str, arguments)])
        root = logging.getLogger()
        before, level = list(root.handlers), root.level
        root.handlers[:] = []  # so that the entry makes its own
        capfd.readouterr()
        try:
            run_entry(main)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else 1)
        finally:
            root.handlers[:], root.level = before, level
        out, err = capfd.readouterr()
        return code, out, err

    return run


# ------------------------------------------------------------------------------------------------ parity
def pytest_sessionfinish(session):
    """A process among several (pytest-xdist) hands what it compared to the first one."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["comparisons"] = [list(comparison) for comparison in COMPARISONS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """The first process takes what another one compared."""
    COMPARISONS.extend(tuple(comparison) for comparison in getattr(node, "workeroutput", {}).get("comparisons", ()))


def pytest_terminal_summary(terminalreporter):
    """How many numbers were compared, and the differences that came nearest to their limit."""
    if not COMPARISONS:
        return
    nearest = sorted(COMPARISONS, key=lambda c: c[0] / c[1], reverse=True)[:8]
    terminalreporter.write_sep("-", f"parity: {len(COMPARISONS)} comparisons with {GOLDENS}")
    for difference, limit, what in nearest:
        terminalreporter.write_line(f"{difference:.1e} of {limit:.1e} allowed: {what}")
