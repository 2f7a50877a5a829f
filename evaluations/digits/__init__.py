"""A small classifier of digits, which checks generated classes in the quick start."""
