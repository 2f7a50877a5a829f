"""Small functions to look into codes: token maps, replaced tokens, and pictures between two pictures.

codes = tokenizer.tokenize(["cat.jpg", "dog.jpg"], fit="crop")
maps = token_map(tokenizer, codes)                            # (2, rows, columns), where tokens have places
changed = replace_tokens(tokenizer, codes, {5: 17, 6: 17})     # tokens 5 and 6 of both images become code 17
between = interpolate(tokenizer, "cat.jpg", "dog.jpg", steps=8, fit="crop")  # (8, 3, H, W)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from engine.arguments import require_network, whole_number, whole_numbers, wrong_argument
from engine.data.image_input import Fit, Picture
from engine.finite import require_finite
from engine.messages import UserError
from tokenizer.models.base import Tokenizer
from tokenizer.models.code_input import Codes, as_codes, as_grid, as_token

Space = Literal["latents", "codes"]
SPACES = ("latents", "codes")


def _require_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises UserError for anything but a tokenizer."""
    require_network(
        tokenizer, Tokenizer, "tokenizer", 'a tokenizer, such as Tokenizer.from_pretrained("runs/quickstart")'
    )


def _codes_of(tokenizer: Tokenizer, tokens: Codes) -> Tensor:
    """Codes (B,N) or (B,N,G) of `tokenizer` as people hold them. Raises UserError as `Tokenizer.detokenize`."""
    quantizer = tokenizer.quantizer
    return as_codes(tokens, quantizer.group_sizes, tokenizer.device, quantizer.lowest_index)


# ------------------------------------------------------------------------------------------------ token maps
def token_map(tokenizer: Tokenizer, tokens: Codes, grid: tuple[int, int] | None = None) -> Tensor:
    """Codes (B,N) or (B,N,G) as maps (B,rows,columns) or (B,rows,columns,G), each code at its place in the image.

    `grid` (rows, columns) is for images of another size than the usual one. Raises UserError for a tokenizer whose
    tokens have no places (1D tokenizers), and for another number of tokens.
    """
    _require_tokenizer(tokenizer)
    codes = _codes_of(tokenizer, tokens)
    rows, columns = _grid_of(tokenizer) if grid is None else as_grid(grid)
    if rows * columns != codes.shape[1]:
        raise UserError(f"{codes.shape[1]} tokens do not fill a grid of {rows} x {columns}; name another grid")
    return codes.unflatten(1, (rows, columns))


def map_tokens(maps: Codes) -> Tensor:
    """Maps (B,rows,columns) or (B,rows,columns,G) as codes (B,N) or (B,N,G): the way back from `token_map`.

    Raises UserError for other axes, and for what is no table of whole numbers.
    """
    codes = whole_numbers(maps, "token maps")
    if codes.ndim not in (3, 4):
        raise UserError(
            f"token maps have shape {tuple(codes.shape)}; accepted: (B, rows, columns), or with indices behind"
        )
    return codes.flatten(1, 2)


def _grid_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The grid of the usual size. Raises UserError where tokens have no places."""
    grid = tokenizer.token_grid
    if grid is None:
        raise UserError(
            f"the tokens of {type(tokenizer).__name__} have no places in the image, each describes all of it: there is "
            "no token map"
        )
    return grid


# ------------------------------------------------------------------------------------------------ other tokens
def replace_tokens(tokenizer: Tokenizer, tokens: Codes, replacements: Mapping[int, int | Sequence[int]]) -> Tensor:
    """A copy of codes (B,N) or (B,N,G) in which token number `n` of every image is `replacements[n]`.

    A replacement is a code, or G codes where a token has G indices. Raises UserError for a token or a code that is not
    there, and for what is no mapping of whole numbers to codes.
    """
    _require_tokenizer(tokenizer)
    if not isinstance(replacements, Mapping):
        raise wrong_argument("replacements", replacements, "a mapping of tokens to codes, such as {0: 7, 1: 7}")
    sizes = tokenizer.quantizer.group_sizes
    codes = _codes_of(tokenizer, tokens).clone()
    for position, replacement in replacements.items():
        token = whole_number(position, "token", "a whole number: the keys of replacements are numbers of tokens")
        if not 0 <= token < codes.shape[1]:
            raise UserError(f"there is no token {token}; an image has 0..{codes.shape[1] - 1}")
        of_token = as_token(replacement, sizes, f"replacements[{token}]")
        codes[:, token] = codes.new_tensor(of_token if len(sizes) > 1 else of_token[0])
    return codes


# ------------------------------------------------------------------------------------------------ between two pictures
@torch.no_grad()
def interpolate(
    tokenizer: Tokenizer,
    first: Picture,
    second: Picture,
    steps: int = 8,
    *,
    space: Space = "latents",
    fit: Fit | None = None,
    value_range: tuple[float, float] | None = None,
) -> Tensor:
    """`steps` images (steps,3,H,W) in [-1,1] on the way from one picture to another, both ends included.

    `latents` mixes what the encoder gives and quantizes each mixture: all images have codes. `codes` mixes the vectors
    of the two images' codes and decodes the mixtures as they are. `fit` and `value_range` as in `Tokenizer.tokenize`.

    Raises UserError for fewer than two steps, another space, and for what `Tokenizer.tokenize` refuses.
    """
    _require_tokenizer(tokenizer)
    tokenizer.require_ready()
    steps = whole_number(steps, "steps", "a whole number, 2 or more")
    if steps < 2:
        raise UserError(f"steps={steps} must be 2 or more: both ends are among them")
    if space not in SPACES:
        raise UserError(f"space={space!r} is not known; choose one of: {', '.join(SPACES)}")

    # Both ends.
    pair = tokenizer.batch_of([first, second], fit=fit, value_range=value_range, names=("first", "second"))
    features = tokenizer.encode_features(pair)
    ends = tokenizer.latents(features)
    require_finite(ends, "latents of the tokenizer")
    if space == "codes":
        ends = tokenizer.quantizer(ends).z_q

    # The mixtures, and their pictures.
    weights = torch.linspace(0, 1, steps, device=ends.device)[:, None, None]
    mixtures = torch.lerp(ends[:1], ends[1:], weights)
    if space == "latents":
        mixtures = tokenizer.quantizer(mixtures).z_q
    grid = tuple(features.shape[2:]) if "any_size" in tokenizer.capabilities else None
    images = tokenizer.decode(mixtures, grid)
    require_finite(images, "pixels decoded by the tokenizer")
    return images.clamp(-1, 1)
