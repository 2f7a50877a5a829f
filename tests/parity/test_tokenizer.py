"""The tokenizers of GigaTok and LlamaGen give the released numbers: tiny ones in every stage, full-size ones on seeded
weights.
"""

import re

import gigatok_tokenizers
import goldens
import llamagen_tokenizers
import pytest
import torch
import torch.nn.functional as F

from engine.data.images import to_float
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_rules

SYSTEMS = {"gigatok": gigatok_tokenizers, "llamagen": llamagen_tokenizers}
ELSEWHERE = ("image_u8", "sem_feat", "train_direct_dec")  # ends of inputs, and of what the training test compares
TINY = [(s, c) for s, builders in SYSTEMS.items() for c in builders.tiny_cases()]
FULL = [(s, c) for s, builders in SYSTEMS.items() for c in builders.full_cases()]
TINY_TENSORS = [(s, c, n) for s, c in TINY for n in goldens.names(f"{s}/tiny", c) if not n.endswith(ELSEWHERE)]
FULL_TENSORS = [(s, c, n) for s, c in FULL for n in goldens.names(f"{s}/real_seeded", c)]
VARIANTS = [(s, c, v) for s, c in TINY for v in goldens.meta(f"{s}/tiny", c).get("train", {})]


@pytest.mark.parametrize(("system", "case", "name"), TINY_TENSORS)
def test_tiny_tokenizer_output_is_that_of_the_released_code(system, case, name):
    """Every stage in evaluation mode, from the CNN's features to 8-bit pixels; LlamaGen's also on oblong images."""
    actual, io = SYSTEMS[system].tiny_outputs(case).tensors, goldens.tensors(f"{system}/tiny", case)
    what = f"{system} {case} {name}"
    if io[name].dtype == torch.uint8:
        decoded = f"{name.removesuffix('rec_u8_nhwc')}rec_from_decode_code"
        return goldens.assert_pixels(actual[decoded], io[name], what, io.get(decoded))
    return goldens.assert_tensor(actual[name], io[name], name, what)


@pytest.mark.parametrize(("system", "case"), TINY)
def test_tiny_tokenizer_counts_and_statistics(system, case):
    """Parameters, codes in use and statistics of the whole image are those of the released model."""
    facts = SYSTEMS[system].tiny_outputs(case).facts
    goldens.assert_facts(facts, goldens.meta(f"{system}/tiny", case), f"{system} {case}")


@pytest.mark.parametrize(("system", "case"), TINY)
def test_export_gives_the_published_state_dict_back(system, case):
    """Published weights that were imported leave again under the same names, in the same shapes, with equal values."""
    builders = SYSTEMS[system]
    exported = export_state(builders.tiny_tokenizer(case).state_dict(), layout_rules(builders.tiny_config(case)))
    goldens.assert_same_state(exported, builders.tiny_weights(case))


@pytest.mark.parametrize(("system", "case", "variant"), VARIANTS)
def test_one_training_pass_has_the_released_losses_and_gradients(system, case, variant):
    """Every loss term, their sum, the gradient norm of every parameter, and codebook usage after one and two passes.

    Variants of GigaTok: rot{0,1}_ent{weight}; `_noaux` is without the two shortcut terms, `_noinner` without the
    semantic term. Of LlamaGen, which has neither: ent{weight}.
    """
    meta, io, builders = goldens.meta(f"{system}/tiny", case), goldens.tensors(f"{system}/tiny", case), SYSTEMS[system]
    expected, options, what = meta["train"][variant], meta["init_args"], f"{system} {case} {variant}"
    rotation, weight = re.fullmatch(r"(?:rot([01])_)?ent([\d.]+)(?:_noaux|_noinner)*", variant).groups()
    rotation, entropy_weight, hybrid = rotation == "1", float(weight), system == "gigatok"
    shortcut, semantic = hybrid and "_noaux" not in variant, hybrid and "_noinner" not in variant
    tokenizer = builders.tiny_tokenizer(case, rotation).train()
    images = to_float(io["image_u8"])

    output = tokenizer(images, entropy=entropy_weight > 0, shortcut=shortcut, semantic=semantic)
    losses = output.quantized.losses
    terms = {
        "rec_mse": F.mse_loss(output.reconstructions, images),
        "vq_loss": losses["codebook"],
        "commit_loss": options["commit_loss_beta"] * losses["commitment"],
        "entropy_loss": torch.zeros(()),
    }
    if entropy_weight:
        terms["entropy_loss"] = entropy_weight * (losses["sample_entropy"] - losses["codebook_entropy"])
    if shortcut:
        terms["direct_rec_mse"] = F.mse_loss(output.shortcut_reconstructions, images)
        features = F.mse_loss(output.decoder_features, output.encoder_features.detach())
        terms["fea_rec_loss"] = options["fea_rec_loss_weight"] * features
    if semantic:
        terms["proj_loss"] = -F.cosine_similarity(output.semantic_features, io["sem_feat"], dim=-1).mean()
    total = sum(terms.values()) - (0.5 * terms["proj_loss"] if semantic else 0)  # its weight is 0.5
    total.backward()

    for name, value in {**terms, "total_loss": total}.items():
        goldens.assert_loss(value, expected[name], f"{what} {name}")
    if shortcut and "train_direct_dec" in io:
        goldens.assert_image(output.shortcut_reconstructions, io["train_direct_dec"], f"{what} train_direct_dec")
    rules = layout_rules(builders.tiny_config(case))
    goldens.assert_gradient_norms(tokenizer, rules, expected["grad_norms"], what)
    usage = [tokenizer.quantizer.usage()["codebook_usage"].item()]
    with torch.no_grad():
        tokenizer(images.flip(-1))
    usage.append(tokenizer.quantizer.usage()["codebook_usage"].item())
    assert usage == [value for name, value in sorted(expected.items()) if name.startswith("codebook_usage_step")]


@pytest.mark.parametrize(("system", "case", "name"), FULL_TENSORS)
def test_full_size_tokenizer_output_is_that_of_the_released_code(system, case, name):
    """A published configuration at its full size: names, shapes, heads and group sizes as released."""
    actual, expected = SYSTEMS[system].full_outputs(case).tensors, goldens.tensors(f"{system}/real_seeded", case)[name]
    what, tensor = f"{system} {case} {name}", actual[name.removesuffix("_strided")]
    if expected.dtype == torch.uint8:
        return goldens.assert_pixels(tensor, expected, what)
    if name.endswith("_strided"):
        tensor = goldens.strided(
            tensor, expected, goldens.meta(f"{system}/real_seeded", case).get("feature_stride", "")
        )
    return goldens.assert_tensor(tensor, expected, name, what)


@pytest.mark.parametrize(("system", "case"), FULL)
def test_full_size_tokenizer_counts(system, case):
    """The published number of parameters, the same input image and codes in use, and the spread of the stages."""
    meta = goldens.meta(f"{system}/real_seeded", case)
    facts = SYSTEMS[system].full_outputs(case).facts
    goldens.assert_facts(facts, {**meta, **meta.get("std", {})}, f"{system} {case}")
