"""Crash-safe checkpoints.

manifest         which files a checkpoint folder holds, and whether they are whole
weights          weights as safetensors: find, read, load strictly, export
near_sources     what may be meant by the name of weights that are not there
store            the checkpoints of one run: save, resume, prune
training_state   its training state, in the format of torch.distributed.checkpoint
"""
