"""The command line of training entries, and how every entry runs."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Callable

from engine.config import load_config, to_yaml
from engine.messages import UserError
from engine.registry import T


def positive(text: str) -> int:
    """The argparse type of a count: a whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def entry_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of an entry: its docstring as help, and the flags that every entry has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="module, or path of one .py file, that registers components; repeatable (docs/extending.md)",
    )
    return parser


def parse_cli(schema: type[T], description: str, *, plan: bool = False) -> tuple[T, argparse.Namespace]:
    """The command line of a training entry:

    `--config FILE` (repeatable), `--dry-run`, `--print-config`, where asked for `--plan GPUS`, `key=value` ...
    """
    parser = entry_parser(description)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; repeatable, later wins")
    parser.add_argument("--print-config", action="store_true", help="print every key with its value, then exit")
    parser.add_argument("--dry-run", action="store_true", help="check the config and the model's sizes, then exit")
    if plan:
        parser.add_argument("--plan", type=positive, metavar="GPUS", help="memory on GPUS GPUs of 80 GB, then exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides such as optim.lr=2e-4")
    args = parser.parse_intermixed_args()
    config = load_config(schema, args.config, args.overrides)
    if args.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config, args


def run_entry(main: Callable[[], None]) -> None:
    """Runs an entry's `main`: a `UserError` or a full disk becomes one clear message and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}. Free some space and start the same command again", file=sys.stderr)
        raise SystemExit(2) from None
