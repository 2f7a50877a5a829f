"""Tables of papers with tokenizers: what was printed, which file each row is of, and how to measure it here.

    python -m evaluations.paper_tables                        the tables, and the rows that have a recipe here
    python -m evaluations.paper_tables wetok_3 --files published --images imagenet=ILSVRC2012_img_val \\
        --results results --commands
    python -m evaluations.paper_tables wetok_3 --results results      printed numbers beside the measured ones
    python -m evaluations.paper_tables wetok_4 --json         the same facts for programs

With --commands it prints a command for every row whose file is in the folder published: pipe them into bash.
A row without a network here says why. Networks of other programs need no recipe; the command of one that brings code
is a comment. Printed numbers are copied from the paper; none was measured with this code.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.cli import entry_parser, run_entry
from engine.installation import CONFIGS
from engine.json_text import to_json
from engine.messages import UserError
from engine.preflight import Preflight, require
from engine.recipe_names import recipe_file
from evaluations.metrics.extractors import FILE_EXTRACTOR
from evaluations.recipe_headers import facts_of
from evaluations.results import read_result

TABLES = CONFIGS / "tables"  # one JSON file per table
MEASURED = {"rFID": "rfid", "PSNR": "psnr", "SSIM": "ssim"}  # printed metric -> that of our results
FORMATS = {"rFID": "{:.2f}", "PSNR": "{:.2f}", "SSIM": "{:.2f}"}
COMMAND = ("python", "-m", "evaluations.reconstruction")
DETAILS = {"tokens": "tokens", "codes": "codes", "ratio": "times smaller"}  # key of a row -> what follows its value
TRUST = "--trust-jit"  # of a file that brings code: its command is printed as a comment, for the user to decide
PUBLISHED_FILE = re.compile(r"\[([^\]]+)\]\(|`([^`]+)`")  # in the line `Released` of a recipe


@dataclass(frozen=True)
class Column:
    """A set of images and how it is measured, such as ImageNet at 256 px."""

    name: str
    title: str
    images: str  # the name of the set for --images
    flags: list[str]  # of evaluations.reconstruction


@dataclass(frozen=True)
class Row:
    """One tokenizer of a table."""

    method: str
    details: str  # tokens, codes or compression ratio, as printed
    recipe: str | None  # the name of its recipe; None for a network of another program, which needs none
    missing: str  # why it cannot be measured
    file: str  # its published file, as the header of the recipe names it, or folder
    flags: str  # of evaluations.reconstruction, for a network without a recipe
    numbers: dict[str, dict[str, str]]  # column -> printed metric -> number


@dataclass(frozen=True)
class Table:
    """A table of a paper."""

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]


def table_names() -> list[str]:
    """The names of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.json"))


def read_table(name: str) -> Table:
    """Reads one table. Raises UserError for a name that no table has."""
    if name not in table_names():
        raise UserError(f"table {name!r} is not known; choose one of: {', '.join(table_names())}")
    content = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    columns = [Column(**column) for column in content["columns"]]
    return Table(name, content["title"], columns, [_row(row) for row in content["rows"]])


def _row(facts: Mapping[str, Any]) -> Row:
    """A row of a file, with the published file that its recipe names."""
    details = ", ".join(f"{facts[key]} {unit}" for key, unit in DETAILS.items() if key in facts)
    file = facts.get("file", "")
    if facts["recipe"] is not None and not file:
        ((_, cell), *_) = facts_of(recipe_file(facts["recipe"])).released
        file = next(filter(None, PUBLISHED_FILE.search(cell).groups()))
    return Row(
        method=facts["method"],
        details=details,
        recipe=facts["recipe"],
        missing=facts.get("missing", ""),
        file=file,
        flags=facts.get("flags", ""),
        numbers=facts["numbers"],
    )


# ------------------------------------------------------------------------------------------------ measuring
def result_path(folder: Path, table: Table, row: Row, column: Column) -> Path:
    """Where the result of a row and column is, or will be."""
    name = Path(row.file).with_suffix("").as_posix()
    kind = row.recipe or row.method
    return folder / table.name / f"{kind}-{name}-{column.name}.json".replace("/", "-").replace(" ", "_")


def commands(table: Table, args: argparse.Namespace) -> Iterator[str]:
    """The command of every row and column whose file and images are there; a comment for each of the others."""
    images = images_of(args.images)
    for row in table.rows:
        # What cannot be measured, and why.
        if row.missing:
            yield f"# {row.method} ({row.details}): {row.missing}"
            continue
        file = args.files / row.file
        if not file.exists():
            yield f"# {row.method} ({row.details}): {file} is not there"
            continue

        # A command for each of its numbers.
        for column in (column for column in table.columns if column.name in row.numbers):
            if column.images not in images:
                yield f"# {row.method}, {column.title}: name its images, --images {column.images}=FOLDER"
                continue
            flags = measuring_flags(table, row, column, file, images[column.images], args.results)
            command = shlex.join([*COMMAND, *flags])
            is_program = TRUST in row.flags
            yield f"# {row.method} brings code; if you trust its publisher: {command}" if is_program else command


def measuring_flags(table: Table, row: Row, column: Column, file: Path, images: Path, results: Path) -> Iterator[str]:
    """The flags of evaluations.reconstruction that measure a row as its column asks for."""
    flags = shlex.split(facts_of(recipe_file(row.recipe)).measure if row.recipe is not None else row.flags)
    if "--original-resolution" in column.flags and "--image-size" in flags:  # whole images have sizes of their own
        place = flags.index("--image-size")
        del flags[place : place + 2]
    architecture = ("--tok-config", row.recipe) if row.recipe is not None else ()
    yield from ("--vq-ckpt", str(file), *architecture, *flags, *column.flags)
    output = result_path(results, table, row, column)
    yield from ("--val-path", str(images), "--extractor", FILE_EXTRACTOR, "--output", str(output))


def images_of(items: Sequence[str]) -> dict[str, Path]:
    """{set: folder} of the items of --images. Raises UserError for one that is no NAME=FOLDER."""
    pairs = [item.partition("=") for item in items]
    for item, (name, _, folder) in zip(items, pairs, strict=True):
        if not name or not folder:
            raise UserError(f"--images {item!r} must be NAME=FOLDER, such as imagenet=ILSVRC2012_img_val")
    return {name: Path(folder) for name, _, folder in pairs}


def measured(table: Table, row: Row, column: Column, results: Path | None) -> dict[str, float]:
    """The metrics of the result of a row and column, by their printed names; empty where there is none yet."""
    if results is None or row.missing:
        return {}
    path = result_path(results, table, row, column)
    if not path.is_file():
        return {}
    metrics = read_result(path)["metrics"]
    return {name: metrics[key] for name, key in MEASURED.items() if key in metrics}


# ------------------------------------------------------------------------------------------------ the text
def text_of(table: Table, results: Path | None) -> str:
    """A table for people: printed numbers, measured ones behind them, and the file of each row."""
    lines = [table.title]
    for row in table.rows:
        source = row.missing or ", ".join(filter(None, (row.recipe, row.file)))
        lines.append(f"{row.method} ({row.details}): {source}")
        for column in (column for column in table.columns if column.name in row.numbers):
            here = measured(table, row, column, results)
            numbers = ", ".join(_number(name, value, here) for name, value in row.numbers[column.name].items())
            lines.append(f"    {column.title}: {numbers}")
    return "\n".join(lines)


def _number(name: str, printed: str, here: Mapping[str, float]) -> str:
    """`rFID 1.17`, or `rFID 1.17 (here 1.19)`."""
    return f"{name} {printed}" + (f" (here {FORMATS[name].format(here[name])})" if name in here else "")


def record_of(table: Table, results: Path | None) -> dict[str, Any]:
    """A table as plain values for JSON, with the measured numbers of each row under `measured`."""
    record = asdict(table)
    for row, row_record in zip(table.rows, record["rows"], strict=True):
        row_record["measured"] = {column.name: measured(table, row, column, results) for column in table.columns}
    return record


# ------------------------------------------------------------------------------------------------ the entry
def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("table", nargs="?", metavar="TABLE", help=f"one of: {', '.join(table_names())} (default: all)")
    parser.add_argument("--files", type=Path, default=Path(), help="folder with the published files (default: here)")
    parser.add_argument(
        "--images", action="append", default=[], metavar="NAME=FOLDER",
        help="held-out images of a set that the table names: imagenet, coco; repeatable",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, help="folder of the results (for --commands, default: results)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--commands", action="store_true", help="print a command per row whose file is there")
    output.add_argument("--json", action="store_true", help="print a JSON list with all facts")
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the table, and the folders that are named."""
    with preflight.collecting():
        chosen_tables(args)
    with preflight.collecting():
        for name, folder in images_of(args.images).items():
            preflight.folder(folder, f"--images {name}")
    if args.files != Path():
        preflight.folder(args.files, "--files")


def chosen_tables(args: argparse.Namespace) -> list[Table]:
    return [read_table(name) for name in ([args.table] if args.table else table_names())]


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    tables = chosen_tables(args)
    if args.json:
        print(to_json([record_of(table, args.results) for table in tables], indent=1))
        return
    if args.commands:
        args.results = args.results or Path("results")
        print("\n".join(line for table in tables for line in commands(table, args)))
        return
    print("\n\n".join(text_of(table, args.results) for table in tables))


if __name__ == "__main__":
    run_entry(main)
