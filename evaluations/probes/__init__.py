"""Linear probing and principal components of inner features."""
