"""WeTok's quantizer and tokenizer give the released numbers, and those of the paper where it says otherwise."""

import re

import goldens
import pytest
import torch
import wetok_tokenizers as builders
from torch import Tensor

from tokenizer.models.cnn_blocks import depth_to_space
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.gq import GQConfig, GroupLFQ

TINY, TOLERANCE = builders.TINY, builders.TOLERANCE
QUANTIZERS = goldens.cases(TINY, "quantizer")
QUANTIZED = [(f, name) for f in QUANTIZERS for name in goldens.meta(TINY, f)["cases"]]
STREAMS = [(f, name) for f in QUANTIZERS for name in goldens.meta(TINY, f)["factorised"]]
TOKENIZERS = builders.tiny_cases()
MODULES = [(c, name) for c in TOKENIZERS for name in goldens.meta(TINY, c).get("activations_eval", {})]
GENERATIVE = [c for c in TOKENIZERS if "gd/noise" in goldens.names(TINY, c)]
SHUFFLED = [c for c in TOKENIZERS if "depth_to_space/x" in goldens.names(TINY, c)]


def image_sets(case: str) -> list[str]:
    """Prefixes of the images that a case holds with their latents: "" and those of other shapes, such as "odd/"."""
    names = goldens.names(TINY, case)
    prefixes = [name.removesuffix("x") for name in names if re.fullmatch(r"(.+/)?x", name)]
    return [prefix for prefix in prefixes if f"{prefix}latent" in names]


IMAGES = [(c, prefix) for c in TOKENIZERS for prefix in image_sets(c)]


def close(actual: Tensor | float, expected: Tensor | float, what: str, tolerance: float = TOLERANCE) -> None:
    """|actual - expected| <= tolerance."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    goldens._within(goldens._difference(actual, expected, what), tolerance, what)


def tokens(x: Tensor) -> Tensor:
    """(B,d,h,w) -> (B,h*w,d)."""
    return x.flatten(2).transpose(1, 2)


def scaled(file: str, name: str) -> tuple[Tensor, dict]:
    """The latents of a quantizer case as tokens, and its facts."""
    facts = goldens.meta(TINY, file)["cases"][name]
    x = goldens.tensors(TINY, file)[f"d{facts['D']}/x"]
    assert x.shape == (facts["B"], facts["D"], facts["H"], facts["W"])
    return (x * facts["scale"]).requires_grad_(), facts


@pytest.mark.parametrize(("file", "name"), QUANTIZED)
@pytest.mark.parametrize("form", ["factorized", "naive"])
def test_group_quantizer(file, name, form):
    """Signs and indices exactly; both entropies, their sum, commitment and gradient, pooled and per group."""
    x, facts = scaled(file, name)
    io, case = goldens.tensors(TINY, file), name.rsplit("/", 1)[0]
    groups, dim = facts["groups"], facts["group_dim"]
    config = {"num_groups": groups, "group_dim": dim, "entropy_form": form}
    out = GroupLFQ(GQConfig(**config)).train()(tokens(x), entropy=True)
    signs = builders.as_map(out.z_q, x)
    goldens.assert_equal(signs.to(torch.int8), io[f"{case}/quant"], f"{name} signs")
    goldens.assert_equal(out.indices.flatten().int(), io[f"{case}/indices"].int(), f"{name} indices")
    values = {
        "token_entropy": out.losses["sample_entropy"],
        "codebook_entropy": out.losses["codebook_entropy"],
        "aux_loss": out.losses["entropy"],
        "commit_loss": out.losses["commitment"],
    }
    for key, value in values.items():
        close(value.item(), facts[key], f"{name} {key}")
    (grad,) = torch.autograd.grad(0.1 * out.losses["entropy"] + 0.25 * out.losses["commitment"], x)
    norm = facts["grad_norm_of_0.1aux+0.25commit"]
    close(grad.norm().item(), norm, f"{name} gradient norm", 2e-3 * norm)
    if f"{name}/grad" in io:
        close(grad, io[f"{name}/grad"], f"{name} gradient", 2e-3 * io[f"{name}/grad"].abs().max().item())
    paper = GroupLFQ(GQConfig(**config, codebook_entropy="per_group")).train()(tokens(x), entropy=True).losses
    close(paper["sample_entropy"].item(), facts["paper_token_entropy_sum"], f"{name} Eq. 7")
    close(paper["codebook_entropy"].item(), facts["paper_codebook_entropy_sum"], f"{name} Eq. 9")


@pytest.mark.parametrize(("file", "name"), STREAMS)
def test_streams_of_the_second_stage(file, name):
    """The bits of a token cut into the streams of the GPT, and put together again."""
    facts, io = goldens.meta(TINY, file)["factorised"][name], goldens.tensors(TINY, file)
    x = tokens(io[f"{re.search(r'd[0-9]+', name)[0]}/x"])
    quantizer = GroupLFQ(
        GQConfig(num_groups=facts["groups"], group_dim=facts["group_dim"], index_bits=facts["factorized_bits"])
    ).eval()
    out = quantizer(x)
    for i in range(quantizer.num_groups):
        goldens.assert_equal(out.indices[..., i].int(), io[f"{name}/stream{i}"].int(), f"{name} stream {i}")
    assert torch.equal(quantizer.decode_indices(out.indices), out.z_q)


@pytest.mark.parametrize(("case", "prefix"), IMAGES)
def test_images_codes_and_images_again(case, prefix):
    """Latents, signs, indices and both reconstructions, also of images whose sides are no multiple of the factor."""
    io, tokenizer = goldens.tensors(TINY, case), builders.tiny_tokenizer(case)
    x = io[f"{prefix}x"]
    with torch.no_grad():
        latent = tokenizer.encoder(x)
        shape = tuple(latent.shape[2:])
        quantized = tokenizer.quantizer(tokens(latent))
        outputs = {
            "latent": latent,
            "quant": builders.as_map(quantized.z_q, latent),
            "indices": quantized.indices.flatten().int(),
            "recon": tokenizer.decode(quantized.z_q, shape),
            "recon_from_indices": tokenizer.decode_indices(quantized.indices, shape),
        }
        # The methods that users call give the same, for images that they accept.
        if not any(side % tokenizer.factor for side in x.shape[2:]):
            assert torch.equal(tokenizer.encode_features(x), latent)
            assert torch.equal(tokenizer.encode(x).indices, quantized.indices)
            assert torch.equal(tokenizer(x).reconstructions, outputs["recon"])
    for name in (name for name in outputs if f"{prefix}{name}" in io):
        expected = io[f"{prefix}{name}"]
        if name in ("quant", "indices"):
            goldens.assert_equal(outputs[name], expected.to(outputs[name].dtype), f"{case} {prefix}{name}")
        else:
            close(outputs[name], expected, f"{case} {prefix}{name}")


@pytest.mark.parametrize("case", SHUFFLED)
def test_depth_to_space(case):
    io = goldens.tensors(TINY, case)
    goldens.assert_equal(depth_to_space(io["depth_to_space/x"]), io["depth_to_space/y"], f"{case} depth to space")


@pytest.mark.parametrize(("case", "name"), MODULES)
def test_every_module_has_the_released_output(case, name):
    """Mean, deviation, norm and the first values of each module's output in evaluation."""
    expected = goldens.meta(TINY, case)["activations_eval"][name]
    out = builders.activations(builders.tiny_tokenizer(case), goldens.tensors(TINY, case)["x"])[name]
    head = torch.tensor(expected["head"])
    close(out.flatten()[: len(head)], head, f"{case} {name} head")
    for key, value in (("mean", out.mean()), ("std", out.std()), ("norm", out.norm())):
        close(value.item(), expected[key], f"{case} {name} {key}", TOLERANCE * max(1.0, abs(expected[key])))


@pytest.mark.parametrize("case", GENERATIVE)
def test_generative_decoder(case):
    """With the released noise and first convolution; widened by zeros it gives the images of the plain decoder."""
    io, plain, wide = goldens.tensors(TINY, case), builders.tiny_tokenizer(case), builders.tiny_tokenizer(case, True)
    with torch.no_grad():
        features = wide.decoder_input(wide.encode(io["x"]).z_q, io["latent"].shape[2:])
        close(wide.decoder(features, io["gd/noise"]), io["gd/recon"], f"{case} gd recon")
        wide.decoder.conv_in.weight[:, features.shape[1] :] = 0
        wide.decoder.conv_in.weight[:, : features.shape[1]] = plain.decoder.conv_in.weight
        close(wide.decoder(features, io["gd/noise"]), io["recon"], f"{case} gd widened by zeros")


@pytest.mark.parametrize(("case", "generative"), [*((c, False) for c in TOKENIZERS), *((c, True) for c in GENERATIVE)])
def test_export_gives_the_published_state_dict_back(case, generative):
    rules = layout_rules(builders.tiny_config(case))
    exported = export_state(builders.tiny_tokenizer(case, generative).state_dict(), rules)
    goldens.assert_same_state(exported, builders.weights(case, generative))
