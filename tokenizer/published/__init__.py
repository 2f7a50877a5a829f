"""Files of the published tokenizers: reading, writing, and one module per family for its names."""
