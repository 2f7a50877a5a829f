"""What can be wrong with a run, one small function each: it reads what the run left behind and returns the evidence, or
None where all is well or cannot be known. Thresholds stand beside their reason. `CHECKS` lists them with the remedies.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from engine.checkpoint import checkpoint_folders, read_manifest
from engine.config import UserError, flatten, read_yaml
from engine.datasets import DataConfig, centre_batch, has_split, open_source
from engine.distributed import autocast
from engine.images import to_float
from engine.tracker import read_lines, read_metrics
from evaluations.codebook import usage_metrics
from tokenizer import load_tokenizer
from tokenizer.health import CLIPPED, STRONG

CONFIGS = Path(__file__).parents[1] / "configs"
CURVES = CONFIGS / "quickstart" / "reference_curves.json"
LATE = 0.25  # the share of the records at the end that counts as "now"
PICTURE = {"reconstruction_l2": "l2", "reconstruction_l1": "l1", "perceptual": "perceptual"}  # term: loss.<>_weight


@dataclass
class Evidence:
    """A run folder, read once. `recipes` are the shipped configs that it could be a run of."""

    dir: Path
    recipe: Path | None = None  # named by the user
    config: DictConfig = field(init=False)

    def __post_init__(self) -> None:
        if not (self.dir / "config.yaml").is_file():
            raise UserError(f"{self.dir} has no config.yaml; is it the folder of a run?")
        self.config = read_yaml(self.dir / "config.yaml")
        records = read_metrics(self.dir)
        self.train = [r for r in records if "steps_per_second" in r]
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
    def code_counts(self) -> torch.Tensor | None:
        """How often each code of each group (G,K) occurs among the recent training indices of the checkpoint."""
        quantizer = getattr(self.tokenizer, "quantizer", None)
        if quantizer is None or not hasattr(quantizer, "recent_indices"):
            return None
        seen = quantizer.recent_indices.long()
        rows = seen.view(len(seen), -1)
        used = (rows > 0).any(1).int()  # the window starts empty, as zeros (or -1): drop those before the first code
        rows = rows[int(used.argmax()) if used.any() else 0 :]
        if len(rows) < 4 * quantizer.codebook_size:  # a uniform use of all codes would miss e^-4 = 2 % of them
            return None
        return torch.stack([torch.bincount(c, minlength=quantizer.codebook_size) for c in rows.T]).double()

    @cached_property
    def recipes(self) -> list[tuple[Path, DictConfig]]:
        """The file the user named; else every YAML whose whole `model` section this run has, its namesakes first."""
        if self.recipe is not None:
            return [(self.recipe, read_yaml(self.recipe))]
        own, found = flatten(self.config.get("model", {})), []
        for path in sorted(CONFIGS.rglob("*.yaml")):
            tree = read_yaml(path)
            model = flatten(tree.model) if "model" in tree and "optim" in tree and "data" in tree else {}
            if len(model) >= 5 and all(own.get(k) == v for k, v in model.items()):  # fewer say little: an overlay
                found.append((len(model), path, tree))
        most = max((n for n, _, _ in found), default=0)
        best = [(path, tree) for n, path, tree in found if n == most]
        return [(p, t) for p, t in best if p.stem == self.dir.name] or best


Check = Callable[[Evidence], str | None]


# ---------------------------------------------------------------------------------------------- the codebook
def imbalanced_codes(counts: torch.Tensor) -> tuple[str | None, str | None]:
    """Evidence of (collapse, dead codes) in counts (G,K), named by group where there are several."""
    size, collapsed, dead = counts.shape[1], [], []
    for group, row in enumerate(counts):
        where, found = f"group {group}: " if len(counts) > 1 else "", usage_metrics(row[None], 0, (len(row),))
        if found["codebook_perplexity"] < max(0.05 * size, 1.2):
            collapsed.append(f"{where}perplexity {found['codebook_perplexity']:.1f} of {size} codes")
        if found["codebook_usage"] < 0.75:
            dead.append(f"{where}{1 - found['codebook_usage']:.0%}")
    return ", ".join(collapsed) or None, ", ".join(dead) or None


def codebook_collapse(run: Evidence) -> str | None:
    """Perplexity below 5 % of the codes: at a uniform use it is 100 %, healthy runs reach 50 % and more."""
    found = None if run.code_counts is None else imbalanced_codes(run.code_counts)[0]
    return found and f"{found} over the recent training tokens"


def dead_codes(run: Evidence) -> str | None:
    """More than a quarter of the codes unused among at least four tokens a code (2 % would be chance)."""
    found = None if run.code_counts is None else imbalanced_codes(run.code_counts)[1]
    return found and f"unused codes among the recent training tokens: {found}"


def _share(run: Evidence, name: str) -> float | None:
    """A weighted term of the quantizer over the weighted sum of pixel and perceptual terms, late in the run."""
    value, weight = run.late(name), run.get(f"loss.{name}_weight", 0.0)
    picture = sum((run.late(k) or 0.0) * run.get(f"loss.{w}_weight", 0.0) for k, w in PICTURE.items())
    return abs(value) * weight / picture if value is not None and picture > 0 else None


def commitment_imbalance(run: Evidence) -> str | None:
    """Commitment above 2 x the picture terms (the encoder serves the codebook), or an error so small (a hundredth of
    what thousands of codes leave) that latents are glued to their codes.
    """
    share, value = _share(run, "commitment"), run.late("commitment")
    if share and share > 2:
        return f"weighted commitment loss is {share:.1f} x the picture terms"
    glued = value is not None and value < 1e-4
    return f"commitment {value:.2g}: latents sit on their codes and no longer change them" if glued else None


def entropy_imbalance(run: Evidence) -> str | None:
    """Entropy terms above 5 x the picture terms, or assignments as undecided as 80 % of a uniform one."""
    share, own, size = _share(run, "entropy"), run.late("sample_entropy"), run.get("model.quantizer.vq.codebook_size")
    if share and share > 5:
        return f"weighted entropy loss is {share:.1f} x the picture terms"
    if own is not None and size and own > 0.8 * math.log(size):
        return f"sample_entropy {own:.2f} of at most {math.log(size):.2f} nats: no latent prefers a code"
    return None


def precision_flips(run: Evidence) -> str | None:
    """Over 10 % other codes in the precision of the training than in fp32, in which evaluation and extraction run."""
    data = run.get("data")
    if run.tokenizer is None or run.get("loop.precision") != "bf16" or "root" not in data:
        return None
    config = DataConfig(**OmegaConf.to_container(data))
    split = "val" if has_split(config, "val") else "train"
    source = open_source(config, split)
    images = to_float(centre_batch(source, config.image_size, range(min(32, len(source))), skip_broken=True))
    exact = run.tokenizer.encode(images).indices
    with autocast(images.device, "bf16"):
        share = (run.tokenizer.encode(images).indices != exact).double().mean().item()
    return f"{share:.0%} of the codes of {len(images)} images differ between bf16 and fp32" if share > 0.1 else None


# ---------------------------------------------------------------------------------------------- the discriminator
def strong_discriminator(run: Evidence) -> str | None:
    """Nearly no loss left: its gradient to the generator is the same everywhere (hinge) or gone."""
    loss = run.late("discriminator")
    return f"discriminator loss {loss:.3f} (1 = undecided)" if loss is not None and loss < STRONG else None


def dead_discriminator(run: Evidence) -> str | None:
    """Logits of real and generated images within 0.01 in every late record: margins are 2 apart."""
    pairs = list(zip(run.series("logits_real"), run.series("logits_generated"), strict=True))
    late = [abs(a - b) for a, b in pairs[len(pairs) // 2 :]]
    return f"logits of real and made images differ by {max(late):.2g}" if late[1:] and max(late) < 0.01 else None


# ---------------------------------------------------------------------------------------------- the curves
def clipped_output(run: Evidence) -> str | None:
    """Values outside of [-1, 1] are lost in uint8; some overshoot at edges is normal."""
    shares = run.series("val/clipped_share")
    if shares and shares[-1] > CLIPPED:
        return f"{shares[-1]:.0%} of the output values of held-out images lie outside [-1.05, 1.05]"
    return None


def _falling(run: Evidence) -> list[tuple[str, list[float]]]:
    """The losses that should fall, with at least 8 records."""
    names = PICTURE if run.is_tokenizer else ("loss",)
    return [(name, run.series(name)) for name in names if len(run.series(name)) >= 8]


def diverged(run: Evidence) -> str | None:
    """A loss at twice its own best: noise between batches is well below that once medians of records are taken."""
    for name, values in _falling(run):
        width = max(2, len(values) // 8)
        best = min(median(values[i : i + width]) for i in range(len(values) - width + 1))
        if run.late(name) > 2 * best or not math.isfinite(run.late(name)):
            return f"{name} {run.late(name):.4g} late in the run, {best:.4g} at its best"
    return None


def not_learning(run: Evidence) -> str | None:
    """Every loss within 2 % of where it began, although a tenth of the run or more is over."""
    found = _falling(run)
    if not found or run.step < 0.1 * run.get("loop.steps", 1):
        return None
    ratios = {name: run.late(name) / median(values[:2]) for name, values in found if median(values[:2]) > 0}
    if ratios and all(ratio > 0.98 for ratio in ratios.values()):
        return ", ".join(f"{name} is {ratio:.1%} of its start" for name, ratio in ratios.items())
    return None


def overfitting(run: Evidence) -> str | None:
    """A held-out loss 3 % above its best while the training loss went on falling: noise of 500 images is near 1 %."""
    for name in ("loss", "reconstruction_l2"):
        held_out, own = run.series(f"val/{name}"), run.series(name)
        if (
            len(held_out) >= 3
            and len(own) >= 4
            and held_out[-1] > 1.03 * min(held_out)
            and own[-1] < own[len(own) // 2]
        ):
            best = next(r["step"] for r in run.val if r.get(f"val/{name}") == min(held_out))
            return f"val/{name} {held_out[-1]:.4g}, but {min(held_out):.4g} at step {best}; {name} {own[-1]:.4g}"
    return None


def non_finite(run: Evidence) -> str | None:
    """One skipped update in a hundred: a rare one is harmless, more hide an instability."""
    skipped = max(run.series("skipped_steps"), default=0)
    bad = sorted({k for r in run.train for k, v in r.items() if not math.isfinite(v)})
    if skipped > 0.01 * max(1, run.step) or bad:
        return f"{skipped:.0f} of {run.step} updates skipped{'; not finite: ' + ', '.join(bad) if bad else ''}"
    return None


def off_the_reference(run: Evidence) -> str | None:
    """Against the curves of a healthy quick start of the same length: 1.5 x a loss is far outside of its noise."""
    for path, _ in run.recipes:
        curves = json.loads(CURVES.read_text(encoding="utf-8")).get(path.stem) if path.parent == CURVES.parent else None
        if curves is None or curves["steps"] != run.get("loop.steps"):
            continue
        for name, points in curves["metrics"].items():
            common = [(r["step"], r[name], points[str(r["step"])]) for r in run.train if str(r["step"]) in points]
            ratios = [own / normal for _, own, normal in common[-3:]]
            if len(ratios) == 3 and median(ratios) > 1.5:
                step, own, normal = common[-1]
                return f"{name} {own:.4g} at step {step}, where a healthy run has {normal:.4g}"
    return None


# ---------------------------------------------------------------------------------------------- the circumstances
def _mismatch(key: str) -> Check:
    def check(run: Evidence) -> str | None:
        """A factor of 1.5 from every recipe of this architecture: less is a rounding of a scaling rule."""
        own, found = run.get(key), []
        for path, tree in run.recipes:
            theirs = OmegaConf.select(tree, key)
            if theirs is None or own is None or max(own, theirs) < 1.5 * min(own, theirs):
                return None
            found.append(f"{theirs:g} in {path.name}")
        return f"{key}={own:g}, but {', '.join(found)}" if found else None

    return check


def ranks(run: Evidence) -> str | None:
    """Starts with different numbers of processes, a launcher's tasks that never met, or GPUs that nobody uses."""
    sizes = [s["processes"] for s in run.starts]
    if len(set(sizes)) > 1:
        return (
            f"started with {', '.join(map(str, sizes))} processes: sums are rounded differently, dropout masks change"
        )
    for start in run.starts[-1:]:
        tasks = int(start["environment"].get("SLURM_NTASKS", 1))
        local = int(start["environment"].get("LOCAL_WORLD_SIZE", start["processes"]))
        if tasks > 1 and start["processes"] == 1:
            return f"SLURM started {tasks} tasks, but this run is a single process: each task trained by itself"
        if start["device"].get("visible", local) > local:
            return f"{start['device']['visible']} GPUs are visible, {local} used"
    return None


def unfinished(run: Evidence) -> str | None:
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
    return f"ended at step {run.step} of {steps}; {len(run.folders)} checkpoints"


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
