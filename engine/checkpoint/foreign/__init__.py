"""Reads checkpoint files of other programs, whoever wrote them, without running anything in them.

containers   what a file is, by its content; where its bytes lie
unpickler    the stack machine that reads pickles
inert        what a pickle stands for: descriptions, plain containers, inert objects
tensors      descriptions of stored tensors, and the tensors themselves
wrappers     names without the prefixes of compilation, data parallelism and trainers
weight_sets  which sets of weights a file holds: raw ones and averages
reader       all of it together: `read_checkpoint`
"""
