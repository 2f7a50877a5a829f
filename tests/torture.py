"""Kills training runs from outside, starts them again, and checks that they equal runs that were never killed.

    bash scripts/torture.sh [--kills N] [--seed S] [--runs-dir DIR]

The runs are tiny: a tokenizer (GAN, EMA, entropy, LeCam; with learned codes, averaged ones and ones that start anew,
of flexible length, and of scales), WeTok (the same in two phases), a decoder that is trained alone after a warm start
of its discriminator, a GPT, a masked generator, a generator of scales and a linear probe.
They run in one process and in two, as copies and as shards (FSDP2), with blocking saves and with saves in a thread.
They receive SIGKILL at random wall-clock times. Some kills wait for the next checkpoint write (a folder `.writing_*`)
and come at a random moment inside it. Of two processes, one or both are killed. The same command then starts the run
again.

After every kill, the newest checkpoint must be readable and have the fingerprint that the uninterrupted run had at that
step, and no checkpoint that was there before may be lost. The same holds for the last checkpoint of every run that
reached its end. No start may fail by itself. DIR/kills.jsonl has one line per kill. If a run fails these checks, its
folder and output stay in DIR/evidence.

To save the six seconds that `import torch` takes at every start, this process imports it once and forks. What is killed
is nevertheless a real process: it calls the `main` of the real command with the real command line, and nothing in the
product knows about this script. Some of the two-process runs (--torchrun) are started by torchrun itself, with all
imports.
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
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import tiny
import torch

import autoregressive.train
import evaluations.linear_probe
import tokenizer.train
from engine.checkpoint.manifest import checkpoint_folders, phase_folders
from engine.cli import run_entry
from engine.messages import UserError
from engine.world import World
from evaluations.fingerprint import digests, whole
from tokenizer import load_tokenizer

MAINS = {"tokenizer.train": tokenizer.train.main, "autoregressive.train": autoregressive.train.main}
MAINS["evaluations.linear_probe"] = evaluations.linear_probe.main
LIMIT = 120  # seconds for a start; a rank that outlives its killed partner for longer is killed as well
PARTNER = 20
STEPS = 40
EARLY = 0.05  # share of kills that may fall before the first checkpoint
AVERAGED = "model.quantizer.vq={update: ema, restart: random, decay: 0.6, restart_threshold: 0.5}"
FLEXIBLE = "model.hybrid.flexible={lengths: uniform, align_weight: 0.5, padding: 2}"
PORTS = range(12_000, 32_000)  # below those that the system gives to sockets of any process


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
    """A port that nobody listens on. Not one of the system's own choice: between this and the start of the run it may
    give that to a connection of another process, and the start fails.
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.choice(PORTS)))
            except OSError:
                continue
            return port


def prepare(root: Path, torchrun: bool) -> list[Case]:
    """Images, a tokenizer and its codes, and the commands over them."""
    tiny.write_images(root / "images" / "train", per_class=12, seed=1)
    tiny.write_images(root / "images" / "val", per_class=3, seed=2)
    (root / "tokenizer.yaml").write_text(tiny.TOKENIZER)
    (root / "gpt.yaml").write_text(tiny.GPT)
    (root / "wetok.yaml").write_text(tiny.WETOK)
    data = tiny.folder_data(root / "images")
    saves = ("loop.save_every=4", "loop.log_every=5", "loop.eval_every=10", "loop.keep_last=2")
    often = (f"loop.steps={STEPS}", *saves)
    gan = [*tiny.GAN, "loss.entropy_weight=0.05", "loss.discriminator.lecam_weight=0.01", "data.num_workers=0"]
    image = ("--config", str(root / "tokenizer.yaml"), *data, *gan, *often)
    half = STEPS // 2
    phases = f"phases=[{{steps: {half}, lr: 1e-3}}, {{steps: {half}, lr: 1e-4, generative_decoder: true}}]"
    wetok = ("--config", str(root / "wetok.yaml"), *data, *saves, phases)
    # the decoder alone, after a warm start of its discriminator
    phases = f"phases=[{{steps: {half}, lr: 1e-3}}, {{steps: {half}, lr: 1e-3, train_parts: decoder}}]"
    warm = (f"loss.discriminator.start_step={half + 1}", "loss.discriminator.warmup_steps=9")
    decoder = ("--config", str(root / "tokenizer.yaml"), *data, *gan, *saves, phases, *warm)
    # in this process: what torch and timm import late, at the first update, is then there for all that are forked
    train_config = tiny.tokenizer_config(root / "tokenizer", root / "images", *tiny.GAN, "loop.steps=2")
    tokenizer.train.train(train_config, World(0, 1, 0, torch.device("cpu")))
    importlib.import_module("timm.optim")
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    gpt = ("--config", str(root / "gpt.yaml"), f"data.codes={root / 'codes'}", f"data.tokenizer={root / 'tokenizer'}")
    gpt += (*often, "ema_decay=0.9")
    # Codes of scales, and their generator.
    scales = ("--config", str(root / "tokenizer.yaml"), *data, *tiny.GAN, *tiny.SCALES, "data.num_workers=0", *often)
    tokenizer.train.train(
        tiny.tokenizer_config(root / "scales", root / "images", *tiny.SCALES, "loop.steps=2"),
        World(0, 1, 0, torch.device("cpu")),
    )
    tiny.write_codes(root / "scale_codes", load_tokenizer(root / "scales").provenance.fingerprint, num_tokens=30)
    by_scale = (*gpt, f"data.codes={root / 'scale_codes'}", f"data.tokenizer={root / 'scales'}")
    by_scale += ("model={name: next_scale, gpt: null, next_scale: {width: 16, layers: 2, heads: 2}}",)
    by_scale += ("model.next_scale={scales: [1, 2, 3, 4], code_dim: 4, num_phis: 4}",)
    masked = (*gpt, "model={name: maskgit, gpt: null, maskgit: {width: 16, layers: 2, heads: 2}}")
    probe = (f"network={{source: tokenizer, tokenizer: {root / 'tokenizer'}}}", *data, "data.image_size=8")
    probe += ("data.global_batch_size=8", "data.num_workers=0", "loop.device=cpu", *saves)
    probe += ("probe={features: augmented, base_lrs: [1.0, 10.0], epochs: 20, warmup_epochs: 1, read_batch_size: 5}",)
    cases = []
    for size in (1, 2):
        cases += [
            Case(f"tokenizer x{size}", "tokenizer.train", (*image, f"data.num_workers={2 - size}"), size),
            Case(f"gpt x{size}", "autoregressive.train", gpt, size),
            Case(f"probe x{size}", "evaluations.linear_probe", probe, size),
        ]
    shards, thread = "loop.strategy=fsdp", "loop.async_save=true"
    cases += [
        Case("wetok x1", "tokenizer.train", wetok),
        Case("wetok fsdp x2", "tokenizer.train", (*wetok, shards), 2),
        Case("decoder x1", "tokenizer.train", decoder),
        Case("decoder fsdp x2", "tokenizer.train", (*decoder, shards), 2),
        Case("gpt async x1", "autoregressive.train", (*gpt, thread)),
        Case("masked generator x2", "autoregressive.train", masked, 2),
        Case("tokenizer fsdp async x2", "tokenizer.train", (*image, shards, thread), 2),
        Case("averaged codebook x1", "tokenizer.train", (*image, AVERAGED)),
        Case("averaged codebook fsdp x2", "tokenizer.train", (*image, AVERAGED, shards), 2),
        Case("flexible length x2", "tokenizer.train", (*image, FLEXIBLE), 2),
        Case("scales x1", "tokenizer.train", scales),
        Case("scales fsdp x2", "tokenizer.train", (*scales, shards), 2),
        Case("generator of scales x2", "autoregressive.train", by_scale, 2),
        Case("restarted codes x2", "tokenizer.train", (*image, "model.quantizer.vq.restart=nearest"), 2),
    ]
    return [*cases, Case("tokenizer torchrun x2", "tokenizer.train", image, 2, torchrun=True)] if torchrun else cases


def parts_of(run_dir: Path) -> list[Path]:
    """The run folder, or those of its phases."""
    return phase_folders(run_dir) or [run_dir]


def saved(run_dir: Path) -> list[str]:
    """The checkpoints of a run, relative to it, oldest first."""
    return [str(f.relative_to(run_dir)) for part in parts_of(run_dir) for f in checkpoint_folders(part)]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def starts(run_dir: Path) -> int:
    """Bytes of the records of starts: it grows when a start has got so far."""
    return sum(size_of(part / "starts.jsonl") for part in parts_of(run_dir))


def writing(run_dir: Path) -> bool:
    for part in parts_of(run_dir):
        try:
            if any(name.startswith(".writing_") for name in os.listdir(part / "checkpoints")):  # noqa: PTH208
                return True
        except OSError:
            continue
    return False


@dataclass
class Truth:
    """The unbroken run of a case: the fingerprints of all its checkpoints, how long it took, and how long a write."""

    digests: dict[str, str]
    seconds: float
    write_seconds: float


def unbroken(case: Case, run_dir: Path, log: Path) -> Truth:
    """Trains without a kill and keeps every checkpoint."""
    keep = replace(case, arguments=(*case.arguments, "loop.keep_last=100000"))
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
    seconds = time.monotonic() - begin
    return Truth({name: whole(digests(run_dir / name)) for name in saved(run_dir)}, seconds, inside / max(1, ticks))


class Torture:
    """The count of kills, differences and unreadable states, and the record of them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.in_write = self.before_first = self.differences = self.unreadable = self.runs = 0
        self.kills: Counter[str] = Counter()  # by case

    def judge(self, truth: Truth, run_dir: Path, floor: str) -> tuple[str, str, bool]:
        """(name, digest, whether it is the unbroken run's) of the newest checkpoint; it may not be older than `floor`.

        At the end `floor` is the last one of the unbroken run.
        """
        found = saved(run_dir)
        if not found:
            same, digest, newest = not floor, "none", ""
        else:
            newest = found[-1]
            try:
                digest = whole(digests(run_dir / newest))
            except UserError as error:
                self.unreadable += 1
                return newest, f"unreadable: {error}", False
            same = truth.digests.get(newest) == digest and newest >= floor
        self.differences += not same
        return newest, digest, same

    def one_kill(self, case: Case, started: Started, truth: Truth, run_dir: Path) -> bool | None:
        """Waits for the drawn moment and kills: whether the state was good; None where the run ended before."""
        done = self.kills.total()
        aimed = self.draw.random() < (0.6 if self.in_write < 0.3 * (done + 1) else 0.2)
        early, begin, before = self.draw.random() < EARLY, time.monotonic(), starts(run_dir)
        while (case.torchrun and starts(run_dir) == before) or not (early or saved(run_dir)):
            if self._over(case, started, begin):  # torchrun imports for many seconds, which the drawn time leaves out
                return None
            time.sleep(0.003)
        floor = ["", *saved(run_dir)][-1]
        left = truth.seconds * (1 - len([n for n in truth.digests if n <= floor]) / len(truth.digests))
        moment = time.monotonic() + self.draw.random() * left * (0.8 if aimed else 1.0)
        while time.monotonic() < moment or (aimed and not writing(run_dir)):
            if self._over(case, started, begin):
                return None
            time.sleep(0.0005 if aimed else 0.003)
        if aimed:
            time.sleep(self.draw.random() * truth.write_seconds)
        ranks = started.ranks()
        if started.ended() or not ranks:
            return None
        target = self.draw.choice(["all", *range(case.processes)] if case.processes > 1 else ["all"])
        stamp, begun = time.time(), starts(run_dir) > before
        mid_write = writing(run_dir)
        started.kill(ranks if target == "all" else [ranks[int(target) % len(ranks)]])
        # what lies there after the death of all is proof
        mid_write = mid_write and (target != "all" or writing(run_dir))
        phase = "checkpoint write" if mid_write else "training" if begun else "start"
        newest, digest, same = self.judge(truth, run_dir, floor)
        self.kills[case.name] += 1
        self.in_write, self.before_first = self.in_write + mid_write, self.before_first + (not newest)
        line = {"time": round(stamp, 3), "case": case.name, "seconds": round(time.monotonic() - begin, 3)}
        line |= {"target": target, "phase": phase, "checkpoint": newest, "digest": digest, "same": same}
        with (self.root / "kills.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return same

    def _over(self, case: Case, started: Started, begin: float) -> bool:
        if time.monotonic() - begin > LIMIT:
            raise TimeoutError(f"{case.name} did not end in {LIMIT} s; see {self.root / 'work'}")
        return started.ended()

    def session(self, case: Case, truth: Truth, work: Path, most: int) -> None:
        """One run: killed up to `most` times and started again each time, at last to its end."""
        self.runs += 1
        run_dir, log = work / f"run_{self.runs:03d}", work / f"run_{self.runs:03d}.log"
        good, started = True, Started(case, run_dir, log)
        for _ in range(most):
            same = self.one_kill(case, started, truth, run_dir)
            if same is None:
                break
            good, started = good and same, Started(case, run_dir, log)
        if not started.wait(LIMIT):
            raise TimeoutError(f"{case.name} did not end in {LIMIT} s; see {log}")
        if started.code():
            self.unreadable, good = self.unreadable + 1, False
            print(f"{case.name}: a start that nobody killed ended with code {started.code()}", flush=True)
        else:
            good = self.judge(truth, run_dir, floor=list(truth.digests)[-1])[2] and good
        if good:
            shutil.rmtree(run_dir)
            log.unlink()
            return
        (self.root / "evidence").mkdir(exist_ok=True)
        for path in (run_dir, log):
            shutil.move(path, self.root / "evidence" / path.name)
        print(f"{case.name}: see {self.root / 'evidence' / run_dir.name}", flush=True)


def torture(root: Path, kills: int, seed: int, torchrun: int = 0, names: tuple[str, ...] = ()) -> Torture:
    """`kills` kills spread evenly over the cases (those of `names`), `torchrun` more of runs that torchrun starts."""
    root.mkdir(parents=True, exist_ok=True)
    for old in (root / "work", root / "evidence"):
        shutil.rmtree(old, ignore_errors=True)
    (root / "kills.jsonl").unlink(missing_ok=True)
    work = root / "work"
    work.mkdir()
    cases = [c for c in prepare(work, torchrun > 0) if not names or c.name in names or c.torchrun]
    plain, launched = [c for c in cases if not c.torchrun], [c for c in cases if c.torchrun]
    truths: dict[str, Truth] = {}
    job = Torture(root, seed)
    random.seed(seed)
    for group, number in ((plain, kills), (launched, torchrun)):
        goal = job.kills.total() + number
        while job.kills.total() < goal:
            case = min(group, key=lambda c: (job.kills[c.name], c.name not in truths))
            base = case.name.replace("torchrun ", "")
            if base not in truths:
                truths[base] = unbroken(replace(case, name=base, torchrun=False), work / "truth", work / "truth.log")
                shutil.rmtree(work / "truth")
                print(f"{base}: unbroken in {truths[base].seconds:.1f} s", flush=True)
            share = -(-number // len(group)) - job.kills[case.name]
            job.session(case, truths[base], work, min(4, share, goal - job.kills.total()))
            print(f"{job.kills.total()} kills, {job.in_write} in a write, {job.differences} differences", flush=True)
    shutil.rmtree(work)
    return job


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/torture"))
    parser.add_argument("--torchrun", type=int, default=4, help="number of the kills that hit runs under torchrun")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    begin = time.monotonic()
    torchrun = min(args.torchrun, args.kills)
    job = torture(args.runs_dir.resolve(), args.kills - torchrun, args.seed, torchrun)
    kills, spent = job.kills.total(), f"{time.monotonic() - begin:.0f} s; {args.runs_dir}/kills.jsonl"
    print("kills by case: " + ", ".join(f"{name} {count}" for name, count in sorted(job.kills.items())))
    print(f"{job.in_write} of them inside a checkpoint write, {job.before_first} before the first; {spent}")
    print(f"{kills} kills, {job.differences} differences, {job.unreadable} unreadable")
    return int(bool(job.differences or job.unreadable or job.in_write < 0.2 * kills))


if __name__ == "__main__":
    raise SystemExit(main())
