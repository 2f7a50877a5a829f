"""Names of GigaTok's published tokenizers (1D and 2D hybrids)."""

from __future__ import annotations

from tokenizer.published.layout import CNN, CODE_PATH, Rule


def _hybrid(encoder: str, decoder: str) -> tuple[Rule, ...]:
    """GigaTok's names, with those of the two transformers of a layout."""
    return (
        (r"query_encoder\.positional_embedding", f"{encoder}.positional_embedding", "table"),
        (r"query_encoder\.latent_positional_embedding", f"{encoder}.latent_token_positional_embedding", "table"),
        (r"query_encoder\.embed\.(.*)", rf"{encoder}.encoder_embed.\1", "same"),
        (r"query_encoder\.out_proj\.weight", f"{encoder}.conv_out.weight", "conv1x1"),
        (r"query_encoder\.out_proj\.bias", f"{encoder}.conv_out.bias", "same"),
        (r"query_encoder\.(.*)", rf"{encoder}.\1", "same"),
        (r"query_decoder\.positional_embedding", f"{decoder}.positional_embedding", "table"),
        (r"query_decoder\.latent_positional_embedding", f"{decoder}.latent_token_positional_embedding", "table"),
        (r"query_decoder\.embed\.(.*)", rf"{decoder}.decoder_embed.\1", "same"),
        (r"query_decoder\.semantic_head\.(.*)", rf"{decoder}.distill_mlp.\1", "same"),
        (r"query_decoder\.(.*)", rf"{decoder}.\1", "same"),
        *CODE_PATH,
        CNN,
    )


SEMANTIC_HEADS = ("s1to2decoder.distill_mlp.4.weight", "s2ddecoder.distill_mlp.4.weight")  # rows = width of the teacher


HYBRID_1D = _hybrid("s2to1encoder", "s1to2decoder")


HYBRID_2D = _hybrid("s2dencoder", "s2ddecoder")
