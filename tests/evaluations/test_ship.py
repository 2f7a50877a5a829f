"""Small models that come with the program: rounded, measured, described, found by name, sampled without arguments."""

import shutil

import mini
import pytest
import torch
from mains import refused
from PIL import Image
from safetensors.torch import load_file

from autoregressive import load_gpt, sample
from autoregressive.loading import require_pair
from engine import shipped_models
from engine.checkpoint.manifest import CheckpointError
from engine.half_precision import as_stored
from engine.messages import UserError
from evaluations import publish, ship, shipping
from evaluations.metrics.intervals import Estimate
from evaluations.publication.earlier_card import card_of
from evaluations.publication.markdown import plain, read_plain, read_table, table
from evaluations.results import write_result
from evaluations.run_layout import RunLayout
from tokenizer import load_tokenizer


def stand_in_results(run, pair, num_samples):
    """What `shipping.measure` leaves, without measuring."""
    work = measure_nothing(run, pair, num_samples)
    tokenizer, generator = ({"fingerprint": network.fingerprint, "path": "x"} for network in pair)
    numbers = {"reconstruction": {"psnr": 21.5}, "generation": {"distinct": 1.0}}
    for name, metrics in numbers.items():
        protocol = {"tokenizer": tokenizer} | ({"gpt": generator} if name == "generation" else {})
        errors = {metric: Estimate(value, 0.1, 9, "blocks", ()) for metric, value in metrics.items()}
        write_result(work.result(name), metrics, protocol, errors)
    return work


def measure_nothing(run, pair, num_samples, measure=shipping.measure):
    """`shipping.measure` without its stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "run_stages", lambda root, stages: [stage.name for stage in stages])
        return measure(run, pair, num_samples)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a result of the trained weights."""
    root = tmp_path_factory.mktemp("run")
    mini.export_networks(root)
    shutil.rmtree(root / "other")
    tokenizer = load_tokenizer(root / "tokenizer")
    protocol = {"tokenizer": {"fingerprint": tokenizer.provenance.fingerprint}}
    write_result(RunLayout(root).result("reconstruction"), {"psnr": 22.25}, protocol)
    return root


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    """A folder of shipped models, with one pair, `digits`, as `python -m evaluations.ship` makes it."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship, "measure", stand_in_results)
        patch.setattr("sys.argv", ["ship", f"digits={run}", "--output", str(folder)])
        ship.ship(ship.parse_args())
    return folder


@pytest.fixture
def installed(shipped, monkeypatch):
    """These models as those of the installation, with the default among them."""
    monkeypatch.setattr(shipped_models, "SHIPPED", shipped)
    monkeypatch.setattr(sample, "DEFAULT", "shipped:digits")
    return shipped


# ------------------------------------------------------------------------------------------------ making them
def test_a_pair_is_rounded_and_loads_as_float32(run, installed):
    """Other weights than before, with a fingerprint of their own, and a generator that names its tokenizer."""
    state = load_file(installed / "digits" / "tokenizer" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float16}

    before = load_tokenizer(run / "tokenizer")
    tokenizer, generator = load_tokenizer("shipped:digits"), load_gpt("shipped:digits")
    assert tokenizer.device.type == "cpu" and next(tokenizer.parameters()).dtype == torch.float32
    rounded = {name: value.half().float() for name, value in before.named_parameters()}
    assert all(torch.equal(value, rounded[name]) for name, value in tokenizer.named_parameters())
    assert tokenizer.provenance.fingerprint != before.provenance.fingerprint

    # What the stamps say.
    stamp = generator.provenance.stamp
    assert tokenizer.provenance.stamp["rounded_from"] == stamp["trained_on_codes_of"] == before.provenance.fingerprint
    assert stamp["tokenizer_fingerprint"] == tokenizer.provenance.fingerprint
    assert stamp["stored_dtype"] == "float16"
    require_pair(generator, tokenizer)
    with pytest.raises(UserError, match="was trained on codes of tokenizer"):
        require_pair(generator, before)
    assert tokenizer.provenance.path == "shipped:digits"


def test_the_cards_tell_the_results_of_the_rounded_weights(shipped):
    card = (shipped / "digits" / "tokenizer" / "README.md").read_text()
    assert 'Tokenizer.from_pretrained("shipped:digits")' in card
    assert "| 21.5 ± 0.23 | 22.25 |" in card  # rounded, with its interval; as trained, by a result without one
    assert "rounded to float16" in card and "holds the weights as float16" in card
    assert "SHA-256" in card and str(shipped) not in card
    assert "distinct" in (shipped / "digits" / "gpt" / "README.md").read_text().lower()


def test_results_of_other_weights_are_refused(run, tmp_path):
    pair = shipping.rounded_pair(run)
    work = measure_nothing(run, pair, 10)
    wrong = {"tokenizer": {"fingerprint": pair[0].trained_fingerprint}}
    write_result(work.result("reconstruction"), {"psnr": 30.0}, wrong)
    with pytest.raises(UserError, match="measured with other weights"):
        shipping.write_cards("digits", run, pair, work)
    work.result("reconstruction").unlink()


def test_nothing_is_overwritten_without_replace(run, shipped, tmp_path, entry, monkeypatch):
    """The same files are accepted, others are not; all models together are limited."""
    monkeypatch.setattr(ship, "measure", stand_in_results)
    folder = tmp_path / "models"
    shutil.copytree(shipped, folder)
    assert entry(ship.main, f"digits={run}", "--output", folder)[0] == 0

    config = folder / "digits" / "tokenizer" / "config.yaml"
    config.write_text("mine")
    assert "exists already (--replace replaces it)" in refused(entry(ship.main, f"digits={run}", "--output", folder))
    assert config.read_text() == "mine"
    assert entry(ship.main, f"digits={run}", "--output", folder, "--replace")[0] == 0
    assert config.read_text() == (shipped / "digits" / "tokenizer" / "config.yaml").read_text()

    monkeypatch.setattr(ship, "MAX_BYTES", 1000)
    assert "accepted are less than" in refused(entry(ship.main, f"other={run}", "--output", folder))
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs/quickstart", "must be NAME=RUN"),
        ("Big Name=runs/quickstart", "must be NAME=RUN"),
        ("digits={tokenizer}", "is no finished quick start"),
        ("digits=nothing", "is not a folder of weights"),
    ],
)
def test_wrong_runs_are_refused(text, message, run, entry, tmp_path):
    text = text.format(tokenizer=run / "tokenizer")
    assert message in refused(entry(ship.main, text, "--output", tmp_path))


def test_numbers_beyond_half_precision_are_named():
    with pytest.raises(CheckpointError, match="half precision cannot hold:\n  large"):
        as_stored({"fine": torch.ones(2), "large": torch.tensor([1e5])})


# ------------------------------------------------------------------------------------------------ using them
def test_a_pair_is_published_by_its_name(installed, entry, tmp_path):
    """Both networks, in float32, with weights, fingerprint and classes as loaded; no word of half precision is left."""
    code, _, err = entry(publish.main, "shipped:digits", "--to", tmp_path / "out")
    assert code == 0 and "published to" in err, err
    for load in (load_tokenizer, load_gpt):
        before, published = load("shipped:digits").provenance, load(tmp_path / "out").provenance
        assert published.fingerprint == before.fingerprint
        assert {**published.stamp, "stored_dtype": "float16"} == before.stamp
    state = load_file(tmp_path / "out" / "gpt" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Tokenizer" in card and "## Generator" in card and "float16" not in card
    assert "it has: shipped:digits" in refused(entry(publish.main, "shipped:letters", "--to", tmp_path / "other"))


def test_the_card_of_a_shipped_model_is_published_with_it(installed, entry, tmp_path):
    """Its license, its results and what it knows of the training; and again from what was published."""
    results = []
    for source, target in (("shipped:digits", "once"), (tmp_path / "once", "twice")):
        code, _, err = entry(publish.main, source, "--to", tmp_path / target)
        assert code == 0 and "no license" not in err and "with 2 results" in err, err
        card = (tmp_path / target / "README.md").read_text()
        assert "license: mit\n---" in card and "## License\n\nmit\n" in card
        results.append(card.partition("## Results")[2].partition("## License")[0])
        for network in (load_tokenizer(source), load_gpt(source)):
            assert f".fingerprint: {network.provenance.fingerprint}\n" in results[-1]
    assert "### reconstruction" in results[0] and "| PSNR, dB | 21.5 |" in results[0] and "### generation" in results[0]
    assert results[0] == results[1]

    # A flag counts more, and a single network takes what is its own.
    once = tmp_path / "once"
    code, _, err = entry(publish.main, once / "gpt", "--to", tmp_path / "gpt", "--license", "cc-by-4.0")
    card = (tmp_path / "gpt" / "README.md").read_text()
    assert code == 0 and "license: cc-by-4.0" in card and "### generation" in card and "### reconstruction" not in card


def test_a_card_of_other_weights_is_left_alone(installed, entry, tmp_path):
    """Its numbers are not those of the weights beside it."""
    shutil.copytree(installed / "digits", tmp_path / "pair")
    for part in ("tokenizer", "gpt"):
        path = tmp_path / "pair" / part / "README.md"
        fingerprint = (load_tokenizer if part == "tokenizer" else load_gpt)(path.parent).provenance.fingerprint
        path.write_text(path.read_text().replace(fingerprint, "0" * 64))
    code, _, err = entry(publish.main, tmp_path / "pair", "--to", tmp_path / "out")
    assert code == 0 and "no license is stated" in err and "with 0 results" in err, err
    assert "No results were published with it." in (tmp_path / "out" / "README.md").read_text()


def test_what_a_card_shows_is_read_back():
    """Whatever a name of a class or a metric is."""
    texts = ["a | b", "c\\d", "<b>*x*</b>", "{[(_)]}", "# 1", "50 %", "&amp;", "`~`"]
    assert [read_plain(plain(text)) for text in texts] == texts
    assert read_table(table([texts, texts[::-1]]).splitlines()) == [texts, texts[::-1]]


def test_an_unknown_name_is_told_what_exists(installed):
    with pytest.raises(UserError, match=r"shipped:letters is no model .* it has: shipped:digits"):
        load_tokenizer("shipped:letters")
    with pytest.raises(UserError, match=r"shipped:\.\./digits is no model"):
        load_gpt("shipped:../digits")


def test_without_any_the_error_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_models, "SHIPPED", tmp_path)
    with pytest.raises(UserError, match=r"it has: none \(python -m evaluations.ship"):
        load_tokenizer("shipped:digits")


def test_sampling_without_arguments_writes_a_picture(installed, entry, tmp_path, monkeypatch):
    """The path is printed; a picture that is there stays."""
    monkeypatch.chdir(tmp_path)
    code, out, err = entry(sample.main)
    assert code == 0, err
    assert out.strip() == str(tmp_path / "samples.png")
    first = (tmp_path / "samples.png").read_bytes()
    picture = Image.open(tmp_path / "samples.png")  # 8 x 4 with borders, enlarged 6 times, beside names of classes
    captions = [picture.height - 6 * (4 * 16 + 5 * 2)]  # the height of the caption above
    assert picture.width > 6 * (8 * 16 + 9 * 2)

    code, out, _ = entry(sample.main, "--class-idx", "2", "--seed", "5", "--qual-num", "3")
    assert code == 0 and out.strip() == str(tmp_path / "samples-2.png")
    captions.append(Image.open(tmp_path / "samples-2.png").height - 6 * (16 + 2 * 2))
    assert all(0 < height <= 6 * 18 + 12 for height in captions)
    assert (tmp_path / "samples.png").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples-2.png", "samples.png"]


def test_sampling_takes_names_and_needs_both(installed, entry, tmp_path):
    pair = ["--vq-ckpt", "shipped:digits", "--gpt-ckpt", "shipped:digits"]
    code, _, err = entry(sample.main, *pair, "--qual-num", "2", "--class-idx", "0,1", "--sample-dir", tmp_path / "s")
    assert code == 0, err
    assert len(list((tmp_path / "s").rglob("000000.png"))) == 2
    assert "are given together" in refused(entry(sample.main, *pair[:2]))


# ------------------------------------------------------------------------------------------------ the real ones
def test_the_models_of_this_installation():
    """They load, belong together, are small, and their cards are of these weights."""
    assert shipped_models.shipped_names() == ["shipped:gigatok", "shipped:wetok"]
    assert sum(path.stat().st_size for path in shipped_models.SHIPPED.rglob("*")) < ship.MAX_BYTES
    for name in shipped_models.shipped_names():
        tokenizer, generator = load_tokenizer(name), load_gpt(name)
        assert tokenizer.provenance.is_average and generator.provenance.is_average
        require_pair(generator, tokenizer)
        for part, network in {"tokenizer": tokenizer, "gpt": generator}.items():
            card = (shipped_models.shipped_folder(name, part) / "README.md").read_text()
            assert network.provenance.fingerprint in card and "## Results" in card

            # It is read as it is written: this is what a publication of the model tells.
            kind = "tokenizer" if part == "tokenizer" else "generator"
            earlier = card_of(shipped_models.shipped_folder(name, part), kind, network.provenance.fingerprint)
            (result,) = earlier.results([network.provenance.fingerprint])
            assert earlier.license == "mit" and len(result.rows()) > 4 and len(result.protocol()) > 20
            told = earlier.training_facts(kind)
            assert {"recipe", "images, train", "weights"} <= told.keys() and "updates" in told["weights"]
