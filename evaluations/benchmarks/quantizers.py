"""Quantizers with and without their entropies, forward and backward, against the table of all latents and codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluations.benchmarks.cases import OURS, Case, Measurable, Reading, Target
from evaluations.benchmarks.timing import Form, added_memory
from tokenizer.quantizers.affinity import SquaredDistance
from tokenizer.quantizers.entropy_assignment import LOG_EPS, LOG_P_FLOOR, assignment_entropies
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.quantizers.gq import GQConfig, GroupLFQ
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

CODES, CHANNELS = 16384, 8  # GigaTok's codebook
LARGE_CODES = 262_144
TOKENS = {"quick": 1024, "default": 2048, "long": 8192}  # latents; 8,192 are 32 images
TEMPERATURE = 0.01


# ------------------------------------------------------------------------------------------------ latents
def latents_near_codes(count: int, codes: Tensor, noise: float, seed: int = 1) -> Tensor:
    """`count` latents (count,D) on the unit sphere, at random codes with Gaussian noise of std `noise` per channel."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(codes), (count,), generator=generator)
    shifts = noise * torch.randn(count, codes.shape[1], generator=generator)
    return F.normalize(codes.cpu()[chosen] + shifts, dim=1).to(codes.device)


def latents_of_clusters(count: int, codes: Tensor, clusters: int = 16) -> Tensor:
    """`count` latents (count,D) on the unit sphere, close to a few codes: as of an encoder at its start."""
    return latents_near_codes(count, codes[:clusters], noise=0.05, seed=2)


# ------------------------------------------------------------------------------------------------ plain forms
def plain_entropies(z: Tensor, codes: Tensor, temperature: float, log_p_floor: float | None) -> tuple[Tensor, Tensor]:
    """The entropies as everybody writes them: a softmax over the table of all squared distances (n,K)."""
    distances = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    log_p = (-distances / temperature).log_softmax(1)
    if log_p_floor is not None:
        log_p = log_p.clamp_min(log_p_floor)
    p = log_p.exp()
    mean_p = p.mean(0)
    return -(p * log_p).sum(1).mean(), -(mean_p * (mean_p + LOG_EPS).log()).sum()


def plain_vq(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Vector quantization on the unit sphere as published, without an entropy: (straight-through codes, losses)."""
    return nearest_by_distance(F.normalize(z, dim=-1), F.normalize(codebook, dim=-1))


def nearest_by_distance(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(straight-through codes, losses) of latents (n,D) by a table of squared distances (n,K)."""
    distances = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    z_q = codes[distances.argmin(1)]
    losses = (z_q - z.detach()).square().mean() + (z_q.detach() - z).square().mean()
    return z + (z_q - z).detach(), losses


def plain_ibq(z: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Index backpropagation as published, with its entropies: (codes with the softmax's gradient, losses)."""
    logits = z @ codes.T
    p = logits.softmax(1)
    z_q = (F.one_hot(logits.argmax(1), len(codes)).to(p.dtype) + (p - p.detach())) @ codes
    chosen = codes[logits.argmax(1)]
    losses = (z_q - z).square().mean() + (chosen - z.detach()).square().mean() + (chosen.detach() - z).square().mean()
    log_p = (logits / temperature).log_softmax(1)
    mean_p = log_p.exp().mean(0)
    entropy = -(log_p.exp() * log_p).sum(1).mean() + (mean_p * (mean_p + LOG_EPS).log()).sum()
    return z_q, losses + entropy


def plain_fsq(z: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """FSQ as its paper lists it (appendix A.1): (codes with straight-through gradients, indices)."""
    counts = torch.tensor(levels, device=z.device)
    half = (counts - 1) * (1 - 1e-3) / 2
    offset = torch.where(counts % 2 == 1, 0.0, 0.5)
    bounded = torch.tanh(z + torch.tan(offset / half)) * half - offset
    rounded = bounded + (torch.round(bounded) - bounded).detach()
    width = counts // 2
    basis = torch.cat([counts.new_ones(1), counts[:-1]]).cumprod(0)
    return rounded / width, ((rounded.detach() + width) * basis).sum(-1).round().long()


# ------------------------------------------------------------------------------------------------ cases
def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The rows of all quantizers, for batches whose whole table takes seconds."""
    # Entropies, whose cost depends on where the latents lie.
    tokens = TOKENS[size]
    generator = torch.Generator().manual_seed(0)
    codes = F.normalize(torch.randn(CODES, CHANNELS, generator=generator), dim=1).to(device).requires_grad_()
    latents = {
        "latents near codes": (latents_near_codes(tokens, codes.detach(), noise=0.3), Target("at most", 0.15)),
        "uniform latents": (latents_near_codes(tokens, codes.detach(), noise=100.0), Target("at most", 0.5)),
        "clustered latents": (latents_of_clusters(tokens, codes.detach()), None),
    }
    for name, (z, target) in latents.items():
        yield _entropy_case(f"VQ entropies, {tokens:,} {name}", z, codes, target)

    # Whole quantizers.
    yield _vq_case(tokens, codes.detach())
    yield _simvq_case(tokens // 4, device)
    yield _ibq_case(tokens // 4, device)
    yield _gq_case(tokens, device)
    yield _fsq_case(tokens, device)
    yield _large_codebook(device)


def _entropy_case(name: str, z: Tensor, codes: Tensor, target: Target | None) -> Case:
    """Entropies of a learned codebook, forward and backward."""
    z = z.requires_grad_()

    def plain(log_p_floor: float | None) -> Form:
        return lambda: _gradients(plain_entropies(z, codes, TEMPERATURE, log_p_floor), [z, codes])

    # How much of p is too small for a normal float32 number decides what is gained.
    with torch.no_grad():
        rows = z[:64]
        logits = SquaredDistance(codes, TEMPERATURE).logits(rows, rows.new_empty(len(rows), len(codes)))
        tiny = (logits.log_softmax(1) < -87.3).float().mean().item()
    return Case(
        name,
        {
            OURS: lambda: _gradients(assignment_entropies(z, codes, TEMPERATURE), [z, codes]),
            "whole table": plain(None),
            "whole table, with our floor of log p": plain(LOG_P_FLOOR),
        },
        against="whole table",
        target=target,
        memory_target=Target("at most", 1 / 16),
        least_work={"gemm": 4 * 2 * z.numel() * len(codes)},  # logits twice, and one product for each gradient
        facts={"share of p below the smallest normal float32": tiny},
        where_missed="two exponentials per latent and code remain, and at few latents the fixed memory counts",
    )


def _gradients(entropies: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(entropies[0] - entropies[1], inputs)


def _vq_case(tokens: int, codes: Tensor) -> Case:
    """The quantizer without entropies, forward and backward."""
    quantizer = VectorQuantizer(VQConfig(codebook_size=len(codes), rotation_trick=False)).to(codes.device).train()
    z = torch.randn(1, tokens, CHANNELS, device=codes.device, requires_grad=True)

    def ours() -> object:
        out = quantizer(z)
        total = out.z_q.sum() + out.losses["codebook"] + out.losses["commitment"]
        return torch.autograd.grad(total, [z, quantizer.codebook])

    def plain() -> object:
        z_q, losses = plain_vq(z[0], quantizer.codebook)
        return torch.autograd.grad(z_q.sum() + losses, [z, quantizer.codebook])

    return Case(
        f"VQ without entropies, {tokens:,} latents",
        {OURS: ours, "whole table": plain},
        against="whole table",
        target=Target("at most", 0.35),
        memory_target=Target("at most", 1 / 16),
        least_work={"gemm": 2 * tokens * codes.numel()},
        where_missed="at few latents the fixed memory of a chunk of distances counts",
    )


def _ibq_case(tokens: int, device: torch.device) -> Case:
    """Index backpropagation with its entropies, forward and backward."""
    quantizer = IBQ(IBQConfig(codebook_size=CODES, codebook_dim=32)).to(device).train()
    z = torch.randn(1, tokens, 32, device=device, requires_grad=True)
    inputs = [z, quantizer.codebook]

    def ours() -> object:
        out = quantizer(z, entropy=True)
        losses = out.losses["codebook"] + out.losses["commitment"] + out.losses["entropy"]
        return torch.autograd.grad(out.z_q.sum() + losses, inputs)

    def plain() -> object:
        z_q, losses = plain_ibq(z[0], quantizer.codebook, quantizer.config.entropy_temperature)
        return torch.autograd.grad(z_q.sum() + losses, inputs)

    return Case(
        f"IBQ with entropies, 32 channels, {tokens:,} latents",
        {OURS: ours, "whole table": plain},
        against="whole table",
        memory_target=Target("at most", 1 / 16),
        least_work={"gemm": 8 * 2 * z.numel() * CODES},
        where_missed="at so few latents the codes, their gradients and two small tables are most of the memory",
    )


def _gq_case(tokens: int, device: torch.device) -> Case:
    """The entropies of a group of 16 bits, whose 65,536 codes factorize, forward and backward."""
    bits = 16
    z = (0.05 * torch.randn(1, tokens // 8, bits, device=device)).requires_grad_()
    forms = {}
    for name, form in ((OURS, GQConfig().entropy_form), ("whole table", "naive")):
        quantizer = GroupLFQ(GQConfig(num_groups=1, group_dim=bits, entropy_form=form, max_entropy_mb=2**20))
        forms[name] = _entropy_gradient(quantizer.to(device).train(), z)
    return Case(
        f"LFQ entropies, {bits} bits, {tokens // 8:,} latents",
        forms,
        against="whole table",
        memory_target=Target("at most", 1 / 16),
    )


def _entropy_gradient(quantizer: GroupLFQ, z: Tensor) -> Form:
    return lambda: torch.autograd.grad(quantizer.entropies(z)["entropy"], [z])


def _simvq_case(tokens: int, device: torch.device) -> Case:
    """SimVQ with its 128 channels and without entropies, forward and backward."""
    quantizer = SimVQ(SimVQConfig(codebook_size=CODES)).to(device).train()
    z = torch.randn(1, tokens, quantizer.codebook_dim, device=device, requires_grad=True)
    inputs = [z, *quantizer.projection.parameters()]

    def ours() -> object:
        out = quantizer(z)
        return torch.autograd.grad(out.z_q.sum() + out.losses["codebook"] + out.losses["commitment"], inputs)

    def plain() -> object:
        codes = quantizer.projection(quantizer.codebook)
        z_q, losses = nearest_by_distance(z[0], codes)
        return torch.autograd.grad(z_q.sum() + losses, inputs)

    return Case(
        f"SimVQ without entropies, {quantizer.codebook_dim} channels, {tokens:,} latents",
        {OURS: ours, "whole table": plain},
        against="whole table",
        memory_target=Target("at most", 1.0),
        least_work={"gemm": 2 * (z.numel() * CODES + 3 * quantizer.codebook.numel() * quantizer.codebook_dim)},
    )


def _fsq_case(tokens: int, device: torch.device) -> Case:
    """FSQ, forward and backward: it has no table, in any form."""
    quantizer = FSQ(FSQConfig()).to(device).train()
    z = torch.randn(1, tokens, quantizer.codebook_dim, device=device, requires_grad=True)
    return Case(
        f"FSQ, {tokens:,} latents",
        {
            OURS: lambda: torch.autograd.grad(quantizer(z).z_q.sum(), [z]),
            "as published": lambda: torch.autograd.grad(plain_fsq(z, quantizer.config.levels)[0].sum(), [z]),
        },
        against="as published",
    )


def _large_codebook(device: torch.device) -> Reading:
    """What a codebook of 2^18 codes takes, with entropies, forward and backward."""
    codes = F.normalize(torch.randn(LARGE_CODES, CHANNELS, device=device), dim=1).requires_grad_()
    z = F.normalize(torch.randn(256, CHANNELS, device=device), dim=1).requires_grad_()

    def form() -> object:
        return _gradients(assignment_entropies(z, codes, TEMPERATURE), [z, codes])

    return Reading(
        f"VQ entropies, {LARGE_CODES:,} codes, memory beyond latents and codes",
        "MiB",
        lambda: added_memory(form, device) or math.nan,
        target=Target("at most", 2048),
        repeats=False,
    )
