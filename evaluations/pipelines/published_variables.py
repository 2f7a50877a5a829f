"""The environment variables of the published scripts: what each sets here, and what is said of those that set nothing.

docs/pipelines.md has the table. A variable that is set, and that a script has no use for, is named in a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from engine.messages import UserError

Number = TypeVar("Number", int, float)

PUBLISHED_EPOCH_IMAGES = 5000 * 256  # the papers count epochs of 5,000 steps at batch 256

# Variables that set_env_vars.sh sets for everybody, and those that scripts/launch.sh reads: no script leaves them out.
SHARED = (
    "PROJECT_ROOT", "IMGNET_ROOT", "TORCH_RUN_PATH", "EVAL_PYTHON_PATH", "VAL_PATH", "GT_NPZ_PATH", "GT_VAL_NPZ_PATH",
    "VQ_EXP_DIR", "LM_EXP_DIR", "TOK_LIN_EXP_DIR", "LM_LIN_EXP_DIR",
    "GPUS", "NNODES", "NODE_RANK", "MASTER_ADDR", "PORT", "WANDB_API_KEY",
)  # fmt: skip
# Variables that have a meaning here in some of the scripts.
OTHERS = (
    "TOK_CONFIG", "TOK_EPOCH", "TOK_BSZ", "TOK_EARLY_STOP_ITER", "VQ_CKPT", "VQ_CKPT_PATH", "PRECISION", "CKPT_EVERY",
    "DATASET", "LM_CONFIG", "LM_EPOCH", "LM_BSZ", "GPT_MODEL", "WARM_ITER", "LR", "FRACT_DECAY", "LM_PRECISION",
    "CFG_SCHEDULE", "CFG_SCALE", "CFG_START_RATIO", "TOP_K", "EVAL_BATCH_PER_GPU", "LM_STOP_ITER", "CODEPATH", "GPT_2D",
    "USE_QK_NORM", "DATA_PARALLEL", "GPT_CKPT", "LM_CKPT", "LIN_BSZ", "LM_PROBE_CONFIG",
    "TOK_PROBE_CONFIG", "FIX_DIM", "FROM_DECODER", "TOK_PRECISION",
)  # fmt: skip
# Variables without a meaning here, and why.
WITHOUT_MEANING = {
    "USE_ADALN": "no released model has adaptive layer norm, and this code has none",
    "JSON_PATH": "it lists images of another data set; name those by data.name and data.root",
    "VAL_ONLY": "stages that are done are skipped by themselves",
    "NUM_CODE": "the number of tokens is read from the tokenizer",
    "CKPT_EPOCH": "checkpoints are counted in steps: loop.save_every",
}
PUBLISHED = (*OTHERS, *WITHOUT_MEANING)

ON = ("1", "true", "yes", "on")
OFF = ("", "0", "false", "no", "off", "none")


class PublishedVariables:
    """The published variables that are set, each asked for by its name.

    `aside` are variables that this call does not use, and `aside_reason` says why: they read as if they were not set.
    """

    def __init__(self, environment: Mapping[str, str], aside: tuple[str, ...] = (), aside_reason: str = "") -> None:
        self._values = {name: environment[name] for name in (*PUBLISHED, *SHARED) if environment.get(name)}
        self._aside = {name: aside_reason for name in aside if name in self._values}
        self._asked: set[str] = set()
        self._said: list[str] = []

    # -------------------------------------------------------------------------------------------- values
    def text(self, *names: str) -> str:
        """The value of the first of these variables that is set; empty where none is."""
        self._asked.update(names)
        return next((self._values[name] for name in names if name in self._values and name not in self._aside), "")

    def name_of(self, *names: str) -> str:
        """The first of these variables that is set, for messages."""
        return next((name for name in names if name in self._values), names[0])

    def whole_number(self, name: str) -> int | None:
        """A count from 0; None where the variable is not set. Raises UserError for another value."""
        return self._number(name, int, "a whole number from 0")

    def number(self, name: str) -> float | None:
        """A number from 0; None where the variable is not set. Raises UserError for another value."""
        return self._number(name, float, "a number from 0")

    def _number(self, name: str, kind: Callable[[str], Number], accepted: str) -> Number | None:
        text = self.text(name)
        if not text:
            return None
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not 0 <= value < float("inf"):
            raise UserError(f"{name}={text} must be {accepted}")
        return value

    def switch(self, name: str) -> bool:
        """Whether something is switched on; False where the variable is not set. Raises UserError for another value."""
        text = self.text(name).lower()
        if text not in (*ON, *OFF):
            raise UserError(f"{name}={self.text(name)} must be one of: {', '.join((*ON, *filter(None, OFF)))}")
        return text in ON

    # -------------------------------------------------------------------------------------------- notes
    def say(self, note: str) -> None:
        """Adds a note about a value that means something else here than where it was published."""
        if note not in self._said:
            self._said.append(note)

    def set_aside(self, reason: str, *names: str) -> None:
        """Leaves out these variables from here on; where one is set, its note says why."""
        self._aside.update({name: reason for name in names if name in self._values})

    def notes(self) -> list[str]:
        """What to tell: values that mean something else, and variables that are set and were never asked for."""
        notes = list(self._said)
        for name in PUBLISHED:
            if name not in self._values:
                continue
            if name in WITHOUT_MEANING:
                notes.append(f"{name}={self._values[name]} is not used: {WITHOUT_MEANING[name]}")
            elif name in self._aside:
                notes.append(f"{name}={self._values[name]} is not used: {self._aside[name]}")
            elif name not in self._asked:
                notes.append(f"{name}={self._values[name]} is not used by this script")
        return notes


# ------------------------------------------------------------------------------------------------ what they set
def items(values: Mapping[str, object]) -> list[str]:
    """`key=value` of the values that are there."""
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def tokenizer_items(variables: PublishedVariables, batch_size: int) -> list[str]:
    """Overrides for the training of a tokenizer, whose recipe has batches of `batch_size` images."""
    batch = variables.whole_number("TOK_BSZ")
    return items(
        {
            "data.global_batch_size": batch,
            "data.name": _image_source(variables),
            "loop.steps": steps_of_epochs(variables, "TOK_EPOCH", batch or batch_size),
            "loop.stop_at": variables.whole_number("TOK_EARLY_STOP_ITER"),
            **_loop_values(variables, "TOK_PRECISION"),
        }
    )


def generator_items(variables: PublishedVariables, batch_size: int, *, has_cool_down: bool = True) -> list[str]:
    """Overrides for the training of a generator, whose recipe has batches of `batch_size` images."""
    # A value without a use is told, and left out.
    batch = variables.whole_number("LM_BSZ")
    decay_fraction = variables.number("FRACT_DECAY")
    if decay_fraction is not None and not has_cool_down:
        variables.say("FRACT_DECAY is not used: AR probing has a constant learning rate")
        decay_fraction = None

    # Length, optimizer, and what the network is.
    return items(
        {
            "data.global_batch_size": batch,
            "loop.steps": steps_of_epochs(variables, "LM_EPOCH", batch or batch_size),
            "loop.stop_at": variables.whole_number("LM_STOP_ITER"),
            "optim.lr": variables.number("LR"),
            "optim.warmup_steps": variables.whole_number("WARM_ITER"),
            "optim.decay_fraction": decay_fraction,
            "model.gpt.positions": "rope2d" if variables.switch("GPT_2D") else None,
            "model.gpt.qk_norm": "true" if variables.switch("USE_QK_NORM") else None,
            **_loop_values(variables, "LM_PRECISION"),
        }
    )


def probe_items(variables: PublishedVariables, *, of_generator: bool) -> list[str]:
    """Overrides for a linear probe of a generator, or of a tokenizer."""
    values: dict[str, object] = {"data.global_batch_size": variables.whole_number("LIN_BSZ")}
    precision = training_precision(variables, "LM_PRECISION" if of_generator else "TOK_PRECISION")
    values["loop.precision"] = precision
    if not of_generator:
        values["network.after_projection"] = "true" if variables.switch("FIX_DIM") else None
        values["network.source"] = "decoder" if variables.switch("FROM_DECODER") else None
    return items(values)


def sampling_flags(variables: PublishedVariables, schedule: str) -> list[str]:
    """Flags of an evaluation that samples; `schedule` is that of the guidance where CFG_SCHEDULE is not set."""
    values = {
        "--cfg-schedule": variables.text("CFG_SCHEDULE") or schedule,
        "--cfg-scale": variables.text("CFG_SCALE"),
        "--step-start-ratio": variables.text("CFG_START_RATIO"),
        "--top-k": variables.text("TOP_K"),
        "--precision": variables.text("LM_PRECISION", "PRECISION"),
    }
    return [*_flags(values), *batch_flags(variables)]


def batch_flags(variables: PublishedVariables) -> list[str]:
    """The flag of every evaluation: images per batch and process."""
    return _flags({"--per-proc-batch-size": variables.text("EVAL_BATCH_PER_GPU")})


def _flags(values: Mapping[str, str]) -> list[str]:
    return [part for flag, value in values.items() if value for part in (flag, value)]


def steps_of_epochs(variables: PublishedVariables, name: str, batch_size: int) -> int | None:
    """Steps of the epochs that a variable counts, at batches of `batch_size` images; None where it is not set."""
    epochs = variables.number(name)
    return None if epochs is None else round(epochs * PUBLISHED_EPOCH_IMAGES / batch_size)


def _loop_values(variables: PublishedVariables, precision_name: str) -> dict[str, object]:
    """What both trainings take from the same variables."""
    return {
        "loop.save_every": variables.whole_number("CKPT_EVERY"),
        "loop.precision": training_precision(variables, precision_name),
        "loop.strategy": _strategy(variables),
    }


def training_precision(variables: PublishedVariables, name: str) -> str | None:
    """The value of loop.precision; None leaves that of the recipe. `name` counts before PRECISION."""
    text = variables.text(name, "PRECISION")
    given = f"{variables.name_of(name, 'PRECISION')}={text}"
    if text == "fp16":
        variables.say(f"{given} is not used in training, which has bf16 and fp32; the recipe's loop.precision counts")
        return None
    if text not in ("", "none", "fp32", "bf16"):
        raise UserError(f"{given} must be one of: none, fp32, bf16, fp16")
    return {"": None, "none": "fp32"}.get(text, text)


def _strategy(variables: PublishedVariables) -> str | None:
    """The value of loop.strategy; None leaves that of the recipe."""
    text = variables.text("DATA_PARALLEL")
    if text == "sdp":
        variables.say("DATA_PARALLEL=sdp: loop.strategy=fsdp takes its place, which also shards the parameters")
        return "fsdp"
    return text or None


def _image_source(variables: PublishedVariables) -> str | None:
    """The value of data.name; None leaves that of the recipe, which is what `imagenet` stands for."""
    text = variables.text("DATASET")
    return None if text in ("", "imagenet") else text
