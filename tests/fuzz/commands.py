"""Random command lines for every entry, in one process: a result that can be trusted, or one clear error.

    PYTHONPATH=.:tests python tests/fuzz/commands.py --count 5000 --seed 0
    PYTHONPATH=.:tests python tests/fuzz/commands.py --seed 0 --case 137            (one case again, with its output)

Every case takes a command line that works, on tiny networks, and changes it one to three times: other values (right
ones, boundaries, nan, inf, empty, huge, negative, unicode), missing files and wrong kinds of files, swapped, repeated,
dropped and added arguments, flags that need each other. Two thirds run with --check, the others for real.

Wrong is a traceback, an exit code without a message, more than 10 seconds of this process, a number in the output or in
a written JSON or npz file that is not finite, and an input file that was changed or removed. A command that --check
calls ready and that is then refused is listed, but not wrong: not every refusal can be known before the work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.cases import TooLong, case_parser, time_limit
from fuzz.command_place import CHECK_ONLY, COMMANDS, PATHS, TRAINERS, build, command_lines
from mains import entry_modules, main_of

from autoregressive.training.config import GPTTrainConfig
from engine.cli import run_entry
from engine.config import flatten
from evaluations.digits.training import ClassifierTrainConfig
from evaluations.pipelines.ar_probe import ARProbeConfig
from evaluations.probes.task import LinearProbeConfig
from evaluations.readback.training import ReaderTrainConfig
from tokenizer.training.config import TokenizerTrainConfig

TIME_LIMIT = 10  # seconds of this process per case
WALL_LIMIT = 120  # seconds on the clock, for one that waits forever
CHECK_FRACTION = 0.67
OUT = "out"
SCHEMAS = {
    "tokenizer.train": TokenizerTrainConfig,
    "autoregressive.train": GPTTrainConfig,
    "evaluations.linear_probe": LinearProbeConfig,
    "evaluations.classifier": ClassifierTrainConfig,
    "evaluations.text_reader": ReaderTrainConfig,
    "evaluations.ar_probe": ARProbeConfig,
}
SECRET = {"loop.trackers", "loop.wandb.project"}  # keys that would reach for a network
BOUNDED_BY = ("loop.steps=", "--num-fid-samples")  # without it, the work takes days

SMALL = ["0", "1", "2", "3", "4", "8", "-1", "-2", "0.5", "1.0", "-0.0", "1,2", "0,0", "true", "false", "null"]
ODD = [
    *("", " ", "nan", "inf", "-inf", "1e400", "NaN,1", "1,,2", ",", "0x10", "1_0", "²", "１", "٣", "é", "\udcff", "["),
    *("a=b", "--", "-", "=", "1 2", "1e-400", "None", "[1, 2]", "a,b", "%s", "${x}", "../x", "1" * 400, "{}"),
]
HUGE = ["1000000", "99999999999", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1e9", "1e38"]


# ---------------------------------------------------------------------------------------------- one call
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of an entry, taken where the entry would use it."""

    class Taken(BaseException):
        pass

    def take(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Taken(parser)

    names = ("parse_args", "parse_intermixed_args", "parse_known_args")
    methods = {name: getattr(argparse.ArgumentParser, name) for name in names}
    arguments = sys.argv
    try:
        sys.argv = [module]
        for name in names:
            setattr(argparse.ArgumentParser, name, take)
        main_of(module)()
    except Taken as taken:
        return taken.args[0]
    finally:
        sys.argv = arguments
        for name, method in methods.items():
            setattr(argparse.ArgumentParser, name, method)
    raise AssertionError(f"{module} has no parser")


def run(module: str, arguments: list[str]) -> tuple[int | str, str]:
    """(exit code, or what went wrong; all output) of an entry with a command line."""
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    logging.getLogger().handlers[:] = []
    buffer = io.BytesIO()
    out = io.TextIOWrapper(buffer, encoding="utf-8", write_through=True)  # strict, as a terminal's
    err = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", write_through=True)
    environment, before = dict(os.environ), sys.argv
    sys.argv = [module, *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit(WALL_LIMIT, TIME_LIMIT):
            run_entry(main_of(module))
        code: int | str = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else f"exit code {stop.code!r}")
    except TooLong:
        code = f"more than {TIME_LIMIT} s"
    except BaseException:
        code = traceback.format_exc()
    finally:
        sys.argv = before
        os.environ.clear()
        os.environ.update(environment)
        logging.getLogger().handlers[:], logging.getLogger().level = handlers, level
        torch.use_deterministic_algorithms(False)
    return code, buffer.getvalue().decode()


# ---------------------------------------------------------------------------------------------- what it left
NUMBER_WORD = re.compile(r"(?<![\w./-])-?(nan|inf|infinity)(?![\w./-])", re.IGNORECASE)


def silent_numbers(arguments: list[str], output: str, folder: Path) -> str | None:
    """A number that is not finite in the output of a command that ended well, or in what it wrote; None if there is
    none. Lines that repeat an argument are not looked at."""
    echoed = [word for word in re.split(r"[\s=:,{}\[\]]+", " ".join(arguments)) if NUMBER_WORD.fullmatch(word)]
    for line in output.splitlines():
        if NUMBER_WORD.search(line) and not echoed:
            return f"prints {line[:200]!r}"
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl") and path.is_file():
            problem = _json_problem(path)
        elif path.suffix == ".npz" and path.is_file():
            problem = _npz_problem(path)
        else:
            continue
        if problem:
            return f"{path.name}: {problem}"
    return None


def _json_problem(path: Path) -> str | None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = path.read_text(encoding="utf-8")
    try:
        for document in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(document, parse_constant=refuse)
    except ValueError as error:
        return f"no JSON ({error})"
    return None


def _npz_problem(path: Path) -> str | None:
    with np.load(path, allow_pickle=False) as arrays:
        bad = [name for name in arrays if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all()]
    return f"{bad[0]} is not finite" if bad else None


# ---------------------------------------------------------------------------------------------- command lines
class Writer:
    """Random command lines for the entries."""

    def __init__(self) -> None:
        self.lines = command_lines(OUT)
        assert self.lines.keys() == entry_modules(), "every entry has a command line"
        self.modules = sorted(self.lines)
        self.defaults = {module: flatten(schema()) for module, schema in SCHEMAS.items()}
        self.parsers = {module: parser_of(module) for module in self.modules}

    def line(self, draw: random.Random) -> tuple[str, list[str]]:
        """(entry, arguments)."""
        module = draw.choice(self.modules)
        is_check = module in CHECK_ONLY or draw.random() < CHECK_FRACTION
        groups = [list(group) for group in self.lines[module]]
        for _ in range(draw.randint(1, 3)):
            self._change(groups, module, is_check, draw)
        arguments = [part for group in groups for part in group]
        needed = [bound for bound in BOUNDED_BY if bound in COMMANDS[module]]
        is_bounded = all(any(part.startswith(bound) for part in arguments) for bound in needed)
        if is_check or not is_bounded:
            arguments.append("--dry-run" if module in TRAINERS and draw.random() < 0.3 else "--check")
        return module, arguments

    def _change(self, groups: list[list[str]], module: str, is_check: bool, draw: random.Random) -> None:
        kind = draw.choice(["value"] * 5 + ["flag"] * 5 + ["drop", "repeat", "swap", "stray"])
        if not groups or kind == "flag":
            groups.append(self._new_group(module, is_check, draw))
        elif kind == "value":
            group = draw.choice(groups)
            value = self._value(is_check, draw)
            group[-1] = f"{group[0].partition('=')[0]}={value}" if "=" in group[0] else value
        elif kind == "drop":
            groups.remove(draw.choice(groups))
        elif kind == "repeat":
            groups.append(list(draw.choice(groups)))
        elif kind == "swap":
            first, second = draw.choice(groups), draw.choice(groups)
            first[-1], second[-1] = second[-1], first[-1]
        else:
            groups.insert(draw.randrange(len(groups) + 1), [draw.choice(ODD + PATHS)])

    def _new_group(self, module: str, is_check: bool, draw: random.Random) -> list[str]:
        """A flag of the entry with a value, or a key of a config."""
        actions = [action for action in self.parsers[module]._actions if action.dest not in ("help", "check", "plan")]
        action = draw.choice(actions)
        if not action.option_strings:
            if module not in self.defaults:
                return [draw.choice(PATHS)]
            key = draw.choice(sorted(self.defaults[module].keys() - SECRET))
            is_default = draw.random() < 0.3
            return [f"{key}={self.defaults[module][key] if is_default else self._value(is_check, draw)}"]
        flag = draw.choice(action.option_strings)
        if action.nargs == 0:
            return [flag]
        if action.choices and draw.random() < 0.8:
            return [flag, str(draw.choice(list(action.choices)))]
        return [flag, self._value(is_check, draw)]

    def _value(self, is_check: bool, draw: random.Random) -> str:
        """Any value; a huge one only where nothing is computed."""
        pools = [SMALL, SMALL, SMALL, ODD, PATHS] + ([HUGE] if is_check else [])
        return draw.choice(draw.choice(pools))


# ---------------------------------------------------------------------------------------------- all of it
class Fuzz:
    """A folder to work in, and what was seen."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.pristine, self.place = root / "pristine", root / "place"
        self.pristine.mkdir()
        build(self.pristine)
        shutil.copytree(self.pristine, self.place, symlinks=True)
        self.stat = self._stat()
        self.writer = Writer()
        self.outcomes: Counter = Counter()  # (entry, exit code)
        self.wrong: list[str] = []
        self.late: list[str] = []  # refused only after --check
        self.output = ""

    def _stat(self) -> dict[str, tuple[int, int]]:
        """Size and time of every input file."""
        files = [path for path in self.place.rglob("*") if path.is_file() and OUT not in path.parts]
        names = {str(path.relative_to(self.place)): path.stat() for path in files}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in names.items()}

    def run(self, case: int) -> None:
        """Case number `case`, the same for the same seed."""
        draw = random.Random(f"{self.seed} {case}")
        module, arguments = self.writer.line(draw)
        shutil.rmtree(self.place / OUT, ignore_errors=True)
        here = Path.cwd()
        os.chdir(self.place)
        try:
            code, self.output = run(module, arguments)
            problem = self._problem(module, arguments, code)
            if code == 2 and not {"--check", "--dry-run"} & set(arguments):
                self._note_late_refusal(f"case {case}: {module} {arguments}", module, arguments)
        finally:
            os.chdir(here)
        if problem:
            self.wrong.append(f"seed {self.seed} case {case}: {module} {arguments}\n    {problem}")
        self.outcomes[module, code if isinstance(code, int) else "wrong"] += 1

    def _note_late_refusal(self, name: str, module: str, arguments: list[str]) -> None:
        """Notes a command that was refused, and that --check calls ready."""
        output = self.output
        if run(module, [*arguments, "--check"])[0] == 0:
            self.late.append(f"{name}\n    {output[output.rfind('error: ') :].strip()[:300]}")

    def _problem(self, module: str, arguments: list[str], code: int | str) -> str | None:
        """What is wrong with the end of a command; None if nothing is. Inputs are put back where they changed."""
        now = self._stat()
        changed = [name for name, stat in self.stat.items() if now.get(name) != stat]
        is_new_name = now.keys() - self.stat.keys()
        if changed or is_new_name:
            shutil.rmtree(self.place)
            shutil.copytree(self.pristine, self.place, symlinks=True)
            self.stat = self._stat()
            os.chdir(self.place)

        if isinstance(code, str):
            return "\n    ".join(code.strip().splitlines()[-12:])
        if code not in (0, 1, 2, 3):
            return f"exit code {code}"
        if code == 2 and self.output.count("error: ") < 1:
            return f"exit code 2 without a message: {self.output[-300:]!r}"
        if "Traceback" in self.output:
            return f"a traceback is printed: {self.output[-600:]}"
        if changed and module not in TRAINERS:
            return f"the input {changed[0]} was changed"
        return silent_numbers(arguments, self.output, self.place / OUT) if code != 2 else None


def main() -> None:
    parser = case_parser(__doc__, 5000, "command lines")
    parser.add_argument("--start", type=int, default=0, help="number of the first one")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        cases = range(args.start, args.start + args.count) if args.case is None else [args.case]
        for number, case in enumerate(cases, start=1):
            num_before = len(fuzz.wrong)
            fuzz.run(case)
            for wrong in fuzz.wrong[num_before:]:
                print(wrong, flush=True)
            if number % 100 == 0:
                print(f"{number} of {len(cases)}, {len(fuzz.wrong)} wrong", flush=True)
    if args.case is not None:
        print(fuzz.output)
    for module in fuzz.writer.modules:
        codes = {code: n for (name, code), n in sorted(fuzz.outcomes.items(), key=str) if name == module}
        print(f"{module:32} {codes}")
    print(f"{len(fuzz.late)} refused after --check", *fuzz.late, sep="\n")
    print(f"{len(cases)} command lines, {len(fuzz.wrong)} wrong", *fuzz.wrong, sep="\n")
    raise SystemExit(1 if fuzz.wrong else 0)


if __name__ == "__main__":
    main()
