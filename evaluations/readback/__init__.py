"""text_readback: how much of drawn text can still be read after a tokenizer, as judged by a small network.

It needs no download: pictures are drawn (`engine.data.text_pictures`), and the reader is trained on others of them. It
is an offline stand-in for benchmarks of text in photographs, and its numbers are not theirs.
"""
