"""The atlas: every family of tokenizers and quantizers has a page, its pictures are what the tokenizer decodes, and no
name from a run can become HTML.
"""

import argparse
import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import mini
import numpy as np
import pytest
import small_networks
import torch
from PIL import Image
from torch import nn

from autoregressive.models.registry import build_generator
from engine.data.images import to_pil, to_uint8
from engine.data.sources import SOURCES
from engine.messages import UserError
from evaluations.atlas import __main__ as atlas
from evaluations.atlas import assemble
from evaluations.atlas.codebook import map_codebook, nearest_neighbors, project
from evaluations.atlas.replacement import most_used_tokens, other_codes, replaced_positions, variants
from evaluations.atlas.sheets import GRADES, fitting_sheets, sheet_of
from evaluations.atlas.subject import place_of
from tokenizer import load_tokenizer
from tokenizer.models.registry import QUANTIZERS
from tokenizer.quantizers.vq import VectorQuantizer

HOSTILE = "<img src=x onerror=alert(1)>"
SMALL = ["--images", 2, "--tokens", 4, "--codes", 2, "--counted-images", 8, "--classes", 2, "--device", "cpu"]


@pytest.fixture(autouse=True)
def held_out_images(monkeypatch):
    """12 held-out images of 4 classes, one of which has a hostile name, under the name of a packaged set."""
    source = mini.image_source(12, size=16)
    source.class_names = [HOSTILE, "b", "</script><script>alert(2)</script>", "d"]
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: source)


def run_folder(root, model="hybrid", quantizer="vq", *, with_gpt=True):
    """A pipeline's folder: a small tokenizer, and a GPT over its codes whose classes have hostile names."""
    varied = ["model.hybrid.init=torch", "model.hybrid.position_std=1.0"] if model == "hybrid" else []
    config = small_networks.tokenizer_config(model, quantizer, *varied)
    network = mini.tokenizer_of(config)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)  # with random ones, all images would have one code
    mini.export(root / "tokenizer", config, network)
    if with_gpt:
        tokenizer = load_tokenizer(root / "tokenizer")
        gpt_config = small_networks.generator_config_for(tokenizer, 4)
        torch.manual_seed(3)
        gpt = build_generator(gpt_config.model)
        for parameter in gpt.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter)  # so that the class, and with it guidance, matters
        mini.export(root / "gpt", gpt_config, gpt)
    return root


class Elements(HTMLParser):
    """Tags and attributes of a page, and the JSON that its scripts read."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.is_data = False
        self.data = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.is_data = dict(attrs).get("id") == "atlas"

    def handle_data(self, data):
        if self.is_data:
            self.data = json.loads(data)


def pixels_of(uri):
    """uint8 (H,W,3) of a picture of a page."""
    content = base64.b64decode(uri.partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


def cell_of(sheet, index):
    """Cell `index` of a sheet, uint8 (s,s,3)."""
    row, column = divmod(index, sheet["columns"])
    side = sheet["cell"]
    return pixels_of(sheet["uri"])[row * side : (row + 1) * side, column * side : (column + 1) * side]


@pytest.fixture
def make_page(entry, tmp_path):
    """Runs the entry; returns the text of its page and the data inside."""

    def make(*flags):
        output = tmp_path / "atlas.html"
        code, _, err = entry(atlas.main, *flags, *SMALL, "--output", output)
        assert code == 0, err
        text = output.read_text(encoding="utf-8")
        return text, Elements(text).data["subjects"]

    return make


# ------------------------------------------------------------------------------------------------ every family
@pytest.mark.parametrize(
    ("model", "quantizer"),
    [
        *((model, "gq") for model in small_networks.SECTIONS),
        *(("hybrid", name) for name in QUANTIZERS if name != "gq" and name not in small_networks.OF_GRIDS),
        *(("var_vae", name) for name in small_networks.OF_GRIDS),
    ],
)
def test_every_tokenizer_and_quantizer_has_a_page(model, quantizer, tmp_path, make_page):
    """What cannot be shown of it is said; a replaced token gives the picture that its codes decode to."""
    run = run_folder(tmp_path / "run", model, quantizer, with_gpt=False)
    text, (subject,) = make_page(run)
    tokenizer = load_tokenizer(run / "tokenizer")
    tokens = subject["tokens"]
    assert len(tokens["images"]) == 2 and len(tokens["positions"]) == 4
    assert any("no generator" in note for note in subject["notes"]) and 'id="samples"' not in text

    # Tokens on a grid have places and patches, others have neither.
    grid = subject["grid"]
    assert (tuple(grid) if grid else None) == tokenizer.token_grid
    assert any("sequence" in note for note in subject["notes"]) == (grid is None)
    assert ("patches" in subject["codebooks"][0]) == (grid is not None)

    # The codebook: as many maps as indices, with all codes and their counts.
    books = subject["codebooks"]
    assert [book["size"] for book in books] == list(tokenizer.quantizer.group_sizes)
    assert all(sum(book["counts"]) == tokens["numCounted"] for book in books)
    has_vectors = any(True for _ in tokenizer.quantizer.parameters())
    assert any("no learned code vectors" in note for note in subject["notes"]) == (not has_vectors)

    # One replacement, decoded here.
    record = tokens["images"][1]
    rank = len(tokens["positions"]) - 1
    number = len(record["codes"][rank]) - 1
    replaced = torch.tensor(record["tokens"])[None]
    assert record["codes"][rank][number] != record["tokens"][tokens["positions"][rank]]
    replaced[0, tokens["positions"][rank]] = torch.tensor(record["codes"][rank][number])
    indices = replaced if tokenizer.quantizer.num_groups > 1 else replaced[..., 0]
    with torch.no_grad():
        expected = to_uint8(tokenizer.decode_indices(indices))[0]
    shown = cell_of(record["sheet"], rank * len(record["codes"][rank]) + number).astype(int)
    assert np.abs(shown - np.asarray(to_pil(expected)).astype(int)).max() <= 1


def test_two_tokenizers_see_the_same_images(tmp_path, make_page):
    """Side by side, each with its own tokens and reconstructions."""
    runs = [run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "wetok", "gq", with_gpt=False)]
    _, (one, other) = make_page(*runs)
    titles = [[record["title"] for record in subject["tokens"]["images"]] for subject in (one, other)]
    assert titles[0] == titles[1] and (one["title"], other["title"]) == ("a", "b")
    originals = [[record["original"] for record in subject["tokens"]["images"]] for subject in (one, other)]
    assert originals[0] == originals[1] and one["grid"] is None and other["grid"] is not None
    assert one["samples"] is not None and other["samples"] is None


# ------------------------------------------------------------------------------------------------ the page
def test_names_never_become_html(tmp_path, make_page):
    """A class called like an image that runs a script, in the data and in the generator; nothing is loaded."""
    run = run_folder(tmp_path / f"run {HOSTILE}")
    text, (subject,) = make_page(run)
    assert HOSTILE in subject["tokens"]["images"][0]["title"]
    assert HOSTILE not in text and "alert(2)</script>" not in text

    tags = Elements(text).tags
    assert not [tag for tag, _ in tags if tag in ("img", "link", "iframe", "object")]
    assert [attrs for tag, attrs in tags if tag == "script"] == [{"type": "application/json", "id": "atlas"}, {}, {}]
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on") or name in ("src", "href")]
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_samples_differ_in_guidance_only(tmp_path, make_page):
    """One cell per scale, class and sample; the first scale is that of no guidance."""
    run = run_folder(tmp_path / "run")
    _, (subject,) = make_page(run, "--scales", "1,4", "--per-class", 3)
    samples = subject["samples"]
    assert samples["scales"] == [1.0, 4.0] and samples["classes"] == ["class 0", "class 3"]
    assert pixels_of(samples["sheet"]["uri"]).shape == (16, 2 * 2 * 3 * 16, 3)
    unguided, guided = ([cell_of(samples["sheet"], first + i) for i in range(6)] for first in (0, 6))
    assert not np.array_equal(unguided, guided)


def test_a_token_is_clicked_and_the_picture_changes(tmp_path, entry, open_page):
    """In a browser: hover tells the code, a click replaces the token, another code gives another picture."""
    run = run_folder(tmp_path / "run", "wetok", "gq")
    assert entry(atlas.main, run, *SMALL, "--output", tmp_path / "atlas.html")[0] == 0
    view = open_page(tmp_path / "atlas.html")
    view.wait_for_selector("html[data-ready]")
    picture = "document.querySelector('canvas.picture').toDataURL()"

    view.wait_for_function(f"{picture} !== document.createElement('canvas').toDataURL()")
    view.hover(".token >> nth=1")
    assert "token 1 (row 0, column 1): code" in view.inner_text("#tokens .readout")  # all counted from 0
    assert view.locator(".side:visible").all_inner_texts() == ["original", "reconstruction"]
    assert "bits per image (" in view.inner_text("#tokens .measures")
    before = view.evaluate(picture)
    view.click("button.token >> nth=1")
    view.wait_for_function(f"before => {picture} !== before", arg=before)
    assert "levels on average over the image, and by" in view.inner_text("#tokens .readout")
    (state,) = view.locator(".side:visible").all_inner_texts()
    assert re.fullmatch(r"code [\d ·]+ → [\d ·]+", state) and state in view.inner_text("#tokens .key")
    assert "of tokens" in view.inner_text(".codes button >> nth=0")
    replaced = view.evaluate(picture)
    view.click(".codes button >> nth=1")
    view.wait_for_function(f"before => {picture} !== before", arg=replaced)
    view.check("text=show where pixels change")
    assert f"here replaced: {view.inner_text('.side.right')}" in view.inner_text("#tokens .readout")
    subject = "JSON.parse(document.getElementById('atlas').textContent).subjects[0]"
    strongest = view.evaluate(f"{subject}.tokens.images[0].strongest[1]")
    assert f"{strongest:g} of 255 levels. Each token has its own scale." in view.inner_text("#tokens .key")

    # A class with a hostile name is text, and the map answers a click on a code.
    assert HOSTILE in view.get_attribute(".thumbs button >> nth=0", "title")
    assert view.locator("#samples th").all_inner_texts()[1] == "scale 1"
    code = view.evaluate(f"[{subject}.codebooks[0].x[0], {subject}.codebooks[0].y[0]]")
    box = view.locator("canvas.map").bounding_box()
    x, y = (44 + 504 * code[0] / 4095) / 560, (12 + 504 * (1 - code[1] / 4095)) / 560
    view.click("canvas.map", position={"x": x * box["width"], "y": y * box["height"]})
    assert view.locator(".chip").count() > 0
    assert "8 counted images" in view.inner_text("#codebook .key") and "Euclidean" in view.inner_text(
        "#codebook .measures"
    )


def test_two_viewers_are_in_the_same_mode(tmp_path, entry, open_page):
    """Border and colors are shared; where a token is replaced in one, the other replaces its strongest, and says so."""
    runs = [run_folder(tmp_path / "a", with_gpt=False), run_folder(tmp_path / "b", "wetok", "gq", with_gpt=False)]
    assert entry(atlas.main, *runs, *SMALL, "--output", tmp_path / "atlas.html")[0] == 0
    view = open_page(tmp_path / "atlas.html", 1300)
    view.wait_for_selector("html[data-ready]")
    view.locator(".split").first.fill("30")
    assert [slider.input_value() for slider in view.locator(".split").all()] == ["30", "30"]
    view.click(".cells button.token >> nth=0")
    view.check(".options input >> nth=0")
    assert all(box.is_checked() for box in view.locator(".options input").all())
    sides = view.locator(".side:visible").all_inner_texts()
    assert len(sides) == 2 and all("→" in text for text in sides)
    assert "the one that changes this image most" in view.inner_text("#tokens .readout >> nth=0")
    view.click("text=back to the reconstruction >> nth=1")
    assert view.locator(".side:visible").all_inner_texts() == ["reconstruction"] * 2


def test_without_data_the_generator_draws_the_images(tmp_path, make_page, monkeypatch):
    """Nothing is read; the images are its samples, with their classes. Without a generator that is an error."""

    def fail(config, split):
        raise UserError("this data needs a package")

    monkeypatch.setattr(SOURCES["mnist5k"], "open", fail)
    run = run_folder(tmp_path / "run")
    text, (subject,) = make_page(run, "--drawn-images")
    assert "2 of 8 samples of run (guidance scale 2)" in text
    assert [record["title"] for record in subject["tokens"]["images"]] == ["class 0, sample 0", "class 3, sample 7"]
    shutil.rmtree(run / "gpt")
    flags = argparse.Namespace(runs=[str(run)], gpt_ckpt=[], tok_config=[], drawn_images=True)
    with pytest.raises(UserError, match=r"--drawn-images: .*run has no generator that could draw them"):
        atlas.places_of(flags)


def test_a_page_keeps_its_size(monkeypatch, tmp_path, make_page):
    """Where pictures have less room they become smaller, which the page says; where they have none it is an error."""
    run = run_folder(tmp_path / "run")
    text, _ = make_page(run)
    monkeypatch.setattr(assemble, "SPARE", assemble.MAX_BYTES - len(text.encode()) + 100)
    (tmp_path / "atlas.html").unlink()
    smaller, _ = make_page(run)
    assert len(smaller.encode()) < len(text.encode())


def test_sheets_fit_their_room():
    """The best grade that fits is taken; without any the error says what can be shown less."""
    pictures = [mini.random_images(40, 128, seed) for seed in range(2)]
    sizes = [len(sheet_of(pictures[0], grade).uri) for grade in GRADES if grade.quality is not None]
    room = 2 * sizes[3] + 20_000
    sheets = fitting_sheets(pictures, room, "these")
    assert sum(len(sheet.uri) for sheet in sheets) <= room and sheets[0].cell < 128
    with pytest.raises(UserError, match="these do not fit into a page; show fewer"):
        fitting_sheets(pictures, 1000, "these")


# ------------------------------------------------------------------------------------------------ its parts
def test_replaced_tokens_are_spread_over_sequence_and_grid():
    """All of them where they are few; on a grid every k-th cell of every k-th row."""
    assert replaced_positions(4, None, 64) == [0, 1, 2, 3]
    assert replaced_positions(256, None, 3) == [0, 128, 255]
    chosen = replaced_positions(256, (16, 16), 64)
    assert len(chosen) == 64 and chosen[:3] == [0, 2, 4] and chosen[8] == 32
    assert replaced_positions(1024, (32, 32), 64)[:2] == [33, 37]


def test_a_token_is_replaced_by_the_most_used_others():
    """Not by itself; ties go to lower indices; the other tokens stay."""
    rows = torch.tensor([[5, 0], [5, 0], [1, 1], [1, 1], [1, 1], [7, 7], [2, 2]])
    candidates, counts = most_used_tokens(rows, 3)
    assert candidates.tolist() == [[1, 1], [5, 0], [2, 2]] and counts.tolist() == [3, 2, 1]
    codes = other_codes(torch.tensor([[1, 1], [9, 9]]), candidates, 2)
    assert codes.tolist() == [[[5, 0], [2, 2]], [[1, 1], [5, 0]]]
    copies = variants(torch.tensor([[1, 1], [3, 3], [9, 9]]), [0, 2], codes)
    assert copies.tolist()[1] == [[2, 2], [3, 3], [9, 9]] and copies.tolist()[2] == [[1, 1], [3, 3], [1, 1]]


def test_a_collapsed_codebook_is_told(tmp_path, make_page, monkeypatch):
    """A single token in all images: there is nothing to replace it by, and the page says so."""
    run = run_folder(tmp_path / "run", with_gpt=False)
    monkeypatch.setattr(VectorQuantizer, "nearest", staticmethod(lambda z, codes: torch.zeros(len(z)).long()))
    _, (subject,) = make_page(run)
    assert subject["tokens"]["positions"] == [] and any("a single token" in note for note in subject["notes"])


def test_the_map_is_the_plane_of_largest_variance():
    """Weighted by use: distances of vectors in a plane stay as they are, up to one scale."""
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.standard_normal((30, 2)) * np.array([3.0, 1.0]))
    turned = flat @ torch.linalg.qr(torch.from_numpy(rng.standard_normal((5, 5)))).Q[:2]
    projection = project(turned, torch.ones(30, dtype=torch.long))
    places, (first, second) = projection.places, projection.shares
    assert first + second == pytest.approx(1.0) and first > second > 0 and places.min() == 0 and places.max() == 4095
    ratio = torch.pdist(places.double()) / torch.pdist(flat)
    assert ratio.std() / ratio.mean() < 0.01

    # The ends of the map are in the unit of the vectors, with the mean at 0; one channel has no second direction.
    scale = (projection.ends[0][1] - projection.ends[0][0]) / 4095
    assert 1 / ratio.mean() == pytest.approx(scale, rel=0.01)
    middle = places.double().mean(0) * scale + torch.tensor([low for low, _ in projection.ends])
    assert middle.abs().max() < scale
    assert project(flat[:, :1], torch.ones(30, dtype=torch.long)).shares[1] == 0


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_neighbors_are_the_nearest_decoded_vectors(quantizer):
    """Of every quantizer: what it decodes an index to is the vector of its code; counts are those of the tokens."""
    config = small_networks.tokenizer_config("llamagen", quantizer)
    network = mini.tokenizer_of(config).eval().quantizer
    group = network.num_groups - 1
    rows = torch.randint(0, network.group_sizes[group], (50, network.num_groups))
    code_map = map_codebook(network, group, rows, limit=1000)
    assert code_map.counts.tolist() == torch.bincount(rows[:, group], minlength=code_map.size).tolist()

    indices = torch.zeros(1, code_map.size, network.num_groups, dtype=torch.long)
    indices[0, :, group] = torch.arange(code_map.size)
    with torch.no_grad():
        vectors = network.code_vectors(indices if network.num_groups > 1 else indices[..., 0])[0].double()
    table = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    torch.testing.assert_close(code_map.distances.double(), table.sort(1).values[:, :6], atol=1e-5, rtol=1e-4)


def test_a_large_codebook_shows_its_most_used_codes():
    """Those that the counted images use, in rising order."""
    network = mini.tokenizer_of(small_networks.tokenizer_config("llamagen", "vq")).eval().quantizer
    rows = torch.tensor([[9], [9], [9], [4], [4], [30]])
    code_map = map_codebook(network, 0, rows, limit=2)
    assert code_map.codes.tolist() == [4, 9] and code_map.counts.tolist() == [2, 3] and code_map.size == 32
    assert nearest_neighbors(torch.zeros(1, 3), 6)[0].shape == (1, 0)


# ------------------------------------------------------------------------------------------------ the command
def test_a_run_is_found_by_what_lies_in_it(tmp_path):
    """A pipeline, the training of a generator, and a tokenizer alone."""
    run = run_folder(tmp_path / "run")
    place = place_of(str(run))
    assert (place.tokenizer, place.generator) == (str(run / "tokenizer"), str(run / "gpt"))
    (run / "gpt" / "model.safetensors").unlink()
    assert place_of(str(run)).generator is None and "No samples" in place_of(str(run)).note
    assert place_of(str(run / "tokenizer")).tokenizer == str(run / "tokenizer")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.yaml").write_text("data: {codes: c, tokenizer: some/tokenizer}")
    place = place_of(str(tmp_path / "gpt"))
    assert (place.tokenizer, place.generator) == ("some/tokenizer", str(tmp_path / "gpt"))


def test_bad_flags_end_with_one_clear_error(tmp_path, entry):
    run = run_folder(tmp_path / "run", with_gpt=False)
    other = tmp_path / "other.html"
    other.write_text("my own page")
    cases = {
        (run, run, run): "3 runs are named; a page shows one, or 2 side by side",
        (run, "--scales", "0.5"): "scale=0.5 must be 1 (off) or more",
        (run, "--output", tmp_path / "a.txt"): "must be the name of a .html file",
        (run, "--output", other): "nothing is overwritten",
        (tmp_path / "nothing",): "nothing is not a folder of weights",
        (run, "--gpt-ckpt", "a", "--gpt-ckpt", "b"): "--gpt-ckpt is given 2 times for 1 RUN",
    }
    for flags, message in cases.items():
        code, out, err = entry(atlas.main, *flags, "--device", "cpu")
        assert code == 2 and message in err and "Traceback" not in out + err, err
    assert other.read_text() == "my own page"
