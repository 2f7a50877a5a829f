"""What the page says of a subject in words: its numbers, and what cannot be shown of it, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluations.atlas.codebook import points_per_map
from evaluations.atlas.subject import Subject
from evaluations.metrics.code_usage import compression
from tokenizer.models.base import Tokenizer

MAX_GROUPS_WITH_PATCHES = 4  # indices of a token whose codes have patches


def bits_per_image(tokenizer: Tokenizer) -> float:
    """The size of the tokens of one image."""
    sizes = compression(tokenizer.quantizer, tokenizer.image_size**2, tokenizer.num_tokens)
    return sizes["bits_per_image"]


def summary_of(subject: Subject) -> str:
    """The sizes of the networks."""
    tokenizer = subject.tokenizer
    quantizer = tokenizer.quantizer
    sizes = " x ".join(f"{size:,}" for size in quantizer.group_sizes[:8])
    if quantizer.num_groups > 8:
        sizes = f"{quantizer.num_groups} indices of up to {quantizer.codebook_size:,}"
    text = (
        f"{tokenizer.num_tokens} tokens of {sizes} codes per image of {tokenizer.image_size} pixels, "
        f"{bits_per_image(tokenizer):,.0f} bits"
    )
    weights = "EMA weights" if tokenizer.provenance.is_average else "raw weights"
    step = tokenizer.provenance.stamp.get("step")
    return f"{text}; {weights}{f' of step {step:,}' if isinstance(step, int) else ''}."


def notes_of(subject: Subject, positions: Sequence[int]) -> list[str]:
    """What the page cannot show of a subject, or shows in part, each with its reason."""
    return [*_token_notes(subject, positions), *_codebook_notes(subject), *_sample_notes(subject)]


def _token_notes(subject: Subject, positions: Sequence[int]) -> Iterator[str]:
    tokenizer = subject.tokenizer
    if tokenizer.token_grid is None:
        yield (
            "The tokens are a sequence without places in the image: they are a strip below it. The bar in a token "
            "shows how much replacing it changes the image."
        )

    # Replaced tokens.
    if not positions:
        yield "No token is replaced: the counted images use a single token, so that there is no other one."
    elif len(positions) < tokenizer.num_tokens:
        yield f"{len(positions)} of {tokenizer.num_tokens} tokens can be replaced, evenly spread (--tokens)."
    if "noise" in tokenizer.capabilities:
        yield (
            "The decoder adds noise that depends on all codes of an image: a replaced token changes the noise "
            "everywhere, so that its influence is not local."
        )


def _codebook_notes(subject: Subject) -> Iterator[str]:
    # What a map means.
    tokenizer = subject.tokenizer
    quantizer = tokenizer.quantizer
    if not any(True for _ in quantizer.parameters()):
        yield (
            "The quantizer has no learned code vectors: the map shows the fixed ones that its indices stand for. No "
            "direction of the map means more than another."
        )
    if quantizer.num_groups > 1:
        yield (
            f"A token has {quantizer.num_groups} indices, each with a map of its own, on which the other indices are "
            "0. A token is replaced as a whole."
        )

    # What is left out of it.
    if quantizer.codebook_size > points_per_map(quantizer):
        yield f"The map shows the most used of {quantizer.codebook_size:,} codes: all of them are too many for a page."
    if tokenizer.token_grid is None:
        yield "There are no patches of codes, because tokens have no place in the image."
    elif quantizer.num_groups > MAX_GROUPS_WITH_PATCHES:
        yield f"Patches are shown for the codes of the first {MAX_GROUPS_WITH_PATCHES} indices of a token."


def _sample_notes(subject: Subject) -> Iterator[str]:
    if subject.place.note:
        yield subject.place.note
    elif subject.generator is None:
        yield "There are no samples, because no generator was named (--gpt-ckpt)."
