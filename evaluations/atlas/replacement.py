"""What each token of an image does: the image again with other codes in its place.

A token is replaced by the codes that are used most, one after the other; all other tokens stay. How much each pixel
changes, on average over the codes, is the token's influence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.arithmetic import ceil_div
from engine.data.samples import evenly_spread
from engine.progress import image_bar
from engine.world import World
from evaluations.atlas.counted_images import decode_tokens
from tokenizer.models.base import Tokenizer

PICTURE_SIDE = 128  # pixels; larger pictures of replaced tokens are reduced to about this side
INFLUENCE_SIDE = 32  # cells per side of a map of influence, at most


@dataclass(frozen=True)
class Replacements:
    """One image with P of its tokens replaced by C codes each.

    Shapes    codes int64 (P,C,G)      pictures uint8 (P*C,3,s,s)      influence float32 (P,m,m), levels of 255
    """

    codes: Tensor
    pictures: Tensor
    influence: Tensor


def most_used_tokens(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most frequent of tokens (n,G) and how often they occur: (k,G) and (k,), the most frequent first.

    Of equally frequent ones, the one of lower indices comes first. All of them where there are fewer.
    """
    tokens, counts = rows.unique(dim=0, return_counts=True)
    order = counts.sort(descending=True, stable=True).indices[:count]
    return tokens[order], counts[order]


def replaced_positions(num_tokens: int, grid: tuple[int, int] | None, limit: int) -> list[int]:
    """Which tokens are replaced: all, or at most `limit` that are spread evenly over the sequence or the grid."""
    if num_tokens <= limit:
        return list(range(num_tokens))
    if grid is None:
        return evenly_spread(num_tokens, limit).tolist()

    # Every k-th cell of every k-th row, each in the middle of its k x k cells.
    rows, columns = grid
    stride = next(k for k in range(1, num_tokens + 1) if ceil_div(rows, k) * ceil_div(columns, k) <= limit)
    offset = (stride - 1) // 2
    chosen_rows = [min(row + offset, rows - 1) for row in range(0, rows, stride)]
    chosen_columns = [min(column + offset, columns - 1) for column in range(0, columns, stride)]
    return [row * columns + column for row in chosen_rows for column in chosen_columns]


def other_codes(tokens: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The first `count` of the candidates (k,G) that differ from each of the tokens (P,G): (P,count,G).

    There must be more than `count` different candidates.
    """
    rows = [candidates[(candidates != token).any(1)][:count] for token in tokens]
    return torch.stack(rows)


def variants(tokens: Tensor, positions: list[int], codes: Tensor) -> Tensor:
    """Copies of the tokens (N,G) of an image, each with one token replaced: (P*C,N,G) for codes (P,C,G)."""
    num_positions, num_codes = codes.shape[:2]
    copies = tokens.repeat(num_positions * num_codes, 1, 1)
    rows = torch.arange(num_positions * num_codes)
    copies[rows, torch.tensor(positions).repeat_interleave(num_codes)] = codes.flatten(0, 1)
    return copies


@torch.inference_mode()
def replace_in_all(
    tokenizer: Tokenizer, tokens: Tensor, positions: list[int], codes: list[Tensor], batch_size: int, world: World
) -> list[Replacements]:
    """Replaces the tokens at `positions` of each image of (n,N,G) by its codes (P,C,G)."""
    results = []
    with image_bar(sum(of_image[..., 0].numel() for of_image in codes), "replaced tokens", world) as bar:
        for image_tokens, image_codes in zip(tokens, codes, strict=False):
            unchanged = decode_tokens(tokenizer, image_tokens[None]).float()
            parts = []
            for part in variants(image_tokens, positions, image_codes).split(batch_size):
                pictures = decode_tokens(tokenizer, part)
                parts.append((reduced(pictures), change_of(pictures, unchanged)))
                bar.update(len(part))
            pictures, changes = (torch.cat(column) for column in zip(*parts, strict=True))
            influence = changes.unflatten(0, image_codes.shape[:2]).mean(1)
            results.append(Replacements(image_codes, pictures, influence))
    return results


def change_of(pictures: Tensor, unchanged: Tensor) -> Tensor:
    """How much pictures uint8 (B,3,H,W) differ from one of (1,3,H,W), by cells (B,m,m) in levels of 255."""
    cells = min(INFLUENCE_SIDE, pictures.shape[-1])
    return F.adaptive_avg_pool2d((pictures.float() - unchanged).abs().mean(1, keepdim=True), cells)[:, 0]


def reduced(pictures: Tensor) -> Tensor:
    """Pictures uint8 (B,3,H,W) made smaller by a whole factor, to about `PICTURE_SIDE`: each pixel is a mean."""
    factor = ceil_div(pictures.shape[-1], PICTURE_SIDE)
    if factor == 1:
        return pictures
    return F.adaptive_avg_pool2d(pictures.float(), pictures.shape[-1] // factor).round().to(torch.uint8)
