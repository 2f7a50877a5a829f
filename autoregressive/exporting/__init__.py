"""Parts of trained networks as files for other programs.

parts (what a part is), tokenizer_parts, generator_parts, formats (the files), verification (against the network)
"""
