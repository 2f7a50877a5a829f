"""The numbers of features against stored ones: made from the formulas, and by torch-fidelity, prdc and dgm-eval.

`METRIC_GOLDENS=FOLDER` tests another folder of the same layout: features_<set>.npz and metrics.json.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluations.metrics import mind as mind_module
from evaluations.metrics.blocks import blocks_of, folds_of, stored_order
from evaluations.metrics.cmmd import cmmd_jackknife
from evaluations.metrics.copying import copying_z
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.frechet_jackknife import frechet_jackknife
from evaluations.metrics.frechet_subsets import fd_infinity_subsets
from evaluations.metrics.intervals import of_folds
from evaluations.metrics.kid import kid_blocks, kid_subsets, mmd_unbiased
from evaluations.metrics.manifold import MANIFOLD_NAMES, expected_coverage, manifold, manifold_folds
from evaluations.metrics.memorization import authentic
from evaluations.metrics.mind import mind
from evaluations.metrics.precision_recall import precision_recall

FOLDER = Path(os.environ.get("METRIC_GOLDENS") or Path(__file__).parents[1] / "goldens" / "metrics")
GOLDENS = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
SETS = [name for name, content in GOLDENS.items() if isinstance(content, dict) and "fd" in content]


def table(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(reference (n,D), generated (m,D)), float32."""
    with np.load(FOLDER / f"features_{name}.npz") as stored:
        return torch.from_numpy(stored["reference"]), torch.from_numpy(stored["generated"])


def golden(name: str, key: str):
    """A stored number of a set, or None. Of a test that fails, pytest shows what is printed: which number it was."""
    print(f"stored number: set {name}, key {key}")
    return GOLDENS[name].get(key)


def gaussian(features: torch.Tensor):
    rows = features.double().numpy()
    return rows.mean(0), np.cov(rows, rowvar=False)


def sets_with(key: str) -> list[str]:
    return [name for name in SETS if key in GOLDENS[name]]


def is_singular(name: str) -> bool:
    reference, generated = table(name)
    return min(len(reference), len(generated)) <= reference.shape[1]


def test_the_folder_has_sets():
    assert SETS, f"{FOLDER} holds no set of features"


@pytest.mark.parametrize("name", sets_with("fd"))
def test_frechet_distance(name):
    """1e-9 relative; 1e-6 where covariances are singular."""
    reference, generated = table(name)
    tolerance = 1e-6 if is_singular(name) else 1e-9
    expected = golden(name, "fd")
    assert frechet_distance(gaussian(reference), gaussian(generated)) == pytest.approx(expected, rel=tolerance)
    order = stored_order(len(generated))
    estimates = frechet_jackknife(generated, gaussian(reference), order)
    assert estimates.distance.value == pytest.approx(expected, rel=tolerance)
    assert estimates.means.value + estimates.covariances.value == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", sets_with("fd_jackknife10"))
def test_infinite_frechet_distance_and_its_error_by_the_jackknife(name):
    reference, generated = table(name)
    expected = golden(name, "fd_jackknife10")
    estimates = frechet_jackknife(generated, gaussian(reference), stored_order(len(generated)), num_blocks=10)
    assert estimates.distance.parts == pytest.approx(expected["leave_one_out"], rel=1e-9)
    assert estimates.distance.se == estimates.infinity.se == pytest.approx(expected["se"], rel=1e-9)
    assert estimates.infinity.value == pytest.approx(expected["fd_infinity"], rel=1e-9)


@pytest.mark.parametrize("name", sets_with("fd_infinity_subsets"))
def test_infinite_frechet_distance_by_subsets(name):
    """Sizes, the distance of each subset, intercept and slope: 1e-9 relative to the distances."""
    reference, generated = table(name)
    expected = golden(name, "fd_infinity_subsets")
    line = fd_infinity_subsets(generated, gaussian(reference), expected["seed"])
    assert list(line.sizes) == expected["sizes"]
    assert line.values == pytest.approx(expected["values"], rel=1e-9)
    assert line.intercept == pytest.approx(expected["intercept"], rel=1e-9, abs=1e-9 * max(expected["values"]))
    assert line.slope == pytest.approx(expected["slope"], rel=1e-9)


@pytest.mark.parametrize("name", sets_with("kid_subsets"))
def test_kernel_distance_of_subsets(name):
    """1e-6 absolute against torch-fidelity, which computes in float32; 1e-9 against the formula."""
    reference, generated = table(name)
    expected = golden(name, "kid_subsets")
    kid = kid_subsets(reference, generated, expected["subsets"], expected["size"], expected["seed"])
    assert kid.mean == pytest.approx(expected["torch_fidelity_mean"], abs=1e-6)
    assert kid.std == pytest.approx(expected["torch_fidelity_std"], abs=1e-6)
    assert kid.mean == pytest.approx(expected["mean"], rel=1e-9)
    assert kid.std == pytest.approx(expected["std_ddof0"], rel=1e-9, abs=1e-12)
    assert kid.values[0] == pytest.approx(expected["first_subset"], rel=1e-9)
    if "mmd_poly_unbiased_all" in GOLDENS[name]:
        assert mmd_unbiased(reference, generated) == pytest.approx(golden(name, "mmd_poly_unbiased_all"), rel=1e-9)


@pytest.mark.parametrize("name", sets_with("kid_blocks"))
def test_kernel_distance_of_disjoint_blocks(name):
    reference, generated = table(name)
    expected = golden(name, "kid_blocks")
    orders = stored_order(len(reference)), stored_order(len(generated))
    kid = kid_blocks(reference, generated, *orders, expected["blocks"])
    assert kid.parts == pytest.approx(expected["values"], rel=1e-9)
    assert (kid.value, kid.se) == pytest.approx((expected["mean"], expected["se"]), rel=1e-9)


@pytest.mark.parametrize("comparison", ["lt", "le"])
@pytest.mark.parametrize("neighbor", [3, 5])
@pytest.mark.parametrize("name", SETS)
def test_precision_recall_density_and_coverage_are_equal(name, neighbor, comparison):
    """Counts, not approximations; also where generated images are copies of reference images."""
    expected = golden(name, f"prdc_k{neighbor}_{comparison}")
    if expected is None:
        pytest.skip("the set has no such numbers")
    reference, generated = table(name)
    numbers, duplicates = manifold(reference, generated, neighbor, strict=comparison == "lt")
    assert {metric: getattr(numbers, metric) for metric in MANIFOLD_NAMES} == pytest.approx(expected, rel=1e-12)
    assert (duplicates.reference, duplicates.generated) == (0, 0)
    if (neighbor, comparison) == (3, "le"):
        published = precision_recall(reference, generated.clone())
        assert published == pytest.approx((expected["precision"], expected["recall"]), abs=2 / len(reference))


@pytest.mark.parametrize("name", sets_with("prdc_folds5"))
def test_errors_of_precision_recall_density_and_coverage(name):
    reference, generated = table(name)
    orders = stored_order(len(reference)), stored_order(len(generated))
    estimates, _ = manifold_folds(reference, generated, *orders)
    expected = golden(name, "prdc_folds5")["se"]
    assert {metric: estimates[metric].se for metric in expected} == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", sets_with("authpct"))
def test_authentic_images_are_equal(name):
    reference, generated = table(name)
    assert 100 * authentic(reference, generated).double().mean().item() == golden(name, "authpct")


@pytest.mark.parametrize("name", sets_with("cmmd"))
def test_cmmd(name):
    """1e-9 relative to the formula, 1e-6 to the published code in float64."""
    reference, generated = table(name)
    cmmd = cmmd_jackknife(reference, generated, stored_order(len(generated)))
    assert cmmd.value == pytest.approx(golden(name, "cmmd"), rel=1e-9)
    assert cmmd.value == pytest.approx(GOLDENS[name].get("cmmd_port_float64", cmmd.value), abs=1e-6)


@pytest.mark.parametrize("key", ["mind", "mind_1000"])
@pytest.mark.parametrize("name", SETS)
def test_mind(name, key):
    """1e-9 relative to the formula, 1e-6 to torch-fidelity, which projects in float32."""
    expected = golden(name, key)
    if expected is None:
        pytest.skip("the set has no such number")
    reference, generated = table(name)
    value = mind(reference, generated, expected["projections"], expected["seed"])
    assert value == pytest.approx(expected["value"], rel=1e-9)
    assert value == pytest.approx(expected["torch_fidelity_head"], rel=1e-6)
    if "first_direction" in expected:
        generator = torch.Generator().manual_seed(expected["seed"])
        direction = mind_module.directions_of(reference.shape[1], 1, generator)[0, :3]
        assert direction.tolist() == pytest.approx(expected["first_direction"], rel=1e-6)


@pytest.mark.parametrize("name", sets_with("mind_unequal"))
def test_mind_of_sets_of_two_sizes(name):
    reference, generated = table(name)
    expected = golden(name, "mind_unequal")
    value = mind(reference, generated, expected["projections"], expected["seed"])
    assert value == pytest.approx(expected["torch_fidelity_head"], rel=1e-6)


@pytest.mark.skipif("ct" not in GOLDENS, reason="the folder has no such numbers")
def test_copying_z():
    """Of generated images, and of near copies of training images."""
    expected = GOLDENS["ct"]
    reference, generated = table(expected["set"])
    rows = {name: eval_slice(expected[name], reference) for name in ("train", "test")}
    assert copying_z(rows["train"], rows["test"], generated) == pytest.approx(expected["z_u_one_cell"], rel=1e-9)
    count = len(rows["train"])
    copies = rows["train"].double()[np.random.default_rng(11).integers(0, count, count)] + 1e-3
    assert copying_z(rows["train"], rows["test"], copies) == pytest.approx(expected["z_u_copies"], rel=1e-9)


def eval_slice(text: str, reference: torch.Tensor) -> torch.Tensor:
    """`reference[a:b]` of a description."""
    low, high = text.removeprefix("reference[").removesuffix("]").split(":")
    return reference[slice(int(low) if low else None, int(high) if high else None)]


# ------------------------------------------------------------------------------------------------ closed forms
@pytest.mark.parametrize("name", SETS)
def test_moved_and_scaled_sets_have_distances_in_closed_form(name):
    """MIND of a shift is 3 D mean_i (u_i.c)^2, the Frechet distance |c|^2; of a scale it is (1-s)^2 tr(cov)."""
    reference = table(name)[0].double()
    dim = reference.shape[1]
    shift = torch.from_numpy(np.random.default_rng(20).standard_normal(dim))
    directions = mind_module.directions_of(dim, 100, torch.Generator().manual_seed(2020)).double()
    expected = 3 * dim * (directions @ shift).square().mean().item()
    assert mind(reference, reference + shift, 100) == pytest.approx(expected, rel=1e-9)

    tolerance = 1e-6 if len(reference) <= dim else 1e-9
    mean, covariance = gaussian(reference)
    moved = frechet_distance((mean, covariance), gaussian(reference + shift))
    assert moved == pytest.approx(shift.square().sum().item(), rel=tolerance)
    center = reference.mean(0)
    scaled = frechet_distance((mean, covariance), gaussian(center + 1.5 * (reference - center)))
    assert scaled == pytest.approx(0.25 * np.trace(covariance), rel=tolerance)


@pytest.mark.skipif("fd_of_shifted_set" not in GOLDENS.get("closed_forms", {}), reason="the folder has none")
def test_stored_distances_of_moved_and_scaled_sets():
    """Those of set A: moved by `default_rng(12).standard_normal(D)` and seen along the 1,000 directions of `mind_1000`,
    and scaled by 1.5 about its mean. The file has the rules; shift, directions and factor are those that give it."""
    forms = GOLDENS["closed_forms"]
    reference = table("A")[0].double()
    shift = torch.from_numpy(np.random.default_rng(12).standard_normal(reference.shape[1]))
    of_set = gaussian(reference)

    # What the formulas give, and what the program gives.
    directions = GOLDENS["A"]["mind_1000"]
    value = mind(reference, reference + shift, directions["projections"], directions["seed"])
    assert value == pytest.approx(forms["mind_of_shifted_set"]["want"], rel=1e-9)
    moved = frechet_distance(of_set, gaussian(reference + shift))
    assert moved == pytest.approx(forms["fd_of_shifted_set"]["want"], rel=1e-9)
    center = reference.mean(0)
    scaled = frechet_distance(of_set, gaussian(center + 1.5 * (reference - center)))
    assert scaled == pytest.approx(forms["fd_of_scaled_set"]["want"], rel=1e-9)
    for name in ("mind_of_shifted_set", "fd_of_shifted_set", "fd_of_scaled_set"):
        assert forms[name]["got"] == pytest.approx(forms[name]["want"], rel=1e-9)


@pytest.mark.skipif("closed_forms" not in GOLDENS, reason="the folder has no closed forms")
def test_coverage_of_equal_laws_in_closed_form():
    for key, expected in GOLDENS["closed_forms"]["coverage_identical_law"].items():
        if key == "rule":
            continue
        sizes = [int(part[1:]) for part in key.split("_")]
        assert expected_coverage(*sizes) == pytest.approx(expected, rel=1e-12)


def test_blocks_and_folds_are_parts_of_all_rows():
    """The rules of the stored numbers: block b is rows b m / B to (b+1) m / B, fold i is rows i::F."""
    order = stored_order(23)
    assert torch.equal(torch.cat(blocks_of(order, 4)), order)
    assert [len(rows) for rows in blocks_of(order, 4)] == [5, 6, 6, 6]
    assert [rows.tolist() for rows in folds_of(order, 10)][3] == [3, 13]
    assert of_folds(1.0, [2.0, 4.0]).se == pytest.approx(1.0)
