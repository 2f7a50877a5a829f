"""How fast and how small: each part against the plain formulation of the same work, and against the machine's limits.

A case (`evaluations.benchmarks.cases`) names forms of the same work. They run in turns in one process, so that a busy
machine slows all of them alike; what counts is their ratio. The plain formulations are also the oracles of the tests.
"""
