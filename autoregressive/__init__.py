"""Image generation over codes. Public face: `from autoregressive import GPT, generate, load_gpt`.

Networks     models/ (generators, their heads and layers; random orders and masks of tokens)
Sampling     guidance, passes (of masked generators), bit_drawing (of generators of bits), drawing_order (of the cells),
             sampling (logits -> index), labels (names of classes), generate (labels -> tokens), image_sampler (labels
             -> images), sampling_weights (layout of the weights)
Training     views (crops that become codes), codes, code_writer (store of codes), tokenized (images as tokens, made
             when they are asked for), training/ (config, data, build, task)
Files        loading (trained generators), published, published_layout, published_adaln, published_rar, published_var
             (layouts of published files), published_samplers (settings of their authors), exporting/ (for programs)
Entries      extract_codes, check_codes, train, sample, convert, export; cli holds the flags that entries share
"""

# At once and not on demand: importing the submodule of this name later would put it in the place of the function.
from autoregressive.generate import generate

# The contract of all generators, under the name by which people know them.
from autoregressive.models.base import Generator as GPT

__all__ = ["GPT", "generate", "load_gpt"]


def __getattr__(name: str):
    """Imports what loading needs only when it is asked for."""
    if name == "load_gpt":
        from autoregressive.loading import load_gpt

        return load_gpt
    raise AttributeError(f"module 'autoregressive' has no attribute {name!r}")
