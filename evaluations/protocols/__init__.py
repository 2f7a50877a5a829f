"""How a published number is measured: crops, rounding, references."""
