"""How long the stages of a training, saves and collectives may take before a run of several processes ends."""

from __future__ import annotations

import os
from datetime import timedelta

from engine.messages import UserError

DEFAULT_HANG_TIMEOUT = 1800  # seconds
SAVE_PATIENCE = 4  # a save may take so many times HANG_TIMEOUT: 100 GB written, and read for their hashes
MIN_SAVE_LIMIT = SAVE_PATIENCE * DEFAULT_HANG_TIMEOUT
MIN_TIMEOUT = timedelta(hours=1)  # a collective that waits longer fails
NO_TIMEOUT = timedelta(days=365)


def hang_timeout() -> int:
    """Seconds after which a stage of a training counts as hung; 0 = never (`engine.watchdog`).

    Raises UserError if the variable HANG_TIMEOUT is no whole number.
    """
    text = os.environ.get("HANG_TIMEOUT", str(DEFAULT_HANG_TIMEOUT))
    if not text.isdigit():
        raise UserError(f"HANG_TIMEOUT={text!r} is not a whole number of seconds; 0 = wait for ever")
    return int(text)


def save_timeout() -> int:
    """The seconds that the launcher lets processes save after a stop signal: no fewer than the watchdog does.

    Raises UserError if the variable SAVE_TIMEOUT, which sets another number, or HANG_TIMEOUT is no whole number.
    """
    text = os.environ.get("SAVE_TIMEOUT", str(max(MIN_SAVE_LIMIT, SAVE_PATIENCE * hang_timeout())))
    if not text.isdigit():
        raise UserError(f"SAVE_TIMEOUT={text!r} is not a whole number of seconds")
    return int(text)


def collective_timeout() -> timedelta:
    """The time after which a collective fails. It is longer than the longest stage of the watchdog, which says why."""
    seconds = hang_timeout()
    return max(MIN_TIMEOUT, 2 * SAVE_PATIENCE * timedelta(seconds=seconds)) if seconds > 0 else NO_TIMEOUT
