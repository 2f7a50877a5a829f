"""What a run starts from: the end of the previous phase, or the weights of another tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import find_weights, load_strict, read_weights
from engine.data.identity import Facts
from engine.world import World
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.frozen_networks import FROZEN_STAMPS
from tokenizer.training.task import TokenizerTask


def start_from(
    task: TokenizerTask,
    config: TokenizerTrainConfig,
    previous: TokenizerTrainConfig | None,
    world: World,
    data: Mapping[str, Facts],
) -> None:
    """Puts the starting point of a training into a new task.

    Where the network of the `previous` phase is unchanged, that is its whole state: optimizers, discriminator, LeCam
    averages. Else it is the weights under `config.init`, if any: raw into raw, EMA into EMA. Raises CheckpointError
    where the end of the previous phase is damaged or of other data than `data`, or weights do not fit.
    """
    if previous is not None and previous.model == config.model:
        facts = task.frozen.checkpoint_facts()
        store = CheckpointStore(
            Path(config.init),
            world,
            previous,
            stamp=facts,
            frozen_stamps=FROZEN_STAMPS,
            data=data,
            accept_changed_data=config.data.accept_changed,
        )
        if store.load_latest(task.parts()) != previous.loop.steps:
            raise CheckpointError(f"the last checkpoint of {config.init} is damaged; remove it to train its end again")
    elif config.init:
        _load_initial_weights(task, config.init)


def _load_initial_weights(task: TokenizerTask, path: str) -> None:
    """Loads the weights under `path`; the network itself says how those of an earlier phase become its own."""
    weights = find_weights(path, "model", "tokenizer")
    raw_state = read_weights(weights.path)
    task_model = task.tokenizer.module
    load_strict(task_model, task_model.state_from_earlier(raw_state, raw_state), weights.folder)

    # The EMA starts from the EMA; from the raw weights where there is none.
    ema = task.tokenizer.ema
    if ema is not None:
        ema_file = weights.folder / "ema.safetensors"
        ema_state = read_weights(ema_file) if ema_file.is_file() else raw_state
        load_strict(ema, ema.state_from_earlier(raw_state, ema_state), weights.folder)
