"""A sweep: which runs it has, what each is called, its record, and how the runs are trained one after another.

`<folder>/sweep.json` holds the recipe and, for each run, its values and what went wrong. `<folder>/stages.json` says
which runs are finished (`engine.pipeline`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.atomic_file import write_atomic
from engine.facts import changed_facts
from engine.json_text import as_read_back, to_json
from engine.messages import UserError
from engine.pipeline import Stage, StageError, module_stage, run_stages
from evaluations.run_layout import SWEEP_RECORD

MAX_NAME = 100  # characters of the name of a run
DIGITS = 3  # significant ones of a number that is drawn
TRIES_PER_RUN = 200  # draws for a run that is not there yet, before it counts as impossible
OPENING, CLOSING = "[{(", "]})"

Values = Mapping[str, str]  # config key -> value as one types it


# ------------------------------------------------------------------------------------------------ what is varied
@dataclass(frozen=True)
class Choices:
    """The values of a key, as `--grid key=a,b` lists them."""

    key: str
    values: tuple[str, ...]

    def draw(self, draw: random.Random) -> str:
        """One of the values."""
        return draw.choice(self.values)


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, as `--range key=low:high` or `key=low:high:log` says."""

    key: str
    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, draw: random.Random) -> str:
        """A number, evenly over the range or over its logarithm. Whole ends give whole numbers, both ends included."""
        if self.is_whole and not self.is_log:
            return str(draw.randint(int(self.low), int(self.high)))
        number = (
            self.low * (self.high / self.low) ** draw.random() if self.is_log else draw.uniform(self.low, self.high)
        )
        return str(round(number)) if self.is_whole else f"{number:.{DIGITS}g}"


def parse_choices(text: str) -> Choices:
    """Reads `key=a,b,[1,2]`: commas inside brackets are part of a value. Raises UserError where it is another form."""
    key, _, rest = text.partition("=")
    values, depth, value = [], 0, ""
    for letter in rest:
        depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth == 0:
            values.append(value)
            value = ""
        else:
            value += letter
    values = [value.strip() for value in [*values, value]]
    if not key.strip() or "" in values or depth != 0:
        raise UserError(f"--grid {text!r} must be of the form key=value,value, such as optim.lr=1e-3,3e-3")
    return Choices(key.strip(), tuple(dict.fromkeys(values)))


def parse_range(text: str) -> Range:
    """Reads `key=low:high` or `key=low:high:log`. Raises UserError where it is another form, or an empty range."""
    # The parts; ends that are no numbers count as an empty range.
    key, _, rest = text.partition("=")
    low, _, others = rest.partition(":")
    high, _, scale = others.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (0.0, 0.0)

    # Whether they are a range.
    is_log = scale == "log"
    is_range = all(map(math.isfinite, ends)) and ends[0] < ends[1] and not (is_log and ends[0] <= 0)
    if not key.strip() or scale not in ("", "log") or not is_range:
        raise UserError(
            f"--range {text!r} must be of the form key=low:high or key=low:high:log, such as optim.lr=1e-4:1e-2:log, "
            "with low < high, and above 0 for log"
        )
    return Range(key.strip(), *ends, is_log, all(re.fullmatch(r"[+-]?\d+", end) for end in (low, high)))


def overrides_of(values: Values) -> list[str]:
    """The values as `key=value`, as one types them."""
    return [f"{key}={value}" for key, value in values.items()]


def grid_of(choices: Sequence[Choices]) -> list[dict[str, str]]:
    """All combinations of the values; the first key changes slowest."""
    keys = [choice.key for choice in choices]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(c.values for c in choices))]


def random_draws(varied: Sequence[Choices | Range], count: int, seed: int) -> list[dict[str, str]]:
    """`count` different combinations, drawn with a seed; more of them begin with the same ones.

    Raises UserError where there are not as many.
    """
    draws: dict[tuple[str, ...], dict[str, str]] = {}
    for number in range(count * TRIES_PER_RUN):
        draw = random.Random(f"{seed} {number}")
        values = {item.key: item.draw(draw) for item in varied}
        draws.setdefault(tuple(values.values()), values)
        if len(draws) == count:
            return list(draws.values())
    raise UserError(f"--random {count}: only {len(draws)} different combinations were found; ask for fewer")


# ------------------------------------------------------------------------------------------------ names
def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """{key: its last parts, as many as tell it from the others}."""
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next(
            (ending for ending in endings if sum(f".{other}".endswith(f".{ending}") for other in keys) == 1), key
        )
    return short


def name_of(values: Values) -> str:
    """The name of a run, which its values alone decide: `lr_0.001-codebook_size_256`.

    Where a value has letters that no folder should have, or the name would be long, a digest tells names apart.
    """
    short = short_keys(list(values))
    exact = "-".join(f"{short[key]}_{value}" for key, value in values.items())
    readable = re.sub(r"[^A-Za-z0-9._+-]+", "_", exact)
    if readable == exact and len(exact) <= MAX_NAME:
        return exact
    digest = hashlib.sha256(to_json(dict(values)).encode()).hexdigest()[:8]
    return f"{readable[: MAX_NAME - 9].strip('_')}-{digest}"


def distinct(
    runs: Mapping[str, Values], settings: Mapping[str, Any], recorded: Mapping[str, Any]
) -> tuple[dict[str, Values], list[str]]:
    """({name: values} of the runs without those that train the same as an earlier one, what to say of those).

    Values may be the same in two spellings: `1e-3` and `0.001`. `settings` are the configs of the runs, `recorded`
    those of other runs that the sweep has already, whose names stay.
    """
    name_of_settings = {to_json(dict(config)): name for name, config in recorded.items()}
    chosen: dict[str, Values] = {}
    notes = []
    for name, values in runs.items():
        first = name_of_settings.setdefault(to_json(dict(settings[name])), name)
        if first != name:
            notes.append(f"{name} is the same training as {first}: it is trained once, as {first}")
        chosen.setdefault(first, values)
    return chosen, notes


# ------------------------------------------------------------------------------------------------ the record
class SweepRecord:
    """`sweep.json` of a folder: the recipe, and the runs with their values and failures."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SWEEP_RECORD
        self.recipe: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                content = json.loads(self.path.read_text(encoding="utf-8"))
                self.recipe, self.runs = content["recipe"], content["runs"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} is damaged: {error!r}") from error

    def require_same_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Raises UserError where the sweep was begun with another recipe: its runs could not be compared."""
        changed = list(changed_facts(self.recipe, as_read_back(recipe)).values()) if self.recipe else []
        if changed:
            raise UserError(
                f"the sweep in {self.path.parent} was begun with another recipe ({'; '.join(changed[:5])}); "
                "only the varied values may be others: give another --folder"
            )

    def plan(self, recipe: Mapping[str, Any], runs: Mapping[str, Values]) -> None:
        """Adds runs to those that the sweep has."""
        self.recipe = as_read_back(recipe)
        for name, values in runs.items():
            self.runs.setdefault(name, {"values": {key: _number_or_text(value) for key, value in values.items()}})
        self.write()

    def values(self) -> dict[str, Values]:
        """{name: values as one types them} of all runs."""
        return {
            name: {key: _as_typed(value) for key, value in run["values"].items()} for name, run in self.runs.items()
        }

    def note(self, name: str, failure: str) -> None:
        """Writes down how a run ended; an empty text for one that ended well."""
        self.runs[name]["failure"] = failure
        self.write()

    def write(self) -> None:
        """Writes the record as it is now."""
        write_atomic(self.path, to_json({"recipe": self.recipe, "runs": self.runs}, indent=1))


def _number_or_text(value: str) -> float | str:
    """A value for a table that is sorted: a number where it is one."""
    try:
        return float(value)
    except ValueError:
        return value


def _as_typed(value: float | str) -> str:
    """A value of the record on a command line: whole numbers without a point, which not every key takes."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# ------------------------------------------------------------------------------------------------ training
def stage_of(name: str, values: Values, folder: Path, module: str, arguments: Sequence[str]) -> Stage:
    """The training of one run of a sweep, in a folder of its own."""
    return module_stage(name, module, *arguments, *overrides_of(values), f"loop.run_dir={folder / name}")


def train_all(folder: Path, stages: Sequence[Stage], record: SweepRecord, show: Callable[[], None]) -> list[str]:
    """Trains the runs one after another; one that fails is noted, and the others go on. `show` is called after each.

    Returns the names of those that failed. A stop signal ends the sweep (SystemExit); the same command continues it.
    """
    failed = []

    def note(stage: Stage, error: StageError | None) -> None:
        failure = ""
        if error is not None:
            failed.append(stage.name)
            failure = f"exit code {error.exit_code}; the reason is in the output of the sweep and in its log.txt"
        record.note(stage.name, failure)
        show()

    run_stages(folder, list(stages), note)
    return failed
