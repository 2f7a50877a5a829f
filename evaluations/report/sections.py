"""The parts of a report. Each takes a run and gives HTML, or empty text where it has nothing for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.data.images import save_grid, to_float
from engine.run_log import read_metrics
from evaluations.report.charts import line_chart
from evaluations.report.page import cards, picture, table
from evaluations.results import read_result

LOSSES = ["reconstruction_l2", "reconstruction_l1", "perceptual", "codebook", "commitment", "semantic", "adversarial"]


EARLY_LOSSES = ["shortcut_l2", "shortcut_l1", "shortcut_perceptual", "shortcut_feature", "discriminator", "lecam"]


PROBE = [("Loss of each base rate", "nats", {"": "loss/"})]


CURVES: dict[str, list[tuple[str, str, dict[str, str]]]] = {  # folder -> (title, unit, {shown: key, "" = the same})
    "tokenizer": [
        ("Validation PSNR", "dB", {"weights": "val/psnr", "averaged weights": "val_ema/psnr"}),
        ("Training losses", "", dict.fromkeys(LOSSES, "")),
        ("Shortcut and discriminator losses", "", dict.fromkeys(EARLY_LOSSES, "")),
        ("Codebook usage", "share of codes", {"training window": "codebook_usage", "held out": "val/codebook_usage"}),
        ("Assignment entropies", "nats", {"sample_entropy": "", "codebook_entropy": ""}),
    ],
    "gpt": [
        ("Cross entropy per token", "nats", {"training": "loss", "held out": "val/loss", "averaged": "val_ema/loss"}),
        ("Learning rate", "", {"lr": ""}),
    ],
    "linear_probe_gpt": PROBE,
    "linear_probe_tokenizer": PROBE,
}


PERCENT = ("usage", "label_agreement", "distinct", "memorized", "top1", "top5", "share", "accuracy")


HEADLINES = {  # metric -> what it is, in the order of the cards
    "rfid": "rFID", "gfid": "gFID", "frechet_lite0_reconstruction": "frechet_lite0, reconstructed",
    "frechet_lite0_generated": "frechet_lite0, generated", "psnr": "PSNR in dB", "ssim": "SSIM", "lpips": "LPIPS",
    "codebook_usage": "of the codes in use", "bits_per_image": "bits an image", "inception_score": "Inception Score",
    "precision": "precision", "recall": "recall", "label_agreement": "show the class asked for",
    "distinct": "distinct code sequences", "memorized": "memorized code sequences",
    "best_guidance_scale": "best guidance scale", "val_loss": "validation loss of the GPT, nats",
    "top1": "linear probe, top-1",
}  # fmt: skip


def shown(name: str, value: float) -> str:
    """A metric as people read it."""
    return f"{value:.1%}" if any(part in name for part in PERCENT) and 0 <= value <= 1 else f"{value:.4g}"


def results_of(run: Path) -> dict[str, dict[str, Any]]:
    """{name: result} of all evaluations of a run, by file name."""
    found = {path.stem: path for path in sorted((run / "evaluations").glob("*.json")) if ".partial" not in path.name}
    found |= {path.parent.name: path for path in sorted(run.glob("linear_probe*/result.json"))}
    results, chain = {name: read_result(path) for name, path in found.items()}, run / "ar_probe"
    return results | ({f"{chain.name}/{n}": r for n, r in results_of(chain).items()} if chain.is_dir() else {})


class RunFolder:
    """The folder of a run and its results, read once."""

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, results_of(path)

    def arrays(self, name: str, needed: str) -> dict[str, np.ndarray]:
        """The arrays beside the result `name`; nothing where there are none, or not the one that is `needed`."""
        path = self.path / "evaluations" / f"{name}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored) if needed in stored.files else {}


def headline(run: RunFolder) -> str:
    """The most wanted numbers as cards."""
    picked = {}
    for name, result in run.results.items():
        for metric, value in result["metrics"].items():
            if metric in HEADLINES and isinstance(value, int | float):
                where = f" ({name})" if metric == "top1" else ""
                picked.setdefault((metric, where), value)
    order = sorted(picked, key=lambda key: list(HEADLINES).index(key[0]))
    return cards([(shown(metric, picked[metric, where]), HEADLINES[metric] + where) for metric, where in order])


def curves(run: RunFolder) -> str:
    """What training recorded, one group of charts for each trained network."""
    groups = []
    for folder, charts in CURVES.items():
        records = read_metrics(run.path / folder)
        drawn = []
        for title, unit, names in charts:
            keys = {name: key or name for name, key in names.items()}
            for key in [key for key in keys.values() if key.endswith("/")]:
                found = sorted({k for r in records for k in r if k.startswith(key)}, key=lambda k: float(k[len(key) :]))
                keys |= {k.removeprefix("val/"): k for k in found}
            series = {n: [(r["step"], r[key]) for r in records if key in r] for n, key in keys.items()}
            drawn.append(line_chart(title, {n: points for n, points in series.items() if points}, unit))
        if any(drawn):
            heading = f"Training: {folder.replace('_', ' ')}".replace("gpt", "GPT")
            groups.append(f'<h2>{heading}</h2><div class="charts">{"".join(drawn)}</div>')
    return "".join(groups)


def reconstructions(run: RunFolder) -> str:
    """Held-out originals above their reconstructions, with the scores of each pair."""
    stored = run.arrays("reconstruction", "originals")
    if not stored:
        return ""
    scores = {name: stored[f"score_{name}"] for name in ("psnr", "lpips") if f"score_{name}" in stored}
    cells = []
    for original, made, number in zip(*(stored[n] for n in ("originals", "reconstructions", "numbers")), strict=True):
        line = "<br>".join(f"{values[number]:.1f} dB" if n == "psnr" else f"{n} {values[number]:.3f}"
                           for n, values in scores.items())  # fmt: skip
        cells.append(f'<div class="pair">{picture(original)}{picture(made)}{line}</div>')
    return (
        "<h2>Reconstructions</h2><p>Held-out images: original above, reconstruction from its codes below.</p>"
        f'<div class="pairs">{"".join(cells)}</div>'
    )


def heat(values: np.ndarray) -> np.ndarray:
    """Values in 0..1 (h,w) -> uint8 (3,h,w): dark blue, teal, yellow; exactly 0 is white, so that gaps are seen."""
    stops = np.array([[30, 27, 75], [13, 110, 130], [250, 204, 21]], dtype=float)
    place = np.clip(values, 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    colour = stops[low] + (place - low)[..., None] * (stops[low + 1] - stops[low])
    colour[values == 0] = 255
    return colour.round().astype(np.uint8).transpose(2, 0, 1)


def codebook(run: RunFolder) -> str:
    """How often each code of each group occurs: sorted frequencies, and a map of all codes."""
    counts = run.arrays("reconstruction", "code_counts").get("code_counts", np.zeros((0, 0)))
    if not counts.size:
        return ""
    size, series, maps = counts.shape[1], {}, []
    for group, row in enumerate(counts):
        name = f"group {group}" if len(counts) > 1 else "codes"
        ordered = np.sort(row)[::-1] / row.sum() * size
        places = np.unique(np.linspace(0, size - 1, min(size, 200)).astype(int))
        series[name] = [(int(i) + 1, float(ordered[i])) for i in places]
        side = math.ceil(math.sqrt(size))
        grid = np.zeros(side * side)
        grid[:size] = row / row.max()
        zoom = max(1, 224 // side)
        maps.append(f'<div class="pair">{picture(heat(grid.reshape(side, side)), "wide", zoom)}<br>{name}</div>')
    chart = line_chart("Frequency of codes, sorted", series, "1 = as in uniform use")
    unused = int((counts == 0).sum())
    return (
        f"<h2>Codebook</h2><p>{size:,} codes over the held-out images; {unused:,} never occur (white).</p>"
        f'<div class="charts">{chart}<div>{"".join(maps)}</div></div>'
    )


def guidance(run: RunFolder) -> str:
    """Distance and score over the guidance scale, for every search of the run."""
    drawn = []
    for name, result in run.results.items():
        rows = result.get("curve", [])
        metrics = {m for row in rows for m in row["metrics"] if m not in ("precision_fp16", "recall_fp16")}
        for metric in sorted(metrics):
            points = [(row["guidance_scale"], row["metrics"][metric]) for row in rows if metric in row["metrics"]]
            drawn.append(line_chart(f"{metric} over the guidance scale", {name: points}))
    return f'<h2>Guidance</h2><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def probes(run: RunFolder) -> str:
    """Accuracy of linear probes over their learning rates."""
    series = {}
    for name, result in run.results.items():
        rates = result["metrics"].get("top1_per_lr", {})
        series[name] = sorted((math.log10(float(rate)), top1) for rate, top1 in rates.items())
    chart = line_chart("Top-1 over log10 of the base rate", {n: p for n, p in series.items() if len(p) > 1}, "share")
    return f'<h2>Linear probes</h2><div class="charts">{chart}</div>' if chart else ""


def samples(run: RunFolder) -> str:
    """Generated images by class, the nearest training image under each; also writes samples.png."""
    stored = run.arrays("generation", "images")
    if not stored:
        return ""
    images, labels, nearest, names = (stored[n] for n in ("images", "labels", "nearest", "class_names"))
    save_grid(
        run.path / "samples.png", to_float(torch.from_numpy(images)), columns=8, zoom=max(1, 96 // images.shape[-1])
    )
    rows = []
    for label in np.unique(labels):
        cells = [
            f'<div class="pair">{picture(images[i])}{picture(nearest[i], "px near")}</div>'
            for i in np.flatnonzero(labels == label)
        ]
        rows.append(
            f'<div class="row"><h3>{escape(str(names[label]))}</h3><div class="pairs">{"".join(cells)}</div></div>'
        )
    return (
        "<h2>Generated images</h2><p>One class a row. Under each sample, faded: the nearest in pixels of "
        f"{int(stored['num_candidates']):,} training images. A sample that equals its neighbour would be memorized.</p>"
        + "".join(rows)
    )


def components(run: RunFolder) -> str:
    """Principal components of inner features (evaluations.visualize)."""
    parts = []
    for path in sorted((run.path / "evaluations").glob("pca*.npz")):
        stored = run.arrays(path.stem, "note")
        columns = {"originals": stored["originals"]}
        columns |= {str(n): stored[f"map_{i}"] for i, n in enumerate(stored["names"])}
        zoom = max(1, 96 // columns["originals"].shape[-1])
        for name, images in columns.items():
            strip = np.concatenate([np.pad(i, ((0, 0), (1, 1), (1, 1)), constant_values=255) for i in images], axis=2)
            parts.append(f'<p>{escape(name)}</p><div class="scroll">{picture(strip, "wide", zoom)}</div>')
        parts.append(f"<p>{escape(str(stored['note']))}</p>")
    return "<h2>Principal components of the decoder's features</h2>" + "".join(parts) if parts else ""


def numbers(run: RunFolder) -> str:
    """Every metric with how it was made, what is missing and why, and where the time went."""
    parts = ["<h2>Numbers and how they were made</h2>"]
    if any("lite0" in m for result in run.results.values() for m in result["metrics"]):
        parts.append("<p>frechet_lite0 is a Frechet distance of EfficientNet-Lite0 features. It is not FID.</p>")
    for name, result in run.results.items():
        metrics = {m: v for m, v in result["metrics"].items() if isinstance(v, int | float)}
        timing = result.get("timing", {})
        rows = [[m, shown(m, v)] for m, v in (metrics | timing).items()]
        lines = [f"{m} is missing: {why}" for m, why in result.get("unavailable", {}).items()]
        missing = "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
        text = escape(json.dumps(result, indent=1))
        parts.append(
            f"<h3>{escape(name)}</h3>{table(['metric', ''], rows)}{missing}"
            f"<details><summary>protocol</summary><pre>{text}</pre></details>"
        )
    stages = run.path / "stages.json"
    if stages.is_file():
        spent = {n: e["seconds"] for n, e in json.loads(stages.read_text(encoding="utf-8")).items()}
        parts.append(f"<h3>time</h3>{table(['stage', 'seconds'], [[n, f'{s:.0f}'] for n, s in spent.items()])}")
    return "".join(parts)


SECTIONS: Sequence[Callable[[RunFolder], str]] = (
    headline, samples, reconstructions, codebook, guidance, probes, components, curves, numbers,
)  # fmt: skip
