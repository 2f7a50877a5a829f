"""GigaTok's tokenizers give the released numbers: tiny ones in every stage, full-size ones on seeded weights."""

import gigatok_tokenizers as gigatok
import goldens
import pytest
import torch
import torch.nn.functional as F
from gigatok_tokenizers import FULL, TINY

from engine.images import to_float, to_uint8
from tokenizer.released import export_state

INPUTS = {"image_u8", "sem_feat"}
OF_TRAINING = {"train_direct_dec"}  # compared in the training test
IMAGES = ("rec_from_decode_code", "rec_crop", "rec_row_mean")
TINY_TENSORS = [(c, n) for c in gigatok.tiny_cases() for n in goldens.names(TINY, c) if n not in INPUTS | OF_TRAINING]
FULL_TENSORS = [(c, n) for c in gigatok.full_cases() for n in goldens.names(FULL, c)]
VARIANTS = [(c, v) for c in gigatok.tiny_cases() for v in goldens.meta(TINY, c).get("train", {})]


def check(actual: torch.Tensor, expected: torch.Tensor, name: str, what: str) -> None:
    """Integers exactly, pictures and features within their tolerance."""
    if not expected.is_floating_point():
        goldens.assert_equal(actual, expected, what)
    elif name.startswith(IMAGES):
        goldens.assert_image(actual, expected, what)
    else:
        goldens.assert_close(actual, expected, what)


def check_facts(actual: dict[str, float], meta: dict, case: str) -> None:
    """Counts exactly, statistics within the tolerance of losses."""
    for name, value in actual.items():
        if name in meta and isinstance(value, int):
            assert value == meta[name], f"{case}: {name} {value} instead of {meta[name]}"
        elif name in meta:
            goldens.assert_loss(value, meta[name], f"{case}: {name}")


@pytest.mark.parametrize(("case", "name"), TINY_TENSORS)
def test_tiny_tokenizer_output_is_that_of_the_released_code(case, name):
    """Every stage in evaluation mode, from the CNN's features to 8-bit pixels."""
    actual, io = gigatok.tiny_outputs(case).tensors, goldens.tensors(TINY, case)
    if name != "rec_u8_nhwc":
        return check(actual[name], io[name], name, f"{case} {name}")
    image = actual["rec_from_decode_code"].permute(0, 2, 3, 1)
    low, high = to_uint8(image - goldens.IMAGE), to_uint8(image + goldens.IMAGE)
    assert ((low <= io[name]) & (io[name] <= high)).all(), "a pixel differs by more than the tolerance of images"
    exact = to_uint8(io["rec_from_decode_code"]).permute(0, 2, 3, 1)
    return goldens.assert_equal(exact, io[name], f"{case} {name} of the released float image")


@pytest.mark.parametrize("case", gigatok.tiny_cases())
def test_tiny_tokenizer_counts_and_statistics(case):
    """Parameters, codes in use and statistics of the whole image are those of the released model."""
    check_facts(gigatok.tiny_outputs(case).facts, goldens.meta(TINY, case), case)


@pytest.mark.parametrize("case", gigatok.tiny_cases())
def test_export_gives_the_published_state_dict_back(case):
    """Published weights that were imported leave again under the same names, in the same shapes, with equal values."""
    published = gigatok.tiny_weights(case)
    exported = export_state(
        gigatok.tiny_tokenizer(case).state_dict(), gigatok.RULES[gigatok.tiny_config(case).hybrid.layout]
    )
    assert exported.keys() == published.keys()
    for name, tensor in published.items():
        assert exported[name].dtype == tensor.dtype and torch.equal(exported[name], tensor), name


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_one_training_pass_has_the_released_losses_and_gradients(case, variant):
    """Every loss term, their sum, the gradient norm of every parameter, and codebook usage after one and two passes.

    Variants: rot{0,1}_ent{weight}; `_noaux` is without the two shortcut terms, `_noinner` without the semantic term.
    """
    meta, io = goldens.meta(TINY, case), goldens.tensors(TINY, case)
    expected, options = meta["train"][variant], meta["init_args"]
    rotation, entropy_weight, *without = variant.split("_")
    rotation, entropy_weight = rotation == "rot1", float(entropy_weight.removeprefix("ent"))
    shortcut, semantic = "noaux" not in without, "noinner" not in without
    assert set(without) <= {"noaux", "noinner"}
    tokenizer = gigatok.tiny_tokenizer(case, rotation).train()
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
        goldens.assert_loss(value, expected[name], f"{case} {variant} {name}")
    if shortcut and "train_direct_dec" in io:
        direct = f"{case} {variant} train_direct_dec"
        goldens.assert_image(output.shortcut_reconstructions, io["train_direct_dec"], direct)
    rules = gigatok.RULES[gigatok.tiny_config(case).hybrid.layout]
    goldens.assert_gradient_norms(tokenizer, rules, expected["grad_norms"], f"{case} {variant}")
    usage = [tokenizer.quantizer.usage()["codebook_usage"].item()]
    with torch.no_grad():
        tokenizer(images.flip(-1))
    usage.append(tokenizer.quantizer.usage()["codebook_usage"].item())
    assert usage == [expected["codebook_usage_step1"], expected["codebook_usage_step2_flipped_input"]]


@pytest.mark.parametrize(("case", "name"), FULL_TENSORS)
def test_full_size_tokenizer_output_is_that_of_the_released_code(case, name):
    """A published configuration at its full size: names, shapes, heads and group sizes as released."""
    check(gigatok.full_outputs(case).tensors[name], goldens.tensors(FULL, case)[name], name, f"{case} {name}")


@pytest.mark.parametrize("case", gigatok.full_cases())
def test_full_size_tokenizer_counts(case):
    """The published number of parameters, and the same input image and codes in use as in the released run."""
    check_facts(gigatok.full_outputs(case).facts, goldens.meta(FULL, case), case)
