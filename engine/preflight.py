"""The pre-flight: everything that a command needs and does not find, told at once, before it starts.

Every entry says beside its flags or config what it needs, as a function of a `Preflight`, and hands it to `require`
before it does anything else:

    def needs(args: argparse.Namespace, preflight: Preflight) -> None:
        preflight.device(args.device)
        preflight.output(args.output.parent, "--output")
        with preflight.collecting():
            open_something(args.path)               # raises UserError where something is missing

    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))

It looks at listings, sizes and headers: it reads no weights and computes nothing. Of a set of images whose size decides
whether numbers can be trusted it decodes the first, and it compares the hash of a feature extractor, which numbers
depend on. With `--hash` it also reads other files whose hash is known. `--check` stops after it.

A script that starts several processes runs `--check` once before (`scripts/launch.sh`) and sets `CHECKED_VARIABLE`;
under a bare torchrun, the first process of each machine checks. A pipeline asks all of its commands at once, before it
starts the first of them (`joint_preflight`).
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.arithmetic import ceil_div
from engine.assets import AssetsConfig, find_asset, resolve
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.config_merge import UnsetVariable, unset_lines
from engine.counts import counted
from engine.data.base import SourceConfig, Survey
from engine.data.classes import Classes, labels_among
from engine.data.sources import has_split, survey_source
from engine.devices import device_problem
from engine.installation import REQUESTED_PROCESSES
from engine.loop import LoopConfig, batch_problem
from engine.messages import ConfigError, UserError
from engine.outputs import free_name

CHECKED_VARIABLE = "PREFLIGHT_DONE"  # of the environment: 1 in processes whose needs were looked for before
MB = 10**6
GB = 10**9


class Preflight:
    """Collects the `problems` of a command before it starts, and what is `ready`, as lines for people."""

    def __init__(self, hashes: bool = False, *, for_scripts: bool = False) -> None:
        self.hashes = hashes  # also compare hashes, which reads whole files
        self.for_scripts = for_scripts  # what the scripts would start is looked at, not this process
        self.problems: list[str] = []
        self.ready: list[str] = []
        self.later: dict[Path, str] = {}  # what an earlier stage of a pipeline will write -> the name of that stage
        self._promised: dict[int, int] = {}  # disk -> bytes that all outputs so far need
        self._unset: set[str] = set()  # texts of a config that need a variable which is not set

    # -------------------------------------------------------------------------------------------- collecting
    def problem(self, line: str) -> None:
        """Adds a problem; one that several needs have in common is told once."""
        if line not in self.problems and not any(text in line for text in self._unset):
            self.problems.append(line)

    def variables(self, unset: Sequence[UnsetVariable]) -> None:
        """Adds environment variables that a config needs. What else is wrong with their texts is not told: nothing can
        be there.
        """
        for line in unset_lines(unset):
            self.problem(line)
        self._unset |= {variable.text for variable in unset}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Adds the `UserError` that the body raises to the problems, and goes on behind it."""
        try:
            yield
        except ConfigError as error:
            for line in error.problems:
                self.problem(line)
        except UserError as error:
            self.problem(str(error))

    def comes_later(self, path: str | Path, name: str) -> bool:
        """Whether an earlier stage of the same pipeline will write `path`, or a folder around it.

        It need not be there yet, and nothing of it can be looked at. `name` is the flag or key that names it.
        """
        absolute = Path(path).absolute()
        for written, stage in self.later.items():
            if absolute.is_relative_to(written):
                self.ready.append(f"{name}: {path} (written by the stage {stage!r})")
                return True
        return False

    # -------------------------------------------------------------------------------------------- files
    def file(self, path: str | Path, name: str) -> bool:
        """A file that must be there and not empty; `name` is the flag or key that names it. Returns whether it is."""
        path = Path(path)
        if path.is_dir():
            self.problem(f"{name}: {path} is a folder; a file is needed")
        elif not path.is_file():
            self.problem(f"{name}: {path} does not exist")
        elif not os.access(path, os.R_OK):
            self.problem(f"{name}: {path} cannot be read; check its permissions")
        elif path.stat().st_size == 0:
            self.problem(f"{name}: {path} is empty")
        else:
            self.ready.append(f"{name}: {path} ({path.stat().st_size:,} bytes)")
            return True
        return False

    def folder(self, path: str | Path, name: str) -> bool:
        """A folder that must be there and readable. Returns whether it is."""
        path = Path(path)
        if not path.is_dir():
            self.problem(f"{name}: {path} is not a folder")
        elif not os.access(path, os.R_OK | os.X_OK):
            self.problem(f"{name}: {path} cannot be read; check its permissions")
        else:
            self.ready.append(f"{name}: {path}")
            return True
        return False

    def output(self, folder: str | Path, name: str, num_bytes: int = 0) -> None:
        """A folder that must be writable, or able to be made, on a disk with `num_bytes` free."""
        # The place: the folder, or what it would be made in.
        folder = Path(folder)
        present = _nearest_present(folder)
        if not present.is_dir():
            is_below = present != folder.absolute()
            reason = f", so the folder {folder} cannot be made" if is_below else "; a folder is needed"
            self.problem(f"{name}: {present} is a file{reason}")
            return
        if not os.access(present, os.W_OK | os.X_OK):
            self.problem(f"{name}: {present} cannot be written; choose another folder")
            return

        # Its disk, which other outputs may fill too.
        free = shutil.disk_usage(present).free
        disk = present.stat().st_dev
        total = self._promised[disk] = self._promised.get(disk, 0) + num_bytes
        if num_bytes and free < total:
            others = f" (beside {_size(total - num_bytes)} of other outputs)" if total > num_bytes else ""
            self.problem(
                f"{name}: about {_size(num_bytes)} are needed in {folder}{others}, {_size(free)} are free; "
                "free some space, or choose another folder"
            )
            return
        needed = f", about {_size(num_bytes)} needed" if num_bytes else ""
        self.ready.append(f"{name}: {folder} ({_size(free)} free{needed})")

    def output_file(self, path: str | Path, name: str) -> None:
        """A file that can be written; what it may replace is the entry's to judge."""
        path = Path(path)
        if not path.name or path.is_dir():
            self.problem(f"{name}: {path} is a folder; the name of a file is needed")
        else:
            self.output(path.parent, name)

    def new_file(self, path: str | Path, name: str) -> None:
        """A file or folder that must not exist yet, in a folder that can be written."""
        path = Path(path)
        if path.exists():
            self.problem(f"{name}: {path} exists already; give another name, such as {free_name(path)}")
        else:
            self.output(path.parent, name)

    # -------------------------------------------------------------------------------------------- what runs need
    def device(self, name: str) -> None:
        """A device for each process that was asked for on this machine."""
        count = num_local_processes(self.for_scripts)
        problem = device_problem(name, count)
        if problem is not None:
            self.problem(problem)
        else:
            self.ready.append(f"device {name}: {counted(count, 'process', 'processes')} on this machine")

    def assets(self, names: tuple[str, ...], config: AssetsConfig, *, hashed: bool = False) -> None:
        """Pretrained weights, by their names in `engine.assets.ASSETS`; `hashed`: also compare their hashes."""
        for name in names:
            if config.random_stand_in:
                continue
            with self.collecting():
                path = resolve(name, config).path if hashed or self.hashes else find_asset(name, config)
                self.ready.append(f"pretrained weights {name}: {path or 'may be downloaded'}")

    def images(self, config: SourceConfig, split: str) -> Survey | None:
        """The images of a split; None where they are not there."""
        with self.collecting():
            survey = survey_source(config, split)
            self.ready.append(f"{split} images: {survey.text()}")
            return survey
        return None

    def training_images(self, config: SourceConfig) -> Survey | None:
        """The training images, and the held-out ones where the config names some: of the same classes."""
        train = self.images(config, "train")
        held_out = self.images(config, "val") if has_split(config, "val") else None
        self.classes(held_out, Classes.of_survey(train))
        return train

    def classes(self, survey: Survey | None, expected: Classes | None) -> None:
        """The classes of images must be among those expected, by name, where both are known."""
        classes = Classes.of_survey(survey)
        if classes is None or expected is None:
            return
        if classes.are_labels and expected.are_labels:
            with self.collecting():
                labels_among(classes, expected)

    def training(
        self, loop: LoopConfig, global_batch_size: int, checkpoint_bytes: int, phases: Sequence[LoopConfig] = ()
    ) -> None:
        """What every training needs: a device, a batch that can be divided, and room for its checkpoints.

        A training in `phases` keeps those of each in a folder of its own.
        """
        self.device(loop.device)
        problem = batch_problem(global_batch_size, num_processes(self.for_scripts), loop.grad_accum)
        if problem is not None:
            self.problem(problem)
        num_bytes = sum(self._bytes_to_come(phase, checkpoint_bytes) for phase in phases or (loop,))
        self.output(loop.run_dir, "loop.run_dir", num_bytes)

    def _bytes_to_come(self, loop: LoopConfig, checkpoint_bytes: int) -> int:
        """Bytes of the newest checkpoints that a run will still add: one is written before the oldest goes. 0 for a
        finished one.

        Those of `loop.keep_every` are left out: a user may move them away while the training goes on.
        """
        present = checkpoint_folders(Path(loop.run_dir))
        if present and read_manifest(present[-1])["step"] >= loop.last_step:
            return 0
        num_kept = min(loop.keep_last + 1, ceil_div(loop.last_step, loop.save_every))
        return max(1, num_kept - len(present)) * checkpoint_bytes

    # -------------------------------------------------------------------------------------------- the message
    def message(self) -> str:
        """All problems as one text: a single one as it is, several below a heading."""
        if len(self.problems) == 1:
            return self.problems[0]
        heading = f"{len(self.problems)} things are missing or wrong:"
        return "\n  ".join([heading, *(problem.replace("\n", "\n    ") for problem in self.problems)])


def _size(num_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{num_bytes / GB:,.1f} GB" if num_bytes >= GB else f"{num_bytes / MB:,.1f} MB"


def _nearest_present(folder: Path) -> Path:
    """`folder`, or the nearest path above it that exists."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def network_bytes(num_parameters: int, ema: bool) -> int:
    """Bytes of one checkpoint of a trained network: weights and two moments of AdamW, and the weights to share once
    more; with an EMA, that twice.
    """
    return num_parameters * 4 * (6 if ema else 4)


# ------------------------------------------------------------------------------------------------ processes
def num_local_processes(for_scripts: bool = False) -> int:
    """The processes of this machine: those that torchrun started, else one.

    With `for_scripts`, else those that the scripts would start: a plain `python -m` is alone, whatever a shell exports.
    """
    names = ("LOCAL_WORLD_SIZE", *(REQUESTED_PROCESSES if for_scripts else ()))
    texts = [os.environ[name] for name in names if os.environ.get(name, "").isdigit()]
    return max(1, int(texts[0])) if texts else 1


def num_processes(for_scripts: bool = False) -> int:
    """The processes of all machines; see `num_local_processes`."""
    if os.environ.get("WORLD_SIZE", "").isdigit():
        return int(os.environ["WORLD_SIZE"])
    nodes = os.environ.get("NNODES", "1") if for_scripts else "1"
    return num_local_processes(for_scripts) * (int(nodes) if nodes.isdigit() else 1)


def _is_checked() -> bool:
    """Whether another process checks, or has checked, what this one needs."""
    return os.environ.get(CHECKED_VARIABLE) == "1" or os.environ.get("LOCAL_RANK", "0") != "0"


# ------------------------------------------------------------------------------------------------ running it
def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --check and --hash, which every entry has."""
    parser.add_argument(
        "--check",
        action="store_true",
        help="look for all files, weights, devices and disk space that this command needs, then exit (2: not ready)",
    )
    parser.add_argument(
        "--hash", action="store_true", help="with --check: also compare the hashes of files, which reads them"
    )


_joint: list[Preflight] = []  # of the pipeline that asks commands what they need; empty outside of `joint_preflight`


@contextmanager
def joint_preflight(preflight: Preflight) -> Iterator[None]:
    """Inside, a command adds what it needs to `preflight` and ends with SystemExit(0) instead of starting.

    For a pipeline, which runs its commands in this process to ask all of them before it starts the first.
    """
    _joint.append(preflight)
    try:
        yield
    finally:
        _joint.pop()


def require(args: argparse.Namespace, needs: Callable[[Preflight], None], *, starts_scripts: bool = False) -> None:
    """Looks for all that a command needs, before it starts. One that `starts_scripts` needs what these will.

    With --check it prints what was found and raises SystemExit(0). With --dry-run it prints what is missing, which
    another machine may have, and raises SystemExit(0) as well. Otherwise it returns if nothing is missing. Variables
    that the config lacks (`unset` of the flags, see `engine.cli.parse_cli`) are always missing.

    Raises one UserError that lists all problems, but for a dry run.
    """
    unset = getattr(args, "unset", ())
    if _joint:
        _joint[-1].variables(unset)
        needs(_joint[-1])
        raise SystemExit(0)
    if _is_checked() and not args.check:
        if unset:
            raise UserError("; ".join(unset_lines(unset)))
        return
    is_dry_run = getattr(args, "dry_run", False) and not args.check
    preflight = Preflight(args.hash, for_scripts=args.check or is_dry_run or starts_scripts)
    preflight.variables(unset)
    needs(preflight)

    if is_dry_run:
        if preflight.problems:
            print(f"on this machine: {preflight.message()}")
        raise SystemExit(0)
    if preflight.problems:
        raise UserError(preflight.message())
    if args.check:
        print("\n  ".join(["ready:", *preflight.ready]))
        raise SystemExit(0)
