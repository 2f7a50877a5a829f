"""Kills training runs from outside and checks that, started again, they are the runs that nobody killed.

    bash scripts/torture.sh [--kills N] [--seed S] [--runs-dir DIR]

Tiny tokenizer (GAN, EMA, entropy; LeCam where it exists), GPT and linear-probe runs, in one process and in two, get
SIGKILL at times drawn in wall-clock; some wait for the next checkpoint write (a folder `.writing_*`) and fall at a
random moment inside it. Of two processes one is killed, or both. The same command starts the run again. After every
kill the newest checkpoint must be readable, with the fingerprint that the unbroken run had at that step; so must the
last one of every run that got to its end. DIR/kills.jsonl has a line for each kill.

To save the six seconds of `import torch` a start, this process imports it once and forks. What is killed is a real
process all the same: it calls the `main` of the real entry with the real command line, and nothing in the product knows
of this script. Some of the two-process runs (--torchrun) are started by torchrun itself, imports and all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import tiny
import torch

import autoregressive.train
import evaluations.linear_probe
import tokenizer.train
from engine.checkpoint import checkpoint_folders, read_manifest
from engine.config import UserError, run_entry
from engine.distributed import World
from evaluations.fingerprint import digests, whole
from tokenizer import load_tokenizer
from tokenizer.losses.adversarial import DiscriminatorConfig

MAINS = {"tokenizer.train": tokenizer.train.main, "autoregressive.train": autoregressive.train.main}
MAINS["evaluations.linear_probe"] = evaluations.linear_probe.main
LIMIT = 120  # seconds for a start; a rank that outlives its killed partner for longer is killed as well
PARTNER = 20
STEPS = 40


@dataclass(frozen=True)
class Case:
    """A command, without its run folder."""

    name: str
    module: str
    arguments: tuple[str, ...]
    processes: int = 1
    torchrun: bool = False


class Started:
    """The processes of one start of a command."""

    def __init__(self, case: Case, run_dir: Path, log: Path) -> None:
        arguments = [*case.arguments, f"loop.run_dir={run_dir}"]
        self.codes: dict[int, int] = {}
        self.agent = None
        if case.torchrun:
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(case.processes)]
            launch += ["--master-port", str(free_port()), "-m", case.module, *arguments]
            with log.open("a") as file:
                self.agent = subprocess.Popen(launch, stdout=file, stderr=file)
            self.pids = []
            return
        port, self.pids = free_port(), []
        for rank in range(case.processes):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.processes, "MASTER_PORT": port}
            world |= {"LOCAL_WORLD_SIZE": case.processes, "MASTER_ADDR": "127.0.0.1"}
            self.pids.append(fork(case.module, arguments, world if case.processes > 1 else {}, log))

    def ranks(self) -> list[int]:
        """The process ids of the ranks; those of torchrun appear after a while."""
        if self.agent is None:
            return self.pids
        try:
            children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split()
            return sorted(p for p in map(int, children) if b"loop.run_dir" in Path(f"/proc/{p}/cmdline").read_bytes())
        except OSError:
            return []

    def ended(self) -> bool:
        if self.agent is not None:
            return self.agent.poll() is not None
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def code(self) -> int:
        """The exit code of the first process that failed, or 0."""
        return self.agent.returncode if self.agent is not None else next((c for c in self.codes.values() if c), 0)

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def kill(self, pids: list[int]) -> None:
        for pid in pids:
            if pid not in self.codes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        if not self.wait(PARTNER):  # torchrun ends the partner; so do we
            for pid in self.ranks() + ([self.agent.pid] if self.agent else []):
                if pid not in self.codes:
                    os.kill(pid, signal.SIGKILL)
            if not self.wait(PARTNER):
                raise TimeoutError(f"{self.pids} survive SIGKILL")


def fork(module: str, arguments: list[str], world: dict, log: Path) -> int:
    """A child that is `python -m module arguments`, with the environment that torchrun would give it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update({name: str(value) for name, value in world.items()})
        sys.argv = [module, *arguments]
        run_entry(MAINS[module])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prepare(root: Path, torchrun: bool) -> list[Case]:
    """Images, a tokenizer and its codes, and the commands over them."""
    tiny.write_images(root / "images" / "train", per_class=12, seed=1)
    tiny.write_images(root / "images" / "val", per_class=3, seed=2)
    (root / "tokenizer.yaml").write_text(tiny.TOKENIZER)
    (root / "gpt.yaml").write_text(tiny.GPT)
    data = tiny.folder_data(root / "images")
    often = (f"loop.steps={STEPS}", "loop.save_every=4", "loop.log_every=5", "loop.eval_every=10", "loop.keep_last=2")
    gan = [*tiny.GAN, "loss.entropy_weight=0.05", "data.num_workers=0"]
    if "lecam_weight" in {f.name for f in fields(DiscriminatorConfig)}:
        gan.append("loss.discriminator.lecam_weight=0.01")
    image = ("--config", str(root / "tokenizer.yaml"), *data, *gan, *often)
    # in this process: what torch and timm import late, at the first update, is then there for all that are forked
    train_config = tiny.tokenizer_config(root / "tokenizer", root / "images", *tiny.GAN, "loop.steps=2")
    tokenizer.train.train(train_config, World(0, 1, 0, torch.device("cpu")))
    importlib.import_module("timm.optim")
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    gpt = ("--config", str(root / "gpt.yaml"), f"data.codes={root / 'codes'}", f"data.tokenizer={root / 'tokenizer'}")
    probe = (f"network={{source: tokenizer, tokenizer: {root / 'tokenizer'}}}", *data, "data.image_size=8")
    probe += ("data.global_batch_size=8", "data.num_workers=0", "loop.device=cpu", *often[1:])
    probe += ("probe={features: augmented, base_lrs: [1.0, 10.0], epochs: 20, warmup_epochs: 1, read_batch_size: 5}",)
    cases = []
    for size in (1, 2):
        cases += [
            Case(f"tokenizer x{size}", "tokenizer.train", (*image, f"data.num_workers={2 - size}"), size),
            Case(f"gpt x{size}", "autoregressive.train", (*gpt, *often, "ema_decay=0.9"), size),
            Case(f"probe x{size}", "evaluations.linear_probe", probe, size),
        ]
    return [*cases, Case("tokenizer torchrun x2", "tokenizer.train", image, 2, torchrun=True)] if torchrun else cases


def writing(run_dir: Path) -> bool:
    try:
        return any(name.startswith(".writing_") for name in os.listdir(run_dir / "checkpoints"))  # noqa: PTH208
    except OSError:
        return False


@dataclass
class Truth:
    """The unbroken run of a case: the fingerprint after every saved step, how long it took, and how long a write."""

    digest_at: dict[int, str]
    seconds: float
    write_seconds: float


def unbroken(case: Case, run_dir: Path, log: Path) -> Truth:
    """Trains without a kill and keeps every checkpoint."""
    keep = Case(case.name, case.module, (*case.arguments, "loop.keep_last=100000"), case.processes)
    begin, ticks, inside = time.monotonic(), 0, 0.0
    started, entered = Started(keep, run_dir, log), None
    while not started.ended():
        now = time.monotonic()
        if writing(run_dir):
            entered = entered or now
        elif entered is not None:
            ticks, inside, entered = ticks + 1, inside + now - entered, None
        time.sleep(0.001)
    if started.code():
        raise RuntimeError(f"{case.name}: the unbroken run fails; see {log}")
    found = {read_manifest(f)["step"]: whole(digests(f)) for f in checkpoint_folders(run_dir)}
    return Truth(found, time.monotonic() - begin, inside / max(1, ticks))


class Torture:
    """The count of kills, differences and unreadable states, and the record of them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.kills = self.in_write = self.differences = self.unreadable = 0
        self.targets: dict[str, int] = {}

    def judge(self, case: Case, truth: Truth, run_dir: Path, at_end: bool) -> tuple[int, str, bool]:
        """(step, digest, whether it is the unbroken run's) of the newest checkpoint; the end must be the last step."""
        folders = checkpoint_folders(run_dir)
        if not folders:
            return 0, "none", not at_end
        step = read_manifest(folders[-1])["step"]
        try:
            digest = whole(digests(folders[-1]))
        except UserError as error:
            self.unreadable += 1
            return step, f"unreadable: {error}", True
        same = truth.digest_at.get(step) == digest and (not at_end or step == max(truth.digest_at))
        self.differences += not same
        return step, digest, same

    def one_kill(self, case: Case, started: Started, truth: Truth, run_dir: Path) -> bool:
        """Waits for the drawn moment and kills; False where the run ended before."""
        behind = self.in_write < 0.3 * (self.kills + 1)
        aimed = self.draw.random() < (0.6 if behind else 0.2)
        starts, begin = run_dir / "starts.jsonl", time.monotonic()
        before = starts.stat().st_size if starts.is_file() else 0
        while case.torchrun and not started.ended() and (not starts.is_file() or starts.stat().st_size == before):
            time.sleep(0.01)  # torchrun imports for many seconds, which the drawn time does not count
        moment = time.monotonic() + self.draw.random() * truth.seconds * (0.8 if aimed else 1.1)
        while time.monotonic() < moment or (aimed and not writing(run_dir)):
            if started.ended():
                return False
            if time.monotonic() - begin > LIMIT:
                raise TimeoutError(f"{case.name} did not end in {LIMIT} s; see {self.root / 'log.txt'}")
            time.sleep(0.0005 if aimed else 0.003)
        if aimed:
            time.sleep(self.draw.random() * truth.write_seconds)
        ranks = started.ranks()
        if started.ended() or not ranks:
            return False
        target = self.draw.choice(["all", *range(case.processes)] if case.processes > 1 else ["all"])
        stamp, logged = time.time(), (run_dir / "metrics.jsonl").is_file()
        mid_write = writing(run_dir)
        started.kill(ranks if target == "all" else [ranks[int(target) % len(ranks)]])
        mid_write = mid_write and (
            target != "all" or writing(run_dir)
        )  # what lies there after the death of all is proof
        phase = "checkpoint write" if mid_write else "training" if logged else "start"
        step, digest, same = self.judge(case, truth, run_dir, at_end=False)
        self.kills, self.in_write = self.kills + 1, self.in_write + mid_write
        line = {"time": round(stamp, 3), "case": case.name, "seconds": round(time.monotonic() - begin, 3)}
        line |= {"target": target, "phase": phase, "step": step, "digest": digest, "same": same}
        with (self.root / "kills.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return True

    def session(self, case: Case, truth: Truth, run_dir: Path, most: int) -> None:
        """One run: killed up to `most` times and started again each time, at last to its end."""
        log, before = self.root / "log.txt", self.kills
        while self.kills - before < most:
            started = Started(case, run_dir, log)
            if not self.one_kill(case, started, truth, run_dir):
                break
        else:
            started = Started(case, run_dir, log)
        if not started.wait(LIMIT):
            raise TimeoutError(f"{case.name} did not end in {LIMIT} s; see {log}")
        if started.code():
            self.unreadable += 1
            print(f"{case.name}: the last start ended with code {started.code()}; see {log}")
        else:
            self.judge(case, truth, run_dir, at_end=True)
        shutil.rmtree(run_dir, ignore_errors=True)


def torture(root: Path, kills: int, seed: int, torchrun: int = 0, names: tuple[str, ...] = ()) -> Torture:
    """`kills` kills spread evenly over the cases (those of `names`), `torchrun` more of runs that torchrun starts."""
    root.mkdir(parents=True, exist_ok=True)
    for old in (root / "kills.jsonl", root / "log.txt"):
        old.unlink(missing_ok=True)
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    cases = [c for c in prepare(work, torchrun > 0) if not names or c.name in names or c.torchrun]
    truths: dict[str, Truth] = {}
    job, round_number = Torture(root, seed), 0
    while job.kills < kills + torchrun:
        real = job.kills >= kills
        for case in (c for c in cases if c.torchrun == real):
            if job.kills >= kills + (torchrun if real else 0):
                break
            plain = case.name.replace("torchrun ", "")
            if plain not in truths:
                truths[plain] = unbroken(
                    Case(plain, case.module, case.arguments, case.processes), work / "truth", root / "log.txt"
                )
                shutil.rmtree(work / "truth")
                print(f"{plain}: unbroken in {truths[plain].seconds:.1f} s", flush=True)
            left = kills + (torchrun if real else 0) - job.kills
            job.session(case, truths[plain], work / f"run{round_number}", min(4, left))
            round_number += 1
        print(f"{job.kills} kills, {job.in_write} in a write, {job.differences} differences", flush=True)
    shutil.rmtree(work)
    return job


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/torture"))
    parser.add_argument("--torchrun", type=int, default=4, help="how many of the kills are of runs under torchrun")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    begin = time.monotonic()
    torchrun = min(args.torchrun, args.kills)
    job = torture(args.runs_dir.resolve(), args.kills - torchrun, args.seed, torchrun)
    spent = f"{time.monotonic() - begin:.0f} s; {args.runs_dir}/kills.jsonl"
    print(f"{job.in_write} of them inside a checkpoint write; {spent}")
    print(f"{job.kills} kills, {job.differences} differences, {job.unreadable} unreadable")
    return int(bool(job.differences or job.unreadable or job.in_write < 0.2 * job.kills))


if __name__ == "__main__":
    raise SystemExit(main())
