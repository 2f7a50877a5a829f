"""What happens to one of two processes happens to the run: signals and failing writes."""

import os
import signal

import pytest
import tiny
from ranks import on_ranks
from torch.distributed.checkpoint import FileSystemWriter

import tokenizer.train
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, read_manifest
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import find_weights, read_weights
from engine.run_log import read_metrics
from engine.stopping import EXIT_STOPPED
from engine.world import World
from tokenizer.training.task import TokenizerTask


def train(world: World, run_dir, images) -> None:
    tokenizer.train.train(tiny.tokenizer_config(run_dir, images, *tiny.GAN, "loop.save_every=4"), world)


def one_is_stopped(world: World, run_dir, images) -> None:
    """Rank 1 alone gets SIGTERM in the middle of step 2; the next save is after step 4, where all ranks agree."""
    real = TokenizerTask.train_step

    def train_step(self, micro_batches, step):
        if step == 2 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, micro_batches, step)

    TokenizerTask.train_step = train_step
    with pytest.raises(SystemExit) as stop:
        train(world, run_dir, images)
    assert stop.value.code == EXIT_STOPPED


def one_cannot_write(world: World, run_dir, images) -> None:
    """The disk of rank 1 is full."""
    if world.rank == 1:

        def write_data(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

        FileSystemWriter.write_data = write_data
    with pytest.raises(CheckpointError, match=r"step_00000004 could not be written: .*No space left") as caught:
        train(world, run_dir, images)
    assert "Traceback" not in str(caught.value)


def main_has_no_space(world: World, run_dir, images) -> None:
    """The main process fails before the others begin to write. Regression: they waited for it, for an hour."""
    if world.is_main:
        CheckpointStore._check_space = no_space
    with pytest.raises(CheckpointError, match=r"step_00000004 could not be written: .*No space left"):
        train(world, run_dir, images)


def main_cannot_finish(world: World, run_dir, images) -> None:
    """The main process fails after all have written their parts."""
    if world.is_main:
        CheckpointStore._finish = no_space
    with pytest.raises(CheckpointError, match=r"step_00000004 could not be written: .*No space left"):
        train(world, run_dir, images)


def no_space(*arguments) -> None:
    raise OSError(28, "No space left on device")


TROUBLES = [(one_is_stopped, [4]), (one_cannot_write, []), (main_has_no_space, []), (main_cannot_finish, [])]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, image_folder):
    """The run of two processes without trouble. Read only."""
    root = tmp_path_factory.mktemp("undisturbed")
    on_ranks(2, root / "ranks", train, root / "run", image_folder)
    return root / "run"


@pytest.mark.parametrize(("trouble", "saved"), TROUBLES)
def test_trouble_of_one_process_ends_both_and_the_run_goes_on(trouble, saved, undisturbed, tmp_path, image_folder):
    """Both leave at the same step, nothing half-written stays, and the next call gives the undisturbed run."""
    on_ranks(2, tmp_path / "a", trouble, tmp_path / "run", image_folder)
    folder = tmp_path / "run" / "checkpoints"
    assert [read_manifest(f)["step"] for f in checkpoint_folders(tmp_path / "run")] == saved
    assert len(list(folder.iterdir())) == len(saved)
    on_ranks(2, tmp_path / "b", train, tmp_path / "run", image_folder)
    a, b = (read_weights(find_weights(run, "ema", "run").path) for run in (tmp_path / "run", undisturbed))
    assert all((a[name] == b[name]).all() for name in b)
    losses = [[r["loss"] for r in read_metrics(run) if "loss" in r] for run in (tmp_path / "run", undisturbed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
