"""What can be wrong with a run, one small function each: it reads what the run left behind and returns how many times
its threshold a symptom is, with the evidence, or None where it cannot be known. Thresholds stand beside their reason;
docs/doctor.md shows how far healthy and faulty runs are from them. `CHECKS` lists the checks with the remedies.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from engine.checkpoint import checkpoint_folders, read_manifest
from engine.config import UserError, flatten, read_yaml
from engine.datasets import DataConfig, centre_batch, open_source
from engine.distributed import autocast
from engine.images import to_float
from engine.tracker import read_lines, read_metrics
from tokenizer import load_tokenizer
from tokenizer.health import CLIPPED, STRONG
from tokenizer.quantizers.base import usage_of_counts

CONFIGS = Path(__file__).parents[1] / "configs"
CURVES = CONFIGS / "quickstart" / "reference_curves.json"
LATE = 0.25  # the share of the records at the end that counts as "now"
PICTURE = {"reconstruction_l2": "l2", "reconstruction_l1": "l1", "perceptual": "perceptual"}  # term: loss.<>_weight
ASKED = ("NPROC_PER_NODE", "gpus", "GPUS")  # processes per machine for scripts/launch.sh; the first counts
Reading = tuple[float, str] | None  # how many times its threshold, above 1 = named; the evidence


def _one_head(record: dict[str, float]) -> dict[str, float]:
    """Of a linear probe, whose heads `loss/<rate>` train side by side and diverge at high rates by design: the best."""
    heads = {name: value for name, value in record.items() if name.startswith("loss/")}
    if not heads:
        return record
    best = min((value for value in heads.values() if math.isfinite(value)), default=math.nan)
    return {name: value for name, value in record.items() if name not in heads} | {"loss": best}


def _phases(name: str, tree: DictConfig) -> list[tuple[str, DictConfig]]:
    """A recipe as each of its phases trains it, under `<name> phase_<n>`; one without phases as it is."""
    trees = []
    for phase in tree.get("phases", []):
        own = {"optim": {"lr": phase.lr}, "loop": {"steps": phase.steps}}
        own["model"] = {"wetok": {"generative_decoder": phase.get("generative_decoder", False)}}
        trees.append(OmegaConf.merge(tree, own))
    return [(f"{name} phase_{n}", own) for n, own in enumerate(trees, start=1)] or [(name, tree)]


@dataclass
class Evidence:
    """A run folder, read once. `recipes` are the shipped configs that it could be a run of, phase by phase."""

    dir: Path
    recipe: Path | None = None  # named by the user
    config: DictConfig = field(init=False)

    def __post_init__(self) -> None:
        if not (self.dir / "config.yaml").is_file():
            raise UserError(f"{self.dir} has no config.yaml; is it the folder of a run?")
        self.config = read_yaml(self.dir / "config.yaml")
        records = read_metrics(self.dir)
        self.train = [_one_head(r) for r in records if "steps_per_second" in r]
        self.val = [r for r in records if any(k.startswith("val/") for k in r)]
        self.starts = read_lines(self.dir / "starts.jsonl")
        self.folders = checkpoint_folders(self.dir)

    def get(self, key: str, default: Any = None) -> Any:
        return OmegaConf.select(self.config, key, default=default)

    def series(self, name: str) -> list[float]:
        return [r[name] for r in (self.val if name.startswith("val/") else self.train) if name in r]

    def late(self, name: str) -> float | None:
        """The median of the last quarter of a metric; None where there are fewer than 4 records."""
        values = self.series(name)
        return median(values[-max(1, int(LATE * len(values))) :]) if len(values) >= 4 else None

    @property
    def is_tokenizer(self) -> bool:
        return "loss" in self.config

    @property
    def step(self) -> int:
        return int(max([0, *(r["step"] for r in self.train), *(read_manifest(f)["step"] for f in self.folders)]))

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.dir, weights="model") if self.is_tokenizer and self.folders else None

    @cached_property
    def code_counts(self) -> list[torch.Tensor]:
        """How often each code of each group occurs among the recent training tokens of the checkpoint. Left out: tokens
        of a warm-up without codes, the empty start of the window, groups with more codes than tokens.
        """
        if self.tokenizer is None:
            return []
        quantizer, step = self.tokenizer.quantizer, read_manifest(self.folders[-1])["step"]
        steps = step - self.get(f"model.quantizer.{self.get('model.quantizer.name')}.warmup_steps", 0)
        seen = quantizer.recent_indices.long().view(len(quantizer.recent_indices), -1)
        seen = seen[max(0, len(seen) - steps * self.get("data.global_batch_size") * self.tokenizer.num_tokens) :]
        rows = seen[(seen >= 0).all(1)]
        sizes = zip(rows.T, quantizer.group_sizes, strict=True)
        return [torch.bincount(column, minlength=size).double() for column, size in sizes if len(rows) >= size]

    @cached_property
    def recipes(self) -> list[tuple[str, DictConfig]]:
        """The file the user named; else every YAML whose whole `model` section this run has, its namesakes first. Of
        one in phases that of this run's folder, or all where the folder does not say.
        """
        own, found = flatten(self.config.get("model", {})), []
        whole = [
            p for p in sorted(CONFIGS.rglob("*.yaml")) if not p.read_text(encoding="utf-8").startswith("# Overlay")
        ]
        for path in whole if self.recipe is None else [self.recipe]:
            path = path.resolve()
            name = str(path.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else path.name
            for phase, tree in _phases(name, read_yaml(path)):
                model = flatten(tree.model) if {"model", "optim", "data"} <= set(tree) else {}
                fits = bool(model) and all(own.get(k) == v for k, v in model.items())
                if self.recipe is not None or fits:
                    found.append((len(model), phase, tree))
        most = max((n for n, _, _ in found), default=0)
        best = [(name, tree) for n, name, tree in found if n == most or self.recipe is not None]
        folder = self.dir.resolve()
        best = [(n, t) for n, t in best if n.endswith(f" {folder.name}")] or best
        return [(n, t) for n, t in best if Path(n.split()[0]).stem in (folder.name, folder.parent.name)] or best


Check = Callable[[Evidence], Reading]


def together(found: Sequence[tuple[float, str]]) -> Reading:
    """One reading of several: the worst of them, with the evidence of all that are named."""
    if not found:
        return None
    worst = max(found)
    return worst[0], ", ".join(text for times, text in found if times > 1) or worst[1]


# ---------------------------------------------------------------------------------------------- the codebook
def _by_group(counts: Sequence[torch.Tensor], read: Callable[[torch.Tensor, str], tuple[float, str]]) -> Reading:
    """`read` of the counts (K,) of each group; the group is named where there are several."""
    names = [f"group {g}: " if len(counts) > 1 else "" for g in range(len(counts))]
    return together([read(row, name) for row, name in zip(counts, names, strict=True)])


def collapse_of(row: torch.Tensor, name: str) -> tuple[float, str]:
    """Perplexity of counts (K,) against 5 % of the codes; of a few against K^(1/4): 2 of 16, 1.4 of 4."""
    perplexity = usage_of_counts([row], [len(row)], (row > 0).sum())["codebook_perplexity"].item()
    return max(0.05 * len(row), len(row) ** 0.25) / perplexity, f"{name}perplexity {perplexity:.1f} of {len(row)} codes"


def unused_of(row: torch.Tensor, name: str) -> tuple[float, str]:
    """Share of codes without a token against 25 %."""
    share = (row == 0).double().mean().item()
    return share / 0.25, f"{name}{share:.0%} of {len(row)} codes unused"


def codebook_collapse(run: Evidence) -> Reading:
    """Perplexity below 5 % of the codes: at a uniform use it is 100 %, healthy runs reach 50 % and more."""
    return _by_group(run.code_counts, collapse_of)


def dead_codes(run: Evidence) -> Reading:
    """More than a quarter of the codes unused among at least four tokens a code (2 % would be chance), after a tenth of
    the run: codes spread at first.
    """
    if run.step < 0.1 * run.get("loop.steps", 1):
        return None
    return _by_group([row for row in run.code_counts if row.sum() >= 4 * len(row)], unused_of)


def _picture(run: Evidence, value: Callable[[str], float | None]) -> float:
    """The weighted sum of pixel and perceptual terms, each by `value` of its name."""
    return sum((value(name) or 0.0) * run.get(f"loss.{weight}_weight", 0.0) for name, weight in PICTURE.items())


def _quantizer(run: Evidence) -> DictConfig:
    """The section of the quantizer in use."""
    return run.get(f"model.quantizer.{run.get('model.quantizer.name')}")


def commitment_imbalance(run: Evidence) -> Reading:
    """Commitment above 2 x the picture terms (the encoder serves the codebook), or, where the length of codes is known,
    an error of a thousandth of it: latents are glued to their codes. Thousands of codes leave some percent.
    """
    value, picture, own = run.late("commitment"), _picture(run, run.late), _quantizer(run)
    if value is None or picture <= 0 or run.get("model.wetok.generative_decoder"):  # then it is no loss
        return None
    share = value * run.get("loss.commitment_weight", 0.0) / picture
    found = [(share / 2, f"weighted commitment loss is {share:.2g} x the picture terms")]
    if own.l2_norm or "group_dim" in own:  # a channel is +-1, or a vector has length 1
        channels = own.get("codebook_dim") or own.num_groups * own.group_dim
        error = max(value, 1e-12) * (channels if own.l2_norm else 1)
        found.append((1e-3 / error, f"error {error:.2g} of the codes (0: latents are glued to them)"))
    return together(found)


def _most_entropy(run: Evidence) -> float:
    """The largest `sample_entropy` of the quantizer in nats: that of a uniform assignment."""
    own = _quantizer(run)
    if "group_dim" in own:  # pooled, it is a mean over groups
        return own.group_dim * (own.num_groups if own.codebook_entropy == "per_group" else 1) * math.log(2)
    return math.log(own.codebook_size)


def entropy_imbalance(run: Evidence) -> Reading:
    """What the entropy terms can gain in all above 5 x what the picture terms were at the start (their value late says
    little: picture terms vanish, entropies do not); or an assignment within 20 % of a uniform one.
    """
    own, picture = run.late("sample_entropy"), _picture(run, lambda name: median(run.series(name)[:2] or [0.0]))
    if own is None or picture <= 0:
        return None
    most = _most_entropy(run)
    share = most * run.get("loss.entropy_weight", 0.0) / picture
    undecided = f"sample_entropy {own:.2f} of at most {most:.2f} nats, those of latents that prefer no code"
    shares = f"weighted entropy loss can gain {share:.2g} x the picture terms at the start"
    return together([(share / 5, shares), (0.2 / max(1 - own / most, 1e-9), undecided)])


def precision_flips(run: Evidence) -> Reading:
    """Over 10 % other codes in the precision of the training than in fp32, in which evaluation and extraction run."""
    data = run.get("data")
    if run.tokenizer is None or run.get("loop.precision") != "bf16" or "root" not in data:
        return None
    config = DataConfig(**OmegaConf.to_container(data))
    try:
        source = open_source(config, "train")
    except UserError:  # the images are elsewhere; --data says so
        return None
    images = to_float(centre_batch(source, config.image_size, range(min(32, len(source))), skip_broken=True))
    exact = run.tokenizer.encode(images).indices
    with autocast(images.device, "bf16"):
        share = (run.tokenizer.encode(images).indices != exact).double().mean().item()
    return share / 0.1, f"{share:.0%} of the codes of {len(images)} images differ between bf16 and fp32"


# ---------------------------------------------------------------------------------------------- the discriminator
def strong_discriminator(run: Evidence) -> Reading:
    """Nearly no loss left: its gradient to the generator is the same everywhere (hinge) or gone."""
    loss = run.late("discriminator")
    return None if loss is None else (STRONG / max(loss, 1e-9), f"discriminator loss {loss:.3f} (1 = undecided)")


def dead_discriminator(run: Evidence) -> Reading:
    """Logits of real and generated images within 0.01 in every late record: margins are 2 apart."""
    pairs = list(zip(run.series("logits_real"), run.series("logits_generated"), strict=True))
    late = [abs(a - b) for a, b in pairs[len(pairs) // 2 :]]
    if len(late) < 2:
        return None
    return 0.01 / max(*late, 1e-9), f"logits of real and made images differ by {max(late):.2g} at most"


# ---------------------------------------------------------------------------------------------- the curves
def clipped_output(run: Evidence) -> Reading:
    """Values outside of [-1, 1] are lost in uint8; some overshoot at edges is normal."""
    shares = run.series("val/clipped_share")
    text = "of the output values of held-out images lie outside [-1.05, 1.05]"
    return (shares[-1] / CLIPPED, f"{shares[-1]:.1%} {text}") if shares else None


def _falling(run: Evidence) -> list[tuple[str, list[float]]]:
    """The losses that should fall, with at least 8 records."""
    names = PICTURE if run.is_tokenizer else ("loss",)
    return [(name, run.series(name)) for name in names if len(run.series(name)) >= 8]


def diverged(run: Evidence) -> Reading:
    """A loss at twice its own best: noise between batches is well below that once medians of records are taken."""
    found = []
    for name, values in _falling(run):
        width, late = max(2, len(values) // 8), run.late(name)
        best = min(median(values[i : i + width]) for i in range(len(values) - width + 1))
        rise = late / best - 1 if math.isfinite(late) else math.inf
        found.append((rise, f"{name} {late:.4g} late in the run, {best:.4g} at its best"))
    return together(found)


def not_learning(run: Evidence) -> Reading:
    """Every loss within 5 % of where it began (batches differ by 4 %), although a tenth of the run or more is over. A
    run that starts from trained weights may stay there.
    """
    if run.step < 0.1 * run.get("loop.steps", 1) or run.get("init"):
        return None
    ratios = {name: run.late(name) / median(v[:4]) for name, v in _falling(run)}
    text = ", ".join(f"{name} is {ratio:.1%} of its start" for name, ratio in ratios.items())
    return (0.05 / max(1 - min(ratios.values()), 1e-9), text) if ratios else None


def overfitting(run: Evidence) -> Reading:
    """A held-out loss 3 % above its best while the training loss went on falling: noise of 500 images is near 1 %."""
    found = []
    for name in ("loss", "reconstruction_l2"):
        held_out, own = run.series(f"val/{name}"), run.series(name)
        if len(held_out) >= 3 and len(own) >= 4 and run.late(name) < median(own[: len(own) // 2]):
            best = next(r["step"] for r in run.val if r.get(f"val/{name}") == min(held_out))
            text = f"val/{name} {held_out[-1]:.4g}, but {min(held_out):.4g} at step {best}; {name} {own[-1]:.4g}"
            found.append(((held_out[-1] / min(held_out) - 1) / 0.03, text))
    return together(found)


def non_finite(run: Evidence) -> Reading:
    """One skipped update in a hundred: a rare one is harmless, more hide an instability."""
    skipped = max(run.series("skipped_steps"), default=0)
    bad = sorted({k for r in run.train for k, v in r.items() if not math.isfinite(v)})
    text = f"{skipped:.0f} of {run.step} updates skipped{'; not finite: ' + ', '.join(bad) if bad else ''}"
    return (math.inf if bad else skipped / (0.01 * max(1, run.step))), text


def off_the_reference(run: Evidence) -> Reading:
    """Against the curves of a healthy quick start of the same length: 1.5 x a loss is far outside of its noise."""
    curves, found = json.loads(CURVES.read_text(encoding="utf-8")), []
    for curve in [curves[name] for name, _ in run.recipes if name in curves]:
        for name, values in curve["metrics"].items() if curve["steps"] == run.get("loop.steps") else ():
            normal = dict(zip(curve["at"], values, strict=True))
            common = [(r["step"], r[name], normal[r["step"]]) for r in run.train if r["step"] in normal and name in r]
            late = common[-max(3, len(common) // 4) :]
            if len(late) >= 3:
                step, own, usual = late[-1]
                ratio = median(own / usual for _, own, usual in late)
                text = f"{name} {own:.4g} at step {step}, where a healthy run has {usual:.4g}: {ratio:.2f} x lately"
                found.append(((ratio - 1) / 0.5, text))
    return together(found)


# ---------------------------------------------------------------------------------------------- the circumstances
def _mismatch(key: str) -> Check:
    def check(run: Evidence) -> Reading:
        """A factor of 1.5 from every recipe of this architecture: less is a rounding of a scaling rule."""
        own, theirs = run.get(key), [(OmegaConf.select(tree, key), name) for name, tree in run.recipes]
        if own is None or not theirs or any(value is None for value, _ in theirs):
            return None
        factor = min(max(own, value) / max(min(own, value), 1e-30) for value, _ in theirs)
        return (factor - 1) / 0.5, f"{key}={own:g}; {', '.join(f'{name} has {value:g}' for value, name in theirs)}"

    return check


def ranks(run: Evidence) -> Reading:
    """Starts with different numbers of processes, processes that never met, GPUs that nobody uses."""
    sizes, text = [s["processes"] for s in run.starts], ""
    for start in run.starts[-1:]:
        given = start["environment"]
        asked = {name: int(given[name]) for name in ASKED if given.get(name, "").isdigit()}
        tasks, local = int(given.get("SLURM_NTASKS", 1)), int(given.get("LOCAL_WORLD_SIZE", start["processes"]))
        name = next(iter(asked), "")
        if len(set(sizes)) > 1:
            text = "processes: sums are rounded differently, dropout masks change"
            text = f"started with {', '.join(map(str, sizes))} {text}"
        elif tasks > 1 and start["processes"] == 1:
            text = f"SLURM started {tasks} tasks, but this run is a single process: each task trained by itself"
        elif asked and asked[name] > local:
            text = f"{name}={asked[name]} asks for as many processes, but {local} ran on this machine"
        elif start["device"].get("visible", local) > local:
            text = f"{start['device']['visible']} GPUs are visible, {local} used"
    return (math.inf, text) if text else None


def unfinished(run: Evidence) -> Reading:
    """Fewer steps than asked for, and no process that holds the folder's lock."""
    steps, lock = run.get("loop.steps", 0), run.dir / ".lock"
    if run.step >= steps:
        return None
    if lock.is_file():
        with lock.open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return None  # it is running
    return math.inf, f"ended at step {run.step} of {steps}; {len(run.folders)} checkpoints"


# name: (check, remedy)
CHECKS: dict[str, tuple[Check, str]] = {
    "codebook collapse": (
        codebook_collapse,
        "warm up the quantizer with init=kmeans, lower optim.lr, add entropy loss",
    ),
    "dead codes": (dead_codes, "warm up the quantizer with init=kmeans, add entropy loss, or use fewer codes"),
    "commitment imbalance": (commitment_imbalance, "lower loss.commitment_weight (0.25 is usual)"),
    "entropy imbalance": (entropy_imbalance, "lower loss.entropy_weight, or the quantizer's entropy_temperature"),
    "precision flips": (precision_flips, "use loop.precision=fp32, or spread the codes (l2_norm=true, init=kmeans)"),
    "overpowering discriminator": (strong_discriminator, "start it later, make it smaller, or regularize it (LeCam)"),
    "dead discriminator": (dead_discriminator, "check loss.discriminator.weight and optim.lr; begin anew with it"),
    "clipped output": (clipped_output, "give pixel losses more weight; check the range of the images"),
    "diverged": (diverged, "lower optim.lr or raise optim.warmup_steps; go on from an older checkpoint"),
    "not learning": (not_learning, "raise optim.lr; check the data and the loss weights"),
    "overfitting": (overfitting, "use the checkpoint of the best step (loop.keep_every), more dropout, or more data"),
    "non-finite steps": (non_finite, "lower optim.lr or optim.max_grad_norm, or use loop.precision=fp32"),
    "off the reference curve": (off_the_reference, "compare config.yaml with the recipe, then the data"),
    "learning rate": (_mismatch("optim.lr"), "use the recipe's rate, scaled with the batch (linear or square root)"),
    "batch size": (_mismatch("data.global_batch_size"), "it counts all ranks; loop.grad_accum fits it into memory"),
    "number of ranks": (ranks, "launch with scripts/launch.sh (torchrun), always with the same number of processes"),
    "unfinished": (unfinished, "start the same command again; read the end of log.txt"),
}
