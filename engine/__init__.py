"""The ground floor: configuration, processes, optimization, checkpoints, data. Imports nothing of ours."""
