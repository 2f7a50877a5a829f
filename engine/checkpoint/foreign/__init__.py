"""Reads checkpoint files of other programs, whoever wrote them, without running anything in them.

`torch.load(weights_only=True)` is not used. It takes the memory that a file claims, builds every tensor of a file
before one can be chosen (those of optimizers too), and refuses a whole file for one number of NumPy beside the weights.
Reading the few instructions of a pickle as data does none of this, and needs no second way for the files that torch
refuses. Where both read a file, they read the same: tests compare them.

containers   what a file is, by its content; where its bytes lie
unpickler    the stack machine that reads pickles
inert        what a pickle stands for: descriptions, plain containers, inert objects
tensors      descriptions of stored tensors, and the tensors themselves
wrappers     names without the prefixes of compilation, data parallelism and trainers
weight_sets  which sets of weights a file holds: raw ones and averages
unnamed      averages that a file holds as a list
reader       all of it together: `read_checkpoint`
"""
