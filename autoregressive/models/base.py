"""The contract of all generators: networks that learn the tokens of images, given a class, and draw new ones.

Shapes    labels (B,) int64 in [0, num_classes]; the last one is the null class, which stands for "no class"
          tokens (B, *token_shape) int64: (B,N), or (B,N,k) where a token has k indices
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.bit_drawing import BitDrawing
from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.passes import Passes
from autoregressive.sampling import Draw, PerIndex
from engine.data.classes import Classes
from engine.flops import PartFlops
from engine.messages import ConfigError, UserError
from engine.pretrained import PretrainedNetwork


@dataclass(frozen=True)
class DataSizes:
    """What the codes that a generator is trained on decide of its shape."""

    codebook_sizes: tuple[int, ...]  # one entry per index of a token
    num_tokens: int  # tokens per image
    num_classes: int

    def single_codebook_size(self) -> int:
        """The number of codes, for a generator of one index per token. Raises ConfigError for several."""
        if len(self.codebook_sizes) > 1:
            raise ConfigError(f"this generator is for one index per token; the codes have {list(self.codebook_sizes)}")
        return self.codebook_sizes[0]


class Generator(PretrainedNetwork):
    """Base class of all generators.

    A generator is a class in a file of its own, entered in `autoregressive.models.registry.GENERATORS` (or registered
    by a plug-in). It is built as `Class(section)`, where `section` is an instance of its `config_class`. It must set
    `num_classes`, `num_tokens`, `codebook_sizes` and `num_layers`, and define `forward`, `loss`, `sample` and
    `features`. Everything else has a default.

    Who calls what, and when:

        start             `completed(section, sizes)`: sizes that the section leaves open become those of the codes
        training          `loss(forward(labels, tokens, drop), tokens)`; `drop` is true for about `class_dropout_prob`
                          of the labels, decided by the data stream, so that a resumed run repeats it. The network is in
                          training mode, under autocast for `forward`, and may be sharded. Random choices of its own
                          come from the data stream too: `training_choices`, `training_inputs`, `loss_groups`
        validation        the same in evaluation mode without `drop`, with the raw and the EMA weights: one pass for
                          each entry of `held_out_inputs(tokens)`, whose losses are averaged
        validation loss   likewise, `image_losses(forward(labels, tokens), tokens)`: one number per image
        sampling          `sample`, in evaluation mode; also for the preview grids of a training
        linear probe      `features(null labels, tokens, layer)`
        all entries       the sizes, to refuse codes of another tokenizer before any work is done

    A block with `parallel_unit = "shard"` is sharded, compiled and recomputed as one (see `engine.parallel`).
    """

    config_class: ClassVar[type]  # the dataclass of its section `model.<name>`
    in_words: ClassVar[str] = ""  # what kind of network it is, for a page; without it the page has the name alone
    forward_methods = ("sample",)  # called from outside beside `forward`, also while the network is sharded

    num_classes: int
    num_tokens: int  # tokens per image
    codebook_sizes: tuple[int, ...]  # one entry per index of a token
    num_layers: int  # layers whose `features` can be read
    class_dropout_prob: float = 0.0  # training: fraction of labels that the data stream replaces by the null class
    codes_in_words: str = ""  # whose codes it is for, in a message about others, where the sizes do not tell it
    published_size: str | None = None  # name of a published size; published defaults of the sampler depend on it
    weight_facts: Mapping[str, Any] = {}  # what a result says about weights that are not the trained ones as they are
    any_order: bool = False  # `sample` takes an `order`
    stops_early: bool = False  # `sample` takes `num_tokens`
    in_passes: bool = False  # `sample` takes `passes` and `numbers`
    draws_bits: bool = False  # `sample` takes `bits` and `numbers`
    takes_numbers: bool = False  # `sample` takes `numbers` without passes
    held_out_loss: ClassVar[str] = "loss"  # its name in records (val/loss) and results; another kind has another name
    held_out_facts: Mapping[str, Any] = {}  # what such a loss says in a result, beside "nats per token"
    record_steps: bool = False  # on a GPU, `sample` may record CUDA graphs: the weights stay where they are from now on

    # ------------------------------------------------------------------------------------------------ its files
    @classmethod
    def _load(
        cls, source: str | Path, *, config: str | Path | Any, weights: str, device: torch.device | str
    ) -> Generator:
        from autoregressive.loading import load_gpt

        return load_gpt(source, config=config, weights=weights, device=device)

    # ------------------------------------------------------------------------------------------------ its sizes
    @classmethod
    def completed(cls, section: Any, sizes: DataSizes) -> Any:
        """The section of a generator that is to be trained on codes of these sizes, with what it leaves open filled in.

        The default leaves it as it is, for a generator whose section always says its sizes.
        """
        return section

    def with_unconditional(self, labels: Tensor, is_guided: bool) -> Tensor:
        """The classes (B,) of a batch that is sampled; with guidance (2B,), the null class for each behind them."""
        return torch.cat([labels, torch.full_like(labels, self.null_class)]) if is_guided else labels

    def adopt_codes(self, quantizer: nn.Module) -> None:
        """Takes over from the tokenizer's quantizer what the network needs to know of its codes; by default nothing.

        Called before a training, and where a loaded generator is used with its tokenizer.
        Raises ConfigError where the quantizer does not fit.
        """

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of one image's tokens: (N,), or (N,k) where a token has k indices."""
        indices = len(self.codebook_sizes)
        return (self.num_tokens,) if indices == 1 else (self.num_tokens, indices)

    @property
    def num_draws(self) -> int:
        """How many random numbers `sample` draws per image."""
        return math.prod(self.token_shape)

    def num_draws_in(self, passes: Passes | None) -> int:
        """`num_draws` where an image is drawn in `passes`; None = as the generator does by itself."""
        return self.num_draws

    def num_draws_of_bits(self, bits: BitDrawing) -> int:
        """`num_draws` where bits are drawn so, for a generator that `draws_bits`."""
        raise NotImplementedError

    def completed_bits(self, bits: BitDrawing | None) -> BitDrawing:
        """How `sample` draws bits, with what `bits` leaves open as the generator does by itself.

        For a generator that `draws_bits`. Raises ConfigError where the steps do not fit a token.
        """
        raise NotImplementedError

    def completed_passes(self, passes: Passes | None) -> Passes:
        """The passes in which `sample` draws, with what `passes` leaves open.

        For a generator `in_passes` alone. Raises ConfigError where they do not fit an image.
        """
        raise NotImplementedError

    @property
    def passes_per_image(self) -> int:
        """How often an image goes through the layers while it is drawn, without guidance: once per token.

        Passes of the head alone, as for the indices of a token, do not count.
        """
        return self.num_tokens

    @property
    def null_class(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    @property
    def classes(self) -> Classes:
        """The classes that it was trained on, by label; unknown names where nothing says them.

        Raises UserError where the weights name another number of classes than the network has.
        """
        if self.provenance is None:
            return Classes.unknown(self.num_classes, "the generator")
        owner = f"the generator {self.provenance.path}"
        classes = Classes.from_stamp(self.provenance.stamp, self.num_classes, owner)
        if len(classes) != self.num_classes:
            raise UserError(f"{owner} has {self.num_classes} classes, but its stamp names {len(classes)}")
        return classes

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters."""
        return next(self.parameters()).dtype

    def layout_layers(self) -> list[nn.Linear]:
        """The layers whose weights `--weight-layout` may lay out for sampling: nothing but their forward reads them.

        The default is none, and then only plain weights are accepted.
        """
        return []

    # ------------------------------------------------------------------------------------------------ the network
    def forward(self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None) -> Any:
        """A training pass. Rows where `drop` (B,) bool is true lose their class.

        Returns what `loss` and `image_losses` take, such as logits of all tokens.
        """
        raise NotImplementedError

    def loss(self, outputs: Any, tokens: Tensor) -> Tensor:
        """The scalar that is trained on, from the outputs of `forward`: nats per token, mean over the batch."""
        raise NotImplementedError

    def image_losses(self, outputs: Any, tokens: Tensor) -> Tensor:
        """The loss of each image (B,), in nats per token.

        The default is for outputs that are one tensor with the batch in front.
        """
        rows = zip(outputs, tokens, strict=True)
        return torch.stack([self.loss(image_outputs[None], image_tokens[None]) for image_outputs, image_tokens in rows])

    def held_out_inputs(self, tokens: Tensor) -> Sequence[Mapping[str, Any]]:
        """Further arguments of `forward` for each pass over held-out images, from their tokens (B, *token_shape).

        The default is one pass without any. What is drawn at random depends on the tokens of each image alone.
        """
        return ({},)

    def sample_losses(self, outputs: Any, tokens: Tensor) -> Tensor:
        """As `image_losses`, up to rounding, for what each step of a training logs (`loss_groups`)."""
        return self.image_losses(outputs, tokens)

    def training_choices(self) -> Callable[[np.random.Generator], dict[str, Tensor]] | None:
        """What draws the random choices of one training sample, beside its crop and the loss of its class.

        It gets the random numbers of the sample, which depend on (seed, position) alone, and returns tensors of fixed
        shapes; they are stacked into the batch under their names. It may be copied to other processes: it must not hold
        the network. None, the default, where nothing is left to chance.
        """
        return None

    def training_inputs(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Any]:
        """Further arguments of `forward` in training, from the choices in `batch`.

        `progress` in [0, 1) is the finished fraction of the run.
        """
        return {}

    def loss_groups(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Groups of samples, (B,) bool by name, whose mean loss a run also logs, as `loss_<name>`."""
        return {}

    def training_flops(self) -> tuple[PartFlops, ...] | None:
        """What `forward` and its backward pass compute for one image, by part (see `engine.flops`).

        None, the default, where the network does not count it: its training then shows no rate of operations.
        """
        return None

    def sample(
        self,
        labels: Tensor,
        *,
        draw: Draw,
        guidance: Guidance = UNGUIDED,
        temperature: PerIndex[float] = 1.0,
        top_k: PerIndex[int] = 0,
        top_p: PerIndex[float] = 1.0,
    ) -> Tensor:
        """New tokens (B, *token_shape) for class `labels` (B,), in evaluation mode.

        `draw(p, position)` picks an index for each row of the probabilities p (B,V); `position` counts the draws of an
        image from 0 to `num_draws` - 1. All random numbers come from it, so that a sample does not depend on its batch.
        Settings may be given once or per index of a token. Raises ConfigError if there is another number of them.

        A generator with `any_order` also takes `order` (N,): the cells in the order in which they are drawn. One that
        `stops_early` takes `num_tokens`: it draws the first n tokens (B,n) or (B,n,k) of what it would draw. One
        `in_passes` takes `passes`; it and one with `takes_numbers` take `numbers(first, count)`, the random numbers
        (B,count) of draws that are not of an index; None = there are none. One that `draws_bits` takes
        `bits`, complete.
        """
        raise NotImplementedError

    def features(self, labels: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """Hidden states (B,N,C) after layer number `layer`, from 1 to `num_layers`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ to be exported
    def functional_step(self) -> nn.Module | None:
        """One step of sampling as a module that keeps nothing between calls; None, the default, where there is none.

            (labels (B,), tokens (B,) or (B,k), position (1,), keys, values) -> (outputs, new keys, new values)

        It reads the label at position 0, and later the token of the position before; a network whose layers the class
        modulates reads the label at every position. `outputs` are logits (B,V); where a token has k > 1 indices they
        are hidden states (B,C), for `functional_head`. `empty_cache(rows)` of the module gives the first keys and
        values, whose second dimension is the batch.
        """
        return None

    def functional_pass(self) -> nn.Module | None:
        """One pass over all tokens as a module; None, the default, for a generator that is not `in_passes`.

            (labels (B,), tokens (B, *token_shape)) -> logits (B,N,V), or (B,N,k,V) where a token has k > 1 indices

        The number of codes of an index, in the place of a code, says that it is masked.
        """
        return None

    def functional_head(self) -> nn.Module | None:
        """Hidden states of a position -> logits of the k indices of its token; None where k is 1.

            (hidden (B,C), indices (B,k)) -> logits (B,k,V)

        Logits of an index depend on the indices before it alone.
        """
        return None
