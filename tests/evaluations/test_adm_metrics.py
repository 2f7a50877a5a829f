"""Inception Score, precision and recall against their formulas; reading image files; references and what they lack."""

import zipfile

import mini
import numpy as np
import pytest
import torch

from engine.data.folders import LooseSource
from engine.data.images import to_pil
from engine.messages import UserError
from evaluations.image_sets import NpzImages, NpzWriter, open_images
from evaluations.metrics import precision_recall as adm
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.inception_score import InceptionScore
from evaluations.metrics.precision_recall import precision_recall
from evaluations.protocols.distances import compute_metrics
from evaluations.protocols.reference_file import ReferenceFile


class Tiny(Extractor):
    """In the place of Inception: 4 pool, 3 spatial numbers and 5 logits per image."""

    dim, spatial_dim, num_classes, metric, stamp = 4, 3, 5, "fid", "tiny"
    capabilities = frozenset({"published"})

    def forward(self, images_u8):
        x = images_u8.float() / 255
        pool = torch.cat([x.mean((2, 3)), x.std((1, 2, 3))[:, None]], dim=1)
        return {"pool": pool, "spatial": x.amax((2, 3)), "logits": 4 * torch.cat([pool, pool[:, :1]], dim=1)}


def features(count: int, seed: int, dim: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


# ---------------------------------------------------------------------------------------------- precision and recall
def brute_force(reference: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """All distances at once, in float64."""

    def distances(a, b):
        return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(-1)

    radius_r = np.sort(distances(reference, reference), axis=1)[:, 3]
    radius_s = np.sort(distances(samples, samples), axis=1)[:, 3]
    between = distances(samples, reference)
    return (between <= radius_r).any(1).mean(), (between <= radius_s[:, None]).any(0).mean()


@pytest.mark.parametrize("tile", [1, 500, 2**25])
@pytest.mark.parametrize(("count_r", "count_s", "shift"), [(60, 45, 0.0), (30, 80, 1.5), (4, 4, 0.0)])
def test_precision_and_recall_are_those_of_all_distances(monkeypatch, tile, count_r, count_s, shift):
    """For any size of the tiles, with far-away features that would cancel."""
    monkeypatch.setattr(adm, "TILE_ELEMENTS", tile)
    reference, samples = features(count_r, 1, shift=100), features(count_s, 2, shift=100 + shift)
    expected = brute_force(reference.numpy(), samples.numpy())
    assert precision_recall(reference, samples) == pytest.approx(expected)


def test_distances_are_never_held_for_all_pairs(monkeypatch):
    """2.5 times the images, 6 times the pairs, the same memory."""
    monkeypatch.setattr(adm, "TILE_ELEMENTS", 2**16)
    plain, held = adm.squared_distances, []

    def counted(a, b):
        held.append(len(a) * len(b))
        return plain(a, b)

    monkeypatch.setattr(adm, "squared_distances", counted)
    largest = []
    for count in (2000, 5000):
        held.clear()
        precision_recall(features(count, 1), features(count, 2))
        largest.append(max(held))
    assert max(largest) <= 2**16 and sum(held) == 3 * 5000 * 5000


def test_emulated_fp16_rounds_every_step():
    """Norms near 900 are known to 0.5 only, so that distances are too."""
    a = features(5, 3, dim=800)
    exact, rounded = (adm.squared_distances(rows, rows) for rows in (adm.FeatureSet.of(a), adm.FeatureSet.of(a, True)))
    assert (exact - rounded).abs().max() > 0.05 and torch.allclose(exact, rounded, atol=8)
    assert torch.equal(rounded, rounded.half().float())


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(features(3, 0), features(10, 0))


# ---------------------------------------------------------------------------------------------- Inception Score
@pytest.mark.parametrize("ranks", [1, 2])
def test_inception_score_is_that_of_the_formula(monkeypatch, ranks):
    """exp of the mean KL, over consecutive chunks by image number, whatever the batches and ranks."""
    monkeypatch.setattr("evaluations.metrics.inception_score.SCORE_CHUNK", 8)
    logits = features(20, 4) * 3

    def work(world):
        score = InceptionScore(20, 6)
        for ids in torch.arange(20).split(3)[world.rank :: world.size]:
            score.update(ids, logits[ids])
        return score.value(world)

    p = torch.softmax(logits.double(), 1).numpy()
    parts = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in np.split(p, [8, 16])]
    assert mini.on_ranks(ranks, work) == pytest.approx([np.mean(parts)] * ranks, rel=1e-12)


# ---------------------------------------------------------------------------------------------- image files
def write_npz(path, count=11, size=8, seed=0, **more):
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    np.savez_compressed(path, arr_0=images, **more)
    return images


def gathered(images, ranks, size):
    """{number: pixels} of all ranks."""
    parts = mini.on_ranks(ranks, lambda world: list(images.batches(size, world)))
    return {int(i): p for part in parts for ids, pixels in part for i, p in zip(ids, pixels, strict=True)}


@pytest.mark.parametrize(("ranks", "size"), [(1, 4), (2, 3), (3, 100)])
def test_npz_images_come_row_by_row(tmp_path, ranks, size):
    """Every image once, under its number, for any batches and ranks."""
    expected = write_npz(tmp_path / "a.npz")
    found = gathered(NpzImages(tmp_path / "a.npz"), ranks, size)
    assert sorted(found) == list(range(11))
    assert all(np.array_equal(found[i].permute(1, 2, 0).numpy(), expected[i]) for i in range(11))


def test_npz_writer_keeps_rows_by_number(tmp_path, world):
    """What is written in any order is read in order; nothing is left beside it, nothing is overwritten."""
    pixels = mini.random_images(5, size=8)
    writer = NpzWriter(tmp_path / "out.npz", 5, 8, world)
    for ids in (torch.tensor([3, 4]), torch.tensor([0, 1, 2])):
        writer.write(ids, pixels[ids])
    writer.finish(kind=np.array("val"))
    (ids, found), *rest = NpzImages(tmp_path / "out.npz").batches(9, world)
    assert torch.equal(found, pixels) and not rest
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]
    with pytest.raises(UserError, match="exists already"):
        NpzWriter(tmp_path / "out.npz", 5, 8, world)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "pickled objects, which are never read"),
        ({"arr_0": np.full((4, 8, 8, 3), np.nan)}, r"must be uint8 .* found float64 \(4, 8, 8, 3\)"),
        ({"arr_0": np.zeros((4, 8, 6, 3), np.uint8)}, r"found uint8 \(4, 8, 6, 3\)"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, r"found uint8 \(4, 3, 8, 8\)"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, r"has no images \(arr_0\); it has: images.npy"),
    ],
)
def test_npz_that_is_no_set_of_images_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "bad.npz")


def test_damaged_files_are_named(tmp_path, world):
    """Not an archive, a truncated one, a folder with a broken picture, pictures of two sizes."""
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"text\.npz is not a readable npz file"):
        open_images(tmp_path / "text.npz")
    short = np.zeros((2, 8, 8, 3), np.uint8)
    np.save(tmp_path / "arr_0.npy", short)
    content = (tmp_path / "arr_0.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", content[:-50])
    with pytest.raises(UserError, match="arr_0 ends 50 bytes early"):
        list(open_images(tmp_path / "short.npz").batches(2, world))
    folder = tmp_path / "pictures"
    folder.mkdir()
    to_pil(mini.random_images(1, 8)[0]).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"b\.png is not a readable image"):
        list(open_images(folder).batches(2, world))
    to_pil(mini.random_images(1, 9)[0]).save(folder / "b.png")
    with pytest.raises(UserError, match=r"b\.png has 9x9 pixels, the first image 8x8"):
        list(open_images(folder).batches(2, world))


def test_loose_folders_are_searched_at_any_depth(tmp_path, caplog):
    """Image suffixes only; the rest is counted and said."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    to_pil(mini.random_images(1, 8)[0]).save(tmp_path / "deep" / "er" / "x.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    with caplog.at_level("INFO", logger="tokenizers"):
        assert len(LooseSource(str(tmp_path), "data.val_root")) == 1
    assert "ignored 1 others" in caplog.text
    with pytest.raises(UserError, match=r"data\.val_root=.* holds no image files"):
        (tmp_path / "empty").mkdir()
        LooseSource(str(tmp_path / "empty"), "data.val_root")


# ---------------------------------------------------------------------------------------------- references
def statistics(extractor, path, world):
    (_, pixels), *_ = NpzImages(path).batches(100, world)
    found = {k: v.double().numpy() for k, v in extractor(pixels).items()}
    return {
        "mu": found["pool"].mean(0), "sigma": np.cov(found["pool"].T),
        "mu_s": found["spatial"].mean(0), "sigma_s": np.cov(found["spatial"].T),
    }  # fmt: skip


def read_reference(path, kind, world, cache):
    return ReferenceFile.read(path, kind, Tiny()).reference(cache, world, keep_features=True)


def measured(path, reference, world):
    extractor, images = Tiny(), NpzImages(path)
    statistics = FeatureStatistics(extractor, len(images), keep_features=True)
    for ids, pixels in images.batches(4, world):
        statistics.update(ids, extractor(pixels))
    measurement = compute_metrics(statistics, reference, world, "generation")
    return measurement.metrics, measurement.unavailable


def test_stored_statistics_are_used_and_equal_those_of_the_images(tmp_path, world):
    """With mu and sigma in the file, without them, and with statistics alone, which leaves precision and recall out."""
    write_npz(tmp_path / "samples.npz", seed=1)
    images = write_npz(tmp_path / "images.npz", seed=2)
    stored = statistics(Tiny(), tmp_path / "images.npz", world)
    np.savez(tmp_path / "both.npz", arr_0=images, **stored)
    np.savez(tmp_path / "alone.npz", **stored)
    np.savez(tmp_path / "pool.npz", mu=stored["mu"], sigma=stored["sigma"])
    results = {}
    for name in ("images", "both", "alone", "pool"):
        reference = read_reference(tmp_path / f"{name}.npz", "train", world, tmp_path / "cache")
        results[name] = measured(tmp_path / "samples.npz", reference, world)
    full, missing = results["images"]
    assert full.keys() == {"gfid", "sfid", "inception_score", "precision", "recall"} and not missing
    assert results["both"][0] == pytest.approx(full, rel=1e-6)
    metrics, missing = results["alone"]
    assert metrics == pytest.approx({k: full[k] for k in metrics}, rel=1e-6)
    assert missing.keys() == {"precision", "recall"} and "no images (arr_0)" in missing["recall"]
    assert results["pool"][1]["sfid"] == "pool.npz has no mu_s, sigma_s"


def test_a_file_says_its_kind_or_is_asked_for_it(tmp_path, world):
    """By its own key, by ADM's name for training statistics, or by the flag; a contradiction is an error."""
    write_npz(tmp_path / "unknown.npz")
    write_npz(tmp_path / "own.npz", kind=np.array("val"))
    write_npz(tmp_path / "VIRTUAL_imagenet256_labeled.npz")

    def kind(name, given=None):
        return read_reference(tmp_path / name, given, world, tmp_path / "cache").facts["kind"]

    assert kind("own.npz") == "val" and kind("VIRTUAL_imagenet256_labeled.npz") == "train"
    assert kind("unknown.npz", "val") == "val"
    with pytest.raises(UserError, match="--reference-kind train"):
        kind("unknown.npz")
    with pytest.raises(UserError, match="is a reference of kind val, not train"):
        kind("own.npz", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, r"mu, sigma must be \(4,\) and \(4,4\), found \(5,\) \(5, 5\)"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "mu or sigma holds NaN or infinity"),
        ({"mu": np.array([None] * 4, dtype=object), "sigma": np.eye(4)}, "cannot be read as reference statistics"),
        ({"other": np.zeros(3)}, "neither mu and sigma nor images"),
        (
            {"extractor_weights": np.array("others"), "mu": np.zeros(4), "sigma": np.eye(4)},
            "made with other weights of the extractor",
        ),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(UserError, match=message):
        ReferenceFile.read(tmp_path / "bad.npz", "val", Tiny())
