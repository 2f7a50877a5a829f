"""evaluations/metrics/code_usage.py: how a set of images uses the codebook."""

import mini
import pytest
import torch

from evaluations.metrics import code_usage as codebook
from evaluations.metrics.code_usage import CodeUsage, not_counted, scale_metrics, usage_metrics
from tokenizer.quantizers.gq import GQConfig, GroupLFQ
from tokenizer.quantizers.multi_scale import MultiScaleConfig, MultiScaleVQ
from tokenizer.quantizers.usage import usage_by_scale


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


def test_scales_are_counted_each():
    """Of 1 + 4 tokens; on two ranks as on one, and in the names of the metrics."""
    quantizer = MultiScaleVQ(MultiScaleConfig(scales=[1, 2], codebook_size=8, codebook_dim=4))
    indices = torch.randint(0, 8, (9, 5), generator=torch.Generator().manual_seed(0))
    indices[:, 0] = torch.tensor([3, 5, 3]).repeat(3)

    def work(world):
        usage = CodeUsage(quantizer)
        for batch in indices[world.rank :: 2].split(2):
            usage.update(batch)
        return usage.merged_scales(world)

    expected = torch.stack([torch.bincount(part.flatten(), minlength=8) for part in (indices[:, :1], indices[:, 1:])])
    for counts in mini.on_ranks(2, work):
        assert torch.equal(counts, expected.double())
        metrics = scale_metrics(counts, quantizer.scales)
        assert metrics["codebook_usage_scale_1"] == 0.25 and metrics.keys() == usage_by_scale(indices, 8, [1, 2]).keys()
        assert metrics["codebook_usage_scale_2"] == usage_by_scale(indices, 8, [1, 2])["codebook_usage_scale_2"]
    assert CodeUsage(GroupLFQ(GQConfig(num_groups=3, group_dim=2))).scale_counts.numel() == 0


def test_what_is_too_large_to_count_is_said():
    """A group of more than 2^24 codes, and tokens of more than 64 bits, have a reason instead of a number."""
    assert not_counted((256,) * 8) == {}
    assert not_counted((2**25,)).keys() == {"codebook_usage"}
    assert not_counted((256,) * 9).keys() == {"distinct_codes"}
    assert "more than 64 bits" in not_counted((256,) * 9)["distinct_codes"]
