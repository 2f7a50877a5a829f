"""What averaged weights (EMA) still hold of the initial ones, and when to say so.

ema_n = d^n * initial + (1 - d) * sum_i d^(n-i) * weights_i after n updates: the initial, untrained weights keep the
share d^n. Published recipes train for many times the horizon 1 / (1 - d); a short run with the same d does not, and its
averages are worse than its raw weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.checkpoint.manifest import read_manifest
from engine.checkpoint.weights import WeightsFile
from engine.messages import logger
from engine.yaml_files import read_yaml

MAX_INITIAL_SHARE = 0.01  # of the initial weights in an average that needs no warning


def initial_share(decay: float, updates: int) -> float:
    """The share of the initial weights in their average after `updates` updates; 0 without an average."""
    return decay**updates if decay > 0 else 0.0


def share_text(decay: float, updates: int) -> str | None:
    """What is wrong with an average after `updates` updates, as a part of a sentence; None where all is well."""
    share = initial_share(decay, updates)
    if share <= MAX_INITIAL_SHARE:
        return None
    return (
        f"averaged weights (ema_decay={decay}, a horizon of {1 / (1 - decay):,.0f} updates) hold {share:.0%} of the "
        f"initial, untrained weights after {updates:,} updates"
    )


def average_warnings(decay: float, steps: int) -> Iterator[str]:
    """The warning of a training of `steps` updates that is too short for its average."""
    text = share_text(decay, steps)
    if text is not None:
        yield (
            f"{text}, and evaluations take them by default: lower ema_decay, train longer, or evaluate with "
            "--weights model"
        )


def note_choice(weights: WeightsFile, what: str) -> None:
    """Logs which weights of `what` are taken, of which update; a warning where they are an average of a short run."""
    manifest = read_manifest(weights.folder)
    step = None if manifest is None else int(manifest["step"])
    of_step = "" if step is None else f" after {step:,} updates"
    is_average = weights.is_average
    logger.info("%s %s: the %s weights%s", what, weights.shown, "averaged (EMA)" if is_average else "raw", of_step)

    if not is_average or step is None:
        return
    config = read_yaml(weights.folder / "config.yaml")
    # A run that started from other weights has averages of trained ones from its beginning.
    if config.get("init"):
        return
    text = share_text(float(config.get("ema_decay", 0.0)), step)
    if text is not None:
        logger.warning("warning: %s: %s; --weights model takes the raw ones", what, text)
