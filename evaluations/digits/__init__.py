"""A small classifier of digits, which checks whether generated images show their class."""
