"""Maps of codebooks: the vectors of codes in two dimensions, their nearest neighbors, and patches of images.

The vector of a code is what the quantizer decodes its index to, whatever kind of quantizer it is. Of a token with
several indices each has a codebook of its own; the other indices are 0 meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluations.atlas.counted_images import CountedImages
from evaluations.atlas.sheets import shrunk
from tokenizer.quantizers.base import Quantizer

MAX_POINTS = 16_384  # codes on the maps of one tokenizer, all groups together
NEIGHBORS = 6
ROWS_AT_A_TIME = 1024  # of a table of distances
MAP_STEPS = 4095  # coordinates are whole numbers from 0 to this
MAX_PATCHES = 1800  # of one tokenizer, all groups together
PATCHES_PER_CODE = 6
PATCH_SIDE = 24  # pixels; larger patches are reduced to it
MIN_COUNTED = 2  # occurrences of a code whose patches say something


@dataclass(frozen=True)
class Projection:
    """Vectors on a plane: `places` int64 (P,2) in 0..MAP_STEPS.

    `shares` are the fractions of the variance that lie in its two directions. `ends` are the coordinates of places 0
    and MAP_STEPS along each of them, in the unit of the vectors, where 0 is the mean of the tokens.
    """

    places: Tensor
    shares: tuple[float, float]
    ends: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class CodeMap:
    """The codebook of one index of a token: P of its codes.

    Shapes    codes, counts int64 (P,)      neighbors int64 (P,k): rows of `codes`, the nearest first
              distances float32 (P,k), Euclidean, between whole vectors
    """

    size: int  # codes of the whole codebook
    num_used: int  # of them in the counted images
    codes: Tensor
    counts: Tensor
    projection: Projection
    neighbors: Tensor
    distances: Tensor

    def typical_distance(self) -> float | None:
        """The median distance of a code to its nearest neighbor; None for a single code."""
        return self.distances[:, 0].median().item() if self.distances.shape[1] else None


@dataclass(frozen=True)
class Patches:
    """Parts of images around tokens that have a code: `first[row]` is the number of the first patch of a row of the
    map, and `count[row]` how many it has.
    """

    pictures: Tensor  # uint8 (n,3,s,s)
    first: dict[int, int]
    count: dict[int, int]


def points_per_map(quantizer: Quantizer) -> int:
    """How many codes the map of each group shows at most."""
    return MAX_POINTS // quantizer.num_groups


def code_vectors(quantizer: Quantizer, group: int, codes: Tensor) -> Tensor:
    """The vectors float64 (P,D) of codes (P,) of one group."""
    indices = codes.new_zeros(1, len(codes), quantizer.num_groups)
    indices[0, :, group] = codes
    if quantizer.num_groups == 1:
        indices = indices[..., 0]
    return quantizer.code_vectors(indices.to(quantizer.recent_indices.device))[0].double().cpu()


def shown_codes(size: int, counts: Tensor, limit: int) -> Tensor:
    """Which codes are on the map, in rising order: all, or the `limit` most used ones.

    `counts` are {code: occurrences} as pairs (n,2), the most used first.
    """
    if size <= limit:
        return torch.arange(size)
    return counts[:limit, 0].sort().values


@torch.inference_mode()
def map_codebook(quantizer: Quantizer, group: int, rows: Tensor, limit: int) -> CodeMap:
    """Maps the codebook of a group, with at most `limit` codes; `rows` are tokens (n,G)."""
    # How often each code occurs. A codebook may be too large for a table of all codes.
    used, times = rows[:, group].unique(return_counts=True)
    order = times.sort(descending=True, stable=True).indices
    size = quantizer.group_sizes[group]
    codes = shown_codes(size, torch.stack([used[order], times[order]], 1), limit)
    counts = torch.zeros_like(codes)
    place = torch.searchsorted(used, codes).clamp_max(len(used) - 1)
    counts = torch.where(used[place] == codes, times[place], counts)

    vectors = code_vectors(quantizer, group, codes)
    neighbors, distances = nearest_neighbors(vectors, NEIGHBORS)
    return CodeMap(size, len(used), codes, counts, project(vectors, counts), neighbors, distances)


def project(vectors: Tensor, counts: Tensor) -> Projection:
    """Vectors (P,D) on the two directions of largest variance of tokens that have them `counts` (P,) times.

    Both coordinates have one scale. The sign of a direction is such that its largest loading is positive.
    """
    weights = counts.double() if counts.count_nonzero() > 1 else torch.ones(len(vectors), dtype=torch.float64)
    weights = weights / weights.sum()
    centered = vectors - weights @ vectors
    variances, axes = torch.linalg.eigh(centered.T @ (weights[:, None] * centered))
    axes = F.pad(axes.flip(1)[:, :2], (0, max(0, 2 - axes.shape[1])))
    signs = torch.gather(axes, 0, axes.abs().argmax(0, keepdim=True)).sign()
    coordinates = centered @ (axes * torch.where(signs == 0, 1.0, signs))

    # One scale for both, so that distances on the map mean the same in all directions.
    low, high = coordinates.amin(0), coordinates.amax(0)
    extent = (high - low).max().clamp_min(1e-12)
    middle = (low + high) / 2
    places = ((coordinates - middle) / extent + 0.5) * MAP_STEPS
    ends = [(value - extent.item() / 2, value + extent.item() / 2) for value in middle.tolist()]

    # Vectors of a single channel have no second direction.
    variances = variances.clamp_min(0).flip(0)
    shares = [*(variances / variances.sum().clamp_min(1e-12)).tolist(), 0.0]
    return Projection(places.round().clamp(0, MAP_STEPS).long(), (shares[0], shares[1]), (ends[0], ends[1]))


def nearest_neighbors(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest other vectors of each of (P,D), the nearest first: rows int64 (P,k), and distances float32."""
    count = min(count, len(vectors) - 1)
    rows, distances = [], []
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        table = torch.cdist(vectors[start : start + ROWS_AT_A_TIME].float(), vectors.float())
        number = torch.arange(len(table))
        table[number, number + start] = torch.inf
        nearest = table.topk(count, largest=False)
        rows.append(nearest.indices)
        distances.append(nearest.values)
    return torch.cat(rows), torch.cat(distances)


def patches_of(code_map: CodeMap, group: int, images: CountedImages, grid: tuple[int, int], limit: int) -> Patches:
    """Parts of images where the most used codes of a map stand, at most `limit`.

    A patch is the cell of the token with half a cell around it, where the image goes that far.
    """
    side = images.images.shape[-1]
    cell = side // grid[1]
    margin = cell // 2

    # Where each code stands, in the order of images and tokens.
    column = images.tokens[..., group].flatten()
    order = column.argsort(stable=True)
    sorted_codes = column[order].contiguous()

    pictures: list[Tensor] = []
    first: dict[int, int] = {}
    count: dict[int, int] = {}
    for row in code_map.counts.argsort(descending=True, stable=True).tolist():
        times = int(code_map.counts[row])
        if times < MIN_COUNTED or len(pictures) + PATCHES_PER_CODE > limit:
            break
        start = int(torch.searchsorted(sorted_codes, code_map.codes[row]))
        spread = np.unique(np.linspace(0, times - 1, min(times, PATCHES_PER_CODE)).astype(int))
        first[row], count[row] = len(pictures), len(spread)
        for occurrence in order[start + spread].tolist():
            image, token = divmod(occurrence, images.tokens.shape[1])
            top, left = (number * cell - margin for number in divmod(token, grid[1]))
            pictures.append(_cut(images.images[image], top, left, cell + 2 * margin))
    return Patches(torch.stack(pictures) if pictures else torch.zeros(0, 3, 1, 1, dtype=torch.uint8), first, count)


def _cut(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square of an image uint8 (3,H,W), moved inside it, as (3,s,s) of at most `PATCH_SIDE` pixels."""
    side = min(side, *image.shape[1:])
    top = min(max(0, top), image.shape[1] - side)
    left = min(max(0, left), image.shape[2] - side)
    return shrunk(image[None, :, top : top + side, left : left + side], PATCH_SIDE)[0]
