"""A page to explore trained tokenizers by hand: tokens, codebook, samples, curves."""
