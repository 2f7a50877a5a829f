"""Image data: sources, decoding, crops, samples, and their order."""
