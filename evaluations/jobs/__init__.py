"""The evaluations behind the entries: each opens and checks everything, measures, writes its result."""
