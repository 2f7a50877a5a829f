"""Nearest neighbors in feature space: looked for in float32, decided in float64.

Tables of distances from matrix products in float32 are fast, but their rounding depends on the size of the tiles and
hides which of two near distances is smaller; between an image and its copy it makes a distance out of nothing. So a
table only proposes. Whatever it leaves open within its rounding error is computed again from differences in float64,
and counts of neighbors are the same for all tiles, ranks and orders of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluations.metrics.precision_recall import FeatureSet, squared_distances

SPARE_CANDIDATES = 4  # more neighbors than asked for, among which the exact order is decided
ROUNDING = 2e-5  # error of a squared distance in a table, relative to the sum of both squared lengths
PAIR_ELEMENTS = 2**18  # differences of pairs held at a time, float64: few enough to stay in the cache of a core


@dataclass(frozen=True)
class Cloud:
    """The features of a set of images, as they are and moved for tables of distances."""

    rows: Tensor  # (n,D) as they were given: exact distances are of these
    moved: FeatureSet  # float32, around a center that is common to the sets that are compared

    @classmethod
    def around(cls, rows: Tensor, center: Tensor) -> Cloud:
        """The features (n,D) around a center (D,): distances stay, and their rounding errors shrink."""
        return cls(rows, FeatureSet.of((rows - center).float()))

    def __len__(self) -> int:
        return len(self.rows)


def clouds(reference: Tensor, *others: Tensor) -> list[Cloud]:
    """Sets of features (n,D) around the mean of the first."""
    center = reference.mean(0)
    return [Cloud.around(rows, center) for rows in (reference, *others)]


def pair_distances(first: Tensor, second: Tensor, first_rows: Tensor, second_rows: Tensor) -> Tensor:
    """Exact squared distances (p,) float64 of pairs: row first_rows[i] of one set, and second_rows[i] of the other."""
    step = max(1, PAIR_ELEMENTS // first.shape[1])
    parts = [
        (first[a].double() - second[b].double()).square().sum(1)
        for a, b in zip(first_rows.split(step), second_rows.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else first.new_zeros(0, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ neighbors
def nearest_others(cloud: Cloud, num: int) -> Tensor:
    """Squared distances (n,num) float64, ascending, of each row to its nearest other rows.

    Raises ValueError for sets of no more than `num` images.
    """
    return nearest(cloud, cloud, num, excluded=torch.arange(len(cloud), device=cloud.rows.device))[0]


def nearest(queries: Cloud, others: Cloud, num: int, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `num` nearest rows of `others` to each query: squared distances (q,num) float64, ascending; indices (q,num).

    `excluded` (q,): the row of `others` that is no neighbor of a query, where it is that query itself. Raises
    ValueError where there are too few others.
    """
    num_others = len(others) - (excluded is not None)
    if num_others < num:
        raise ValueError(f"{num} nearest neighbors need more than {num_others} other images")

    distances, indices = [], []
    for start, tile in _tiles(queries, len(others)):
        rows = torch.arange(start, start + len(tile), device=others.rows.device)
        hidden = None if excluded is None else excluded[rows]
        tile_distances, tile_indices = _nearest_of_tile(queries, others, rows, tile, hidden, num)
        distances.append(tile_distances)
        indices.append(tile_indices)
    return torch.cat(distances), torch.cat(indices)


def _nearest_of_tile(
    queries: Cloud, others: Cloud, rows: Tensor, tile: FeatureSet, hidden: Tensor | None, num: int
) -> tuple[Tensor, Tensor]:
    """What `nearest` returns, of the queries `rows` (t,). `hidden` (t,): the excluded row of `others` of each."""
    table = squared_distances(tile, others.moved)
    if hidden is not None:
        table.scatter_(1, hidden[:, None], torch.inf)

    # The table proposes some more than asked for; their exact distances decide.
    num_candidates = min(num + SPARE_CANDIDATES, len(others) - (hidden is not None))
    proposed, candidates = table.topk(num_candidates, largest=False)
    repeated = rows[:, None].expand_as(candidates).flatten()
    exact = pair_distances(queries.rows, others.rows, repeated, candidates.flatten()).view_as(proposed)
    exact, order = exact.sort(dim=1, stable=True)
    exact, chosen = exact[:, :num], candidates.gather(1, order)[:, :num]

    # Where the table cannot tell the neighbors from those it did not propose, all others are candidates.
    if num_candidates < len(others) - (hidden is not None):
        norms = tile.norms + others.moved.norms[candidates].amax(1)
        is_open = proposed[:, -1] - proposed[:, num - 1] <= 4 * ROUNDING * norms
        for row in is_open.nonzero().flatten().tolist():
            skip = None if hidden is None else hidden[row]
            exact[row], chosen[row] = _nearest_of_all(queries, others, rows[row], skip, num)
    return exact, chosen


def _tiles(queries: Cloud, num_others: int) -> Iterator[tuple[int, FeatureSet]]:
    """(first row, tile) of the queries, so that the distances of a tile to the others fit into memory."""
    start = 0
    for tile in queries.moved.tiles(num_others):
        yield start, tile
        start += len(tile)


def _nearest_of_all(queries: Cloud, others: Cloud, row: Tensor, skip: Tensor | None, num: int) -> tuple[Tensor, Tensor]:
    """Exact squared distances (num,) and indices (num,) of the nearest rows to one query."""
    all_rows = torch.arange(len(others), device=others.rows.device)
    exact = pair_distances(queries.rows, others.rows, row.expand_as(all_rows), all_rows)
    if skip is not None:
        exact[skip] = torch.inf
    return exact.topk(num, largest=False)


# ------------------------------------------------------------------------------------------------ balls
@dataclass(frozen=True)
class DistanceTile:
    """A table of squared distances of some queries to all others, with what decides its close calls."""

    table: Tensor  # (t,n) float32
    tolerances: Tensor  # (t,n) how wrong each entry may be
    queries: Cloud
    others: Cloud
    start: int  # the first query

    def below(self, limits: Tensor, strict: bool) -> Tensor:
        """Which distances (t,n) are below squared limits, (1,n) or (t,1) float64; `strict`: equal ones are not."""
        margins = self.table - limits.float()
        is_below = margins < 0
        rows, columns = (margins.abs_() <= self.tolerances).nonzero(as_tuple=True)
        exact = pair_distances(self.queries.rows, self.others.rows, rows + self.start, columns)
        bounds = limits.expand(self.table.shape)[rows, columns]
        is_below[rows, columns] = exact < bounds if strict else exact <= bounds
        return is_below


def within(
    queries: Cloud, others: Cloud, query_radii: Tensor, other_radii: Tensor, strict: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Which pairs lie in each other's balls: tiles of (in the ball of the other, in the ball of the query), (t,n) bool.

    Radii (q,) and (n,) are squared, float64. `strict`: a row on the boundary is outside.
    """
    for start, tile in _tiles(queries, len(others)):
        tolerances = (tile.norms[:, None] + others.moved.norms).mul_(ROUNDING)
        distances = DistanceTile(squared_distances(tile, others.moved), tolerances, queries, others, start)
        radii = query_radii[start : start + len(tile), None]
        yield distances.below(other_radii[None], strict), distances.below(radii, strict)
