"""The tokenizers of Open-MAGVIT2, IBQ, MaskGIT-VQ and VAR give the numbers of the published code, on seeded weights.

Tolerances are those stated with the goldens: 5e-5 of the largest value, 2e-4 for pixels; codes are exact, but for those
whose margin is below 1e-4 and, where codes depend on each other, what follows them.
"""

import re

import baseline_tokenizers as baselines
import goldens
import pytest
import recipes
import torch
from torch import Tensor

from engine.config import load_config

FLOAT, IMAGE = 5e-5, 2e-4
PICTURES = r"(rec|dec_given)_(crop|row_mean)"
TINY, FULL = (baselines.cases(which) for which in baselines.SETS)
# Full-size networks take ten seconds each: their arithmetic is that of the small ones.
CASES = [*TINY, *(pytest.param(*case, marks=pytest.mark.slow) for case in FULL)]
RECIPES = {
    path.stem: path for path in recipes.recipes() if path.parent.name in ("open_magvit2", "ibq", "maskgit", "var")
}


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_outputs_are_those_of_the_published_code(folder, case):
    """Latents, codes, quantized latents and pixels, all that the goldens hold; counts too."""
    actual, expected = baselines.outputs(folder, case), goldens.tensors(folder, case)
    ties = near_ties(folder, case, expected)
    for name, tensor in expected.items():
        what = f"{folder} {case} {name}"
        ours = actual.tensors[name.removesuffix("_strided")]
        if name.endswith("_strided"):
            ours = goldens.strided(ours, tensor, goldens.meta(folder, case).get("channel_stride", ""))
        if re.fullmatch(PICTURES, name):
            goldens.assert_image(ours, tensor, what, IMAGE)
        elif tensor.is_floating_point():
            goldens.assert_close(ours, tensor, what, FLOAT)
        else:
            assert_codes(ours, tensor, ties, what)
    goldens.assert_facts(actual.facts, goldens.meta(folder, case), f"{folder} {case}")


def near_ties(folder: str, case: str, expected: dict[str, Tensor]) -> Tensor:
    """Which tokens (T,) may have another code: those with a small margin, or with a sign of almost 0."""
    margin = expected["latents"].abs().amin(1) if "signs" in expected else expected.get("codes_margin_per_token")
    if margin is None:
        return torch.zeros(goldens.meta(folder, case)["n_tokens"], dtype=torch.bool)
    is_near = margin.flatten() < baselines.NEAR_TIE
    follow_each_other = "scales" in goldens.meta(folder, case)
    return is_near.cumsum(0) > 0 if follow_each_other else is_near


def assert_codes(ours: Tensor, expected: Tensor, ties: Tensor, what: str) -> None:
    """Whole numbers, equal where no tie is near; one number per token, or several as with signs."""
    if expected.numel() == ties.numel():
        ours, expected = ours.flatten()[~ties], expected.flatten()[~ties]
    goldens.assert_equal(ours, expected, what)


@pytest.mark.parametrize(("folder", "case"), [case for case in FULL if case[1] in RECIPES])
def test_a_recipe_has_the_network_of_the_case(folder, case, monkeypatch):
    """The shipped YAML of that name: model and quantizer, but for what training alone reads."""
    monkeypatch.setenv("IMGNET_ROOT", "/imagenet")
    _, schema, _ = recipes.ENTRIES["tokenizer"]
    shipped, expected = load_config(schema, [RECIPES[case]]).model, baselines.model_config(folder, case)
    assert shipped.name == expected.name and shipped.quantizer.name == expected.quantizer.name
    assert getattr(shipped, shipped.name) == getattr(expected, expected.name)
    ours, theirs = (getattr(model.quantizer, model.quantizer.name) for model in (shipped, expected))
    if hasattr(ours, "hard_codebook_weight"):
        ours.hard_codebook_weight = theirs.hard_codebook_weight
    assert ours == theirs


@pytest.mark.parametrize("root", [goldens.ROOT / part for part in goldens.BASELINES if (goldens.ROOT / part).is_dir()])
def test_every_tokenizer_of_a_part_is_compared(root):
    """A part that is there has at least one; cases without latents are generators."""
    compared = {case for folder, case in [*TINY, *FULL] if folder.split("/")[0] == root.name}
    there = {path.stem for path in root.glob("*/*.json")}
    generators = {case for case in there - compared if "latents" not in _names(root, case)}
    assert compared and there == compared | generators


def _names(root, case: str) -> list[str]:
    (path,) = root.glob(f"*/{case}.json")
    return goldens.names(f"{root.name}/{path.parent.name}", case)


@pytest.mark.parametrize(("folder", "case"), TINY[:1])
def test_a_wrong_number_is_found(folder, case, monkeypatch):
    """The comparison can fail: a latent off by twice the tolerance, and one code."""
    monkeypatch.setattr(goldens, "COMPARISONS", [])
    expected = goldens.tensors(folder, case)
    latents = expected["latents"].clone()
    latents.flatten()[0] += 2 * FLOAT * max(1.0, latents.abs().max().item())
    with pytest.raises(AssertionError):
        goldens.assert_close(latents, expected["latents"], "latents", FLOAT)
    name = "indices" if "indices" in expected else "codes"
    codes = expected[name].clone()
    codes.flatten()[0] += 1
    with pytest.raises(AssertionError):
        assert_codes(codes, expected[name], torch.zeros(codes.numel(), dtype=torch.bool), "codes")
