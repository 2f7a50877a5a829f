"""The step of a training: against a plain loop around the same networks, and what it does beside its networks.

The plain loop is the one that everybody writes: torch's AdamW as it comes, a guard that asks the host in every step
whether the gradient is finite, averages after it, and the usage of the codebook counted in every step.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.models.registry import build_generator
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.task import GeneratorTask
from engine.config import load_config
from engine.data.images import to_float
from engine.data.packaged import ArraySource
from engine.data.samples import training_item
from engine.data.stream import stream_opener
from engine.loop import Batch
from engine.optim import OptimConfig
from engine.schedules import learning_rate
from engine.trained_model import TrainedModel
from engine.world import World
from evaluations.benchmarks.cases import OURS, Case, Measurable, Reading, Target
from evaluations.benchmarks.training_pass import least_work, training_config
from evaluations.doctor.recipes import CONFIGS
from tokenizer.losses.terms import weighted_sum
from tokenizer.models.registry import build_tokenizer
from tokenizer.training import task as task_module
from tokenizer.training.checks import network_on_meta, terms_of
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.frozen_networks import FrozenNetworks
from tokenizer.training.task import TokenizerTask

PLAIN = "plain loop"
STEPS = {"quick": 4, "default": 8, "long": 16}  # of one repetition
RECIPE = "quickstart/tokenizer.yaml"
DIGIT_PIXELS = 28  # side of the images that the quick start reads
NUM_DIGITS = 256


def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The quick start's tokenizer and its GPT."""
    steps = STEPS[size]
    yield _tokenizer_case(steps, device)
    yield _outside_reading(steps, device)
    yield _gpt_case(steps, device)


# ------------------------------------------------------------------------------------------------ the plain loop
class PlainUpdate:
    """The update of a plain loop, with clipping and averaged weights."""

    def __init__(self, network: nn.Module, config: OptimConfig, total_steps: int, ema_decay: float) -> None:
        self.network = network
        self.config = config
        self.total_steps = total_steps
        self.ema_decay = ema_decay
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        decays = [p for p in network.parameters() if p.ndim >= 2 or config.decay_params == "all"]
        others = [p for p in network.parameters() if p.ndim < 2 and config.decay_params != "all"]
        groups = [{"params": decays}, {"params": others, "weight_decay": 0.0}]
        options = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, **options)

    def step(self, step: int) -> None:
        """One update from the gradients that backward left."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.config)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if torch.isfinite(norm).item():
            self.optimizer.step()
            self._average()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _average(self) -> None:
        """ema = decay * ema + (1 - decay) * weights; buffers are copied."""
        for averaged, current in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            averaged.lerp_(current, 1 - self.ema_decay)
        for averaged, current in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(current)


def plain_usage(indices: Tensor, codes: int) -> dict[str, Tensor]:
    """Usage and perplexity of a codebook by recent indices, of which negative ones are not counted."""
    p = torch.bincount(indices[indices >= 0], minlength=codes).double()
    p = p / p.sum()
    used = p[p > 0]
    return {
        "codebook_usage": (p > 0).double().mean(),
        "codebook_perplexity": torch.exp(-(used * used.log()).sum()),
    }


# ------------------------------------------------------------------------------------------------ the tokenizer
def tokenizer_task(config: TokenizerTrainConfig, device: torch.device, network: nn.Module) -> TokenizerTask:
    """The task of the quick start's tokenizer, which needs no other network, on a copy of `network`."""
    world = World(0, 1, 0, device)
    options = {"total_steps": config.loop.steps, "world": world, "ema_decay": config.ema_decay}
    trained = TrainedModel(copy.deepcopy(network), config.optim, **options)
    terms = terms_of(config, network_on_meta(config))
    return TokenizerTask(trained, None, FrozenNetworks(), terms, world=world, precision="fp32", validation=None)


def quickstart_tokenizer() -> tuple[TokenizerTrainConfig, nn.Module]:
    """Its config, and a network with random weights. Its codebook begins as it is, because k-means needs a warm-up."""
    vq = "model.quantizer.vq={warmup_steps: 0, init: random}"
    config = training_config(RECIPE, [vq])
    torch.manual_seed(0)
    return config, build_tokenizer(config.model, config.data.image_size)


def plain_tokenizer_steps(
    task: TokenizerTask, update: PlainUpdate, batches: Iterator[Batch], first: int, steps: int
) -> dict[str, Tensor]:
    """Steps of the plain loop on the network of `update`; `task` computes the loss. Returns the last usage."""
    usage: dict[str, Tensor] = {}
    quantizer = update.network.quantizer
    for step in range(first, first + steps):
        batch = next(batches)
        network = update.network.train()
        images = to_float(batch["images_u8"])
        output = network(images, **task.requested_outputs(step))
        values = task.term_values(output, images, step)
        weighted_sum(task.terms, values, step).backward()
        update.step(step)
        usage = plain_usage(quantizer.recent_indices, quantizer.codebook_size)
    return usage


def our_steps(task: Any, batches: Iterator[Batch], first: int, steps: int) -> None:
    """Steps as the loop of the project does them, without a record."""
    for step in range(first, first + steps):
        task.train_step([next(batches)], step)


def digits(config: TokenizerTrainConfig, device: torch.device) -> Callable[[], Iterator[Batch]]:
    """Opens the stream of a training on random images of the quick start's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_DIGITS, DIGIT_PIXELS, DIGIT_PIXELS, 3), dtype=np.uint8)
    source = ArraySource("random", pixels, np.arange(NUM_DIGITS) % 10, [str(digit) for digit in range(10)])
    item = training_item(source, config.data, config.loop.seed)
    opener = stream_opener(item, len(source), config.data, config.loop, World(0, 1, 0, device))
    return lambda: opener(0)


def _tokenizer_case(steps: int, device: torch.device) -> Case:
    """Steps after the shortcut has ended."""
    # The same network in both loops, and the same images.
    config, network = quickstart_tokenizer()
    task = tokenizer_task(config, device, network)
    update = PlainUpdate(copy.deepcopy(network).to(device), config.optim, config.loop.steps, config.ema_decay)
    open_stream = digits(config, device)
    ours, theirs = open_stream(), open_stream()

    first = config.loss.shortcut.end_step
    images = steps * config.data.global_batch_size
    return Case(
        f"training step of the quick start's tokenizer, {steps} steps",
        {
            OURS: lambda: our_steps(task, ours, first, steps),
            PLAIN: lambda: plain_tokenizer_steps(task, update, theirs, first, steps),
        },
        against=PLAIN,
        least_work=least_work(task.work(first), images),
    )


# ------------------------------------------------------------------------------------------------ beside the networks
class Stopwatch:
    """The seconds inside of calls that are watched."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def watching(self, owner: Any, name: str) -> Iterator[None]:
        """Adds the time of every call of `owner.name` until the end."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        had_own = name in vars(owner)
        setattr(owner, name, timed)
        try:
            yield
        finally:
            if had_own:
                setattr(owner, name, function)
            else:
                delattr(owner, name)


def share_outside(task: TokenizerTask, batches: Iterator[Batch], first: int, steps: int) -> float:
    """The share of the time of steps that is not forward, loss, backward or optimizer: data, metrics, bookkeeping.

    The optimizer is clipping, update, averages and the guard against gradients that are not finite.
    """
    # The calls that are the networks' and the optimizer's work.
    watch = Stopwatch()
    inside = [
        (task.tokenizer.wrapped, "forward"),
        (task, "term_values"),
        (task_module, "weighted_sum"),
        (torch.Tensor, "backward"),
        (task.tokenizer, "step"),
    ]

    # The rest of the time is outside.
    with ExitStack() as stack:
        for owner, name in inside:
            stack.enter_context(watch.watching(owner, name))
        start = time.perf_counter()
        our_steps(task, batches, first, steps)
        total = time.perf_counter() - start
    return 1 - watch.seconds / total


def _outside_reading(steps: int, device: torch.device) -> Reading:
    """On a GPU the time of a call is that of its launch, so the share is one of the host's time."""
    config, network = quickstart_tokenizer()
    task = tokenizer_task(config, device, network)
    batches = digits(config, device)()
    first = config.loss.shortcut.end_step
    our_steps(task, batches, first, 1)
    return Reading(
        "share of the quick start's step outside of forward, loss, backward and optimizer",
        "share",
        lambda: share_outside(task, batches, first, steps),
        target=Target("at most", 0.05),
    )


# ------------------------------------------------------------------------------------------------ the generator
def plain_gpt_steps(task: GeneratorTask, update: PlainUpdate, batch: Batch, first: int, steps: int) -> None:
    """Steps of the plain loop on the network of `update`."""
    for step in range(first, first + steps):
        network = update.network.train()
        outputs = network(batch["labels"], batch["tokens"], batch["drop"])
        network.loss(outputs, batch["tokens"]).backward()
        update.step(step)


def gpt_forms(steps: int, device: torch.device) -> tuple[GeneratorTask, PlainUpdate, Batch]:
    """The quick start's GPT in a task, the same in a plain loop, and a batch of random codes."""
    config = load_config(GPTTrainConfig, [CONFIGS / "quickstart/gpt.yaml"])
    torch.manual_seed(0)
    network = build_generator(config.model)
    world = World(0, 1, 0, device)
    options = {"total_steps": config.loop.steps, "world": world, "ema_decay": config.ema_decay}
    trained = TrainedModel(copy.deepcopy(network), config.optim, **options)
    none = {"validation": None, "num_validation": 0, "batch_size": 1}
    task = GeneratorTask(trained, name="generator", world=world, precision="fp32", **none)
    update = PlainUpdate(network.to(device), config.optim, config.loop.steps, config.ema_decay)

    generator = torch.Generator().manual_seed(0)
    sizes = getattr(config.model, config.model.name)
    count = config.data.global_batch_size
    tokens = torch.randint(sizes.vocab_size, (count, sizes.num_tokens), generator=generator)
    labels = torch.randint(sizes.num_classes, (count,), generator=generator)
    drop = torch.rand(count, generator=generator) < 0.1
    batch = {"tokens": tokens, "labels": labels, "drop": drop}
    return task, update, {name: tensor.to(device) for name, tensor in batch.items()}


def _gpt_case(steps: int, device: torch.device) -> Case:
    task, update, batch = gpt_forms(steps, device)
    return Case(
        f"training step of the quick start's GPT, {steps} steps",
        {
            OURS: lambda: our_steps(task, repeat(batch), 0, steps),
            PLAIN: lambda: plain_gpt_steps(task, update, batch, 0, steps),
        },
        against=PLAIN,
        least_work=least_work(task.work(0), steps * len(batch["labels"])),
    )
