"""VQGAN's names (arXiv:2012.09841) for encoder and decoder, which the files of several families share."""

from __future__ import annotations

from tokenizer.published.layout import Rule


def level_rules(levels: int, name: str, published_name: str) -> list[Rule]:
    """A rule per level of a decoder; both names have a `{level}`.

    The published decoder counts its `levels` from the finest, ours runs from the coarsest.
    """
    return [
        Rule(name.format(level=levels - 1 - level), published_name.format(level=level), "same")
        for level in range(levels)
    ]


def cnn_rules(levels: int) -> tuple[Rule, ...]:
    """The names of a CNN with `levels` levels that all of these families share."""
    return (
        *level_rules(levels, r"decoder\.conv_blocks\.{level}\.res\.(.*)", r"decoder.up.{level}.block.\1"),
        *level_rules(levels, r"decoder\.conv_blocks\.{level}\.upsample\.(.*)", r"decoder.up.{level}.upsample.\1"),
        Rule(r"encoder\.conv_blocks\.(\d+)\.res\.(.*)", r"encoder.down.\1.block.\2", "same"),
        Rule(r"(encoder|decoder)\.((?:conv|norm)_(?:in|out)\..*)", r"\1.\2", "same"),
        Rule(r"quantizer\.recent_.*", "", "unpublished"),
    )


def attention_cnn_rules(levels: int) -> tuple[Rule, ...]:
    """All names of a CNN with attention, and with VQGAN's downsampling and middle."""
    return (
        *cnn_rules(levels),
        *level_rules(levels, r"decoder\.conv_blocks\.{level}\.attn\.(.*)", r"decoder.up.{level}.attn.\1"),
        Rule(r"encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..*)", r"encoder.down.\1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.0\.(.*)", r"\1.mid.block_1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.1\.(.*)", r"\1.mid.attn_1.\2", "same"),
        Rule(r"(encoder|decoder)\.mid\.2\.(.*)", r"\1.mid.block_2.\2", "same"),
    )
