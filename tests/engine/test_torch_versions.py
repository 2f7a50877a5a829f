"""engine/torch_versions.py; scripts/check_versions.sh runs the tests of the strategies with the versions themselves."""

import torch
from ranks import aside, on_ranks
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils._pytree import tree_leaves, tree_map

from engine.torch_versions import average_gradients_on_cpu, show_dataclasses_to_fsdp
from tokenizer.models.base import TokenizerOutput
from tokenizer.quantizers.base import Quantized


class Returns(nn.Module):
    """Returns what it is given."""

    def forward(self, value):
        return value


@aside
def test_tensors_in_nested_dataclasses_are_found():
    """As FSDP2 of older versions looks for them; what it puts back has the same classes and values."""
    tensors = [torch.full((1,), float(i)) for i in range(6)]
    quantized = Quantized(tensors[1], tensors[2], {"commitment": tensors[3]})
    output = TokenizerOutput(tensors[0], quantized, tensors[4], tensors[5])
    assert tree_leaves(output) == [output], "it is known already; this test shows nothing"

    module = Returns()
    show_dataclasses_to_fsdp(module)
    assert module(output) is output
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    assert leaves == tensors
    doubled = tree_map(lambda leaf: leaf if leaf is None else 2 * leaf, output)
    assert isinstance(doubled, TokenizerOutput) and isinstance(doubled.quantized, Quantized)
    assert doubled.quantized.losses["commitment"].item() == 6.0 and doubled.semantic_features is None


def gradient_is_the_average(world) -> None:
    """A weight of ones, and inputs whose average over two processes is 3."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    fully_shard(layer)
    assert isinstance(layer, FSDPModule)
    average_gradients_on_cpu(layer, world.device)
    layer(torch.full((1, 2), 2.0 + 2 * world.rank)).sum().backward()
    assert torch.equal(layer.weight.grad.full_tensor(), torch.full((1, 2), 3.0))


def test_sharded_gradients_are_averaged_not_summed(tmp_path):
    """gloo of PyTorch 2.7 and 2.8 returns the sum where FSDP2 asks for the average."""
    on_ranks(2, tmp_path, gradient_is_the_average)
