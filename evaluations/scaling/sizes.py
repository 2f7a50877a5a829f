"""What tokenizers are compared by beside their metrics: parameters, tokens, steps, images and compute.

A size is read from the weights that a result names, without loading them: from the headers of their files and from the
config beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from omegaconf import OmegaConf

from engine.checkpoint.manifest import STEP_NAME
from engine.checkpoint.weights import num_parameters
from engine.config import read_yaml
from engine.messages import UserError
from engine.shipped_models import PREFIX
from evaluations.run_layout import RunLayout
from evaluations.scaling.readings import Point
from evaluations.workload import workloads_of
from tokenizer.loading import survey_tokenizer
from tokenizer.models.base import Tokenizer

CONFIG = "config.yaml"
BATCH = "data.global_batch_size"
STAMP = "stamp"  # the fact that tells weights from others that lie under the same path later


class SizedTokenizer:
    """The weights of a point, looked at once. Every property raises UserError where it is not known."""

    def __init__(self, point: Point) -> None:
        self.point = point

    @cached_property
    def place(self) -> str:
        """Where the weights lie now: where a result says, or in the run that the result was found in."""
        named = str(self.point.facts.get("path", ""))
        if named.startswith(PREFIX) or (named and Path(named).exists()):
            return named
        step = PurePath(named).name
        if STEP_NAME.fullmatch(step):
            for folder in self.point.folders:
                for run in (folder, RunLayout(folder).tokenizer):
                    if (run / "checkpoints" / step).is_dir():
                        return str(run / "checkpoints" / step)
        raise UserError(f"its weights are not at {named or 'any path that its results name'}")

    @cached_property
    def network(self) -> Tokenizer:
        """The network without storage; that of other weights under the same path is refused."""
        network = survey_tokenizer(self.place)
        stamp = self.point.facts.get(STAMP)
        if stamp is not None and network.provenance.facts()[STAMP] != stamp:
            raise UserError(f"{self.place} holds other weights than those that were measured")
        return network

    @property
    def config(self) -> Path:
        """The config of its training, beside its weights."""
        config = Path(self.place) / CONFIG
        if self.point.step is None or not config.is_file():
            raise UserError(f"{self.place} is no checkpoint of a training")
        if PurePath(self.place).parent.parent.name.startswith("phase_"):
            raise UserError("its training has phases, which are not added up")
        return config

    # ------------------------------------------------------------------------------------------------ sizes
    def parameters(self) -> float:
        """Parameters of the whole tokenizer, its codebook included."""
        return num_parameters(self.network)

    def tokens(self) -> float:
        """Tokens of one image; of a tokenizer of flexible length, as many as its results were measured with."""
        whole = self.network.num_tokens
        protocols = [measured.result["protocol"] for measured in self.point.results]
        # Of samples the sampler tells it, where they have not all.
        counts = {(protocol.get("sampler") or protocol).get("num_tokens") or whole for protocol in protocols}
        if len(counts) > 1:
            raise UserError(f"its results are of images of {' and '.join(map(str, sorted(counts)))} tokens")
        return min(counts, default=whole)

    def codes(self) -> str:
        """What an image becomes, in words: `16 tokens of 256 codes`, `64 tokens of 8 x 256 codes`."""
        sizes = self.network.quantizer.group_sizes
        groups = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 < len(sizes) else " x ".join(map(str, sizes))
        return f"{self.network.num_tokens} tokens of {groups} codes"

    def steps(self) -> float:
        """Updates that were finished."""
        if self.point.step is None:
            raise UserError(f"{self.place} is no checkpoint of a training")
        return self.point.step

    def images(self) -> float:
        """Images seen in training, those of several epochs counted each time."""
        batch = OmegaConf.select(read_yaml(self.config), BATCH)
        if not isinstance(batch, int):
            raise UserError(f"{self.config} does not say {BATCH}")
        return self.steps() * batch

    def compute(self) -> float:
        """Floating point operations of the training until this checkpoint, counted as in `engine.flops`."""
        workload, *others = workloads_of([self.config], [], gpus=1)
        if others:
            raise UserError("its training has phases, which are not added up")
        left = int(self.steps())
        operations = 0
        for stage in workload.stages:
            steps = min(stage.steps, left)
            operations += steps * workload.batch * sum(part.flops for part in stage.parts)
            left -= steps
        return operations


@dataclass(frozen=True)
class Size:
    """A size by its name on the command line."""

    title: str
    read: Callable[[SizedTokenizer], float]
    names_checkpoints: bool = False  # whether it grows along one training
    log_ratio: float = 2.5  # of the largest to the smallest, above which its axis is logarithmic


SIZES = {
    "parameters": Size("tokenizer parameters", SizedTokenizer.parameters),
    "tokens": Size("tokens per image", SizedTokenizer.tokens),
    "steps": Size("training steps", SizedTokenizer.steps, names_checkpoints=True, log_ratio=100),
    "images": Size("images seen in training", SizedTokenizer.images, names_checkpoints=True, log_ratio=100),
    "compute": Size("training FLOPs", SizedTokenizer.compute, names_checkpoints=True),
}
