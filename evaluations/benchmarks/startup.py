"""Commands that only look at a config: the seconds until they have ended, against `import torch` and an allowance."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engine.installation import CODE
from evaluations.benchmarks.cases import OURS, Case, Target
from evaluations.benchmarks.timing import Form


@dataclass(frozen=True)
class Command:
    """A command of the project, and the seconds that it may take beyond `import torch`."""

    module: str  # of `python -m`
    arguments: tuple[str, ...]
    allowance: float

    @property
    def title(self) -> str:
        """For the table."""
        return " ".join((self.module, *self.arguments))


COMMANDS = (
    Command("tokenizer.train", ("--help",), 0.5),
    Command("tokenizer.train", ("--config", "configs/quickstart/tokenizer.yaml", "--dry-run"), 1.5),
    Command("tokenizer.train", ("--config", "configs/vq/VQ_SS256.yaml", "--dry-run"), 4.0),
)
MORE_COMMANDS = (
    Command("autoregressive.train", ("--config", "configs/gpt/GPT_B256.yaml", "--dry-run"), 1.5),
    Command("evaluations.reconstruction", ("--help",), 0.5),
    Command("evaluations.quickstart", ("--help",), 0.5),
)


def cases(size: str, device: torch.device) -> Iterator[Case]:
    """One case per command. A process does not use `device` before its work begins."""
    for command in COMMANDS + (MORE_COMMANDS if size == "long" else ()):
        limit = f"import torch, and {command.allowance:g} s"
        yield Case(
            f"start-up of {command.title}",
            {
                OURS: _process("-m", command.module, *command.arguments),
                "import torch": _process("-c", "import torch"),
                limit: _process("-c", f"import time, torch; time.sleep({command.allowance})"),
            },
            against=limit,
            target=Target("at most", 1.0),
        )


def _process(*arguments: str) -> Form:
    """A process of Python in the folder of the project, until it has ended. It raises where that fails."""
    environment = {"IMGNET_ROOT": "imagenet", **os.environ, "PYTHONPATH": str(CODE)}
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, cwd=CODE, env=environment, check=True, capture_output=True)
