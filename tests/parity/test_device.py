"""PARITY_DEVICE=cuda runs the parity tests on a GPU: networks, inputs and outputs are then all there."""

import gigatok_tokenizers
import goldens
import gpts
import llamagen_tokenizers
import pytest
import test_wetok_gpt
import wetok_tokenizers
from fake_gpu import CUDA, fake_gpu, require_on
from ranks import aside
from torch._subclasses.fake_tensor import unset_fake_temporarily

from autoregressive.generate import generate
from autoregressive.sampling import greedy


@aside
def test_every_small_network_runs_where_it_is_told(monkeypatch):
    """On a GPU that is not there; the cases that hold no golden of their part are none."""
    monkeypatch.setattr(goldens, "DEVICE", CUDA)
    load_file = goldens.load_file

    def load_real(path):
        with unset_fake_temporarily():
            return load_file(path)

    monkeypatch.setattr(goldens, "load_file", load_real)
    test_wetok_gpt.gpt_of.cache_clear()  # of this process alone: its networks may be on the CPU
    with fake_gpu():
        for builders in (gigatok_tokenizers, llamagen_tokenizers):
            for case in builders.tiny_cases():
                require_on(CUDA, builders.tiny_outputs.__wrapped__(case).tensors)
        for folder, case in gpts.tiny_cases()[:2]:
            require_on(CUDA, gpts.tiny_outputs.__wrapped__(folder, case))
            io = goldens.tensors(folder, case)
            require_on(CUDA, generate(gpts.tiny_gpt(folder, case), io["cond"], draw=greedy))
        for case in test_wetok_gpt.CASES:
            require_on(CUDA, test_wetok_gpt.gpt_of(case)(*_batch(case)))
        for case in wetok_tokenizers.tiny_cases():
            require_on(CUDA, wetok_tokenizers.tiny_tokenizer(case)(goldens.tensors(wetok_tokenizers.TINY, case)["x"]))


def _batch(case: str) -> tuple:
    """Labels and tokens of a case of WeTok's GPT."""
    return goldens.tensors(test_wetok_gpt.TINY, case)["class"].flatten(), test_wetok_gpt.tokens_of(case)


def test_a_difference_on_another_device_is_still_one():
    with pytest.raises(AssertionError, match="differ"):
        goldens.assert_equal(goldens.torch.zeros(2), goldens.torch.ones(2), "two tensors")
