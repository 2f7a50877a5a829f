"""What a run leaves behind: `config.yaml`, `log.txt`, `metrics.jsonl` (the record), image grids, optionally wandb."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from engine.alerts import ALERTS, Alert, alerts_for
from engine.checkpoint.manifest import phase_folders, write_atomic
from engine.config import to_yaml
from engine.data.images import save_grid as write_grid
from engine.messages import UserError, logger
from engine.run_record import start_record
from engine.world import World


def _wandb_run(run_dir: Path, project: str) -> Any:
    """The wandb run of this folder; a resume goes on with the same one."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("loop.wandb_project needs wandb; run: bash env_install.sh --extras quickstart,wandb") from error
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, dir=str(run_dir), name=run_dir.name, id=identity, resume="allow")


class Run:
    """The folder and the voice of one run. Only the main process writes."""

    def __init__(self, run_dir: str | Path, config: Any, world: World, wandb_project: str = "") -> None:
        self.dir, self.config, self.world = Path(run_dir), config, world
        self.alerts: Mapping[str, Alert] = ALERTS  # of trouble, said in the log
        self.bar: tqdm | None = None
        self._wandb = None
        self._before: dict[frozenset[str], Mapping[str, float]] = {}  # the last record of each kind
        if not world.is_main:
            return
        try:
            (self.dir / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = (self.dir / ".lock").open("w")
            # freed by the system, however this process ends; unlike flock not shared with loader processes, which may
            # outlive a killed run for seconds
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in ("metrics.jsonl", "starts.jsonl"):
                with (self.dir / name).open("a+b") as file:
                    file.seek(max(0, file.tell() - 1))
                    if file.read() not in (b"", b"\n"):  # a killed run tore the last line: the next record starts anew
                        file.write(b"\n")
            self._handler = logging.FileHandler(self.dir / "log.txt", encoding="utf-8")
        except BlockingIOError as error:
            raise UserError(f"run folder {self.dir} is in use by another process; wait, or set loop.run_dir") from error
        except OSError as error:
            raise UserError(f"run folder {self.dir} cannot be written: {error}") from error
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)
        if wandb_project:
            self._wandb = _wandb_run(self.dir, wandb_project)

    def write_config(self) -> None:
        """Notes config, commit and the circumstances of this start, once it is certain that this run goes on."""
        if self.world.is_main:
            write_atomic(self.dir / "config.yaml", to_yaml(self.config))
            record = start_record(self.world)
            write_atomic(self.dir / "git_sha.txt", record["git"]["sha"] + "\n")
            with (self.dir / "starts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def log(self, text: str) -> None:
        """One line (or table) for people, on the console and in log.txt."""
        if self.world.is_main:
            logger.info(text)

    def start_bar(self, start: int, total: int) -> None:
        if self.world.is_main:
            self.bar = tqdm(None, self.dir.name, total, initial=start, unit="step", dynamic_ncols=True, disable=None)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def log_metrics(self, step: int, metrics: Mapping[str, float], show: tuple[str, ...] = ()) -> None:
        """Appends one line to metrics.jsonl; `show` names what the console prints (default: everything)."""
        if not self.world.is_main or not metrics:
            return
        line = {"step": step, "time": round(time.time(), 3), **{k: float(f"{v:.6g}") for k, v in metrics.items()}}
        with (self.dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        text = "  ".join(f"{k} {metrics[k]:.4g}" for k in (show or metrics) if k in metrics)
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(text[:100], refresh=False)
        self.log(f"step {step}: {text}")
        kind = frozenset(k.partition("/")[0] for k in metrics if "/" in k)
        for warning in alerts_for(metrics, self._before.get(kind, {}), self.alerts):
            self.log(f"step {step}: {warning}")
        self._before[kind] = dict(metrics)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def save_grid(self, name: str, images: Tensor, columns: int) -> None:
        """An image grid under samples/; images in [-1,1]."""
        if self.world.is_main:
            write_grid(self.dir / "samples" / f"{name}.png", images, columns)

    def close(self) -> None:
        if not self.world.is_main:
            return
        if self.bar is not None:
            self.bar.close()
        self._lock.close()
        logger.removeHandler(self._handler)
        self._handler.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; torn ones are dropped."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a killed run
            continue
    return found


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The records of a run by ascending step; where a resume repeated a step, the later record counts.

    Torn lines are dropped. Of a run in phases, their records with steps that go on.
    """
    records: dict[tuple[int, tuple[str, ...]], dict[str, float]] = {}
    for folder in phase_folders(Path(run_dir)) or [Path(run_dir)]:
        before = max((step for step, _ in records), default=0)
        for record in read_lines(folder / "metrics.jsonl"):
            record["step"] += before
            records[(record["step"], tuple(sorted(record)))] = record
    return sorted(records.values(), key=lambda r: r["step"])
