"""Reference files for other extractors than Inception: whose statistics they hold, and when only images are used."""

import mini
import numpy as np
import pytest
from test_adm_metrics import Tiny, statistics, write_npz

from engine.data.images import to_pil
from engine.messages import UserError
from evaluations import make_reference, measure
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.protocols.reference_file import ReferenceFile
from evaluations.results import read_result


class Other(Tiny):
    """Features of its own, which a published file has under keys of its own."""

    metric, stamp, spatial_dim, num_classes = "frechet_other", "other", None, None
    capabilities = frozenset()
    facts = {"resize": "as it is"}
    file_statistics = ("other_mu", "other_sigma")

    def __init__(self, assets=None):
        super().__init__()


class Resized(Other):
    facts = {"resize": "made smaller"}
    file_statistics = None


INCEPTION = {"mu": np.zeros(7), "sigma": np.eye(7)}  # of another number of features


def test_of_a_file_of_inception_only_the_images_are_used(tmp_path, world):
    """As of ADM's file, whose mu and sigma are not those of this extractor; without images it is refused."""
    images = write_npz(tmp_path / "images.npz", seed=2)
    np.savez(tmp_path / "both.npz", arr_0=images, num_images=1000, **INCEPTION)
    for extractor in (Other(), Resized()):
        source = ReferenceFile.read(tmp_path / "both.npz", "train", extractor)
        assert source.facts["statistics"] == "of its images" and source.facts["num_images"] == len(images)
        assert source.facts["resize"] == extractor.facts["resize"]
        reference = source.reference(tmp_path / "cache", world, keep_features=False)
        of_images = statistics(extractor, tmp_path / "images.npz", world)
        np.testing.assert_allclose(reference.pool[0], of_images["mu"], rtol=1e-6)
        np.testing.assert_allclose(reference.pool[1], of_images["sigma"], rtol=1e-6)
        assert not {"sfid"} & reference.missing.keys()
    stated = {"extractor": np.array("frechet_other"), "mu": np.zeros(4), "sigma": np.eye(4)}
    np.savez(tmp_path / "no_resize.npz", **stated)  # nobody knows how its images were resized
    np.savez(tmp_path / "resized.npz", **{**stated, "extractor": np.array("fid")}, resize=np.array("as it is"))
    with pytest.raises(UserError, match="holds Inception statistics"):
        ReferenceFile.read(tmp_path / "no_resize.npz", "train", Other())
    with pytest.raises(UserError, match=r"was made with another resize \(as it is\)"):
        ReferenceFile.read(tmp_path / "resized.npz", "train", Tiny())
    np.savez(tmp_path / "alone.npz", **INCEPTION)
    with pytest.raises(UserError, match="holds Inception statistics; use --extractor inception"):
        ReferenceFile.read(tmp_path / "alone.npz", "train", Other())


def test_statistics_under_keys_of_the_extractor_are_used(tmp_path):
    """Whatever stands beside them; an extractor with another resize does not take them."""
    stored = {"other_mu": np.arange(4.0), "other_sigma": 2 * np.eye(4)}
    np.savez(tmp_path / "file.npz", **INCEPTION, **stored)
    source = ReferenceFile.read(tmp_path / "file.npz", "test", Other())
    assert source.facts["kind"] == "test" and source.facts["statistics"] == "stored"
    assert np.array_equal(source.pool[0], stored["other_mu"]) and np.array_equal(source.pool[1], stored["other_sigma"])
    with pytest.raises(UserError, match="holds Inception statistics"):
        ReferenceFile.read(tmp_path / "file.npz", "test", Resized())
    np.savez(tmp_path / "short.npz", other_mu=np.zeros(3), other_sigma=np.eye(3))
    with pytest.raises(UserError, match=r"other_mu, other_sigma must be \(4,\) and \(4,4\)"):
        ReferenceFile.read(tmp_path / "short.npz", "test", Other())


def test_a_file_of_another_extractor_is_made_and_measured_against(tmp_path, entry, monkeypatch):
    """It names the extractor and how it resizes; one that differs in that is refused."""
    for name, extractor in {"efficientnet_lite0": Other, "dinov2_l": Resized}.items():
        monkeypatch.setitem(EXTRACTORS, name, extractor)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(mini.random_images(12, 8)):
        to_pil(image).save(folder / f"{number}.png")
    made = tmp_path / "made.npz"
    flags = ["--data-path", folder, "--kind", "train", "--image-size", 8, "--output", made]
    code, _, err = entry(make_reference.main, *flags, "--extractor", "efficientnet_lite0", "--no-images")
    assert code == 0, err
    with np.load(made) as stored:
        assert str(stored["extractor"]) == "frechet_other" and str(stored["resize"]) == "as it is"

    flags = ["--samples", folder, "--gt-npz-path", made, "--device", "cpu", "--output"]
    code, _, err = entry(measure.main, *flags, tmp_path / "a.json", "--extractor", "efficientnet_lite0")
    assert code == 0, err
    result = read_result(tmp_path / "a.json")
    assert result["metrics"]["frechet_other_generated"] == pytest.approx(0, abs=1e-9)
    assert result["protocol"]["reference"]["statistics"] == "stored"
    code, _, err = entry(measure.main, *flags, tmp_path / "b.json", "--extractor", "dinov2_l")
    assert code == 2 and "was made with another resize (as it is), the extractor's is made smaller" in err
