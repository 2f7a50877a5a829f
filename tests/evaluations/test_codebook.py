"""evaluations/metrics/code_usage.py: how a set of images uses the codebook."""

import mini
import pytest
import torch

from evaluations.metrics import code_usage as codebook
from evaluations.metrics.code_usage import CodeUsage, not_counted, usage_metrics
from tokenizer.quantizers.gq import GQConfig, GroupLFQ


@pytest.mark.parametrize("least", [1, 2**20])
def test_counts_and_distinct_tokens_are_those_of_all_batches(least, monkeypatch):
    """Over uneven batches and two ranks, however rarely the tokens seen so far are sorted."""
    monkeypatch.setattr(codebook, "MIN_PENDING", least)
    quantizer = GroupLFQ(GQConfig(num_groups=3, group_dim=2))
    indices = torch.randint(0, 4, (37, 5, 3), generator=torch.Generator().manual_seed(0))
    indices[..., 2] = 1

    def work(world):
        usage = CodeUsage(quantizer)
        for batch in indices[world.rank :: 2].split(4):
            usage.update(batch)
        return usage.merged(world)

    rows = indices.reshape(-1, 3)
    for counts, distinct in mini.on_ranks(2, work):
        assert distinct == len(rows.unique(dim=0))
        assert torch.equal(counts, torch.stack([torch.bincount(c, minlength=4) for c in rows.T]).double())
        assert usage_metrics(counts, distinct, (4, 4, 4))["codebook_usage_group_2"] == 0.25


def test_what_is_too_large_to_count_is_said():
    """A group of more than 2^24 codes, and tokens of more than 64 bits, have a reason instead of a number."""
    assert not_counted((256,) * 8) == {}
    assert not_counted((2**25,)).keys() == {"codebook_usage"}
    assert not_counted((256,) * 9).keys() == {"distinct_codes"}
    assert "more than 64 bits" in not_counted((256,) * 9)["distinct_codes"]
