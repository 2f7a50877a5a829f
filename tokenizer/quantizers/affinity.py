"""How near latents are to the codes of a learned codebook, in logits of a softmax, without a table of all of them.

    class              logits s_ik of latent z_i and code e_k, at temperature t
    SquaredDistance    -|z_i - e_k|^2 / t           GigaTok's released code
    PlainDistance      -|z_i - e_k| / t             GigaTok, arXiv:2504.08736, Eq. 3 as written
    Product            z_i . e_k / t                IBQ, arXiv:2412.02692

A term that is equal for all codes leaves a softmax unchanged, so `SquaredDistance` leaves -|z_i|^2 / t out.

An object serves one pass over latents, some rows at a time: `logits` fills a table of these rows, and `backward` takes
the gradient of such a table back to latents and codes. For the pair (i,k) with dL/ds_ik = g_ik:

    SquaredDistance    ds_ik/dz_i = 2 (e_k - z_i) / t = -ds_ik/de_k
                       dL/dz_i = 2/t ((g e)_i - z_i sum_k g_ik)    dL/de_k = 2/t ((g^T z)_k - e_k sum_i g_ik)
    PlainDistance      with r_ik = |z_i - e_k| the same, of g_ik / (2 r_ik)
    Product            dL/dz_i = (g e)_i / t                       dL/de_k = (g^T z)_k / t

Codes and their gradients are held as (D,K): a product whose result or second factor has K long rows is several times
as fast on a CPU as one with K rows of a few channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

DISTANCE_EPS = 1e-12  # a plain distance whose square is below this has no usable gradient


class Affinity(ABC):
    """Logits of latents (m,D) for codes (K,D) at a temperature, and their gradients."""

    def __init__(self, codes: Tensor, temperature: float) -> None:
        self.codes = codes
        self.temperature = temperature

    # What only `backward` needs is made by its first call: a large codebook is not copied to find nearest codes.
    @cached_property
    def _columns(self) -> Tensor:
        """The codes as (D,K)."""
        return self.codes.T.contiguous()

    @cached_property
    def _grad_columns(self) -> Tensor:
        """The gradient of the codes as (D,K), of all rows so far, without the temperature."""
        return torch.zeros_like(self._columns)

    @abstractmethod
    def logits(self, z: Tensor, out: Tensor | None) -> Tensor:
        """Fills `out` (m,K), or a new table, with the logits of latents (m,D)."""

    @abstractmethod
    def backward(self, z: Tensor, grad: Tensor, logits: Tensor) -> Tensor:
        """The gradient (m,D) of latents, for the gradient `grad` (m,K) of their `logits`; adds that of the codes.

        `grad` and `logits` may be overwritten. `needs_logits` says whether `logits` is read.
        """

    @abstractmethod
    def grad_codes(self) -> Tensor:
        """The gradient (K,D) of the codes, summed over all rows that went through `backward`."""

    needs_logits = False

    def _products(self, z: Tensor, grad: Tensor) -> Tensor:
        """Adds g^T z to the gradient of the codes; returns g e (m,D)."""
        self._grad_columns.addmm_(z.T, grad)
        return (self._columns @ grad.T).T


class Product(Affinity):
    """See the module docstring."""

    def __init__(self, codes: Tensor, temperature: float) -> None:
        super().__init__(codes, temperature)
        self._scaled_columns = (codes / temperature).T.contiguous()

    def logits(self, z: Tensor, out: Tensor | None) -> Tensor:
        return torch.mm(z, self._scaled_columns, out=out)

    def backward(self, z: Tensor, grad: Tensor, logits: Tensor) -> Tensor:
        return self._products(z, grad) / self.temperature

    def grad_codes(self) -> Tensor:
        return self._grad_columns.T / self.temperature


class SquaredDistance(Affinity):
    """See the module docstring."""

    def __init__(self, codes: Tensor, temperature: float) -> None:
        super().__init__(codes, temperature)
        self._scaled_columns = (codes * (2 / temperature)).T.contiguous()
        self._bias = codes.square().sum(1) / -temperature

    @cached_property
    def _column_sums(self) -> Tensor:
        """sum_i g_ik (K,) of all rows so far."""
        return self.codes.new_zeros(len(self.codes))

    def logits(self, z: Tensor, out: Tensor | None) -> Tensor:
        return torch.addmm(self._bias, z, self._scaled_columns, out=out)

    def backward(self, z: Tensor, grad: Tensor, logits: Tensor) -> Tensor:
        self._column_sums.add_(grad.sum(0))
        return (self._products(z, grad) - z * grad.sum(1, keepdim=True)) * (2 / self.temperature)

    def grad_codes(self) -> Tensor:
        return (self._grad_columns - self._columns * self._column_sums).T * (2 / self.temperature)


class PlainDistance(SquaredDistance):
    """See the module docstring."""

    needs_logits = True

    def __init__(self, codes: Tensor, temperature: float) -> None:
        super().__init__(codes, temperature=1.0)  # its logits are |z|^2 - r^2
        self._distance_temperature = temperature

    def logits(self, z: Tensor, out: Tensor | None) -> Tensor:
        squared = super().logits(z, out).neg_().add_(z.square().sum(1, keepdim=True))
        return squared.clamp_min_(DISTANCE_EPS).sqrt_().div_(-self._distance_temperature)

    def backward(self, z: Tensor, grad: Tensor, logits: Tensor) -> Tensor:
        # ds/d(r^2) = -1 / (2 r t) = 1 / (2 t^2 s), and the parent's logits fall by r^2.
        grad.div_(logits).div_(-2 * self._distance_temperature**2)
        return super().backward(z, grad, logits)


@torch.no_grad()
def nearest_codes(affinity: Affinity, z: Tensor, rows: int) -> Tensor:
    """Index of the code with the largest logit for each latent, the first on ties: (n,D) -> (n,) int64.

    `rows` latents at a time are compared with all codes. An exported program has one table of all instead, because it
    serves any number of latents.
    """
    if torch.compiler.is_exporting():
        return affinity.logits(z, None).argmax(dim=1)
    table = z.new_empty(min(rows, len(z)), len(affinity.codes))
    indices = torch.empty(len(z), dtype=torch.long, device=z.device)
    for start in range(0, len(z), rows):
        chunk = z[start : start + rows]
        torch.argmax(affinity.logits(chunk, table[: len(chunk)]), dim=1, out=indices[start : start + rows])
    return indices
