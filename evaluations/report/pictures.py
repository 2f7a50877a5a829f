"""The pictures of a report: reconstructions, samples, grids of a training, principal components, and the codebook."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from autoregressive.sampling import settings_text
from engine.checkpoint.manifest import record_folders
from engine.data.grids import save_grid, zoom_of
from engine.data.images import to_float
from evaluations.metrics.registry import METRICS, headline_metrics
from evaluations.report.charts import line_chart
from evaluations.report.curves import Training, trainings_of
from evaluations.report.page import pair, picture, section
from evaluations.report.run_folder import RunFolder

SAMPLES_PICTURE = "samples.png"  # in the folder of a run
SAMPLES_COLUMNS = 8
SAMPLER_SETTINGS = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "seed", "greedy", "order")
DRAWN_GRID = "grid.png"  # all samples of autoregressive.sample, each class with its name
MAP_SIDE = 224  # pixels, of the map of the codebook
MAX_CURVE_POINTS = 200  # of the curve of code frequencies
GRID_WIDTH, GRID_HEIGHT = 480, 420  # pixels, to which small grids of a training are enlarged
MAX_STEPS = 8  # grids of a training, of one kind, that a page shows
KINDS = {"val": "weights", "val_ema": "averaged weights"}  # what their names say, for people
GRID_NAME = re.compile(r"(?P<kind>.+)_(?P<step>\d+)\.png")  # as the loop's validations write them
HEAT_STOPS = np.array([[30, 27, 75], [13, 110, 130], [250, 204, 21]], dtype=float)  # dark blue, teal, yellow


# ------------------------------------------------------------------------------------------------ reconstructions
def score_text(name: str, value: float) -> str:
    """Formats a score of one image, such as "20.5 dB" or "SSIM 0.80"."""
    metric = METRICS[name]
    return f"{value:.3g} {metric.unit}" if metric.unit else f"{metric.title} {value:.2f}"


def reconstructions(run: RunFolder) -> str:
    """Held-out originals above their reconstructions, with the scores of each pair."""
    stored = run.arrays("reconstruction", "originals")
    if not stored:
        return ""

    # Scores of each pair, in the order of the cards of the page.
    scores = {name: stored[f"score_{name}"] for name in headline_metrics() if f"score_{name}" in stored}
    cells = []
    examples = zip(stored["originals"], stored["reconstructions"], stored["numbers"], strict=True)
    for original, reconstruction, number in examples:
        texts = [score_text(name, values[number]) for name, values in scores.items()]
        cells.append(pair(f"{picture(original)}{picture(reconstruction)}{'<br>'.join(texts)}"))
    return section(
        "Reconstructions",
        "<p>Held-out images: the original above, its reconstruction below.</p>"
        f'<div class="pairs">{"".join(cells)}</div>',
        "reconstructions",
    )


# ------------------------------------------------------------------------------------------------ generated images
def samples(run: RunFolder) -> str:
    """Generated images by class, the nearest training image under each.

    Where none were measured, those that the run's last command drew.
    """
    stored = run.arrays("generation", "images")
    if not stored:
        return drawn_samples(run.layout.samples / DRAWN_GRID)
    images = stored["images"]
    labels = stored["labels"]

    rows = []
    for label in np.unique(labels):
        cells = [
            pair(f"{picture(images[i])}{picture(stored['nearest'][i], 'px near')}")
            for i in np.flatnonzero(labels == label)
        ]
        name = escape(str(stored["class_names"][label]))
        rows.append(f'<div class="row"><h3>{name}</h3><div class="pairs">{"".join(cells)}</div></div>')
    return section(
        "Generated images",
        f"<p>{escape(caption_of(run))} Under each sample, faded: the nearest in pixels of "
        f"{int(stored['num_candidates']):,} training images. A sample that looks like its neighbor is a near copy; how "
        "many code sequences are memorized exactly is counted above.</p>" + "".join(rows),
        "samples",
    )


def drawn_samples(grid: Path) -> str:
    """The samples of a grid that lies in a file, if it does."""
    if not grid.is_file():
        return ""
    text = "<p>Samples of each class. They were not measured, nor compared with the training images.</p>"
    return section("Generated images", f"{text}{_grid_picture('generated images', grid)}", "samples")


def caption_of(run: RunFolder) -> str:
    """What the samples of a measured generation are, and the settings that they were drawn with."""
    sampler = run.results.get("generation", {}).get("protocol", {}).get("sampler") or {}
    known = {name: sampler[name] for name in SAMPLER_SETTINGS if name in sampler}
    settings = f"; {settings_text(**known)}" if "guidance_scale" in known else ""
    return f"Generated: one class per row, the first samples of each class, not selected{settings}."


def write_samples_picture(run: RunFolder) -> None:
    """Writes samples.png with all measured samples, where there are some, and the class of each row that has one."""
    stored = run.arrays("generation", "images")
    if not stored:
        return
    labels = stored["labels"]
    rows = [labels[start : start + SAMPLES_COLUMNS] for start in range(0, len(labels), SAMPLES_COLUMNS)]
    names = [str(stored["class_names"][row[0]]) if len(set(row.tolist())) == 1 else "" for row in rows]
    images = to_float(torch.from_numpy(stored["images"]))
    save_grid(run.path / SAMPLES_PICTURE, images, SAMPLES_COLUMNS, row_names=names, caption=caption_of(run))


# ------------------------------------------------------------------------------------------------ pictures by step
def training_pictures(run: RunFolder) -> str:
    """The grids that validations of the trainings have drawn, to be leafed through by step."""
    figures = []
    for training in trainings_of(run):
        for kind, grids in grids_of(training).items():
            shown = spread(grids)
            pictures = "".join(_grid_picture(f"step {step:,}", path) for step, path in shown)
            slider = f'<input type="range" min="0" max="{len(shown) - 1}" value="{len(shown) - 1}">'
            control = f"<label>{slider if len(shown) > 1 else ''}<output></output></label>"
            caption = f"<figcaption>{escape(training.title)}: {escape(kind)}</figcaption>"
            figures.append(f'<figure class="by-step">{caption}{control}{pictures}</figure>')
    text = "<p>As the validations drew them. Of a tokenizer: images above their reconstructions. Of a GPT: samples.</p>"
    content = f'{text}<div class="charts">{"".join(figures)}</div>' if figures else ""
    return section("Pictures during training", content, "pictures")


def grids_of(training: Training) -> dict[str, list[tuple[int, Path]]]:
    """{kind: [(step, file), ...]} of the grids of a training, by ascending step, of each phase on its own."""
    grids: dict[str, list[tuple[int, Path]]] = {}
    for folder in record_folders(training.folder):
        phase = f"{folder.name.replace('_', ' ')}, " if folder != training.folder else ""
        for path in sorted((folder / "samples").glob("*.png")):
            match = GRID_NAME.fullmatch(path.name)
            if match is not None:
                kind = KINDS.get(match["kind"], match["kind"])
                grids.setdefault(f"{phase}{kind}", []).append((int(match["step"]), path))
    return grids


def spread(grids: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most `MAX_STEPS` of the grids, the first and the last among them."""
    if len(grids) <= MAX_STEPS:
        return list(grids)
    return [grids[round(i * (len(grids) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def _grid_picture(title: str, path: Path) -> str:
    """A grid as it lies in its file; a small one is enlarged by whole numbers where it is shown."""
    with Image.open(path) as image:
        width, height = image.size
    zoom = max(1, min(GRID_WIDTH // width, GRID_HEIGHT // height))
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="wide" width="{width * zoom}" alt="{title}" src="data:image/png;base64,{encoded}">'


# ------------------------------------------------------------------------------------------------ inner features
def components(run: RunFolder) -> str:
    """Principal components of inner features (evaluations.visualize)."""
    parts = []
    for path in sorted(run.layout.evaluations.glob("pca*.npz")):
        stored = run.arrays(path.stem, "note")
        strips = {"originals": stored["originals"]}
        strips |= {str(name): stored[f"map_{i}"] for i, name in enumerate(stored["names"])}

        # One strip of images per tokenizer, each image with a white border.
        zoom = zoom_of(stored["originals"])
        for name, images in strips.items():
            bordered = [np.pad(image, ((0, 0), (1, 1), (1, 1)), constant_values=255) for image in images]
            strip = picture(np.concatenate(bordered, axis=2), "wide", zoom)
            parts.append(f'<p>{escape(name)}</p><div class="scroll">{strip}</div>')
        parts.append(f"<p>{escape(str(stored['note']))}</p>")
    return section("Principal components of the decoder's features", "".join(parts), "components")


# ------------------------------------------------------------------------------------------------ the codebook
def heat(values: np.ndarray) -> np.ndarray:
    """Colors values in 0..1 (h,w) as uint8 (3,h,w): from dark blue over teal to yellow.

    Exactly 0 is white, so that gaps are seen.
    """
    position = np.clip(values, 0, 1) * (len(HEAT_STOPS) - 1)
    low = np.minimum(position.astype(int), len(HEAT_STOPS) - 2)
    color = HEAT_STOPS[low] + (position - low)[..., None] * (HEAT_STOPS[low + 1] - HEAT_STOPS[low])
    color[values == 0] = 255
    return color.round().astype(np.uint8).transpose(2, 0, 1)


def _frequency_curve(counts: np.ndarray) -> list[tuple[float, float]]:
    """Sorts the frequencies of the codes of a group (K,).

    Returns [(rank from 1, frequency as a multiple of the uniform one), ...].
    """
    size = len(counts)
    frequencies = np.sort(counts)[::-1] / counts.sum() * size
    ranks = np.unique(np.linspace(0, size - 1, min(size, MAX_CURVE_POINTS)).astype(int))
    return [(int(rank) + 1, float(frequencies[rank])) for rank in ranks]


def _code_map(counts: np.ndarray) -> str:
    """Draws all codes of a group (K,) as a square picture; the most frequent one is yellow."""
    side = math.ceil(math.sqrt(len(counts)))
    cells = np.zeros(side * side)
    cells[: len(counts)] = counts / counts.max()
    return picture(heat(cells.reshape(side, side)), "wide", max(1, MAP_SIDE // side))


def codebook(run: RunFolder) -> str:
    """How often each code of each group, or at each scale, occurs: sorted frequencies, and maps of all codes."""
    arrays = run.arrays("reconstruction", "code_counts")
    counts = arrays.get("code_counts", np.zeros((0, 0)))
    if not counts.size:
        return ""

    # Groups have codes of their own, scales share theirs.
    names = ["codes"] if len(counts) == 1 else [f"group {group}" for group in range(len(counts))]
    rows = dict(zip(names, counts, strict=True))
    if "scale_counts" in arrays:
        scales = zip(arrays["scales"], arrays["scale_counts"], strict=True)
        rows |= {f"scale {side} x {side}": row for side, row in scales}
    frequencies = {name: _frequency_curve(row) for name, row in rows.items()}
    maps = [pair(f"{_code_map(row)}<br>{name}") for name, row in rows.items()]

    chart = line_chart("Frequency of codes, sorted", frequencies, "frequency (1 = uniform use)", "rank of the code")
    unused = int((counts == 0).sum())
    return section(
        "Codebook",
        f"<p>{counts.shape[1]:,} codes over the held-out images; {unused:,} never occur (white).</p>"
        f'<div class="charts">{chart}<div>{"".join(maps)}</div></div>',
        "codebook",
    )
