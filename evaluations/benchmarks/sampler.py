"""Decode steps of a generator and decoding for pictures, against the published loop and the reading of weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.weight_layouts import PLAIN, exact_layouts, lay_out
from autoregressive.sampling import DecodingSettings, Draw, SeededDraw, seeded_draw
from autoregressive.sampling_weights import changes, fastest_layout, probe
from engine.devices import is_gpu
from engine.world import World
from evaluations.benchmarks.cases import OURS, Case, Measurable, Target
from evaluations.benchmarks.timing import Form
from tokenizer.models.hybrid import HybridConfig, HybridTokenizer
from tokenizer.models.query_transformer import TransformerConfig
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

POSITIONS = {"quick": (128,), "default": (16, 64, 128, 192, 240), "long": (16, 64, 128, 192, 240)}
SCALE = 2.0  # of guidance
PIXELS = {"quick": 128, "default": 256, "long": 256}  # side of a decoded image
FEW_ROWS = 4  # up to here a step on a CPU is bound by reading the weights, above by multiplying them
PUBLISHED = "published loop"

# Why a target can be missed.
STREAMING = "no layout is read as fast as a plain sum reads memory"
ARITHMETIC = "16 rows are bound by float32 products, of which the published loop already gets a good part here"
NO_AMX = "without AMX, products in bfloat16 gain little more than its smaller size"

# A generator whose whole sequences can be compared: layouts that give the same products must give the same tokens.
SMALL = GPTConfig(width=256, layers=4, heads=4, vocab_size=1024, num_tokens=64, num_classes=10)
SEQUENCES = 64
BORDER = 1e-5  # a random number this close to the border between two codes may fall on either side


# ------------------------------------------------------------------------------------------------ the plain form
class PublishedLoop:
    """The decode step of LlamaGen's sampler (arXiv:2406.06525, as released), for a GPT with learned positions.

    The cache has its full length, rounded up to a multiple of 8, and attention reads all of it under a mask. Guidance
    doubles the rows, conditional ones first.
    """

    def __init__(self, gpt: GPT, rows: int) -> None:
        width, layers, heads = gpt.config.dims()
        length = 8 * math.ceil((gpt.num_tokens + 1) / 8)
        shape = (layers, rows, heads, length, width // heads)
        self.network = gpt
        self.heads = heads
        self.keys = torch.zeros(shape, device=gpt.device, dtype=gpt.dtype)
        self.values = torch.zeros(shape, device=gpt.device, dtype=gpt.dtype)
        causal = torch.ones(length, length, dtype=torch.bool, device=gpt.device).tril()
        self.mask = causal.expand(rows, 1, length, length)

    def logits(self, inputs: Tensor, position: int) -> Tensor:
        """Logits (rows,V) at `position`. `inputs` (rows,): class labels at position 0, then the tokens before."""
        gpt = self.network
        embed = gpt.class_embedding if position == 0 else gpt.token_embedding
        place = torch.full((1,), position, device=inputs.device)
        x = embed(inputs)[:, None] + gpt.positional_embedding[place]
        for number, layer in enumerate(gpt.layers):
            attended = self._attention(number, layer.attention_norm(x), place)
            x = x + attended
            x = x + layer.feed_forward(layer.ffn_norm(x))
        return gpt.output(gpt.norm(x)).float()[:, -1]

    def _attention(self, number: int, x: Tensor, place: Tensor) -> Tensor:
        attention = self.network.layers[number].attention
        q, k, v = (part.view(*x.shape[:2], self.heads, -1) for part in attention.wqkv(x).chunk(3, dim=-1))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        keys, values = self.keys[number], self.values[number]
        keys[:, :, place] = k
        values[:, :, place] = v
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask[:, :, place])
        return attention.wo(out.transpose(1, 2).flatten(2))

    def next_token(self, inputs: Tensor, position: int, scale: float, draw: Draw | None = None) -> Tensor:
        """The token at `position`, (rows / 2,) with guidance and (rows,) without (`scale` 1); by default `multinomial`
        draws it.
        """
        logits = self.logits(inputs, position)
        if scale != 1:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + (conditional - unconditional) * scale
        p = F.softmax(logits, dim=-1)
        return torch.multinomial(p, 1)[:, 0] if draw is None else draw(p, position)


# ------------------------------------------------------------------------------------------------ equal tokens
class NearBorders:
    """A draw that also notes how close the random number of each draw is to a border between two codes."""

    def __init__(self, draw: SeededDraw) -> None:
        self.draw = draw
        self.distances: list[Tensor] = []  # (B,) of each draw, as a part of the whole probability

    def __call__(self, p: Tensor, position: int) -> Tensor:
        cumulative = p.double().cumsum(-1)
        borders = F.pad(cumulative / cumulative[:, -1:], (1, 0))
        index = self.draw(p, position)
        number = self.draw.table[:, position : position + 1]
        self.distances.append((borders - number).abs().amin(-1))
        return index


def compare_sequences(plain: GPT, other: GPT, count: int = SEQUENCES) -> dict[str, int]:
    """Samples `count` guided sequences from the same network in two layouts of its weights.

    Counts the `sequences_that_differ` and the `draws_near_a_border` (within `BORDER`). `unexplained`, which must be 0,
    are the sequences that differ first at a draw that is not near a border.
    """
    ids = torch.arange(count)
    labels = ids % plain.num_classes
    guidance = Guidance(scale=SCALE)
    near = NearBorders(seeded_draw(0, ids, plain.num_draws))
    first = plain.sample(labels, draw=near, guidance=guidance)
    second = other.sample(labels, draw=seeded_draw(0, ids, plain.num_draws), guidance=guidance)

    is_near = torch.stack(near.distances, dim=1) < BORDER
    differs = first != second
    rows = differs.any(1)
    first_difference = differs.int().argmax(1)
    explained = is_near.gather(1, first_difference[:, None])[:, 0]
    return {
        "sequences_that_differ": int(rows.sum()),
        "draws_near_a_border": int(is_near.sum()),
        "unexplained": int((rows & ~explained).sum()),
    }


# ------------------------------------------------------------------------------------------------ networks
def trained_looking(config: GPTConfig, device: torch.device) -> GPT:
    """A generator in evaluation mode whose output layer is not at zero, as after training."""
    torch.manual_seed(0)
    with device:
        gpt = GPT(config).eval().requires_grad_(False)
    torch.nn.init.normal_(gpt.output.weight, std=0.1)
    return gpt


def in_layout(gpt: GPT, layout: str, rows: int) -> GPT:
    """The same generator in another layout of its weights; what is not laid out is shared."""
    copied = copy.deepcopy(gpt, {id(parameter): parameter for parameter in gpt.parameters()})
    lay_out(copied.layout_layers(), layout, rows)
    return copied


def least_work(gpt: GPT, rows: int, positions: tuple[int, ...]) -> dict[str, float]:
    """What decode steps at `positions` cannot do without: the weights read once, or multiplied with many rows; and the
    keys and values of the tokens so far.
    """
    cached = sum(2 * gpt.num_layers * rows * (position + 1) * gpt.config.dims()[0] for position in positions)
    weights = len(positions) * sum(layer.weight.numel() for layer in gpt.layout_layers())
    size = gpt.output.weight.element_size()
    if rows <= FEW_ROWS or is_gpu(gpt.device):  # a GPU multiplies hundreds of rows while it reads the weights
        return {"read": (weights + cached) * size}
    return {"gemm": 2 * rows * weights, "read": cached * size}


# ------------------------------------------------------------------------------------------------ forms
def our_steps(gpt: GPT, batch: int, scale: float, positions: tuple[int, ...]) -> Form:
    """Decode steps of `GPT.sample` at `positions`."""
    inputs, draw = _inputs(gpt, batch, scale)
    guidance = Guidance(scale=scale)
    settings = DecodingSettings(gpt.num_tokens, 1, guidance=guidance, temperature=1.0, top_k=0, top_p=1.0)
    steps = gpt.decode_steps(len(inputs))

    @torch.inference_mode()
    def form() -> list[Tensor]:
        return [gpt.next_token(steps, inputs, p, settings.at(p), draw, batch) for p in positions]

    return form


def published_steps(gpt: GPT, batch: int, scale: float, positions: tuple[int, ...]) -> Form:
    """The same by the published loop."""
    inputs, _ = _inputs(gpt, batch, scale)
    loop = PublishedLoop(gpt, len(inputs))

    @torch.inference_mode()
    def form() -> list[Tensor]:
        return [loop.next_token(inputs, position, scale) for position in positions]

    return form


def _rows(batch: int, scale: float) -> int:
    """Rows that a step computes: guidance needs a second one per image."""
    return batch if scale == 1 else 2 * batch


def _inputs(gpt: GPT, batch: int, scale: float) -> tuple[Tensor, SeededDraw]:
    """Tokens before (rows,), and the draw of a batch."""
    rows = _rows(batch, scale)
    tokens = torch.arange(rows, device=gpt.device) % gpt.codebook_sizes[0]
    return tokens, seeded_draw(0, torch.arange(batch), gpt.num_draws)


# ------------------------------------------------------------------------------------------------ cases
def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The rows of the sampler: decode steps of GPT-B with 256 tokens, then pixels."""
    gpt = trained_looking(GPTConfig(size="b"), device)
    positions = POSITIONS[size]
    if is_gpu(device):
        yield from _gpu_cases(gpt, positions)
    else:
        yield from _cpu_cases(gpt, positions)
    yield _pixels_case(PIXELS[size], device)


def _cpu_cases(gpt: GPT, positions: tuple[int, ...]) -> Iterator[Case]:
    """Layouts that give the same products, then those with other numbers."""
    unguided = _layouts_case(gpt, 1, 1.0, positions, where_missed=STREAMING)
    facts = {**unguided.facts, **equality_facts()}
    yield replace(unguided, limit_target=Target("at least", 0.8), facts=facts)
    yield _layouts_case(gpt, 1, SCALE, positions, Target("at least", 1.3), STREAMING)
    yield _layouts_case(gpt, 8, SCALE, positions, Target("at least", 2.8), ARITHMETIC)

    # What the user may choose, and what it costs.
    bf16_target = Target("at least", 4.5) if torch.cpu._is_amx_tile_supported() else None
    yield _rounded_case(gpt, "bf16", 8, positions, bf16_target, NO_AMX if bf16_target is None else "")
    yield _rounded_case(gpt, "int8", 1, positions, Target("at least", 2.0), "")


def _title(batch: int, scale: float, positions: tuple[int, ...]) -> str:
    guidance = "unguided" if scale == 1 else "guided"
    return f"GPT-B, {len(positions)} decode step(s), batch {batch}, {guidance}"


def _layouts_case(
    gpt: GPT,
    batch: int,
    scale: float,
    positions: tuple[int, ...],
    target: Target | None = None,
    where_missed: str = "",
) -> Case:
    """The fastest layout that gives the same products (ours), and each of them, against the published loop."""
    # The network in each layout.
    rows = _rows(batch, scale)
    networks = {PLAIN: gpt} | {name: in_layout(gpt, name, rows) for name in exact_layouts()}

    # Ours is the layout that the sampler would choose.
    fastest = fastest_layout(gpt, rows, World(0, 1, 0, gpt.device))
    forms = {OURS: our_steps(networks[fastest], batch, scale, positions)}
    forms |= {
        f"ours, {name} weights": our_steps(network, batch, scale, positions) for name, network in networks.items()
    }
    forms[PUBLISHED] = published_steps(gpt, batch, scale, positions)
    return Case(
        _title(batch, scale, positions),
        forms,
        against=PUBLISHED,
        target=target,
        least_work=least_work(gpt, rows, positions),
        facts={"layout of ours": fastest},
        where_missed=where_missed,
    )


def equality_facts() -> dict[str, str]:
    """How the tokens of the layouts of the same products compare over whole sequences of a small network."""
    small = trained_looking(SMALL, torch.device("cpu"))
    seen = probe(small)
    facts = {}
    for name in exact_layouts():
        other = in_layout(small, name, 2 * SEQUENCES)
        counts = compare_sequences(small, other)
        facts[f"{name} against {PLAIN} on a small network"] = (
            f"log p within {changes(seen, probe(other, seen))['log_p_change']:g}; of {SEQUENCES} sequences "
            f"{counts['sequences_that_differ']} differ, {counts['unexplained']} of them away from a border; "
            f"{counts['draws_near_a_border']} draws are within {BORDER:g} of one"
        )
    return facts


def _rounded_case(
    gpt: GPT, layout: str, batch: int, positions: tuple[int, ...], target: Target | None, where_missed: str
) -> Case:
    """A layout with other numbers, and how far it is from the trained network."""
    other = in_layout(gpt, layout, 2 * batch)
    seen = probe(gpt)
    return Case(
        f"{_title(batch, SCALE, positions)}, {layout} weights",
        {
            OURS: our_steps(other, batch, SCALE, positions),
            "ours, plain weights": our_steps(gpt, batch, SCALE, positions),
            PUBLISHED: published_steps(gpt, batch, SCALE, positions),
        },
        against=PUBLISHED,
        target=target,
        facts=changes(seen, probe(other, seen)),
        where_missed=where_missed,
    )


def _gpu_cases(gpt: GPT, positions: tuple[int, ...]) -> Iterator[Case]:
    """Recorded steps (ours) and launched ones against the published loop, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        launched = copy.deepcopy(gpt).to(dtype)
        recorded = copy.deepcopy(launched)
        recorded.record_steps = True

        # One image without guidance and with it, then batches.
        for batch, scale in ((1, 1.0), (1, SCALE), (8, SCALE), (32, SCALE)):
            yield Case(
                f"{_title(batch, scale, positions)}, {str(dtype).removeprefix('torch.')}",
                {
                    OURS: our_steps(recorded, batch, scale, positions),
                    "ours, without CUDA graphs": our_steps(launched, batch, scale, positions),
                    PUBLISHED: published_steps(launched, batch, scale, positions),
                },
                against=PUBLISHED,
                least_work=least_work(launched, _rows(batch, scale), positions),
            )


def _pixels_case(size: int, device: torch.device) -> Case:
    """Pixels of one image of `size` pixels by the published S-S tokenizer, with one token per 16 x 16 pixels."""
    torch.manual_seed(0)
    small = TransformerConfig(size="small")
    config = HybridConfig(encoder=small, decoder=small, num_tokens=(size // 16) ** 2)
    tokenizer = HybridTokenizer(config, VectorQuantizer(VQConfig()), size).eval().requires_grad_(False).to(device)
    decoder = tokenizer.picture_decoder()
    codes = torch.arange(tokenizer.num_tokens, device=device)[None] * 61 % tokenizer.quantizer.codebook_size

    @torch.inference_mode()
    def plain() -> Tensor:
        return tokenizer.decode_indices(codes)

    # How far the pixels are apart, and what it takes to compute them.
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton

    with FlopCounterMode(display=False) as counter:
        expected = plain()
    difference = 127.5 * (decoder.decode_indices(codes).clamp(-1, 1) - expected.clamp(-1, 1)).abs()
    has_fast_bf16 = is_gpu(device) or torch.cpu._is_amx_tile_supported()
    return Case(
        f"VQ S-S, pixels of one image of {size} px",
        {OURS: lambda: decoder.decode_indices(codes), "float32": plain},
        against="float32",
        target=Target("at least", 2.5) if has_fast_bf16 else None,
        least_work={"gemm_bf16": counter.get_total_flops()},
        facts={"levels of 255 that differ, mean": difference.mean().item(), "largest": difference.max().item()},
        where_missed="" if has_fast_bf16 else NO_AMX,
    )
