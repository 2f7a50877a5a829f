"""The command line of training entries, and how every entry runs."""

from __future__ import annotations

import argparse
import errno
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from engine import plugins
from engine.checkpoint.weights import WEIGHT_CHOICES
from engine.config import config_layers, load_config, load_plugins, to_yaml
from engine.config_help import describe
from engine.devices import DEVICES
from engine.messages import UserError
from engine.preflight import add_check_flags
from engine.stopping import EXIT_INTERRUPTED, stop_with_parent

T = TypeVar("T")

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
UNUSABLE_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS})


def positive(text: str) -> int:
    """The argparse type of a count: a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def not_negative(text: str) -> int:
    """The argparse type of a count that may be 0: a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def entry_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of an entry: its docstring as help, and the flags that every entry has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plugin",
        action=plugins.LoadPlugin,
        default=[],
        metavar="NAME",
        help="module, or path of a .py file, that registers components; may be repeated (see docs/extending.md)",
    )
    add_check_flags(parser)
    return parser


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --device, which names the device that an entry without a config runs on."""
    parser.add_argument("--device", default="auto", choices=DEVICES)


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --weights, which says which weights of a trained network are meant."""
    parser.add_argument(
        "--weights", default="auto", choices=WEIGHT_CHOICES, help="auto: the EMA if there is one, else the raw weights"
    )


def parse_cli(
    schema: type[T], description: str, *, no_plan: str = "", check: Callable[[T], Any] | None = None
) -> tuple[T, argparse.Namespace]:
    """Reads the command line of a training entry; returns (config, flags).

        --config FILE        a YAML file; repeatable, later ones win
        --help-config KEY    explains a key and exits
        --print-config       prints the whole config and exits
        --check              the entry looks for all that it needs and exits (see `engine.preflight`)
        --dry-run            the entry checks the config, says what is missing here, and exits
        --plan GPUS          the entry prints the memory that it needs and exits
        key=value ...        overrides

    `check` raises a ConfigError where keys do not fit together; its problems are told together with those of single
    keys. An entry without a memory plan says why in `no_plan`, a sentence that names what has one.

    Texts of the config whose environment variable is not set stand as they are written, so that a recipe can be looked
    at anywhere: `require` counts them, from `unset` of the flags, among what is missing.

    Raises ConfigError with all problems of the config, and UserError for a plan that does not exist.
    """
    parser = entry_parser(description)
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML file; may be repeated, later ones win"
    )
    parser.add_argument(
        "--help-config", metavar="KEY", help="explain a key, the keys of a section, or all keys (`all`), then exit"
    )
    parser.add_argument("--print-config", action="store_true", help="print every key with its value, then exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the config and the model's sizes, say what is missing on this machine, then exit",
    )
    plan_help = "print the memory needed on GPUS GPUs of 80 GB, then exit (2: it does not fit)"
    parser.add_argument("--plan", type=positive, metavar="GPUS", help=argparse.SUPPRESS if no_plan else plan_help)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="sets a key of the config, such as optim.lr=2e-4"
    )
    args = parser.parse_intermixed_args()
    if args.plan is not None and no_plan:
        raise UserError(f"--plan {args.plan}: {no_plan}")

    if args.help_config is not None:
        load_plugins(config_layers(args.config), args.overrides)
        print(describe(schema, args.help_config))
        raise SystemExit(0)

    args.unset = []
    config = load_config(schema, args.config, args.overrides, check, args.unset)
    if args.print_config:
        print(to_yaml(config, resolve=False), end="")
        raise SystemExit(0)
    return config, args


def run_entry(main: Callable[[], None]) -> None:
    """Runs an entry's `main`: a `UserError`, a full disk or an unusable path becomes one clear message and exit code 2.

    Ctrl-C becomes exit code 130, without a traceback. A process of a launcher ends with that launcher; of an error that
    several of them meet, the first one tells.

    Plug-ins of the command line are imported before, so that `main` finds their components in the registries.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stop_with_parent()

    try:
        plugins.load_from_arguments(sys.argv[1:])
        main()

    # What a user can mend, or wanted.
    except UserError as error:
        _tell(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None

    # What the system refuses.
    except OSError as error:
        if error.errno in FULL_DISK:
            _tell(f"error: {error}. Free some space and start the same command again")
        elif error.errno in UNUSABLE_PATH and error.filename is not None:
            _tell(f"error: {str(error.filename)[:200]!r}: {error.strerror}")
        else:
            raise
        raise SystemExit(2) from None


def _tell(message: str) -> None:
    """Prints an error, unless another process of the same launcher has told the same one already.

    torchrun gives each attempt a folder, with a file per process for its error; the first process that fails leaves a
    mark of the message there.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        mark = f"told_{hashlib.sha256(message.encode()).hexdigest()[:16]}"
        try:
            Path(error_file).parents[1].joinpath(mark).touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError as error:  # better told twice than not at all
            message = f"{message} (no mark could be left: {error})"
    print(message, file=sys.stderr)
