"""Published files that hold raw weights and EMA in one state dict, as the trainers of Open-MAGVIT2's family write them.

The names of averaged tensors begin with `model_ema.` and have lost their dots, so they are made from the plain names,
never parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from engine.checkpoint.manifest import CheckpointError
from engine.messages import logger
from tokenizer.models.base import Tokenizer
from tokenizer.published.layout import PublishedLayout, Rule, State, export_state, published_name

EMA_PREFIX = "model_ema."


def ema_key(name: str) -> str:
    """The name of the averaged tensor of `name`."""
    return EMA_PREFIX + name.replace(".", "")


class MergedLayout(PublishedLayout):
    """A layout with both sets of weights in one state dict; see the module docstring."""

    file_key = "state_dict"
    holds_both_weights = True

    def select(
        self, state: State, expected: State, rules: tuple[Rule, ...], weights: str, path: Path
    ) -> tuple[dict[str, Tensor], str | None]:
        """`model` is raw; `ema` and `auto` are averaged where there are averages.

        A tensor without an average stays raw, and one line says so: files of stage 2 have none of the frozen encoder.
        Raises CheckpointError where an EMA is asked for and there is none.
        """
        raw = {name: tensor for name, tensor in state.items() if not name.startswith(EMA_PREFIX)}
        averages = {name: tensor for name, tensor in state.items() if name.startswith(EMA_PREFIX)}
        if weights == "model" or (weights == "auto" and not averages):
            return raw, "model"
        if not averages:
            raise CheckpointError(f"{path} has no EMA weights ({EMA_PREFIX}*); use weights=model")

        # Published names of all tensors that a file has.
        published = [published_name(name, rules) for name in expected]
        names = [name for name, conversion in published if conversion != "unpublished"]
        raw_only = [name for name in names if ema_key(name) not in averages]
        if raw_only:
            parts = ", ".join(sorted({name.split(".")[0] for name in raw_only}))
            logger.info("%s: %d tensors (%s) have no EMA; their raw weights are taken", path, len(raw_only), parts)

        # Averages that nobody expects stay in the result, for the strict load to name.
        averaged = {name: averages.pop(ema_key(name)) for name in names if ema_key(name) in averages}
        return raw | averaged | averages, "ema"

    def export(self, tokenizer: Tokenizer, load_raw: Callable[[], Tokenizer]) -> dict[str, Tensor]:
        """Raw weights, and beside them the EMA where the tokenizer has one and it was asked for."""
        rules = self.rules(tokenizer.provenance.config.model)
        state = export_state(tokenizer.state_dict(), rules)
        if tokenizer.provenance.weights != "ema":
            return state
        averaged = {ema_key(name): tensor for name, tensor in state.items()}
        return export_state(load_raw().state_dict(), rules) | averaged
