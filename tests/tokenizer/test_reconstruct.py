"""The entry that writes pairs of originals and reconstructions."""

import mini
import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.crops import center_crop
from engine.data.images import image_tensor, to_float, to_uint8
from engine.outputs import listed_images
from tokenizer import load_tokenizer, reconstruct


@pytest.fixture
def exported(tmp_path):
    config = mini.tokenizer_config()
    return mini.export(tmp_path / "exported", config, mini.tokenizer_of(config))


@pytest.fixture
def photos(tmp_path):
    """Five images of different sizes at any depth, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(5):
        pixels = generator.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save((folder / "deeper" if i > 2 else folder) / f"{i}.png")
    (folder / "readme.txt").write_text("no image")
    return folder


def read(path):
    with Image.open(path) as file:
        return image_tensor(file.convert("RGB"))


def test_pairs_are_center_crops_and_their_reconstructions(exported, photos, tmp_path, entry):
    """One pair per image, by number; the grid has originals above reconstructions of every full batch."""
    samples = tmp_path / "samples"
    flags = ["--vq-ckpt", exported, "--data-path", photos, "--sample-dir", samples, "--per-proc-batch-size", 2]
    code, _, err = entry(reconstruct.main, *flags, "--device", "cpu")
    assert code == 0 and "5 pairs and grid.png" in err and "mean PSNR of 5 of them" in err

    tokenizer = load_tokenizer(exported)
    paths = sorted(photos.rglob("*.png"))
    pairs = []
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            original = image_tensor(center_crop(file.convert("RGB"), 16))
        with torch.no_grad():
            reconstruction = to_uint8(tokenizer.detokenize(tokenizer.tokenize(to_float(original[None]))))[0]
        written = read(samples / f"{number:06d}.png")
        assert torch.equal(read(samples / f"{number:06d}_gt.png"), original)
        assert (written.int() - reconstruction.int()).abs().max() <= 1
        pairs.append((original, written))
    names = {path.name for path in samples.iterdir()}
    assert names == {"grid.png", "written.json", *(f"{i:06d}{end}.png" for i in range(5) for end in ("", "_gt"))}

    tiles = torch.cat([torch.stack(column) for batch in (pairs[:2], pairs[2:4]) for column in zip(*batch, strict=True)])
    grid = read(samples / "grid.png")
    assert all(any(torch.equal(window, tile) for window in windows(grid)) for tile in tiles)


class Brightness(torch.nn.Module):
    """In place of LPIPS: the mean of the reconstruction, plus an `offset` as other rounding might add it."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, images, references):
        return images.mean() + 2 + self.offset


def test_a_rerun_with_other_scores_counts_no_image_twice(exported, photos, tmp_path, entry, monkeypatch):
    """The score is a part of the name: of two names of one image, the set has that of the last call."""
    samples = tmp_path / "samples"
    flags = ["--vq-ckpt", exported, "--data-path", photos, "--sample-dir", samples, "--per-proc-batch-size", 2]
    for offset in (0.0, 0.01):
        monkeypatch.setattr(reconstruct, "lpips_or_none", lambda device, offset=offset: Brightness(offset))
        code, _, err = entry(reconstruct.main, *flags, "--lpips", "--device", "cpu")
        assert code == 0, err
        paths = listed_images(samples)
        assert [path.name[:6] for path in paths] == [f"{number:06d}" for number in range(5)]
        for path in paths:
            expected = to_float(read(path)).mean().item() + 2 + offset
            assert float(path.stem.split("_lpips")[1]) == pytest.approx(expected, abs=1e-4)
    assert len(list(samples.glob("*_lpips*.png"))) == 20  # nothing is deleted


def test_the_names_of_a_set_are_those_of_all_ranks():
    """Each rank knows the scores of its own images."""
    scores = [{0: 0.12345, 2: 0.5}, {1: 0.25}]
    for names in mini.on_ranks(2, lambda world: reconstruct.names_of_set(3, scores[world.rank], world)):
        assert names == ["000000_lpips0.1235.png", "000001_lpips0.2500.png", "000002_lpips0.5000.png"]
    assert mini.on_ranks(1, lambda world: reconstruct.names_of_set(2, None, world)) == [["000000.png", "000001.png"]]


def windows(grid):
    """All 16x16 parts of a picture (3,H,W)."""
    return (grid[:, y : y + 16, x : x + 16] for y in range(grid.shape[1] - 15) for x in range(grid.shape[2] - 15))


def test_images_are_named_by_exactly_one_flag(exported, photos, entry):
    for flags in ([], ["--data-path", photos, "--data", "photos"]):
        code, _, err = entry(reconstruct.main, "--vq-ckpt", exported, *flags)
        assert code == 2 and "give either --data-path FOLDER or --data NAME" in err
