"""The commands of a pipeline's stages, on record in its folder: a finished stage must have been this one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.json_text import to_json
from engine.messages import UserError
from engine.outputs import free_name
from engine.pipeline import Stage, StageLog

COMMANDS = "commands.json"  # in the folder of a run: the commands of its stages


def keep_commands(run: Path, flag: str, stages: Sequence[Stage], log: StageLog) -> None:
    """Writes down the commands of all stages of the folder `run`, which `flag` names.

    Raises UserError where a finished stage was made by another command: its results would pass for those of this one.
    """
    # Without the path of the run, so that a moved one has the same commands.
    path = run / COMMANDS
    commands = {
        stage.name: [part.replace(str(run), "{run}") for part in (stage.module, *stage.arguments)] for stage in stages
    }
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    # A finished stage must have been this one.
    for stage in stages:
        name = stage.name
        if name in earlier and log.done(name) and not stage.always and earlier[name] != commands[name]:
            changed = [part for part in commands[name] if part not in earlier[name]]
            missing = [part for part in earlier[name] if part not in commands[name]]
            raise UserError(
                f"{flag} {run}: its stage {name!r} is finished, by another command (now "
                f"{' '.join(changed) or 'nothing'} in the place of {' '.join(missing) or 'nothing'}). For other "
                f"settings, give another folder, such as {flag} {free_name(run)}"
            )

    # Stages of an earlier script in the same folder stay on record.
    run.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(earlier | commands, indent=1))
