"""Linear probes and principal components of inner features."""
