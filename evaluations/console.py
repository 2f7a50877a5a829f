"""The command `vt`, which runs the other commands by a verb each.

    vt train vq/VQ_SS256 loop.run_dir=runs/VQ_SS256          the trainer follows from the recipe
    vt reconstruct --vq-ckpt runs/VQ_SS256 --data-path photos/ --sample-dir results
    GPUS=8 vt extract --vq-ckpt runs/VQ_SS256 --code-path codes/VQ_SS256
    vt train --help                                          `vt VERB --help` tells the flags of a verb

`vt VERB ...` does the same as `python -m MODULE ...` with the module of the table below. Verbs that can use several
processes start as many as the environment asks for (NPROC_PER_NODE, gpus or GPUS), as the scripts do.
"""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from engine import __version__
from engine.cores import thread_settings
from engine.installation import (
    CODE,
    DISTRIBUTION,
    REQUESTED_PROCESSES,
    UNKNOWN,
    commit,
    launch_command,
    launch_environment,
)
from engine.messages import UserError

PROGRAM = "vt"


@dataclass(frozen=True)
class Verb:
    """What `vt VERB` runs."""

    module: str  # as for `python -m`; empty where the recipe decides
    summary: str
    several: bool = False  # whether it can use several processes


VERBS = {
    # From a recipe or a folder of images to trained networks.
    "train": Verb("", "train what a recipe describes: a tokenizer, a GPT, a probe", several=True),
    "extract": Verb(
        "autoregressive.extract_codes", "write the codes of images, which a GPT is trained on", several=True
    ),
    "recipes": Verb("evaluations.recipes", "list the recipes, with sizes and published numbers, or show one"),
    "data": Verb("evaluations.data", "look at a folder of images: what is in it, what a recipe would do with it"),
    "init": Verb("evaluations.init", "write recipes for a folder of images"),
    "sweep": Verb("evaluations.sweep", "train a recipe with many settings"),
    # What came out.
    "sample": Verb("autoregressive.sample", "generate images", several=True),
    "reconstruct": Verb("tokenizer.reconstruct", "send images through a tokenizer and back", several=True),
    "measure": Verb("evaluations.measure", "score images: a set of samples, or originals and their reconstructions"),
    "report": Verb("evaluations.report", "write one HTML page about runs"),
    "plot": Verb("evaluations.scaling", "draw several tokenizers in one picture: quality over size, steps, a metric"),
    "atlas": Verb("evaluations.atlas", "write an HTML page to look at the tokens of a run"),
    "doctor": Verb("evaluations.doctor", "find out why a run fails, or whether a machine is ready"),
    # To others.
    "publish": Verb("evaluations.publish", "write a run as files to share, to a folder or a hub"),
    "export": Verb("autoregressive.export", "write a network for use without this program"),
}

EXAMPLES = """examples:
  vt sample                                            pictures of the small model that comes with the program
  vt recipes wetok                                     which recipes there are, here those of WeTok
  vt train vq/VQ_SS256 loop.run_dir=runs/VQ_SS256      train a tokenizer; GPUS=8 before it for eight processes
  vt train quickstart/tokenizer loop.steps=400         a tiny one, on a CPU
  vt sample --help                                     the flags of a verb"""

TRAIN_HELP = f"""usage: {PROGRAM} train RECIPE [flag or key=value ...]

Trains what a recipe describes. RECIPE is a name ({PROGRAM} recipes lists them) or the path of a YAML file. It may also
be given by --config, which may be repeated: later files win. The sections of the recipe decide which command trains it,
and the first line says which. For the flags of that command: {PROGRAM} train RECIPE --help

  {PROGRAM} train vq/VQ_SS256 loop.run_dir=runs/VQ_SS256      key=value sets any key; the same command continues a run
  {PROGRAM} train vq/VQ_SS256 --dry-run                       check the recipe, and say what is missing here
  {PROGRAM} train vq/VQ_SS256 --print-config                  all keys with values; --help-config KEY explains one
  GPUS=8 {PROGRAM} train gpt/GPT_B256 data.codes=codes/VQ_SS256 data.tokenizer=runs/VQ_SS256    eight processes"""

# Flags of trainers that have a value of their own, which is no recipe.
WITH_VALUE = ("--config", "--plugin", "--plan", "--help-config")
# With these a command prints something and ends: one process is enough.
ONLY_PRINTS = ("--help", "-h", "--check", "--dry-run", "--print-config", "--plan", "--help-config")


# ------------------------------------------------------------------------------------------------ the verbs
def main() -> None:
    """Runs `vt` with the arguments of the command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(version_line())
        return

    try:
        module, rest = resolve(arguments[0], arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run(arguments[0], module, rest)


def overview() -> str:
    """The table of verbs, and examples."""
    width = max(map(len, VERBS))
    table = [f"  {verb:{width}s}  {entry.summary}" for verb, entry in VERBS.items()]
    head = (
        f"usage: {PROGRAM} VERB ...       ({PROGRAM} VERB --help tells more, {PROGRAM} --version which version this is)"
    )
    return "\n".join([head, "", *table, "", EXAMPLES])


def version_line() -> str:
    """The version and the place of the code, and of the Python and the torch that run it, for reports of trouble."""
    sha = commit()
    code = f"{CODE}{'' if sha == UNKNOWN else f', commit {sha[:12]}'}"
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "no torch"
    return f"{DISTRIBUTION} {__version__} ({code}), Python {platform.python_version()}, {torch}"


def resolve(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    """(the module that a verb runs, its arguments).

    Raises UserError for a verb that does not exist, and for a recipe that does not say what it trains.
    """
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {PROGRAM} {near[0]}? " if near else ""
        raise UserError(f"{PROGRAM} has no verb {verb!r}; {hint}It has: {', '.join(VERBS)}")
    if verb == "train":
        return training_command(arguments)
    return VERBS[verb].module, arguments


def run(verb: str, module: str, arguments: list[str]) -> None:
    """Runs a module here, or on the processes that the environment asks for."""
    if VERBS[verb].several and asks_for_several(arguments):
        launcher = launch_command(module, *arguments)
        os.execvpe(launcher[0], launcher, launch_environment())

    os.environ.update(thread_settings())
    sys.argv = [f"{PROGRAM} {verb}", *arguments]
    from engine.cli import run_entry

    entry = importlib.import_module(module)
    if hasattr(entry, "__path__"):  # a package is run by its __main__
        entry = importlib.import_module(f"{module}.__main__")
    run_entry(entry.main)


def asks_for_several(arguments: list[str]) -> bool:
    """Whether a command is to run on several processes: those of this machine, or of several."""
    if any(argument.partition("=")[0] in ONLY_PRINTS for argument in arguments):
        return False
    counts = [os.environ[name] for name in REQUESTED_PROCESSES if os.environ.get(name)][:1]
    return any(count != "1" for count in [*counts, os.environ.get("NNODES") or "1"])


# ------------------------------------------------------------------------------------------------ vt train
def training_command(arguments: list[str]) -> tuple[str, list[str]]:
    """(the module that trains a recipe, its arguments); says which on the standard error.

    The recipe is the first argument that is neither a flag nor `key=value`, or what `--config` names.
    """
    from evaluations.trainers import recipe_tree, trainer_of

    recipe, rest = split_recipe(arguments)
    files = ([recipe] if recipe else []) + config_files(rest)
    if not files and {"-h", "--help"} & set(rest):
        print(TRAIN_HELP)
        raise SystemExit(0)
    if not files:
        raise UserError(
            f"name a recipe or a YAML file, as in: {PROGRAM} train vq/VQ_SS256 loop.run_dir=runs/VQ_SS256 "
            f"({PROGRAM} recipes lists all; {PROGRAM} train RECIPE --help tells the flags of its trainer)"
        )
    trainer, key = trainer_of(recipe_tree(files), " and ".join(files))
    print(f"{' + '.join(files)} trains {trainer.trains} (it has {key}): python -m {trainer.module}", file=sys.stderr)
    return trainer.module, [*(["--config", recipe] if recipe else []), *rest]


def split_recipe(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(the first argument that stands for a recipe or None, all others)."""
    before = ""
    for number, argument in enumerate(arguments):
        is_override = "=" in argument and not os.path.isfile(argument)  # noqa: PTH113 - a path may hold a `=`
        if before not in WITH_VALUE and argument and not argument.startswith("-") and not is_override:
            return argument, arguments[:number] + arguments[number + 1 :]
        before = argument
    return None, list(arguments)


def config_files(arguments: list[str]) -> list[str]:
    """What `--config` names, in order."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [
        value.removeprefix("--config=") for flag, value in pairs if flag == "--config" or value.startswith("--config=")
    ]
