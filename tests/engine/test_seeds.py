"""Every seed of 64 bits is a stream of its own; seeds below 2^63 give the numbers that they always gave."""

import numpy as np
import pytest
import torch

from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings
from autoregressive.sampling import seeded_draw
from engine.data.stream import position_rng
from engine.loop import LoopConfig, seed_step
from engine.messages import ConfigError
from engine.seeds import counter_rng, torch_seed
from evaluations.sample_stream import labels_of
from tokenizer.models.generative_decoder import evaluation_noise
from tokenizer.models.wetok import WeTokConfig

LARGE = [2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
SEEDS = [0, 1, *LARGE]
UNIFORM = torch.full((1, 1000), 1e-3)


def numpy_before(seed: int, key: int, number: int) -> np.random.Generator:
    """The generator as it was built when a seed above 2^63 was no valid one."""
    return np.random.Generator(np.random.Philox(key=[seed, key], counter=[0, 0, 0, number]))


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32, 2**63 - 1])
def test_small_seeds_keep_their_numbers(seed):
    assert np.array_equal(counter_rng(seed, 0xD1CE, 9).random(5), numpy_before(seed, 0xD1CE, 9).random(5))
    assert np.array_equal(position_rng(seed, 4).random(5), numpy_before(seed, 0x5EED, 4).random(5))


def test_training_with_a_seed_below_32_bits_keeps_its_numbers():
    for seed in (0, 3, 2**32 - 1):
        assert torch_seed(seed) == seed
    seed_step(3, rank=1, step=7)
    drawn = torch.rand(3)
    torch.manual_seed((3 * 1_000_003 + 7) * 4_099 + 1)
    assert torch.equal(drawn, torch.rand(3))


def drop(seed: int) -> tuple:
    seed_step(seed, rank=0, step=5)
    return tuple(torch.rand(4).tolist())


STREAMS = {
    "samples": lambda seed: tuple(seeded_draw(seed, torch.tensor([3]), 8)(UNIFORM, t).item() for t in range(8)),
    "labels": lambda seed: tuple(labels_of("random", 16, 1000, seed).tolist()),
    "augmentation": lambda seed: tuple(position_rng(seed, 2).random(4)),
    "dropout": drop,
    "noise": lambda seed: tuple(evaluation_noise(torch.ones(1, 2, 1, 2), seed).flatten().tolist()),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_every_seed_is_a_stream_of_its_own(stream):
    """Regressions: all seeds from 2^63 on gave the same samples, and torch ignored all bits above the 32nd."""
    values = [STREAMS[stream](seed) for seed in SEEDS]
    assert len(set(values)) == len(SEEDS)
    assert values == [STREAMS[stream](seed) for seed in SEEDS]


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_other_seeds_are_refused(seed):
    for refuse in (
        lambda: seeded_draw(seed, torch.tensor([0]), 1),
        lambda: SamplerSettings(Guidance(), seed=seed),
        lambda: LoopConfig(seed=seed),
        lambda: WeTokConfig(noise_seed=seed),
    ):
        with pytest.raises(ConfigError, match=rf"seed={seed} must be in 0\.\.18446744073709551615 \(64 bits\)"):
            refuse()


@pytest.mark.parametrize("seed", [1.5, True, "1", None])
def test_what_is_no_whole_number_is_no_seed(seed):
    """It is not cut to the seed next to it, whose samples it would give."""
    with pytest.raises(ConfigError, match=r"seed=.* must be a whole number"):
        seeded_draw(seed, torch.arange(2), 4)
