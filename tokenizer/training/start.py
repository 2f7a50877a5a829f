"""What a run starts from: the end of the previous phase, or the weights of another tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.checkpoint.code_maker import DECODER_OF
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, read_manifest
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import digest_with, find_weights, load_strict, read_weights
from engine.data.identity import Facts
from engine.world import World
from tokenizer.models.base import Tokenizer
from tokenizer.training.config import TokenizerTrainConfig, TrainParts
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

    Where the network of the `previous` phase, and what is trained of it, are unchanged, that is its whole state:
    optimizers, discriminator, LeCam averages. Else it is the weights under `config.init`, if any. Raises
    CheckpointError where the end of the previous phase is damaged or of other data than `data`, or weights do not fit.
    """
    # The whole state, of an unchanged network.
    is_same = previous is not None and (previous.model, previous.train_parts) == (config.model, config.train_parts)
    if is_same:
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

    # Weights alone.
    elif config.init:
        _load_initial_weights(task, config.init, config.train_parts)


def _load_initial_weights(task: TokenizerTask, path: str, train_parts: TrainParts) -> None:
    """Loads the weights under `path`: raw into raw, EMA into EMA. The network itself says how those of an earlier phase
    become its own.

    A decoder that is trained alone goes on from the tokenizer that makes the codes: the EMA where there is one.
    """
    weights = find_weights(path, initial_weights(train_parts), "tokenizer")
    raw_state = read_weights(weights.path)
    task_model = task.tokenizer.module
    load_strict(task_model, task_model.state_from_earlier(raw_state, raw_state), weights.folder)

    # The EMA starts from the EMA; from the raw weights where there is none.
    ema = task.tokenizer.ema
    if ema is not None:
        ema_file = weights.folder / "ema.safetensors"
        has_others = weights.kind == "model" and ema_file.is_file()
        ema_state = read_weights(ema_file) if has_others else raw_state
        load_strict(ema, ema.state_from_earlier(raw_state, ema_state), weights.folder)


def initial_weights(train_parts: TrainParts) -> str:
    """Which weights of `init` a training starts from: `model`, or `auto` (the EMA where there is one)."""
    return "auto" if train_parts == "decoder" else "model"


def decoder_stamp(config: TokenizerTrainConfig, network: Tokenizer) -> dict[str, list[str]]:
    """What checkpoints of a training of the decoder alone say of the tokenizers whose codes they share.

    `network` is that of the run, on the meta device. A run that has begun repeats what its checkpoints say: what it
    started from may be gone by then.
    """
    if config.train_parts != "decoder":
        return {}
    newest = checkpoint_folders(Path(config.loop.run_dir))
    if newest:
        return {DECODER_OF: read_manifest(newest[-1]).get("stamp", {}).get(DECODER_OF, [])}

    # The fingerprint that the tokenizer under `init` has once it is loaded, and those that it names itself.
    weights = find_weights(config.init, initial_weights(config.train_parts), "tokenizer")
    state = read_weights(weights.path)
    named = [(name, state[name]) for name, _ in network.named_parameters() if name in state]
    earlier = weights.stamp.get(DECODER_OF, [])
    return {DECODER_OF: [*earlier, digest_with(named, network.code_settings())]}
