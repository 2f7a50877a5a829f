"""One step or pass of sampling of a generator, to be exported: its caller draws the tokens and holds the cache.

Shapes    labels int64 (B,)      a token int64 (B,), or (B,k) where it has k indices      position int64 (1,)
          keys and values float32 (layers,B,heads,N,channels)      logits float32 (B,V) or (B,k,V)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoregressive.exporting.parts import BATCHES, Comparison, Part, Port, Run, Tensors, random_codes
from autoregressive.models.base import Generator
from engine.messages import UserError

MAX_POSITIONS = 32  # tokens that a file is compared on, from the first one
MASKED_SHARE = 0.5  # of the indices that a pass is compared on


class GeneratorPart(Part):
    """A part of a generator, with tokens to compare it on."""

    of_what: ClassVar[str]  # what the part is, for a message

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.has_several_indices = len(generator.codebook_sizes) > 1

    def sequences(self, rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labels (rows,), the null class among them, and tokens (rows,N) or (rows,N,k)."""
        network = self.generator
        labels = torch.randint(network.num_classes + 1, (rows,), generator=random)
        return labels, random_codes(network.codebook_sizes, rows, network.num_tokens, random)


def parts_of(generator: Generator) -> dict[str, nn.Module]:
    """The parts that a generator has: {name: what computes it}."""
    modules = {
        StepPart.name: generator.functional_step(),
        HeadPart.name: generator.functional_head(),
        PassPart.name: generator.functional_pass(),
    }
    return {name: module for name, module in modules.items() if module is not None}


def module_of(name: str, generator: Generator) -> nn.Module:
    """What computes the part `name` of a generator.

    Raises UserError, which names the parts that the generator has, where this is none of them.
    """
    parts = parts_of(generator)
    if name in parts:
        return parts[name]

    # What there is instead.
    accepted = f"it has {' and '.join(f'--part {part}' for part in parts)}"
    if not parts:
        accepted = "no part of it can be exported; --part encode and --part decode of its tokenizer can"
    path, kind = generator.provenance.path, type(generator).__name__
    of_what = GENERATOR_PARTS[name].of_what

    # Who writes a generator must know what makes a part of it.
    method = f"functional_{name}"
    is_undefined = getattr(type(generator), method) is getattr(Generator, method)
    reason = f" (its class defines no {method})" if is_undefined and not parts else ""
    raise UserError(f"--part {name} is {of_what}, and the generator {path} ({kind}) has none{reason}: {accepted}")


class StepPart(GeneratorPart):
    """See the module docstring."""

    name = "step"
    of_what = "a decode step with a cache, which gives what a code is drawn from"

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        self.module = module_of(self.name, generator)

        # The inputs: the cache goes in and comes out.
        cache = "float32 (layers,batch,heads,tokens,channels), what the step before gave; zeros at first"
        token = "int64 (batch,k)" if self.has_several_indices else "int64 (batch,)"
        self.inputs = (
            Port("labels", f"int64 (batch,), class of the image, {generator.null_class} for none; always the same"),
            Port("tokens", f"{token}, the token of the position before; read at later positions"),
            Port("position", "int64 (1,), from 0", batch_dim=None),
            Port("keys", cache, batch_dim=1),
            Port("values", cache, batch_dim=1),
        )

        # The outputs: what to draw the token from, or what another part makes that of.
        logits = Port("logits", "float32 (batch,codes) of the token at this position")
        hidden = Port("hidden", "float32 (batch,channels), for --part head")
        self.outputs = (
            hidden if self.has_several_indices else logits,
            Port("new_keys", "the keys for the next step", batch_dim=1),
            Port("new_values", "the values for the next step", batch_dim=1),
        )

    def example(self, rows: int) -> Tensors:
        labels, tokens = self.sequences(rows, torch.Generator().manual_seed(0))
        return labels, tokens[:, 0], torch.tensor([1]), *self.module.empty_cache(rows)

    def compare(self, run: Run) -> Iterator[Comparison]:
        """Decodes given tokens one after the other. The oracle is the network's pass over all of them at once."""
        random = torch.Generator().manual_seed(0)
        first_output = self.outputs[0].name
        for rows in BATCHES:
            labels, tokens = self.sequences(rows, random)
            oracle = self._all_at_once(labels, tokens)
            cache = file_cache = self.module.empty_cache(rows)

            for position in range(min(self.generator.num_tokens, MAX_POSITIONS)):
                token = tokens[:, max(position - 1, 0)]
                where = torch.tensor([position])
                expected, *cache = self.module(labels, token, where, *cache)
                output, *file_cache = run(labels, token, where, *file_cache)
                values = {
                    first_output: (expected, output),
                    "keys": (cache[0], file_cache[0]),
                    "values": (cache[1], file_cache[1]),
                }
                yield Comparison(rows, values, oracle={first_output: (oracle[:, position], output)})

    def _all_at_once(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B,N,V) of all tokens, or hidden states (B,N,C) where a token has several indices."""
        if self.has_several_indices:
            return self.generator.features(labels, tokens, self.generator.num_layers)
        return self.generator(labels, tokens)


class HeadPart(GeneratorPart):
    """See the module docstring."""

    name = "head"
    of_what = "the head for tokens of several indices"
    outputs = (Port("logits", "float32 (batch,k,codes); of an index with fewer codes -inf beyond them"),)

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        self.module = module_of(self.name, generator)

        # What it takes.
        self.inputs = (
            Port("hidden", "float32 (batch,channels), what --part step gives"),
            Port("indices", "int64 (batch,k); logits of an index depend on those before it alone"),
        )

    def example(self, rows: int) -> Tensors:
        labels, tokens = self.sequences(rows, torch.Generator().manual_seed(0))
        hidden = self.generator.features(labels, tokens, self.generator.num_layers)
        return hidden[:, 0].contiguous(), tokens[:, 0]

    def compare(self, run: Run) -> Iterator[Comparison]:
        """On hidden states of the network. The oracle is its pass over all tokens at once."""
        random = torch.Generator().manual_seed(0)
        for rows in BATCHES:
            labels, tokens = self.sequences(rows, random)
            hidden = self.generator.features(labels, tokens, self.generator.num_layers)
            oracle = self.generator(labels, tokens)
            for position in range(min(self.generator.num_tokens, MAX_POSITIONS)):
                inputs = hidden[:, position].contiguous(), tokens[:, position].contiguous()
                (logits,) = run(*inputs)
                values = {"logits": (self.module(*inputs), logits)}
                yield Comparison(rows, values, oracle={"logits": (oracle[:, position], logits)})


class PassPart(GeneratorPart):
    """One pass of a masked generator over all tokens; nothing is kept between passes."""

    name = "pass"
    of_what = "the pass of a masked generator over all tokens"

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        self.module = module_of(self.name, generator)
        shape, logits = ("(batch,tokens,k)", "k,codes") if self.has_several_indices else ("(batch,tokens)", "codes")
        self.inputs = (
            Port("labels", f"int64 (batch,), class of the image, {generator.null_class} for none"),
            Port("tokens", f"int64 {shape}; masked: {' / '.join(map(str, generator.codebook_sizes))}"),
        )
        self.outputs = (Port("logits", f"float32 (batch,tokens,{logits}); of an index with fewer codes -inf beyond"),)

    def example(self, rows: int) -> Tensors:
        return self._masked_sequences(rows, torch.Generator().manual_seed(0))

    def _masked_sequences(self, rows: int, random: torch.Generator) -> Tensors:
        """Labels and tokens, about half of which are masked."""
        labels, tokens = self.sequences(rows, random)
        sizes = torch.tensor(self.generator.codebook_sizes)
        is_masked = torch.rand(tokens.shape, generator=random) < MASKED_SHARE
        return labels, torch.where(is_masked, sizes if self.has_several_indices else sizes[0], tokens)

    def compare(self, run: Run) -> Iterator[Comparison]:
        """On masks of random places."""
        random = torch.Generator().manual_seed(0)
        for rows in BATCHES:
            inputs = self._masked_sequences(rows, random)
            (logits,) = run(*inputs)
            yield Comparison(rows, {"logits": (self.module(*inputs), logits)})


GENERATOR_PARTS: dict[str, type[GeneratorPart]] = {part.name: part for part in (StepPart, HeadPart, PassPart)}
