"""One self-contained HTML page for a run: numbers, curves, reconstructions, samples of every class.

    python -m evaluations.report runs/quickstart

Reads what the run left behind (results.json, metrics.jsonl, evaluations/*) and writes report.html and samples.png.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.config import UserError, logger, run_entry
from engine.images import save_grid, to_float
from engine.packaged import ATTRIBUTION
from engine.tracker import read_metrics
from evaluations.charts import line_chart
from evaluations.protocol import read_result

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --paper: #ffffff; --card: #f7f9fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b; --paper: #14191f; --card: #1c232b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
p, .legend { color: var(--soft); margin: .2rem 0 .8rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem; margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.45rem; } .card span { color: var(--soft); font-size: .84rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1rem; }
figure { margin: 0; } .chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); } svg .grid { stroke: var(--line); }
.legend span { display: inline-block; margin-right: .9rem; font-size: .82rem; } .legend b { color: var(--ink); }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em; }
table { border-collapse: collapse; width: 100%; } td, th { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(74px, 1fr)); gap: .5rem; }
.pair { text-align: center; font-size: .72rem; color: var(--soft); }
img.px { width: 100%; image-rendering: pixelated; display: block; border-radius: 3px; }
.row { display: grid; grid-template-columns: 7.5rem 1fr; gap: .8rem; align-items: start; border-top: 1px solid var(--line); padding: .6rem 0; }
.row .pairs { grid-template-columns: repeat(8, minmax(0, 1fr)); } .row h3 { margin: .2rem 0; font-size: 1rem; }
.near { opacity: .55; margin-top: 3px; }
details { margin-top: .6rem; } pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; font-size: .78rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line); padding-top: .8rem; }
"""  # noqa: E501


def picture(pixels: np.ndarray, css: str = "px") -> str:
    """A uint8 (3,H,W) image as an inline PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return f'<img class="{css}" alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def pick(records: list[dict], names: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """{shown name: [(step, value), ...]} of the metrics in `names` (shown name -> key)."""
    return {shown: [(r["step"], r[key]) for r in records if key in r] for shown, key in names.items()}


def present(records: list[dict], keys: list[str]) -> dict[str, str]:
    """Those of `keys` that occur, as {name: key}."""
    return {key: key for key in keys if any(key in r for r in records)}


def cards(results: dict) -> str:
    """The headline numbers."""
    frechet = results["frechet_lite0"]
    shown = [
        (f"{results['psnr']:.2f} dB", "PSNR, held-out images"),
        (f"{results['codebook_usage']:.0%}", f"of {results['codebook_size']} codes in use"),
        (str(results["num_tokens"]), "tokens an image"),
        (f"{frechet['generated']:.0f}", "frechet_lite0, generated"),
        (f"{frechet['reconstruction']:.0f}", "frechet_lite0, reconstructed"),
        (f"{results['distinct']:.1%}", "distinct code sequences"),
        (f"{results['memorised']:.1%}", "memorised code sequences"),
        (f"{sum(results['seconds'].values()) / 60:.1f} min", "all stages"),
    ]
    if results.get("label_agreement") is not None:
        shown.insert(5, (f"{results['label_agreement']:.1%}", "show the class asked for"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{v}</b><span>{n}</span></div>' for v, n in shown)
        + "</div>"
    )


def tokenizer_curves(run: Path) -> str:
    """Losses, PSNR and codebook health of the tokenizer."""
    records = read_metrics(run / "tokenizer")
    losses = [
        "reconstruction_l2",
        "reconstruction_l1",
        "perceptual",
        "codebook",
        "commitment",
        "semantic",
        "adversarial",
    ]
    early = ["shortcut_l2", "shortcut_l1", "shortcut_perceptual", "shortcut_feature", "discriminator"]
    charts = [
        line_chart("Validation PSNR", pick(records, {"weights": "val/psnr", "averaged weights": "val_ema/psnr"}), "dB"),
        line_chart("Training losses", pick(records, present(records, losses))),
        line_chart("Shortcut and discriminator losses", pick(records, present(records, early))),
        line_chart(
            "Codebook usage",
            pick(records, {"training window": "codebook_usage", "held-out images": "val/codebook_usage"}),
            "share of codes",
        ),
        line_chart(
            "Assignment entropies", pick(records, present(records, ["sample_entropy", "codebook_entropy"])), "nats"
        ),
    ]
    return f'<h2>Tokenizer training</h2><div class="charts">{"".join(charts)}</div>'


def gpt_curves(run: Path) -> str:
    """Losses and learning rate of the GPT."""
    records = read_metrics(run / "gpt")
    names = {"training": "loss", "held-out": "val/loss", "held-out, averaged weights": "val_ema/loss"}
    charts = [
        line_chart("Cross entropy per token", pick(records, names), "nats"),
        line_chart("Learning rate", pick(records, {"lr": "lr"})),
    ]
    return f'<h2>GPT training</h2><div class="charts">{"".join(charts)}</div>'


def reconstructions(run: Path) -> str:
    """Held-out originals above their reconstructions."""
    with np.load(run / "evaluations" / "reconstruction.npz", allow_pickle=False) as stored:
        originals, made = stored["originals"], stored["reconstructions"]
    pairs = []
    for original, image in zip(originals, made, strict=True):
        mse = np.mean((original.astype(np.float64) - image.astype(np.float64)) ** 2) / 255**2
        score = f"{-10 * np.log10(max(mse, 1e-12)):.1f} dB"
        pairs.append(f'<div class="pair">{picture(original)}{picture(image)}{score}</div>')
    return (
        "<h2>Reconstructions</h2><p>Held-out images: original above, reconstruction from its codes below.</p>"
        f'<div class="pairs">{"".join(pairs)}</div>'
    )


def samples(run: Path) -> str:
    """Generated images by class, the nearest training image under each; also writes samples.png."""
    with np.load(run / "evaluations" / "generation.npz", allow_pickle=False) as stored:
        images, labels, nearest, names = stored["images"], stored["labels"], stored["nearest"], stored["class_names"]
        candidates = int(stored["num_candidates"])
    save_grid(run / "samples.png", to_float(torch.from_numpy(images)), columns=8, zoom=max(1, 96 // images.shape[-1]))
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
        f"{candidates:,} training images. A sample that equals its neighbour would be memorised.</p>" + "".join(rows)
    )


def protocols(run: Path, results: dict) -> str:
    """Every number with how it was made."""
    frechet = results["frechet_lite0"]
    rows = "".join(f'<tr><td>{name}</td><td class="n">{value:.2f}</td></tr>' for name, value in frechet.items())
    seconds = "".join(f'<tr><td>{n}</td><td class="n">{s:.0f}</td></tr>' for n, s in results["seconds"].items())
    blocks = []
    for path in sorted((run / "evaluations").glob("*.json")):
        text = escape(json.dumps(read_result(path), indent=1))
        blocks.append(f"<details><summary>{path.name}</summary><pre>{text}</pre></details>")
    return (
        "<h2>Numbers and how they were made</h2><p>frechet_lite0 is the Frechet distance between EfficientNet-Lite0 "
        "features of a set of images and those of the training images. It is not FID.</p>"
        f"<table><tr><th>frechet_lite0 of</th><th></th></tr>{rows}</table>"
        f"<table><tr><th>stage</th><th>seconds</th></tr>{seconds}</table>{''.join(blocks)}"
    )


SECTIONS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "samples": ("evaluations/generation.npz", samples),
    "reconstructions": ("evaluations/reconstruction.npz", reconstructions),
    "tokenizer": ("tokenizer/metrics.jsonl", tokenizer_curves),
    "gpt": ("gpt/metrics.jsonl", gpt_curves),
}


def write_report(run: Path) -> Path:
    """Writes <run>/report.html from what is there; a missing part is named in the page."""
    if not (run / "results.json").is_file():
        raise UserError(f"{run} has no results.json; is it the folder of a finished run?")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    data = read_result(run / "evaluations" / "reconstruction.json")["protocol"]["data"]
    body = [
        f"<h1>{escape(run.name)}</h1><p>Tokenizer, codes, GPT, samples and metrics on {escape(data)}.</p>",
        cards(results),
    ]
    for name, (needs, section) in SECTIONS.items():
        body.append(section(run) if (run / needs).is_file() else f"<p>No {name}: {needs} is missing.</p>")
    body.append(protocols(run, results))
    body.append(f"<footer>{escape(ATTRIBUTION.get(data, ''))}</footer>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(run.name)}</title><style>{STYLE}</style><body>{''.join(body)}</body></html>"
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a quick-start run")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logger.info("wrote %s", write_report(args.run))


if __name__ == "__main__":
    run_entry(main)
