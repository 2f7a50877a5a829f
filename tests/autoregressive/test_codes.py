"""The code store: extraction is exact, resumable and the same for any number of ranks; wrong codes are refused."""

import json
import time
from dataclasses import replace

import mini
import numpy as np
import pytest
import torch
from PIL import ImageOps
from torchvision.transforms import TenCrop

from autoregressive.code_writer import CodeWriter, Progress
from autoregressive.codes import FORMAT, CodesError, CodesManifest, CodeStore, code_batch, code_dtype, drawn_at
from autoregressive.extract_codes import extract_split, views_of
from autoregressive.views import VIEWS
from engine.checkpoint.code_maker import CodeMaker
from engine.checkpoint.weights import fingerprint
from engine.data.crops import center_crop
from engine.data.folders import FolderSource
from engine.data.identity import facts_of
from engine.data.images import ImageError, image_tensor, to_float
from engine.data.sources import SOURCES, open_source
from engine.data.stream import position_rng
from tokenizer.loading import Provenance

COUNT = 23


@pytest.fixture(autouse=True)
def source(monkeypatch):
    """23 images of 20 pixels, larger than the tokenizer's 16, under the name of a packaged set."""
    images = mini.image_source(COUNT, size=20)
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: images)
    return images


def tokenizer_of(seed: int = 0):
    config = mini.tokenizer_config()
    model = mini.tokenizer_of(config, seed).eval().requires_grad_(False)
    model.provenance = Provenance(f"tokenizer {seed}", "model", fingerprint(model), {}, config)
    return model


@pytest.fixture
def tokenizer():
    return tokenizer_of()


def extract(tokenizer, folder, world, views="flip", batch_size=8, split="train"):
    data = tokenizer.provenance.config.data
    extract_split(tokenizer, open_source(data, split), data, split, views, folder, batch_size, world)
    return CodeStore(folder, split)


class Killed(Exception):
    pass


def kill_after(monkeypatch, blocks: int) -> None:
    """The process dies before it writes block number `blocks` + 1."""
    write, done = CodeWriter.write, []

    def dying(self, block, values, labels=None):
        if len(done) >= blocks:
            raise Killed
        done.append(block)
        write(self, block, values, labels)

    monkeypatch.setattr(CodeWriter, "write", dying)


# ---------------------------------------------------------------------------------------------- extraction
@pytest.mark.parametrize(("views", "batch_size"), [("center", 5), ("flip", 7), ("ten-crop", 30), ("ten-crop", 3)])
def test_codes_are_those_of_each_view_encoded_alone(tokenizer, source, tmp_path, world, views, batch_size):
    """Views of an image stay together, in order, for any batch size; labels and class names come along."""
    store = extract(tokenizer, tmp_path, world, views, batch_size)
    assert store.codes.shape == (COUNT, VIEWS[views].num_views, 8)
    assert store.codes.dtype == np.uint16
    for i in range(COUNT):
        for v, view in enumerate(views_of(source, i, 16, views, skip_broken=False)[0]):
            assert store.tokens(i, v).tolist() == tokenizer.encode(to_float(view[None])).indices[0].tolist(), (i, v)
    assert store.labels.tolist() == source.labels.tolist()
    assert store.manifest == CodesManifest(
        format=FORMAT,
        fingerprint=tokenizer.provenance.fingerprint,
        codes_fingerprint=tokenizer.codes_fingerprint(),
        tokenizer="tokenizer 0",
        split="train",
        data="mnist5k",
        num_images=COUNT,
        num_views=VIEWS[views].num_views,
        num_tokens=8,
        codebook_size=32,
        image_size=16,
        views=views,
        class_names=["0", "1", "2", "3"],
        image_facts=facts_of(source),
    )


def test_views_are_center_mirror_and_ten_crops(source):
    """Ten crops: of the center crop to int(1.1 size), corners TL TR BL BR, center, then the same five mirrored."""
    image = source.image(3)
    center = center_crop(image, 16)
    assert torch.equal(views_of(source, 3, 16, "center", False)[0], image_tensor(center)[None])
    flipped = torch.stack([image_tensor(center), image_tensor(ImageOps.mirror(center))])
    assert torch.equal(views_of(source, 3, 16, "flip", False)[0], flipped)
    crops = views_of(source, 3, 16, "ten-crop", False)[0]
    big = center_crop(image, 17)
    assert torch.equal(crops, torch.stack([image_tensor(crop) for crop in TenCrop(16)(big)]))
    pixels = image_tensor(big)
    assert torch.equal(crops[0], pixels[:, :16, :16]) and torch.equal(crops[3], pixels[:, 1:, 1:])
    assert torch.equal(crops[1], pixels[:, :16, 1:]) and torch.equal(crops[2], pixels[:, 1:, :16])
    assert torch.equal(crops[6], pixels.flip(2)[:, :16, 1:])


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_killed_extraction_continues_where_it_stopped(tokenizer, tmp_path, world, monkeypatch, blocks):
    """Blocks on disk are not encoded again; the result is that of an undisturbed run, and no progress file stays."""
    expected = extract(tokenizer, tmp_path / "whole", world)
    with monkeypatch.context() as patch:
        kill_after(patch, blocks)
        with pytest.raises(Killed):
            extract(tokenizer, tmp_path / "killed", world)
    with pytest.raises(CodesError, match=r"holds an unfinished extraction; run: python -m .*extract_codes"):
        CodeStore(tmp_path / "killed", "train")
    encoded, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda images: (encoded.append(len(images)), encode(images))[1])
    store = extract(tokenizer, tmp_path / "killed", world)
    assert np.array_equal(store.codes, expected.codes) and np.array_equal(store.labels, expected.labels)
    assert sum(encoded) == 2 * (COUNT - 4 * blocks)
    assert sorted(p.name for p in store.folder.iterdir()) == ["codes.npy", "labels.npy", "manifest.json"]


def test_a_block_counts_only_once_it_is_on_disk(tokenizer, tmp_path, world, monkeypatch):
    """Killed between the array and the note of progress: the block is done again."""
    expected = np.array(extract(tokenizer, tmp_path / "whole", world).codes)
    with monkeypatch.context() as patch:

        def dying(self, first):
            raise Killed

        patch.setattr(Progress, "add", dying)
        with pytest.raises(Killed):
            extract(tokenizer, tmp_path / "killed", world)
    half = np.load(tmp_path / "killed" / "train" / "codes.npy")
    assert np.array_equal(half[:4], expected[:4]) and Progress(tmp_path / "killed" / "train", 0).read() == set()
    assert np.array_equal(extract(tokenizer, tmp_path / "killed", world).codes, expected)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_images_that_are_read_ahead_give_the_same_codes(tokenizer, tmp_path, world, monkeypatch, num_workers):
    """Loader processes read the next blocks while one is encoded; a killed extraction continues as ever."""
    expected = extract(tokenizer, tmp_path / "whole", world)
    data = replace(tokenizer.provenance.config.data, num_workers=num_workers)
    tokenizer.provenance = replace(tokenizer.provenance, config=replace(tokenizer.provenance.config, data=data))
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            extract(tokenizer, tmp_path / "ahead", world)
    store = extract(tokenizer, tmp_path / "ahead", world)
    assert np.array_equal(store.codes, expected.codes) and np.array_equal(store.labels, expected.labels)
    assert store.manifest == expected.manifest


def test_images_are_read_while_others_are_encoded(tokenizer, source, tmp_path, world, monkeypatch):
    """The second block is read before the first one is encoded: else that would wait in vain."""
    image, encode = source.image, tokenizer.encode
    num_read = torch.zeros(1, dtype=torch.int64).share_memory_()
    seen = []

    def counted(index):
        num_read.add_(1)
        return image(index)

    def patient(images):
        deadline = time.monotonic() + 60
        while not seen and num_read.item() <= 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(num_read.item())
        return encode(images)

    source.image = counted
    monkeypatch.setattr(tokenizer, "encode", patient)
    data = replace(tokenizer.provenance.config.data, num_workers=1)
    extract_split(tokenizer, open_source(data, "train"), data, "train", "flip", tmp_path, 8, world)
    assert seen[0] > 4, "blocks hold 4 images"


def test_an_unreadable_image_that_is_read_ahead_is_one_clear_error(tokenizer, source, tmp_path, world):
    """Not a page of traceback of a loader process."""

    def broken(index):
        raise ImageError(f"image {index} is torn")

    source.image = broken
    data = replace(tokenizer.provenance.config.data, num_workers=1)
    with pytest.raises(ImageError, match=r"^image 0 is torn$"):
        extract_split(tokenizer, open_source(data, "train"), data, "train", "flip", tmp_path, 8, world)


# ---------------------------------------------------------------------------------------------- progress
def test_progress_is_appended_and_never_written_anew(tmp_path):
    """A block costs one line, however many there are; what is there stays as it is."""
    progress = Progress(tmp_path, 3)
    assert progress.read() == set()
    content = b""
    for first in range(0, 30, 3):
        progress.add(first)
        content += b"%d\n" % first
        assert (tmp_path / "progress_3.txt").read_bytes() == content
    progress.close()
    assert Progress(tmp_path, 3).read() == set(range(0, 30, 3))


@pytest.mark.parametrize("torn", [b"1", b"12", b"123"])
def test_a_torn_note_of_progress_does_not_count(tmp_path, torn):
    """Neither when it is read, nor glued to the next one."""
    (tmp_path / "progress_0.txt").write_bytes(b"0\n4\n" + torn)
    progress = Progress(tmp_path, 0)
    assert progress.read() == {0, 4}
    progress.add(8)
    progress.close()
    assert Progress(tmp_path, 0).read() == {0, 4, 8}


def test_an_extraction_of_an_older_version_is_continued(tokenizer, tmp_path, world, monkeypatch):
    """Its progress was one list in JSON: those blocks are not encoded again."""
    expected = extract(tokenizer, tmp_path / "whole", world)
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            extract(tokenizer, tmp_path / "old", world)
    folder = tmp_path / "old" / "train"
    (folder / "progress_0.json").write_text(json.dumps({"done": [0, 4, 8]}))
    (folder / "progress_0.txt").unlink()
    encoded, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda images: (encoded.append(len(images)), encode(images))[1])
    store = extract(tokenizer, tmp_path / "old", world)
    assert sum(encoded) == 2 * (COUNT - 12) and np.array_equal(store.codes, expected.codes)
    assert sorted(p.name for p in folder.iterdir()) == ["codes.npy", "labels.npy", "manifest.json"]


def test_an_unreadable_image_stops_the_extraction_or_gives_way_to_the_next_one(tokenizer, source, tmp_path, world):
    """By option, and counted with the label of the image that took its place; its codes are that image's, too."""
    image = source.image

    def broken(index):
        if index in (3, 4, COUNT - 1):
            raise ImageError(f"image {index} is torn")
        return image(index)

    source.image = broken
    with pytest.raises(ImageError, match="image 3 is torn"):
        extract(tokenizer, tmp_path / "strict", world)
    data = replace(tokenizer.provenance.config.data, skip_broken=True)
    extract_split(tokenizer, open_source(data, "train"), data, "train", "flip", tmp_path / "lenient", 8, world)
    store = CodeStore(tmp_path / "lenient", "train")
    for index, taken in ((3, 5), (4, 5), (COUNT - 1, 0)):
        assert np.array_equal(store.codes[index], store.codes[taken])
        assert store.labels[index] == source.labels[taken]
    assert store.labels[2] == source.labels[2]


def test_two_ranks_write_what_one_writes(tokenizer, tmp_path, world, monkeypatch):
    """Each image once, also with more ranks than blocks."""
    expected = extract(tokenizer, tmp_path / "one", world)
    encoded, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda images: (encoded.append(len(images)), encode(images))[1])
    for size, batch_size in ((2, 8), (3, 60)):
        folder = tmp_path / f"{size}"
        stores = mini.on_ranks(size, lambda w, f=folder, b=batch_size: extract(tokenizer, f, w, batch_size=b))
        assert all(np.array_equal(store.codes, expected.codes) for store in stores)
        assert stores[0].manifest == expected.manifest
    assert sum(encoded) == 2 * 2 * COUNT


@pytest.mark.parametrize(("before", "after", "batch_size"), [(2, 1, 8), (1, 2, 8), (2, 2, 8), (1, 1, 6), (1, 1, 20)])
def test_an_extraction_may_go_on_with_other_ranks_or_batches(
    tokenizer, tmp_path, world, monkeypatch, before, after, batch_size
):
    """Blocks that another layout of the work cannot use are made again; the result is the same."""
    expected = np.array(extract(tokenizer, tmp_path / "whole", world).codes)
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            mini.on_ranks(before, lambda w: extract(tokenizer, tmp_path / "killed", w))
    mini.on_ranks(after, lambda w: extract(tokenizer, tmp_path / "killed", w, batch_size=batch_size))
    store = CodeStore(tmp_path / "killed", "train")
    assert np.array_equal(store.codes, expected)
    assert sorted(p.name for p in store.folder.iterdir()) == ["codes.npy", "labels.npy", "manifest.json"]


def test_a_finished_split_is_left_alone(tokenizer, tmp_path, world, monkeypatch):
    """The same command again encodes nothing and touches no file, also if the tokenizer was moved."""
    store = extract(tokenizer, tmp_path, world)
    times = {p: p.stat().st_mtime_ns for p in store.folder.iterdir()}
    monkeypatch.setattr(tokenizer, "encode", lambda images: pytest.fail("encoded again"))
    tokenizer.provenance = replace(tokenizer.provenance, path="moved")
    extract(tokenizer, tmp_path, world)
    assert {p: p.stat().st_mtime_ns for p in store.folder.iterdir()} == times


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 1}, "of another tokenizer"), ({"views": "ten-crop"}, r"views: 'flip' there, 'ten-crop' now")],
)
def test_codes_of_another_tokenizer_or_other_crops_are_not_mixed(
    tokenizer, tmp_path, world, monkeypatch, finished, change, message
):
    """Neither into a finished split nor into an interrupted one; what was there stays usable."""
    with monkeypatch.context() as patch:
        if not finished:
            kill_after(patch, 2)
        try:
            extract(tokenizer, tmp_path, world)
        except Killed:
            assert not finished
    other = tokenizer_of(change.get("seed", 0))
    with pytest.raises(CodesError, match=rf"(?s){tmp_path / 'train'} holds other codes .*{message}.*--code-path"):
        extract(other, tmp_path, world, change.get("views", "flip"))
    assert len(extract(tokenizer, tmp_path, world)) == COUNT


@pytest.mark.parametrize("finished", [True, False])
def test_codes_of_images_that_were_decoded_otherwise_are_not_mixed(
    tokenizer, tmp_path, world, monkeypatch, source, finished
):
    """`data.orientation` and `data.background` are facts of codes; older manifests lack them: defaults."""
    monkeypatch.setattr(FolderSource, "open", lambda config, split: source)
    data = replace(tokenizer.provenance.config.data, name="folder")
    with monkeypatch.context() as patch:
        if not finished:
            kill_after(patch, 2)
        try:
            extract_split(tokenizer, open_source(data, "train"), data, "train", "flip", tmp_path, 8, world)
        except Killed:
            assert not finished
    path = tmp_path / "train" / ("manifest.json" if finished else "progress.json")
    facts = json.loads(path.read_text())
    assert facts.pop("decoding") == ""
    path.write_text(json.dumps(facts))
    upright = replace(data, orientation="upright")
    with pytest.raises(CodesError, match=r"(?s)holds other codes .*decoding: None there, 'orientation=upright' now"):
        extract_split(tokenizer, open_source(upright, "train"), upright, "train", "flip", tmp_path, 8, world)
    extract_split(tokenizer, open_source(data, "train"), data, "train", "flip", tmp_path, 8, world)
    extract_split(tokenizer, open_source(upright, "train"), upright, "train", "flip", tmp_path / "upright", 8, world)
    assert CodeStore(tmp_path, "train").manifest.decoding == ""
    assert CodeStore(tmp_path / "upright", "train").manifest.decoding == "orientation=upright"


# ---------------------------------------------------------------------------------------------- the store
def written(folder, codebook_size=32, split="train", count=6, views=2):
    """A store with known contents."""
    manifest = CodesManifest(FORMAT, "f" * 64, "t", split, "x", count, views, 8, codebook_size, 16, "flip", ["a", "b"])
    values = torch.randint(0, codebook_size, (count, views, 8))
    values[0, 0, 0], values[0, 0, 1] = codebook_size - 1, 0
    writer = CodeWriter(folder, manifest, block=4, rank=0)
    writer.create(np.arange(count) % 2)
    for block in writer.pending(0, 1):
        writer.write(block, values[block.start : block.stop])
    writer.finish()
    return CodeStore(folder, split), values


@pytest.mark.parametrize(
    ("codebook_size", "dtype"), [(2, "uint16"), (65_536, "uint16"), (65_537, "int32"), (2**18, "int32")]
)
def test_the_smallest_type_that_holds_every_index(tmp_path, codebook_size, dtype):
    """Indices come back as int64 without loss, the largest included."""
    store, values = written(tmp_path, codebook_size)
    assert store.codes.dtype == dtype == np.dtype(code_dtype(codebook_size))
    for i in range(6):
        for v in range(2):
            tokens = store.tokens(i, v)
            assert tokens.dtype == torch.int64 and torch.equal(tokens, values[i, v])


def test_the_array_stays_on_disk(tmp_path):
    """Memory-mapped and read-only: a large data set costs no memory and cannot be changed by a reader."""
    store, _ = written(tmp_path)
    assert isinstance(store.codes, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.codes[0, 0, 0] = 1


def test_codes_of_another_tokenizer_are_refused(tmp_path):
    store, _ = written(tmp_path)
    store.require(CodeMaker("f" * 64), "anything")
    with pytest.raises(CodesError) as caught:
        store.require(CodeMaker("e" * 64), "runs/mine")
    for part in (str(tmp_path / "train"), "another tokenizer", "f" * 16, "e" * 16, "runs/mine"):
        assert part in str(caught.value)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: cut(f / "manifest.json", 40), "is damaged"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1}'), "is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
        (lambda f: cut(f / "codes.npy", 200), "is damaged"),
        (lambda f: cut(f / "codes.npy", 20), "is damaged"),
        (lambda f: (f / "codes.npy").unlink(), r"is damaged: .*codes\.npy"),
        (lambda f: (f / "labels.npy").unlink(), r"is damaged: .*labels\.npy"),
        (lambda f: np.save(f / "labels.npy", np.zeros(5, np.int64)), "manifest.json says"),
        (lambda f: np.save(f / "codes.npy", np.zeros((6, 1, 8), np.uint16)), r"shape \(6, 1, 8\), manifest.json says"),
        (lambda f: (f / "manifest.json").unlink(), "holds no codes; run: python -m autoregressive.extract_codes"),
    ],
)
def test_damaged_codes_are_one_clear_error(tmp_path, spoil, message):
    """The folder is named, and what is wrong with it."""
    written(tmp_path)
    spoil(tmp_path / "train")
    with pytest.raises(CodesError, match=message) as caught:
        CodeStore(tmp_path, "train")
    assert str(tmp_path / "train") in str(caught.value)


@pytest.mark.parametrize("keep", [0, 40])
def test_extraction_into_a_damaged_folder_is_one_clear_error(tokenizer, tmp_path, world, keep):
    cut(extract(tokenizer, tmp_path, world).folder / "manifest.json", keep)
    with pytest.raises(CodesError, match=rf"{tmp_path / 'train' / 'manifest.json'} is damaged"):
        extract(tokenizer, tmp_path, world)


# ---------------------------------------------------------------------------------------------- training samples
def test_a_training_sample_is_a_function_of_seed_and_position(tmp_path):
    """Any batch gives the same view and label drop at a position; another seed or position gives others."""
    store, values = written(tmp_path, views=10)

    def samples(seed, *batches):
        read, found = code_batch(store, seed, 0.5), {}
        for positions in batches:
            batch = read(np.array([p % 6 for p in positions]), positions)
            rows = zip(batch["tokens"].tolist(), batch["labels"].tolist(), batch["drop"].tolist(), strict=True)
            found |= dict(zip(positions, rows, strict=True))
        return found

    whole, parts = samples(1, range(60)), samples(1, range(30, 60), *(range(p, p + 1) for p in range(30)))
    assert whole == parts
    assert samples(2, range(60)) != whole
    for position, (tokens, label, _) in whole.items():
        assert tokens in values[position % 6].tolist()
        assert label == position % 6 % 2
    at_one_image = code_batch(store, 1, 0.5)(np.zeros(200, dtype=np.int64), range(200))["tokens"]
    assert len(at_one_image.unique(dim=0)) == 10, "every view occurs"


@pytest.mark.parametrize("views", [1, 2, 10])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_batch_is_what_its_samples_are_one_by_one(tmp_path, views, seed):
    """Drawn and read one after the other, as older versions did: the same tokens, labels and drops."""
    store, values = written(tmp_path, views=views)
    indices, positions = np.array([5, 0, 0, 3, 1]), range(2**40, 2**40 + 5)
    batch = code_batch(store, seed, 0.3)(indices, positions)
    for i, (index, position) in enumerate(zip(indices, positions, strict=True)):
        rng = position_rng(seed, position)
        assert torch.equal(batch["tokens"][i], values[index, int(rng.integers(views))])
        assert batch["drop"][i].item() == (rng.random() < 0.3)
        assert batch["labels"][i].item() == store.labels[index]
    assert [batch[key].dtype for key in batch] == [torch.int64, torch.int64, torch.bool]


def test_a_view_that_is_drawn_again_is_the_one_that_numpy_draws(monkeypatch):
    """Of 2^32 words, fewer than the number of views are rejected: here by a word of zeros, which is one of them."""
    monkeypatch.setattr("autoregressive.codes.first_words", lambda *_: np.zeros((4, 3), dtype=np.uint64))
    views, chances = drawn_at(7, range(3), 10)
    for position in range(3):
        rng = position_rng(7, position)
        assert (views[position], chances[position]) == (rng.integers(10), rng.random())


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_labels_are_dropped_with_their_probability(tmp_path, probability):
    """Over 4,000 positions within five standard deviations, whatever the image and the view."""
    store, _ = written(tmp_path)
    dropped = code_batch(store, 0, probability)(np.arange(4200) % 6, range(4200))["drop"].numpy()
    bound = 5 * (probability * (1 - probability) / dropped.size) ** 0.5
    assert abs(dropped.mean() - probability) <= bound
