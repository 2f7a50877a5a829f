"""float32 images in [-1,1] -> pictures as people want them: the output side of `Tokenizer.detokenize`."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from torch import Tensor

from engine.data.images import to_pil, to_uint8
from engine.messages import UserError

Output = Literal["float", "uint8", "pil"]
OUTPUTS = ("float", "uint8", "pil")


def require_output(output: str) -> None:
    """Raises UserError for a kind of output that does not exist."""
    if output not in OUTPUTS:
        raise UserError(f"output={output!r} is not known; choose one of: {', '.join(OUTPUTS)}")


def images_as(images: Tensor, output: Output) -> Tensor | list[Image.Image]:
    """Images (B,3,H,W) as `float` (as they are), `uint8` (the same shape, 0..255, same device) or `pil` (a list).

    uint8 and PIL are rounded as in all files that the program writes. Raises UserError for another `output`, and
    NonFiniteValuesError where pixels are not finite.
    """
    require_output(output)
    if output == "float":
        return images
    pixels = to_uint8(images.detach())
    return pixels if output == "uint8" else [to_pil(image) for image in pixels.cpu()]
