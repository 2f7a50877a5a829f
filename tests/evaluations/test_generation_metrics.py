"""Counts of generated code sequences, nearest training images, exports, extractors and their names."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.assets import AssetError, AssetsConfig
from engine.checkpoint.manifest import CheckpointError
from engine.messages import UserError
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.sequences import fraction_distinct, memorized_sequences, nearest_training, noise_images
from evaluations.protocols.generation_accumulators import EXPORTS, GeneratedBatch

STAND_IN = AssetsConfig(pretrained_dir="", random_stand_in=True)


def test_distinct_and_memorized_are_fractions_of_whole_sequences():
    """Equal in every place counts; any view of a training image may be the one that was memorized."""
    tokens = np.array([[1, 2], [1, 2], [3, 4], [5, 6]])
    training = np.array([[[1, 2], [9, 9]], [[7, 7], [5, 6]]], dtype=np.uint16)  # (images, views, tokens)
    assert fraction_distinct(tokens) == 0.75
    assert memorized_sequences(tokens, training).tolist() == [True, True, False, True]
    assert fraction_distinct(tokens[:, ::-1]) == 0.75
    assert not memorized_sequences(tokens[:, ::-1], training).any()


def test_nearest_training_image_is_the_one_with_the_smallest_difference():
    training = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([7, 0, 19])
    images = (training[wanted].int() + 1).clamp(max=255).to(torch.uint8)
    assert torch.equal(nearest_training(images, training), wanted)


def test_noise_is_uniform_and_depends_on_the_seed_only():
    noise = noise_images(4, 32, seed=3)
    assert torch.equal(noise, noise_images(4, 32, seed=3)) and not torch.equal(noise, noise_images(4, 32, seed=4))
    assert noise.float().mean() == pytest.approx(127.5, abs=3) and noise.min() == 0 and noise.max() == 255


@pytest.mark.parametrize(
    ("kind", "files"), [("png", ["samples", "samples/000003.png", "samples/written.json"]), ("npz", ["samples.npz"])]
)
def test_an_export_holds_the_images_and_nothing_else(tmp_path, world, kind, files):
    """Pictures by number, or one npz file; an export with other settings into the same folder is refused."""
    labels, image = torch.arange(4), noise_images(1, 8, seed=0)
    export = EXPORTS[kind](tmp_path, labels, 8, {"seed": 0}, world)
    export.update(GeneratedBatch(torch.tensor([3]), labels[3:], torch.zeros(1, 2), image))
    export.result(world)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == files
    if kind == "png":
        stored = np.asarray(Image.open(tmp_path / "samples/000003.png"))
    else:
        stored = np.load(tmp_path / "samples.npz")["arr_0"][3]
    assert np.array_equal(stored, image[0].permute(1, 2, 0).numpy())
    with pytest.raises(UserError, match=r"samples was filled with other settings|samples\.npz exists already"):
        EXPORTS[kind](tmp_path, labels, 8, {"seed": 1}, world)


def test_only_inception_may_be_called_fid():
    """The others have names of their own; the same network behind another resize is never gFID or rFID."""
    of_network = [name for name, extractor in EXTRACTORS.items() if extractor.metric == "fid"]
    assert of_network == ["inception", "inception_antialias", "inception_pillow", "inception_torch"]
    assert [name for name, extractor in EXTRACTORS.items() if "published" in extractor.capabilities] == ["inception"]


def test_lite0_extractor_has_real_weights_and_a_stamp_with_their_hash():
    """112 numbers per image, the same for any batch; real photographs and noise are told apart."""
    extractor = EXTRACTORS["efficientnet_lite0"](AssetsConfig(pretrained_dir=""))
    assert extractor.stamp.startswith("efficientnet-lite0-57934424.pth sha256:57934424")
    images = noise_images(3, 32, seed=0)
    features = extractor(images)["pool"]
    assert features.shape == (3, 112)
    torch.testing.assert_close(features[1:2], extractor(images[1:2])["pool"], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A weights file of the right format and name, with seeded values; and the stand-in that it came from."""
    extractor = EXTRACTORS["inception"](STAND_IN)
    folder = tmp_path_factory.mktemp("pretrained")
    torch.save(extractor.network.network.state_dict(), folder / "weights-inception-2015-12-05-6726825d.pth")
    return folder, extractor


def test_inception_reads_a_file_of_the_right_format(inception_file):
    """2,048 features equal to those of the network that wrote the file; another hash needs an explicit yes."""
    folder, original = inception_file
    with pytest.raises(AssetError, match=r"SHA-256 .* instead of 6726825d.*allow_unknown"):
        EXTRACTORS["inception"](AssetsConfig(pretrained_dir=str(folder)))
    loaded = EXTRACTORS["inception"](AssetsConfig(pretrained_dir=str(folder), allow_unknown=["inception"]))
    images = noise_images(2, 64, seed=1)
    features, expected = loaded(images), original(images)
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    assert all(torch.equal(features[name], expected[name]) for name in features)
    assert "sha256:" in loaded.stamp and original.stamp == "random"


def test_inception_file_that_does_not_fit_is_refused(inception_file, tmp_path):
    _, original = inception_file
    name = "weights-inception-2015-12-05-6726825d.pth"
    state = dict(original.network.network.state_dict())
    state.pop("fc.bias")
    torch.save(state, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"missing: fc\.bias"):
        EXTRACTORS["inception"](AssetsConfig(pretrained_dir=str(tmp_path), allow_unknown=["inception"]))
