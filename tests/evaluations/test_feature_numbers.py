"""Numbers of feature tables: the same for all tiles, ranks and orders of files, or unavailable with the reason."""

import mini
import numpy as np
import pytest
import torch

from engine.data.images import to_pil
from engine.messages import UserError
from evaluations.image_sets import open_images
from evaluations.metrics import cmmd, frechet_jackknife, kid, mind, neighbors, precision_recall
from evaluations.metrics.blocks import SEED, block_numbers, block_order, blocks_of
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics, require_features
from evaluations.metrics.frechet import Moments, frechet_distance
from evaluations.metrics.inception_score import InceptionScore
from evaluations.metrics.manifold import MAX_IMAGES, manifold
from evaluations.metrics.neighbors import clouds, nearest_others
from evaluations.metrics.registry import find_metric
from evaluations.protocols.distances import compute_metrics
from evaluations.protocols.feature_numbers import DEFAULT_GROUPS, GROUPS, FeatureTables, feature_numbers
from evaluations.protocols.reference import Reference

DIM = 6


class Tiny(Extractor):
    """In the place of a network: 6 numbers per image, which may stand for those of CLIP too."""

    metric, dim, spatial_dim, num_classes, stamp = "fid", DIM, 3, 5, "tiny"
    capabilities = frozenset({"published", "cmmd"})

    def forward(self, images_u8):
        x = images_u8.float() / 255
        pool = torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)
        return {"pool": pool, "spatial": x.amax((2, 3)), "logits": 9 * pool[:, :5]}


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) + shift


def moments(rows: torch.Tensor):
    total = Moments(rows.shape[1])
    total.update(rows)
    return total.gaussian()


def tables(reference: torch.Tensor | None, generated: torch.Tensor, **changes) -> FeatureTables:
    of_reference = reference if reference is not None else features(50, 1)
    fields = {"reference_kind": "train", "reference_reason": "ref.npz has no images (arr_0)", **changes}
    return FeatureTables(Tiny(), "gfid", generated, moments(of_reference), reference, **fields)


@pytest.fixture(scope="module")
def pair():
    """Clusters of near images and some copies, far from zero: what rounding could confuse."""
    reference, generated = features(150, 1, shift=30), features(130, 2, shift=30.2)
    generated[:15] = reference[:15]
    reference[20:28] = reference[20]  # eight copies of one image
    generated[40:60] = generated[40] + 1e-5 * features(20, 3)
    return reference, generated


# ---------------------------------------------------------------------------------------------- invariance
COUNTS = (
    "precision", "recall", "precision_fp16", "recall_fp16", "precision_k5", "recall_k5", "density", "coverage",
    "reference_duplicates", "measured_duplicates", "authpct", "authpct_held_out", "closer_than_held_out",
)  # fmt: skip
TILES = (
    (precision_recall, "TILE_ELEMENTS"), (neighbors, "PAIR_ELEMENTS"), (kid, "TILE_ROWS"), (cmmd, "TILE_ROWS"),
    (mind, "CHUNK_ELEMENTS"), (mind, "ROW_ELEMENTS"), (frechet_jackknife, "CHUNK_ELEMENTS"),
)  # fmt: skip


def published_manifold(pair) -> list[tuple[float, float]]:
    """ADM's precision and recall in float32 and in emulated float16."""
    reference, generated = pair
    return [
        precision_recall.precision_recall(reference, generated.clone(), emulate_fp16) for emulate_fp16 in (False, True)
    ]


def test_the_size_of_tiles_changes_no_number(pair, monkeypatch):
    """By 1e-9 relative at most; counts, and what follows from them, not at all."""
    sets = tables(*pair, held_out=features(90, 4, shift=30))
    expected, published = feature_numbers(sets, GROUPS), published_manifold(pair)
    assert not expected.unavailable
    for size in (29, 1000):
        for module, name in TILES:
            monkeypatch.setattr(module, name, size)
        numbers = feature_numbers(sets, GROUPS)
        assert published_manifold(pair) == published
        assert numbers.metrics == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)
        for name in numbers.errors:
            assert numbers.errors[name].se == pytest.approx(expected.errors[name].se, rel=1e-9, abs=1e-12)
        counted = [name for name in numbers.metrics if name.endswith(("_k5", "density", "coverage", "pct", "copies"))]
        assert {name: numbers.metrics[name] for name in counted} == {name: expected.metrics[name] for name in counted}


@pytest.fixture(scope="module")
def measured():
    """Measures 60 images as an evaluation does: (ranks, images of a batch) -> its numbers, on the main rank."""
    images = mini.random_images(60, size=8)
    extractor = Tiny()
    reference_features, held_out = (extractor(mini.random_images(70, size=8, seed=seed)) for seed in (1, 2))
    pool, spatial = (moments(reference_features[name]) for name in ("pool", "spatial"))

    def measure(ranks, batch):
        def work(world):
            statistics = FeatureStatistics(extractor, 60, keep_features=True)
            for ids in torch.arange(60).split(batch)[world.rank :: world.size]:
                statistics.update(ids, extractor(images[ids]))
            reference = Reference({"kind": "train"}, pool, spatial, reference_features["pool"].clone())
            return compute_metrics(
                statistics, reference, world, "generation", numbers=GROUPS, emulate_fp16=True, held_out=held_out["pool"]
            )

        return mini.on_ranks(ranks, work)[0]

    return measure


@pytest.fixture(scope="module")
def measured_at_once(measured):
    """The numbers of one rank, all images in one batch."""
    return measured(1, 60)


@pytest.mark.parametrize(("ranks", "batch"), [(1, 7), (2, 7), (2, 30)])
def test_ranks_and_batches_change_no_number(ranks, batch, measured, measured_at_once):
    """Every number with every error: 1e-9 relative at most, and counts not at all."""
    measurement, expected = measured(ranks, batch), measured_at_once
    assert measurement.unavailable == expected.unavailable == {}
    assert measurement.metrics == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)
    assert measurement.errors.keys() == expected.errors.keys()
    for name, error in measurement.errors.items():
        assert error.se == pytest.approx(expected.errors[name].se, rel=1e-9, abs=1e-12), name
        assert error.parts == pytest.approx(expected.errors[name].parts, rel=1e-9, abs=1e-12), name
    assert {name: measurement.metrics[name] for name in COUNTS} == {name: expected.metrics[name] for name in COUNTS}
    assert measurement.definitions == expected.definitions


def test_an_evaluation_has_every_number(measured_at_once):
    """What the claims about ranks and batches are about: all numbers, of which these are counts."""
    names = measured_at_once.metrics.keys()
    assert names >= {"gfid", "sfid", "inception_score", "inception_score_all", "kid", "kid_subsets", "mind", "cmmd"}
    assert names >= {"gfid_means", "gfid_covariances", "gfid_infinity", "gfid_infinity_subsets", "copying_z", *COUNTS}
    with_errors = {"gfid", "sfid", "inception_score", "inception_score_all", "kid", "mind", "cmmd", "precision"}
    assert measured_at_once.errors.keys() >= with_errors | {"recall", "density", "coverage", "authpct"}


def test_the_order_in_which_files_are_found_changes_nothing(tmp_path, world):
    """Row i is the i-th name, and parts are drawn by rows; the names are what two sets are recognized by."""
    pictures = mini.random_images(12, size=8)
    for folder, order in (("a", range(12)), ("b", reversed(range(12)))):
        (tmp_path / folder).mkdir()
        for number in order:
            to_pil(pictures[number]).save(tmp_path / folder / f"{number:02d}.png")
    sets = [open_images(tmp_path / folder) for folder in ("a", "b")]
    first, second = (torch.cat([pixels for _, pixels in images.batches(5, world)]) for images in sets)
    assert torch.equal(first, second) and sets[0].ids() == sets[1].ids()
    (tmp_path / "b" / "11.png").rename(tmp_path / "b" / "aa.png")
    assert open_images(tmp_path / "b").ids() != sets[0].ids()


def test_parts_are_random_disjoint_and_the_same_everywhere():
    """The permutation of a frozen generator of numpy: it never changes between versions."""
    order = block_order(25)
    assert order.tolist() == np.random.RandomState(SEED).permutation(25).tolist()
    numbers = block_numbers(25)
    for block, rows in enumerate(blocks_of(order, 10)):
        assert (numbers[rows] == block).all() and len(rows) in (2, 3)
    assert len(torch.cat(blocks_of(order, 10)).unique()) == 25


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.float64), r"must be float32 .*, found torch.float64 \(3, 2\)"),
        (torch.zeros(3, 2, dtype=torch.float16), "found torch.float16"),
        (torch.zeros(3), r"found torch.float32 \(3,\)"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
    ],
)
def test_stored_features_of_another_type_are_refused(table, message):
    with pytest.raises(UserError, match=message):
        require_features(table, "features.npz")


# ---------------------------------------------------------------------------------------------- many images
def test_more_than_50_000_images_are_all_used_but_where_the_result_says_so():
    """No row of a table is dropped: only MIND and the numbers of neighbors take fewer, and say how many."""
    count = 50_003
    sets = tables(features(300, 1), features(count, 2))
    numbers = feature_numbers(sets, ["frechet", "kid", "mind", "manifold"])
    definitions = numbers.definitions

    # The distance is that of all rows, and so are the values without a block.
    expected = frechet_distance(sets.reference_moments, moments(sets.generated))
    assert numbers.metrics["gfid_means"] + numbers.metrics["gfid_covariances"] == pytest.approx(expected, rel=1e-9)
    rest = torch.cat(blocks_of(block_order(count), 10)[:-1])
    expected = frechet_distance(sets.reference_moments, moments(sets.generated[rest]))
    assert numbers.errors["gfid"].parts[-1] == pytest.approx(expected, rel=1e-9)
    assert definitions["kid"]["measured_images"] == count

    # Of those that take fewer, the first in the seeded order.
    assert definitions["mind"]["images"] == 300 and definitions["mind"]["measured_images"] == count
    assert definitions["density"]["measured_images"] == MAX_IMAGES == 10_000
    chosen = sets.generated[block_order(count)[:MAX_IMAGES]]
    assert numbers.metrics["density"] == manifold(sets.reference, chosen)[0].density


# ---------------------------------------------------------------------------------------------- neighbors
def test_neighbors_are_those_of_exact_distances(pair):
    """Also in a cluster whose distances are lost in float32, and among copies."""
    _, generated = pair
    exact = torch.cdist(generated.double(), generated.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    exact.fill_diagonal_(torch.inf)
    (cloud,) = clouds(generated)
    expected = exact.topk(5, largest=False).values
    torch.testing.assert_close(nearest_others(cloud, 5), expected, rtol=1e-9, atol=0)


def test_copies_have_no_radius_and_are_counted(pair):
    """Eight copies of a reference image: no image lies in their balls with `<`, themselves with `<=`."""
    reference, _ = pair
    assert manifold(reference, reference.clone())[1].reference == 8
    strict, closed = (manifold(reference, reference.clone(), strict=strict)[0] for strict in (True, False))
    assert strict.coverage == pytest.approx(142 / 150) and closed.coverage == 1.0


def test_sets_of_one_law_have_the_expected_numbers():
    """Density and coverage in closed form; MIND and KID near 0; AuthPct of generated and held-out images alike."""
    sets = tables(features(400, 1), features(400, 2), held_out=features(400, 3))
    numbers = feature_numbers(sets, DEFAULT_GROUPS)
    metrics, errors = numbers.metrics, numbers.errors
    assert metrics["density"] == pytest.approx(1, abs=0.1)
    expected = numbers.definitions["coverage"]["of_equal_laws"]
    assert metrics["coverage"] == pytest.approx(expected, abs=errors["coverage"].half_width)
    assert abs(metrics["kid"]) < 3 * errors["kid"].se and abs(metrics["gfid_infinity"]) < 4 * errors["gfid"].se
    assert metrics["authpct"] == pytest.approx(metrics["authpct_held_out"], abs=8)
    assert metrics["closer_than_held_out"] < 0.02 and abs(metrics["copying_z"]) < 3


def test_copies_of_training_images_are_seen():
    """AuthPct falls, nearly all are closer than held-out images, and Z is far below 0."""
    training = features(300, 1)
    sets = tables(training, training[:200] + 1e-4 * features(200, 5), held_out=features(200, 3))
    metrics = feature_numbers(sets, ["copies"]).metrics
    assert metrics["authpct"] < 5 < metrics["authpct_held_out"]
    assert metrics["closer_than_held_out"] > 0.9 and metrics["copying_z"] < -10


# ---------------------------------------------------------------------------------------------- unavailable
def test_what_cannot_be_computed_has_a_reason(caplog):
    """Too few images, no features of the reference, a reference of held-out images, another extractor."""
    few = feature_numbers(tables(features(40, 1), features(20, 2)), GROUPS).unavailable
    assert "20 images are fewer than 5 per feature (5 x 6 = 30)" in few["gfid_infinity"]
    assert "fewer than 5 per feature" in few["gfid_infinity_subsets"] and "needs 30 or more" in few["density"]
    assert "--held-out" in few["authpct"] and "kid" not in few

    without = feature_numbers(tables(None, features(100, 2)), GROUPS)
    assert without.unavailable["kid"] == without.unavailable["coverage"] == "ref.npz has no images (arr_0)"
    assert {"gfid_infinity", "gfid_means", "gfid_covariances"} <= without.metrics.keys()

    held_out = feature_numbers(tables(features(50, 1), features(50, 2), reference_kind="val"), ["copies"]).unavailable
    assert "the reference is of kind val" in held_out["copying_z"]
    other = tables(features(50, 1), features(50, 2))
    other.extractor.capabilities = frozenset()
    assert "features of CLIP" in feature_numbers(other, ["cmmd"]).unavailable["cmmd"]
    assert feature_numbers(tables(features(50, 1), features(3, 2)), ["frechet"]).unavailable.keys() == {
        "gfid_means", "gfid_covariances", "gfid_infinity",
    }  # fmt: skip

    with caplog.at_level("WARNING", logger="tokenizers"):
        feature_numbers(tables(features(50, 1), features(50, 2)), ["frechet"])
    assert "50 images are fewer than 10 per feature" in caplog.text


def test_every_number_is_a_metric_with_a_title():
    """Of the published extractor and of another one; so that reports and comparisons know it."""
    sets = tables(features(120, 1), features(100, 2), held_out=features(50, 3))
    for name in feature_numbers(sets, GROUPS).metrics:
        assert find_metric(name) is not None, name
    assert find_metric("gfid_infinity").better == "lower" and find_metric("gfid_means").better is None
    assert find_metric("kid_lite0").title == "KID (frechet_lite0)" and find_metric("no_infinity") is None


# ---------------------------------------------------------------------------------------------- Inception Score
def test_the_score_in_one_chunk_is_the_same_in_any_order(monkeypatch, world):
    monkeypatch.setattr("evaluations.metrics.inception_score.SCORE_CHUNK", 50)
    classes = torch.arange(200) // 20
    logits = 6 * torch.nn.functional.one_hot(classes, 10).float() + features(200, 5).mean(1, keepdim=True)

    def score(order):
        scores = InceptionScore(200, 10)
        scores.update(torch.arange(200), logits[order])
        return scores.value(world), scores.without_blocks(world)[1]

    in_order, of_all = score(torch.arange(200))
    shuffled, of_all_shuffled = score(block_order(200))
    assert in_order < 0.5 * shuffled < of_all.value
    assert of_all.value == pytest.approx(of_all_shuffled.value, rel=1e-12)
