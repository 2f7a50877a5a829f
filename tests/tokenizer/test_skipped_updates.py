"""A step whose gradients are not finite leaves no trace: in no weight, average, moment, statistic or window."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import mini
import pytest
import small_networks
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_leaves_with_path

from engine.buffers import BufferSnapshot, buffer_places
from engine.loop import seed_step
from engine.optim import OptimConfig
from engine.trained_model import TrainedModel
from engine.validation import Section
from tokenizer.discriminators.registry import DISCRIMINATORS
from tokenizer.models.registry import QUANTIZERS
from tokenizer.quantizers.base import Quantized, Quantizer
from tokenizer.quantizers.fsq import FSQ
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig
from tokenizer.training.build import build_task
from tokenizer.training.task import TokenizerTask

SOURCE = mini.image_source(40)


@dataclass(kw_only=True, slots=True)
class AveragedConfig(Section):
    """It has no options."""


class Averaged(Quantizer):
    """A plug-in whose codebook is an exponential average of the latents, in buffers that `forward` changes in place."""

    config_class = AveragedConfig
    loss_names = frozenset({"commitment"})

    def __init__(self, config: AveragedConfig) -> None:
        super().__init__((8,), 4)
        self.register_buffer("codebook", torch.randn(8, 4))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        indices = torch.cdist(z.float(), self.codebook.expand(len(z), -1, -1)).argmin(-1)
        z_q = self.codebook[indices]
        if self.training:
            self.remember(indices)
            self.codebook.lerp_(z.detach().flatten(0, 1).mean(0).expand(8, 4), 0.1)
            self.num_updates += 1
        return Quantized(z + (z_q - z).detach(), indices, {"commitment": (z - z_q).square().mean()})

    def decode_indices(self, indices: Tensor) -> Tensor:
        return self.codebook[indices.long()]


@pytest.fixture(scope="module", autouse=True)
def plugins():
    """Quantizers and discriminators of plug-ins beside those of the project."""
    before = dict(QUANTIZERS), dict(DISCRIMINATORS)
    QUANTIZERS["averaged"] = Averaged
    path = Path(__file__).parents[1] / "foreign" / "pooled_discriminator.py"
    spec = importlib.util.spec_from_file_location("pooled_of_this_test", path)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    yield
    for registry, content in zip((QUANTIZERS, DISCRIMINATORS), before, strict=True):
        registry.clear()
        registry.update(content)


# Small sections; a new quantizer or discriminator of the project must be entered here.
SECTIONS = {
    "vq": "{codebook_size: 16, codebook_dim: 4, warmup_steps: 2, init: kmeans}",
    "ibq": "{codebook_size: 16, codebook_dim: 4}",
    "simvq": "{codebook_size: 16, codebook_dim: 4}",
    "gq": "{num_groups: 2, group_dim: 2}",
    "fsq": "{levels: [3, 4]}",
    "rvq": "{levels: 2, codebook_size: 16, codebook_dim: 4, level_dropout: 0.5, warmup_steps: 2, init: kmeans}",
    "mcq": "{groups: 2, codebook_size: 16, codebook_dim: 2}",
    "multi_scale": small_networks.QUANTIZERS["multi_scale"],
    "averaged": "{}",
    "vq by averages": "{codebook_size: 16, codebook_dim: 4, update: ema, restart: random, decay: 0.6}",
    "vq with restarts": "{codebook_size: 16, codebook_dim: 4, restart: nearest}",
}
SLOW = pytest.mark.slow  # a ViT at 224 pixels
JUDGES = {"patchgan": "{base_channels: 4, num_layers: 2, norm: batch}", "dino": "{}", "pooled": "{}"}


def task_of(world, quantizer: str, judge: str) -> TokenizerTask:
    training = (
        f"loss.discriminator={{name: {judge}, {judge}: {JUDGES[judge]}, start_step: 1, lecam_weight: 0.1}}",
        "ema_decay=0.9",
        "optim.lr=1e-3",
        "assets.random_stand_in=true",
    )
    if quantizer in small_networks.OF_GRIDS:
        config = small_networks.tokenizer_config("var_vae", quantizer, *training)
    else:
        name = quantizer.split()[0]
        unused = [] if name == "vq" else ["model.quantizer.vq=null"]
        section = f"model.quantizer={{name: {name}, {name}: {SECTIONS[quantizer]}}}"
        config = mini.tokenizer_config(*unused, section, *training)
    return build_task(config, world, mini.SILENT, SOURCE, None)


def batch(seed: int) -> dict[str, Tensor]:
    pixels = torch.from_numpy(SOURCE.images)[4 * seed : 4 * seed + 4].permute(0, 3, 1, 2).contiguous()
    return {"images_u8": pixels, "skipped_images": torch.zeros(4), "random_bits": torch.arange(4) * 2**29}


def everything(task: TokenizerTask) -> dict[str, Tensor]:
    """The state of all parts but the counters of skips, and every buffer, as copies by name."""
    state = {name: part.state_dict() for name, part in task.parts().items()}
    tensors = {str(path): value for path, value in tree_leaves_with_path(state) if "counters" not in str(path)}
    for name, part in task.parts().items():
        networks = [part.module, part.ema] if isinstance(part, TrainedModel) else [part]
        for number, network in enumerate(networks):
            if network is not None:
                tensors |= {f"{name} {number} {key}": value for key, value in network.named_buffers()}
    return {name: value.clone() for name, value in tensors.items() if isinstance(value, Tensor)}


def train(task: TokenizerTask, step: int, poison: str | None = None) -> dict[str, Tensor]:
    """One step; `poison` makes one latent, or one pixel of a reconstruction, infinite."""
    network = task.tokenizer.module
    hooks: list = []
    if poison == "latent":
        value = torch.nan if isinstance(network.quantizer, FSQ) else torch.inf  # an infinite one is bounded there
        hooks.append(network.quantizer.register_forward_pre_hook(lambda module, args: (spoiled(args[0], value),)))
    elif poison == "pixel":
        hooks.append(network.decoder.register_forward_hook(lambda module, args, output: spoiled(output, torch.inf)))
    seed_step(0, 0, step)
    metrics = task.train_step([batch(step)], step)
    for hook in hooks:
        hook.remove()
    return metrics


def spoiled(values: Tensor, value: float) -> Tensor:
    """The values with one of them infinite or NaN; gradients pass."""
    added = torch.zeros_like(values)
    added[(0,) * values.ndim] = value
    return values + added


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_every_kind_of_the_project_is_tried():
    assert set(QUANTIZERS) - set(SECTIONS) <= {"lattice"} and set(DISCRIMINATORS) - set(JUDGES) == set()


@pytest.mark.parametrize("poison", ["latent", "pixel"])
@pytest.mark.parametrize(
    ("quantizer", "judge"),
    [
        *((name, "patchgan") for name in SECTIONS),
        *(pytest.param("gq", name, marks=SLOW if name == "dino" else ()) for name in JUDGES if name != "patchgan"),
    ],
)
def test_a_skipped_update_leaves_no_trace(world, quantizer, judge, poison):
    """State before = state after; and what follows is as if the bad step had never been."""
    task, clean = task_of(world, quantizer, judge), task_of(world, quantizer, judge)
    for each in (task, clean):
        train(each, 0)
    before = everything(task)
    metrics = train(task, 1, poison)
    assert metrics["skipped_steps"] == 1 and task.discriminator.skipped.total == 1
    assert differing(before, everything(task)) == []

    for each in (task, clean):
        for step in (2, 3):
            train(each, step)
    assert differing(everything(clean), everything(task)) == []
    assert all(value.isfinite().all() for value in everything(task).values())


def test_an_infinite_latent_in_a_warm_up_does_not_end_the_run(world):
    """Regression: it stayed in the window of k-means, whose codebook was NaN many steps later."""
    task = task_of(world, "vq", "patchgan")
    train(task, 0)
    train(task, 1, "latent")
    train(task, 2)
    assert task.tokenizer.module.quantizer.codebook.isfinite().all() and task.tokenizer.skipped.total == 1


def test_a_network_beside_gets_its_buffers_back_only_where_the_update_is_skipped(world):
    """A discriminator that runs in the tokenizer's step keeps what good steps leave in its batch norms."""
    network, judge = nn.Linear(3, 3), nn.BatchNorm1d(3)
    trained = TrainedModel(network, OptimConfig(), total_steps=9, world=world)
    for scale, has_changed in ((1.0, True), (torch.nan, False)):
        before = judge.running_mean.clone()
        for x in trained.micro_batches([torch.randn(4, 3), torch.randn(4, 3)], beside=[judge]):
            (judge(network(x)).square().mean() * scale).backward()
        trained.step(0, {})
        assert torch.equal(judge.running_mean, before) != has_changed


def test_windows_are_put_back_without_a_copy():
    """A step keeps the old tensors of windows, such as the latents of k-means, instead of a clone of each."""
    quantizer = VectorQuantizer(VQConfig(codebook_size=4, codebook_dim=2, init="kmeans", warmup_steps=2))
    quantizer(torch.randn(1, 3, 2), quantize=False)
    names = ("recent_indices", "recent_latents")
    windows = {name: getattr(quantizer, name) for name in names}
    values = {name: window.clone() for name, window in windows.items()}
    with CountedMemory() as memory:
        snapshot = BufferSnapshot(buffer_places(quantizer))
    assert memory.elements == 0
    quantizer(torch.full((1, 3, 2), torch.nan), quantize=False)
    assert not quantizer.recent_latents.isfinite().all()
    snapshot.restore(torch.tensor(True))
    assert all(torch.equal(getattr(quantizer, name), values[name]) for name in names)

    snapshot = BufferSnapshot(buffer_places(quantizer))
    quantizer.recent_indices.zero_()
    with pytest.raises(RuntimeError, match=r"VectorQuantizer\.recent_indices is in replaced_buffers, but was written"):
        snapshot.restore(torch.tensor(True))


class CountedMemory(TorchDispatchMode):
    """Counts the elements of all tensors that operations return."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


@pytest.mark.parametrize("is_bad", [True, False])
def test_buffers_that_become_other_tensors_are_put_back(is_bad):
    """In place where the tensor is still one of that kind; a new shape, and a tensor where there was none, go back."""
    module = nn.Module()
    for name, value in {"same": torch.ones(3), "grown": torch.ones(2), "late": None, "count": torch.tensor(4)}.items():
        module.register_buffer(name, value)
    snapshot = BufferSnapshot(buffer_places(module))
    module.same.fill_(torch.nan)
    module.grown, module.late, module.count = torch.zeros(5), torch.zeros(1), torch.tensor(5)
    same = module.same
    snapshot.restore(torch.tensor(is_bad))
    assert module.same is same and module.count == (4 if is_bad else 5)
    assert same.isnan().all() != is_bad and len(module.grown) == (2 if is_bad else 5)
    assert (module.late is None) == is_bad
