"""Quantizers: latents (B,N,D) -> quantized latents and indices. They import the engine only."""
