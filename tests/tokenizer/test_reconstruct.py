"""The entry that writes pairs of originals and reconstructions."""

import mini
import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.crops import center_crop
from engine.data.folders import LooseSource
from engine.data.grids import zoom_of
from engine.data.images import image_tensor, to_float, to_uint8
from engine.outputs import listed_images
from tokenizer import load_tokenizer, reconstruct
from tokenizer.pair_names import pair_names


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
    """One pair per image, called like its file; the grid has originals above reconstructions of every full batch."""
    samples = tmp_path / "samples"
    flags = ["--vq-ckpt", exported, "--data-path", photos, "--sample-dir", samples, "--per-proc-batch-size", 2]
    code, _, err = entry(reconstruct.main, *flags, "--device", "cpu")
    assert code == 0 and "5 pairs and grid.png" in err and "mean PSNR of 5 of them" in err

    tokenizer = load_tokenizer(exported)
    paths = sorted(photos.rglob("*.png"))
    pairs = []
    for path in paths:
        with Image.open(path) as file:
            original = image_tensor(center_crop(file.convert("RGB"), 16))
        with torch.no_grad():
            reconstruction = to_uint8(tokenizer.detokenize(tokenizer.tokenize(to_float(original[None]))))[0]
        name = path.relative_to(photos).with_suffix("")
        written = read(samples / f"{name}.png")
        assert torch.equal(read(samples / f"{name}_gt.png"), original)
        assert (written.int() - reconstruction.int()).abs().max() <= 1
        pairs.append((original, written))
    names = {str(path.relative_to(samples)) for path in samples.rglob("*.*")}
    stems = ("0", "1", "2", "deeper/3", "deeper/4")
    assert names == {"grid.png", "written.json", *(f"{stem}{end}.png" for stem in stems for end in ("", "_gt"))}

    tiles = torch.cat([torch.stack(column) for batch in (pairs[:2], pairs[2:4]) for column in zip(*batch, strict=True)])
    grid = read(samples / "grid.png")
    zoom = zoom_of(original)
    top, left = (side - zoom * (count * 18 + 2) for side, count in zip(grid.shape[1:], (4, 2), strict=True))
    grid = grid[:, top::zoom, left::zoom]  # without the caption above and the names at the left
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
        assert [path.name[0] for path in paths] == ["0", "1", "2", "3", "4"]
        for path in paths:
            expected = to_float(read(path)).mean().item() + 2 + offset
            assert float(path.stem.split("_lpips")[1]) == pytest.approx(expected, abs=1e-4)
    assert len(list(samples.rglob("*_lpips*.png"))) == 20  # nothing is deleted


def test_the_names_of_a_set_are_those_of_all_ranks():
    """Each rank knows the scores of its own images."""
    scores = [{0: 0.12345, 2: 0.5}, {1: 0.25}]
    names = ["a", "b/c", "d"]
    for files in mini.on_ranks(2, lambda world: reconstruct.names_of_set(names, scores[world.rank], world)):
        assert files == ["a_lpips0.1235.png", "b/c_lpips0.2500.png", "d_lpips0.5000.png"]
    assert mini.on_ranks(1, lambda world: reconstruct.names_of_set(names, None, world)) == [
        ["a.png", "b/c.png", "d.png"]
    ]


def test_names_that_would_meet_have_numbers(tmp_path):
    """Of two formats of one picture, of an original among them, and of the grid; too long ones are numbers alone."""

    def names_of(*files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(folder / file)
        return pair_names(LooseSource(folder, "--data-path"), len(files))

    assert names_of("a.jpg", "a.png", "b.png") == ["a_000000", "a_000001", "b"]
    assert names_of("a.png", "a_gt.png") == ["a_000000", "a_gt_000001"]
    assert names_of("A.png", "a.jpg", "grid.png") == ["A_000000", "a_000001", "grid_000002"]
    assert names_of("a.jpg", "a.png", "a_000000.png", "c/d.e.png") == [f"{number:06d}" for number in range(4)]
    assert names_of("c/d.e.png", f"{'x' * 220}.png") == ["c/d.e", "000001"]
    assert pair_names(mini.image_source(2), 2) == ["000000", "000001"]


def windows(grid):
    """All 16x16 parts of a picture (3,H,W)."""
    return (grid[:, y : y + 16, x : x + 16] for y in range(grid.shape[1] - 15) for x in range(grid.shape[2] - 15))


def test_images_are_named_by_exactly_one_flag(exported, photos, entry):
    for flags in ([], ["--data-path", photos, "--data", "photos"]):
        code, _, err = entry(reconstruct.main, "--vq-ckpt", exported, *flags)
        assert code == 2 and "give either --data-path FOLDER or --data NAME" in err
