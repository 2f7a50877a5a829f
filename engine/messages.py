"""Errors that a user can fix, and the logger of the program."""

from __future__ import annotations

import logging

logger = logging.getLogger("tokenizers")


class UserError(ValueError):
    """Something the user can mend: a key, a file, a missing package. Entries print it without a traceback."""


class ConfigError(UserError):
    """A wrong configuration. The message names the dotted key, what was found and what is accepted."""
