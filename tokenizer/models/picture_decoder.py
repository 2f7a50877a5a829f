"""Decoding for pictures that people look at: in bfloat16 and channels-last, which is faster where the machine has
bfloat16 arithmetic. Codes, metrics and training never use it: its pixels differ by a few levels of 255.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from engine.finite import require_finite

PICTURE_DTYPE = torch.bfloat16


class PictureDecoder:
    """The decoder of a tokenizer in bfloat16. The tokenizer stays as it is; the quantizer is shared, in float32."""

    def __init__(self, tokenizer: nn.Module) -> None:
        # Where the copy comes to a tensor, it finds the converted one: there is never a second one in float32.
        quantizer = tokenizer.quantizer
        copies: dict[int, object] = {id(quantizer): quantizer}
        shared = {id(tensor) for tensor in (*quantizer.parameters(), *quantizer.buffers())}
        for tensor in (*tokenizer.parameters(), *tokenizer.buffers()):
            if id(tensor) not in shared:
                copies[id(tensor)] = _converted(tensor)
        self.network = copy.deepcopy(tokenizer, copies).eval()

    @torch.inference_mode()
    def decode_indices(self, indices: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Indices -> images float32, not clamped; see `Tokenizer.decode_indices`.

        Raises NonFiniteValuesError where pixels are not finite.
        """
        z_q = self.network.quantizer.decode_indices(indices)
        images = self.network.decode(z_q.to(PICTURE_DTYPE), grid).float()
        require_finite(images, "pixels decoded by the tokenizer")
        return images


def _converted(tensor: Tensor) -> Tensor:
    """A parameter or buffer in bfloat16, kernels of convolutions in channels-last; whole numbers as they are."""
    if not tensor.is_floating_point():
        return tensor
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    value = tensor.detach().to(PICTURE_DTYPE, memory_format=layout)
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
