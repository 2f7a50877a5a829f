"""evaluations/benchmarks/data.py: its plain formulations give what ours give; its index is one of ours."""

import numpy as np
import torch

from autoregressive.codes import code_batch
from engine.data.config import DataConfig
from engine.data.order import SampleOrder
from engine.data.samples import training_item
from engine.data.shards import ShardSource
from engine.data.stream import position_rng
from evaluations.benchmarks import data
from evaluations.benchmarks.cases import OURS


def test_plain_codes(tmp_path):
    """One file per image and one generator per sample: the same batch."""
    store = data.write_codes(tmp_path, 40)
    indices, positions = np.random.default_rng(0).integers(0, 40, 64), range(500, 564)
    ours = code_batch(store, 3, 0.3)(indices, positions)
    plain = data.plain_code_batch(tmp_path / "files", store.labels, 3, 0.3, indices, positions)
    assert ours.keys() == plain.keys() and all(torch.equal(ours[key], plain[key]) for key in ours)


def test_plain_samples(tmp_path):
    """ADM's crop by Pillow: the same bits as ours, of every photograph."""
    source = data.write_photos(tmp_path / "photos")
    config = DataConfig(image_size=256)
    item = training_item(source, config, 0)
    for index in range(data.PHOTOS):
        content = source.path(index).read_bytes()
        plain = data.plain_sample(content, 256, position_rng(0, index), config.min_crop_scale, config.flip_prob)
        assert torch.equal(item(index, index)["images_u8"], plain)
    assert 40_000 < len(content) < 200_000, "about the size of a photograph of ImageNet"


def test_a_synthetic_index_is_read_as_any_other(tmp_path, monkeypatch):
    """Every image once per epoch, with the place that its number has; a worker's memory is a number of MiB."""
    monkeypatch.setattr(data, "SHARDS", 10)
    with data.cache_folder(tmp_path / "cache"):
        data.write_synthetic_index(tmp_path / "set", 5000)
        source = ShardSource(str(tmp_path / "set"), "data.root")
        assert len(source) == 5000 and len(source.class_names) == 1000
        places = data.look_up(source, SampleOrder(0, 5000), range(5000))
        assert len({(path, start) for path, start, _ in places}) == 5000
        numbers = data.first_numbers(tmp_path / "set")
        assert numbers.tolist() == SampleOrder(0, 5000).indices(range(data.BATCH)).tolist()
        assert data.worker_memory(tmp_path / "set") < 50


def test_plain_progress_notes_the_same_blocks(tmp_path):
    plain, ours = data.PlainProgress(tmp_path / "plain.json", range(0, 9, 3)), data.Progress(tmp_path, 0)
    for first in (9, 12):
        plain.add(first)
        ours.add(first)
    ours.close()
    assert plain.read() - set(range(0, 9, 3)) == data.Progress(tmp_path, 0).read() == {9, 12}


def test_every_case_runs(monkeypatch):
    """Each form of each case once, at tiny sizes."""
    for table in (data.CODED_IMAGES, data.ORDERED, data.INDEXED, data.BLOCKS_BEFORE):
        monkeypatch.setitem(table, "quick", 500)
    monkeypatch.setattr(data, "PHOTOS", 2)
    monkeypatch.setattr(data, "SHARDS", 10)
    monkeypatch.setattr(data, "LOOK_UPS", 100)
    names = []
    for case in data.cases("quick", torch.device("cpu")):
        names.append(case.name)
        if hasattr(case, "forms"):
            assert OURS in case.forms and case.against in case.forms
            for form in case.forms.values():
                form()
        else:
            assert case.read() >= 0
    assert len(set(names)) == len(names) >= 9
