"""Where commands write: what is there is continued, replaced by the same, or refused; nothing is lost or mixed."""

import json

import mini
import numpy as np
import pytest
from PIL import Image

import autoregressive.extract_codes
import tokenizer.convert
from autoregressive import sample
from engine.data.images import to_pil
from engine.data.sources import SOURCES
from engine.messages import UserError
from engine.outputs import MANIFEST, OutputFolder, free_name, listed_images
from evaluations import generation, make_reference, measure, reconstruction, val_loss, visualize
from evaluations.image_sets import open_images
from evaluations.report.__main__ import main as report_main
from evaluations.results import read_result
from tokenizer import reconstruct

IMAGES = {"train": mini.image_source(20, seed=1), "val": mini.image_source(12, seed=2)}


@pytest.fixture(autouse=True)
def packaged(monkeypatch):
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: IMAGES[split])


@pytest.fixture
def drawn(networks, entry):
    """`drawn(folder, *flags)` runs `autoregressive.sample`: (exit code, log)."""

    def run(folder, *flags):
        pair = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", networks / "gpt", "--device", "cpu"]
        code, _, err = entry(sample.main, *pair, "--sample-dir", folder, *flags)
        return code, err

    return run


def contents(folder):
    """{path: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- the rule
def test_a_folder_is_new_continued_or_refused(tmp_path, world):
    """Empty and hidden names count as new; other settings, files of others and files in its place are refused."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".DS_Store").write_text("")
    assert not OutputFolder(folder, "--dir", {"a": (1, 2)}, world).is_continued
    assert OutputFolder(folder, "--dir", {"a": [1, 2]}, world).is_continued
    (tmp_path / "out-2").mkdir()
    with pytest.raises(UserError, match=r"--dir .*out was filled with other settings \(a: .*such as .*out-3"):
        OutputFolder(folder, "--dir", {"a": 3}, world)
    (tmp_path / "out-2" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty, and no written\.json says"):
        OutputFolder(tmp_path / "out-2", "--dir", {}, world)
    with pytest.raises(UserError, match="is a file"):
        OutputFolder(folder / MANIFEST, "--dir", {}, world)
    assert free_name(tmp_path / "a.json").name == "a-2.json"


def test_a_set_is_what_its_manifest_lists(tmp_path, world):
    """Unfinished sets and sets with gaps are refused; a folder without a manifest lists nothing."""
    folder = tmp_path / "out"
    output = OutputFolder(folder, "--dir", {}, world)
    (folder / "a").mkdir()
    for name in ("a/0.png", "1.png", "grid.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match="unfinished set of images"):
        listed_images(folder)
    output.finish(["a/0.png", "1.png"])
    assert [path.name for path in listed_images(folder)] == ["1.png", "0.png"]
    assert [path.name for path in listed_images(folder / "a")] == ["0.png"]
    assert listed_images(tmp_path) is None
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png is gone"):
        listed_images(folder)


def test_a_continued_set_is_unfinished_while_it_is_written_again(tmp_path, world):
    """Between the two, pictures of both calls lie in the folder: it is no set until the second one finishes."""
    folder = tmp_path / "out"
    for _ in range(2):
        output = OutputFolder(folder, "--dir", {}, world, ["0.png"])
        with pytest.raises(UserError, match="unfinished set of images"):
            listed_images(folder)
        (folder / "0.png").write_bytes(b"")
        output.finish(["0.png"])
        assert listed_images(folder) == [folder / "0.png"]


def test_only_our_manifest_says_what_a_folder_holds(tmp_path, world):
    """A `written.json` of another program is no manifest, wherever it lies, nor does ours speak of other folders."""
    # Files of others: in the folder itself, and above it.
    photos = tmp_path / "photos" / "best"
    photos.mkdir(parents=True)
    to_pil(mini.random_images(1)[0]).save(photos / "a.png")
    strangers = ("no JSON", "[]", '{"settings": {}, "finished": false, "images": ["best/b.png"]}')
    for place in (photos, photos.parent):
        for text in strangers:
            (place / MANIFEST).write_text(text)
            assert listed_images(photos) is None and [path.name for path in open_images(photos).paths] == ["a.png"]
    with pytest.raises(UserError, match=r"is not empty, and no written\.json says"):
        OutputFolder(photos.parent, "--dir", {}, world)

    # A folder inside an unfinished set: one of the set is refused, any other one is what it is.
    folder = tmp_path / "out"
    output = OutputFolder(folder, "--dir", {}, world, ["class_1/0.png"])
    for name in ("class_1", "mine"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(b"")
    assert listed_images(folder / "mine") is None
    with pytest.raises(UserError, match="unfinished set of images"):
        listed_images(folder / "class_1")
    output.finish(["class_1/0.png"])
    assert (
        listed_images(folder / "class_1") == [folder / "class_1" / "0.png"] and listed_images(folder / "mine") is None
    )

    # Ours, damaged.
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-3])
    with pytest.raises(UserError, match=r"written\.json is damaged"):
        listed_images(folder)


# ---------------------------------------------------------------------------------------------- samples
def test_samples_of_two_calls_never_mix(drawn, tmp_path):
    """The same call changes nothing, a half finished folder is completed, another seed is refused."""
    folder = tmp_path / "samples"
    code, err = drawn(folder, "--class-idx", "0,1", "--qual-num", 4)
    assert code == 0 and "wrote 4 images, 2 for each entry" in err
    first = contents(folder)

    (folder / "class_1" / "grid.png").unlink()
    code, err = drawn(folder, "--class-idx", "0,1", "--qual-num", 4)
    assert code == 0 and "wrote 2 images" in err and "2 were there before" in err and contents(folder) == first
    code, err = drawn(folder, "--class-idx", "0,1", "--qual-num", 2)
    assert code == 2 and "images_per_class: 2, then 1" in err and f"such as {tmp_path / 'samples-2'}" in err
    code, err = drawn(folder, "--class-idx", "0,1", "--qual-num", 4, "--seed", 1)
    assert code == 2 and "sampler.seed: 0, then 1" in err and contents(folder) == first


def test_a_class_that_is_named_twice_gets_further_samples(drawn, tmp_path):
    """As many pictures as the log says, all different, and those of a longer call."""
    code, err = drawn(tmp_path / "twice", "--class-idx", "2,2", "--qual-num", 6)
    assert code == 0 and "wrote 6 images, 3 for each entry" in err
    images = open_images(tmp_path / "twice")
    assert len(images) == 6
    drawn(tmp_path / "once", "--class-idx", "2", "--qual-num", 6)
    twice = [np.asarray(Image.open(path)) for path in images.paths]
    once = [np.asarray(Image.open(path)) for path in open_images(tmp_path / "once").paths]
    assert np.abs(np.stack(twice).astype(int) - np.stack(once).astype(int)).max() <= 1
    assert {path.parent.name for path in images.paths} == {"class_2", "class_2_2"}


def test_measure_takes_what_sample_and_reconstruct_write(drawn, networks, tmp_path, entry):
    """Neither grids nor originals are samples, also for one class of the folder."""
    drawn(tmp_path / "samples", "--class-idx", "0,1", "--qual-num", 4)
    assert len(open_images(tmp_path / "samples")) == 4 and len(open_images(tmp_path / "samples" / "class_1")) == 2

    photos = tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(mini.random_images(3, 20)):
        to_pil(image).save(photos / f"{number}.png")
    flags = ["--vq-ckpt", networks / "tokenizer", "--data-path", photos, "--sample-dir", tmp_path / "pairs"]
    code, _, err = entry(reconstruct.main, *flags, "--device", "cpu")
    assert code == 0 and "3 pairs" in err
    images = open_images(tmp_path / "pairs")
    assert [path.name for path in images.paths] == ["0.png", "1.png", "2.png"]
    before = contents(tmp_path / "pairs")
    assert entry(reconstruct.main, *flags, "--device", "cpu")[0] == 0 and contents(tmp_path / "pairs") == before
    code, _, err = entry(reconstruct.main, *flags, "--num-images", 2, "--device", "cpu")
    assert code == 2 and "num_images: 3, then 2" in err and contents(tmp_path / "pairs") == before

    output, reference = tmp_path / "m.json", ["--reference", photos, "--reference-kind", "train"]
    flags = ["--samples", tmp_path / "samples", *reference, "--extractor", "efficientnet_lite0", "--force"]
    code, _, err = entry(measure.main, *flags, "--output", output, "--device", "cpu")
    assert code == 0 and read_result(output)["protocol"]["num_images"] == 4, err
    assert "4 images of the set, 3 other pictures left out" in err


# ---------------------------------------------------------------------------------------------- results
def test_a_result_is_replaced_by_the_same_protocol_only(networks, tmp_path, entry):
    """In every evaluation: another protocol, a file of the user and arrays of nobody are left as they are."""
    network = ["--vq-ckpt", networks / "tokenizer", "--device", "cpu"]
    pair = [*network, "--gpt-ckpt", networks / "gpt"]
    commands = {
        "reconstruction": (reconstruction.main, [*network, "--extractor", "none"], ["--protocol", "wetok"]),
        "generation": (generation.main, [*pair, "--extractor", "none", "--num-fid-samples", 4], ["--seed", 1]),
        "val_loss": (val_loss.main, pair, ["--image-size", 16, "--precision", "fp32", "--vq-ckpt", networks / "other"]),
    }
    for name, (main, flags, other) in commands.items():
        output = tmp_path / f"{name}.json"
        assert entry(main, *flags, "--output", output)[0] == 0
        metrics = read_result(output)["metrics"]
        code, _, err = entry(main, *flags, "--output", output)
        assert code == 0 and "holds a result of the same protocol: it will be replaced" in err
        assert read_result(output)["metrics"] == metrics
        before = output.read_bytes()
        code, _, err = entry(main, *flags, *other, "--output", output)
        assert code == 2 and f"such as {tmp_path / name}-2.json" in err and output.read_bytes() == before

        mine = tmp_path / "mine.json"
        mine.write_text("mine")
        code, _, err = entry(main, *flags, "--output", mine)
        assert code == 2 and "holds something that is no result" in err and mine.read_text() == "mine"
        (tmp_path / "arrays.npz").write_text("mine")
        code, _, err = entry(main, *flags, "--output", tmp_path / "arrays.json")
        assert code == 2 and "arrays.npz beside it" in err and (tmp_path / "arrays.npz").read_text() == "mine"


def test_exported_samples_are_one_set(networks, tmp_path, entry):
    """The same call continues, another number is refused; the npz file is never overwritten."""
    flags = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", networks / "gpt", "--device", "cpu"]
    flags += ["--extractor", "none", "--sample-dir", tmp_path]
    run = lambda count, kind, name: entry(  # noqa: E731
        generation.main, *flags, "--num-fid-samples", count, "--export", kind, "--output", tmp_path / f"{name}.json"
    )
    assert run(4, "png", "a")[0] == 0 and len(open_images(tmp_path / "samples")) == 4
    assert run(4, "png", "a")[0] == 0
    code, _, err = run(6, "png", "b")
    assert code == 2 and "num_images: 4, then 6" in err and len(open_images(tmp_path / "samples")) == 4
    assert run(4, "npz", "c")[0] == 0
    code, _, err = run(4, "npz", "c")
    assert code == 2 and "samples-2.npz" in err


# ---------------------------------------------------------------------------------------------- everything else
def test_files_of_others_are_left_alone(networks, tmp_path, entry):
    """Converters, references, pictures of components, codes and reports."""
    mine = {"net": "model.pt", "ref": "ref.npz", "pca": "pca.npz", "picture": "other.png"}
    for name in mine.values():
        (tmp_path / name).write_text("mine")
    (tmp_path / "codes" / "train").mkdir(parents=True)
    (tmp_path / "codes" / "train" / "codes.npy").write_text("mine")
    network = ["--vq-ckpt", networks / "tokenizer"]
    code, _, err = entry(tokenizer.convert.main, *network, "--output", tmp_path / "model.pt")
    assert code == 2 and "model-2.pt" in err
    code, _, err = entry(make_reference.main, "--data-path", tmp_path, "--output", tmp_path / "ref.npz")
    assert code == 2 and "ref-2.npz" in err
    code, _, err = entry(visualize.main, *network, "--num-images", 2, "--output", tmp_path / "pca.npz")
    assert code == 2 and "pca-2.npz" in err
    code, _, err = entry(visualize.main, *network, "--num-images", 2, "--output", tmp_path / "other.npz")
    assert code == 2 and "other.png beside it" in err
    code, _, err = entry(autoregressive.extract_codes.main, *network, "--code-path", tmp_path / "codes")
    assert code == 2 and f"such as {tmp_path / 'codes-2'}" in err
    assert all((tmp_path / name).read_text() == "mine" for name in (*mine.values(), "codes/train/codes.npy"))


def test_components_and_reports_are_replaced_by_the_same(networks, tmp_path, entry):
    """A page of a user in the place of a report is refused, an earlier report is not."""
    output = tmp_path / "evaluations" / "pca.npz"
    network = ["--vq-ckpt", networks / "tokenizer", "--output", output]
    for _ in range(2):
        assert entry(visualize.main, *network, "--num-images", 2)[0] == 0
    code, _, err = entry(visualize.main, *network, "--num-images", 3)
    assert code == 2 and "num_images: 2, then 3" in err

    result = {"metrics": {"psnr": 20.0}, "protocol": {"kind": "reconstruction"}}
    (tmp_path / "evaluations" / "reconstruction.json").write_text(json.dumps(result))
    for _ in range(2):
        assert entry(report_main, tmp_path)[0] == 0
    (tmp_path / "report.html").write_text("<p>mine")
    code, _, err = entry(report_main, tmp_path)
    assert code == 2 and "is no report of these runs" in err and "report-2.html" in err
    assert (tmp_path / "report.html").read_text() == "<p>mine"
