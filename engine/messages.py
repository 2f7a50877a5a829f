"""Errors that a user can fix, and the logger of the program."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger("tokenizers")


class UserError(ValueError):
    """An error the user can fix: a config key, a file, a missing package. Entry points print it without a traceback."""


class ConfigError(UserError):
    """A wrong configuration. The message names the dotted key, what was found and what is accepted.

    `problems` are the lines of the message, one per problem.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [message]
