"""The two evaluations, whole: their numbers equal plain re-computations, for any batch size and number of ranks."""

import json
import sys

import mini
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import structural_similarity
from torch import nn

from autoregressive import load_gpt
from autoregressive.codes import CodesError, CodeStore
from autoregressive.extract_codes import extract_split
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.registry import build_generator
from autoregressive.sampling import seeded_draw
from autoregressive.training.config import GPTTrainConfig
from engine.assets import AssetsConfig
from engine.config import load_config
from engine.data.images import to_float, to_uint8
from engine.data.sources import SOURCES
from engine.messages import ConfigError, UserError
from engine.world import World
from evaluations import generation, reconstruction, sample_stream
from evaluations.classifier import ClassifierTrainConfig
from evaluations.digits.model import Classifier, classify
from evaluations.image_sets import SourceImages
from evaluations.jobs import generation as jobs_generation
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.frechet import Moments
from evaluations.metrics.lite0 import Lite0Extractor
from evaluations.metrics.registry import METRICS, Metric, find_metric
from evaluations.metrics.sequences import noise_images
from evaluations.protocols.reference import ReferenceImages
from evaluations.results import read_result, scalars_of
from tokenizer import load_tokenizer

IMAGES = {"train": mini.image_source(30, seed=1), "val": mini.image_source(14, seed=2)}
SAMPLES = 25


@pytest.fixture(autouse=True)
def packaged(monkeypatch):
    """30 training and 14 held-out images under the name of a packaged set."""
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: IMAGES[split])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Exported networks: a tokenizer and its codes, another tokenizer, a GPT, a classifier."""
    root = tmp_path_factory.mktemp("given")
    config = mini.tokenizer_config()
    for name, seed in (("tokenizer", 0), ("other", 1)):
        mini.export(root / name, config, mini.tokenizer_of(config, seed))
    sizes = "model.gpt={width: 16, layers: 1, heads: 2, vocab_size: 32, num_tokens: 8, num_classes: 4}"
    gpt_config = load_config(GPTTrainConfig, overrides=[sizes])
    torch.manual_seed(3)
    gpt = build_generator(gpt_config.model)
    torch.nn.init.normal_(gpt.output.weight)
    mini.export(root / "gpt", gpt_config, gpt)
    cnn_config = load_config(ClassifierTrainConfig, overrides=["model={width: 4, num_classes: 4}"])
    mini.export(root / "classifier", cnn_config, Classifier(cnn_config.model))
    world = World(0, 1, 0, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SOURCES["mnist5k"], "open", lambda config, split: IMAGES[split])
        tokenizer = load_tokenizer(root / "tokenizer")
        extract_split(tokenizer, IMAGES["train"], config.data, "train", "flip", root / "codes", 8, world)
    return root


def run(module, monkeypatch, world, output, *flags, force=("--force",)):
    """One evaluation with these flags, as its entry runs it; few images are forced."""
    monkeypatch.setattr(sys, "argv", ["entry", "--output", str(output), "--device", "cpu", *force, *map(str, flags)])
    module.evaluate(module.parse_args(), world)
    result = read_result(output)
    assert all(find_metric(name) for name in scalars_of(result["metrics"])), (
        "every number that is written is a known metric"
    )
    return result


def plain_frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two sets of features, with numpy and scipy."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(cov_a @ cov_b))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


def pool_features(images: torch.Tensor) -> torch.Tensor:
    return Lite0Extractor(AssetsConfig())(images)["pool"]


def pixels(split: str) -> torch.Tensor:
    return torch.from_numpy(IMAGES[split].images).permute(0, 3, 1, 2).contiguous()


# ---------------------------------------------------------------------------------------------- reconstruction
def reconstruct(given, monkeypatch, world, output, *flags, **options):
    return run(reconstruction, monkeypatch, world, output, "--vq-ckpt", given / "tokenizer", *flags, **options)


def test_reconstruction_metrics_are_those_of_a_plain_computation(given, tmp_path, monkeypatch, world):
    """PSNR and SSIM by their own packages or formulas, usage by a set, the distance by scipy."""
    result = reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--per-proc-batch-size", 5)
    tokenizer, originals = load_tokenizer(given / "tokenizer"), pixels("val")
    codes = tokenizer.encode(to_float(originals)).indices
    made = to_uint8(tokenizer.decode_indices(codes))
    squared = [((a.double() - b.double()) / 255).square().mean() for a, b in zip(originals, made, strict=True)]
    similar = [
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=255)
        for a, b in zip(originals, made, strict=True)
    ]
    counts = np.bincount(codes.flatten().numpy(), minlength=32)
    p = counts[counts > 0] / counts.sum()
    metrics = result["metrics"]
    assert metrics["psnr"] == pytest.approx(np.mean([-10 * np.log10(v) for v in squared]), abs=0.01)
    assert metrics["ssim"] == pytest.approx(np.mean(similar), abs=1e-3)
    assert metrics["ssim_range2"] > metrics["ssim"]
    assert metrics["codebook_usage"] == len(p) / 32
    assert metrics["codebook_perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    features = pool_features
    distance = plain_frechet(features(made), features(originals))
    assert metrics["frechet_lite0_reconstruction"] == pytest.approx(distance, rel=1e-3)
    assert metrics["bits_per_image"] == 8 * 5 and metrics["compression_ratio"] == pytest.approx(16 * 16 * 24 / 40)
    assert scalars_of(metrics).keys() == {
        "psnr", "ssim", "ssim_range2", "codebook_usage", "codebook_perplexity",
        "bits_per_image", "compression_ratio", "frechet_lite0_reconstruction",
    }  # fmt: skip


def test_reconstruction_says_how_its_numbers_were_made(given, tmp_path, monkeypatch, world):
    """Images, crop, rounding, reference, extractor weights, tokenizer, precision, library versions."""
    result = reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--reference", "train")
    protocol = result["protocol"]
    assert protocol["reference"].pop("content")  # what tells two folders of one name apart
    assert protocol["reference"].pop("forced") == [
        "the reconstruction to measure: 14 images, fewer than 113 (feature dimension 112, plus 1)",
        "reference: 30 images, fewer than 113 (feature dimension 112, plus 1)",
    ]
    assert protocol["reference"] == {
        "data": "mnist5k",
        "split": "train",
        "kind": "train",
        "num_images": 30,
        "image_size": 16,
        "crop": "center",
        "skip_broken": False,
        "extractor": "frechet_lite0",
        "extractor_weights": Lite0Extractor(AssetsConfig()).stamp,
    }
    expected = {
        "kind": "reconstruction",
        "name": "adm",
        "num_images": 14,
        "data": "mnist5k",
        "split": "val",
        "crop": "center",
    }
    expected |= {"image_size": 16, "codebook_size": 32, "num_tokens": 8, "precision": "fp32"}
    assert expected.items() <= protocol.items()
    assert protocol["tokenizer"]["fingerprint"] == load_tokenizer(given / "tokenizer").provenance.fingerprint
    assert {"torch", "timm", "numpy", "python"} <= result["libraries"].keys()
    assert result["metrics"]["frechet_lite0_real"] > 0


def test_reconstruction_keeps_pairs_for_the_report(given, tmp_path, monkeypatch, world):
    """Original i above reconstruction i, evenly spread over the split."""
    reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--per-proc-batch-size", 4)
    with np.load(tmp_path / "r.npz") as stored:
        originals, made = stored["originals"], stored["reconstructions"]
    assert np.array_equal(originals, pixels("val").numpy())
    tokenizer = load_tokenizer(given / "tokenizer")
    expected = to_uint8(tokenizer.decode_indices(tokenizer.encode(to_float(pixels("val"))).indices)).numpy()
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1


def test_wrong_requests_for_a_reconstruction_are_refused(given, tmp_path, monkeypatch, world):
    """LPIPS of tiny images, a file under WeTok's rules, which crop differently: told before any work."""
    monkeypatch.setitem(EXTRACTORS, "inception", SmallInception)
    with pytest.raises(UserError, match="--lpips needs images of 32 px or more, these have 16"):
        reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--lpips", "--random-stand-in")
    monkeypatch.setattr(SmallInception, "capabilities", frozenset({"published", "float_images"}))
    with pytest.raises(UserError, match="measures against the same images"):
        reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--protocol", "wetok", "--gt-npz-path", "x.npz")


def test_precision_and_recall_of_reconstructions_come_on_request(given, tmp_path, monkeypatch, world):
    """Against the same images, with the emulation where it is asked for."""
    monkeypatch.setitem(EXTRACTORS, "inception", SmallInception)
    flags = ["--extractor", "inception", "--precision-recall", "--fp16-emulation"]
    result = reconstruct(given, monkeypatch, world, tmp_path / "r.json", *flags)
    assert {"rfid", "precision", "recall", "precision_fp16", "recall_fp16"} <= result["metrics"].keys()
    assert not {"rfid", "precision", "recall"} & result["unavailable"].keys()


def assert_same(results, skip=(), rel=1e-4):
    for name, value in results[0].items():
        if name not in skip:
            assert [r[name] for r in results] == pytest.approx([value] * len(results), rel=rel, abs=1e-4), name


def test_reconstruction_does_not_depend_on_batches_or_ranks(given, tmp_path, monkeypatch, world):
    """Batches of 1, 4 and 100; two ranks; three ranks of which one has nothing to do."""
    results = []
    for size in (1, 4, 100):
        output = tmp_path / f"b{size}" / "r.json"
        results.append(reconstruct(given, monkeypatch, world, output, "--per-proc-batch-size", size)["metrics"])
    for ranks, size in ((2, 4), (3, 10)):
        output = tmp_path / f"r{ranks}" / "r.json"
        flags = ["--output", output, "--device", "cpu", "--force", "--vq-ckpt", given / "tokenizer"]
        flags += ["--per-proc-batch-size", size]
        monkeypatch.setattr(sys, "argv", ["entry", *map(str, flags)])
        args = reconstruction.parse_args()
        mini.on_ranks(ranks, lambda w, a=args: reconstruction.evaluate(a, w))
        results.append(read_result(output)["metrics"])
    assert_same(results)


class SmallInception(Extractor):
    """In the place of Inception, whose 2,048 features take half a minute of eigenvalues: 6 numbers per image."""

    dim, metric = 6, "fid"  # no spatial features and no class probabilities
    capabilities = frozenset({"published"})

    def __init__(self, assets):
        super().__init__()
        self.stamp = "random" if assets.random_stand_in else "a file"

    def forward(self, images_u8):
        return {"pool": torch.cat([images_u8.float().mean((2, 3)), images_u8.float().std((2, 3))], dim=1) / 100}


def test_only_inception_gives_rfid_and_gfid(given, tmp_path, monkeypatch, world):
    """rFID only against the split itself; weights that are random are stamped in the result."""
    monkeypatch.setitem(EXTRACTORS, "inception", SmallInception)
    flags = ["--extractor", "inception", "--random-stand-in"]
    result = reconstruct(given, monkeypatch, world, tmp_path / "val" / "r.json", *flags)
    assert "rfid" in result["metrics"]
    assert not any("lite0" in name for name in result["metrics"])
    assert result["protocol"]["reference"]["extractor_weights"] == "random"
    wrong = [*flags, "--reference", "train"]
    with pytest.raises(UserError, match=r"(?s)kind val, this one is train .*--force or --force-reference"):
        reconstruct(given, monkeypatch, world, tmp_path / "train" / "r.json", *wrong, force=())
    other = reconstruct(given, monkeypatch, world, tmp_path / "train" / "r.json", *wrong, "--force-reference", force=())
    assert "rfid" not in other["metrics"] and {"fid_reconstruction", "fid_real"} <= other["metrics"].keys()
    assert "this one is train" in other["forced"]["fid_reconstruction"] and "psnr" not in other["forced"]
    made = generate_images(given, monkeypatch, world, tmp_path / "g.json", *flags)
    assert {"gfid", "precision", "recall", "distinct"} <= made["metrics"].keys()
    assert not any(name.startswith(("rfid", "fid_")) for name in made["metrics"])
    with pytest.raises(UserError, match="kind train, this one is val"):
        generate_images(given, monkeypatch, world, tmp_path / "h.json", *flags, "--reference", "val", force=())


def test_inception_resizes_as_tensorflow_1_did():
    """What reaches the first layer: the TF1 bilinear kernel without half pixels or antialias, then (x - 128) / 128."""
    extractor = EXTRACTORS["inception"](AssetsConfig(random_stand_in=True))
    images, seen = mini.random_images(2, size=20), {}
    first = extractor.network.network.Conv2d_1a_3x3
    first.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    extractor(images)
    position = np.arange(299, dtype=np.float32) * np.float32(20 / 299)
    low = position.astype(int)
    high, share = np.minimum(low + 1, 19), position - low
    x = images.numpy().astype(np.float32)
    rows = x[:, :, low] * (1 - share)[:, None] + x[:, :, high] * share[:, None]
    resized = rows[..., low] * (1 - share) + rows[..., high] * share
    np.testing.assert_allclose(seen["x"].numpy(), (resized - 128) / 128, atol=1e-4)


# ---------------------------------------------------------------------------------------------- generation
def generate_images(given, monkeypatch, world, output, *flags, **options):
    own = ["--vq-ckpt", given / "tokenizer", "--gpt-ckpt", given / "gpt", "--num-fid-samples", SAMPLES]
    return run(generation, monkeypatch, world, output, *own, *flags, **options)


class Brightness(nn.Linear):
    """A classifier whose answer depends on the sample: the class of its grey level, modulo 4."""

    def __init__(self):
        super().__init__(1, 1)

    def forward(self, images):
        level = (images.mean((1, 2, 3)) * 200).round().long() % 4
        return nn.functional.one_hot(level, 4).float()


@pytest.fixture
def by_brightness(monkeypatch):
    monkeypatch.setattr(jobs_generation, "load_classifier", lambda path, classes: Brightness())


@pytest.mark.usefixtures("by_brightness")
def test_generation_metrics_are_those_of_a_plain_computation(given, tmp_path, monkeypatch, world):
    """Samples of balanced classes by number; the distance by scipy; shares by sets; agreement by the classifier."""
    flags = ["--code-path", given / "codes", "--classifier", given / "classifier", "--cfg-scale", "1.5", "--seed", "6"]
    result = generate_images(given, monkeypatch, world, tmp_path / "g.json", *flags, "--per-proc-batch-size", 7)
    tokenizer, metrics = load_tokenizer(given / "tokenizer"), result["metrics"]
    gpt, labels = load_gpt(given / "gpt"), torch.arange(SAMPLES) % 4
    tokens = generate(gpt, labels, draw=seeded_draw(6, torch.arange(SAMPLES), 8), guidance=Guidance(scale=1.5))
    made = to_uint8(tokenizer.decode_indices(tokens))
    features = pool_features
    distance = plain_frechet(features(made), features(pixels("train")))
    assert metrics["frechet_lite0_generated"] == pytest.approx(distance, rel=1e-3)
    assert metrics["distinct"] == len({tuple(t) for t in tokens.tolist()}) / SAMPLES
    known = {tuple(view) for image in CodeStore(given / "codes", "train").codes.tolist() for view in image}
    assert metrics["memorized"] == sum(tuple(t) in known for t in tokens.tolist()) / SAMPLES
    assert metrics["label_agreement"] == (classify(Brightness(), made) == labels).double().mean().item()
    noise = torch.cat([noise_images(len(c), 16, int(c[0])) for c in torch.arange(SAMPLES).split(7)])
    of_noise = plain_frechet(features(noise), features(pixels("train")))
    assert metrics["frechet_lite0_noise"] == pytest.approx(of_noise, rel=1e-3)
    assert scalars_of(metrics).keys() == {
        "frechet_lite0_generated", "frechet_lite0_generated_means", "frechet_lite0_generated_covariances",
        "frechet_lite0_noise", "kid_lite0", "mind_lite0", "distinct", "memorized", "label_agreement",
    }  # fmt: skip
    assert {"frechet_lite0_generated_infinity", "density_lite0", "authpct_lite0"} <= result["unavailable"].keys()


def test_generation_says_how_its_numbers_were_made(given, tmp_path, monkeypatch, world):
    """Every setting of the sampler; a metric that was not asked for is not there."""
    flags = ["--cfg-scale", "3", "--cfg-schedule", "step", "--top-k", "5", "--temperature", "0.9", "--seed", "2"]
    result = generate_images(given, monkeypatch, world, tmp_path / "g.json", *flags)
    protocol = result["protocol"]
    assert protocol["sampler"] == {
        "guidance_scale": 3.0,
        "guidance_schedule": "step",
        "guidance_start": 0.18,
        "guidance_first_token": "full",
        "unguided_scale": 1.0,
        "last_guided": -1,
        "temperature": 0.9,
        "top_k": 5,
        "top_p": 1.0,
        "greedy": False,
        "seed": 2,
        "batch_size": 32,
    }
    assert (protocol["kind"], protocol["num_images"], protocol["labels"]) == (
        "generation",
        SAMPLES,
        "in turn, 6 to 7 per class",
    )
    assert protocol["reference"]["num_images"] == 30 and protocol["reference"]["split"] == "train"
    assert {"tokenizer", "gpt"} <= protocol.keys()
    assert {"frechet_lite0_generated", "frechet_lite0_noise", "distinct"} <= result["metrics"].keys()
    assert not {"memorized", "label_agreement"} & result["metrics"].keys()
    assert 0 < result["timing"]["decoding_share"] < 1


@pytest.mark.usefixtures("by_brightness")
def test_generation_does_not_depend_on_batches_or_ranks(given, tmp_path, monkeypatch, world):
    """The same samples, so the same numbers; noise is drawn batch by batch."""
    flags = ["--code-path", given / "codes", "--classifier", given / "classifier"]
    results = []
    for size in (3, 100):
        output = tmp_path / f"b{size}" / "g.json"
        result = generate_images(given, monkeypatch, world, output, *flags, "--per-proc-batch-size", size)
        results.append(result["metrics"])
    own = ["--vq-ckpt", given / "tokenizer", "--gpt-ckpt", given / "gpt", "--num-fid-samples", SAMPLES, *flags]
    for ranks, size in ((2, 3), (3, 20)):
        output = tmp_path / f"r{ranks}" / "g.json"
        arguments = ["--output", output, "--device", "cpu", "--force", *own, "--per-proc-batch-size", size]
        monkeypatch.setattr(sys, "argv", ["entry", *map(str, arguments)])
        args = generation.parse_args()
        mini.on_ranks(ranks, lambda w, a=args: generation.evaluate(a, w))
        results.append(read_result(output)["metrics"])
    assert_same(results, skip=("frechet_lite0_noise",), rel=2e-3)
    assert results[2]["frechet_lite0_noise"] == pytest.approx(results[0]["frechet_lite0_noise"], rel=1e-6)


def test_generation_keeps_examples_beside_their_nearest_training_images(given, tmp_path, monkeypatch, world):
    """Eight samples of each class, the first of their class by number; the neighbour is the closest in pixels."""
    generate_images(given, monkeypatch, world, tmp_path / "g.json", "--cfg-scale", "1", "--seed", "6")
    with np.load(tmp_path / "g.npz") as stored:
        images, labels, nearest = stored["images"], stored["labels"], stored["nearest"]
        assert stored["class_names"].tolist() == ["0", "1", "2", "3"] and stored["num_candidates"] == 30
    assert labels.tolist() == [c for c in range(4) for _ in range(8)]
    ids = torch.tensor([4 * n + c for c in range(4) for n in range(8)])
    tokens = generate(load_gpt(given / "gpt"), ids % 4, draw=seeded_draw(6, ids, 8))
    expected = to_uint8(load_tokenizer(given / "tokenizer").decode_indices(tokens)).numpy()
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1
    training = pixels("train").numpy().astype(int)
    for image, neighbour in zip(images.astype(int), nearest, strict=True):
        closest = ((training - image) ** 2).sum((1, 2, 3)).argmin()
        assert np.array_equal(neighbour, training[closest])


def test_pairs_and_codes_that_do_not_belong_together_are_refused(given, tmp_path, monkeypatch, world):
    """No GPT, codes of another tokenizer, too few samples: told before anything is sampled."""
    output = tmp_path / "g.json"
    monkeypatch.setattr(sample_stream, "sample_images", lambda *args: pytest.fail("sampled"))
    foreign = ["--vq-ckpt", given / "other", "--gpt-ckpt", given / "gpt", "--num-fid-samples", 10]
    with pytest.raises(CodesError, match="another tokenizer"):
        run(generation, monkeypatch, world, output, *foreign, "--code-path", given / "codes")
    with pytest.raises(ConfigError, match="is not a generator"):
        run(generation, monkeypatch, world, output, "--vq-ckpt", given / "other", "--gpt-ckpt", given / "other")
    with pytest.raises(UserError, match="--num-fid-samples 1: statistics need 2 or more"):
        generate_images(given, monkeypatch, world, output, "--num-fid-samples", 1)
    assert not output.exists()


# ---------------------------------------------------------------------------------------------- metrics of plug-ins
@pytest.fixture
def plugin_metrics(monkeypatch):
    """A metric of pairs, a metric of images, and one with the name of a score of the protocol."""
    error = Metric("error", "Error", better="lower", pairs=lambda x, y: (x - y).abs().mean((1, 2, 3)))
    level = Metric("level", "Level", images=lambda x: x.float().mean((1, 2, 3)))
    for metric in (error, level, Metric("ssim", "SSIM", pairs=lambda x, y: x[:, 0, 0, 0])):
        monkeypatch.setitem(METRICS, metric.name, metric)


@pytest.mark.usefixtures("plugin_metrics")
def test_a_metric_of_a_plugin_is_the_mean_over_images(given, tmp_path, monkeypatch, world):
    """On request, for any batches; reconstructions are clamped. What else is measured does not change."""
    results = [
        reconstruct(given, monkeypatch, world, tmp_path / f"{size}.json", "--metrics", "error", *flags)["metrics"]
        for size, flags in {1: ["--per-proc-batch-size", 3], 2: []}.items()
    ]
    tokenizer, originals = load_tokenizer(given / "tokenizer"), to_float(pixels("val"))
    reconstructions = tokenizer.detokenize(tokenizer.tokenize(originals))
    expected = (reconstructions - originals).abs().mean().item()
    assert [metrics.pop("error") for metrics in results] == pytest.approx([expected] * 2, rel=1e-5)
    assert all(metrics.pop(f"error_{part}") > 0 for metrics in results for part in ("se", "low", "high"))
    plain = reconstruct(given, monkeypatch, world, tmp_path / "plain.json")["metrics"]
    assert results[1] == plain
    with np.load(tmp_path / "1.npz") as stored:
        assert stored["score_error"].mean() == pytest.approx(expected, rel=1e-5)

    flags = ["--metrics", "level", "--extractor", "none", "--export", "npz", "--sample-dir", tmp_path]
    level = generate_images(given, monkeypatch, world, tmp_path / "g.json", *flags)["metrics"]["level"]
    with np.load(tmp_path / "samples.npz") as stored:
        assert level == pytest.approx(stored["arr_0"].mean(), rel=1e-6)


@pytest.mark.usefixtures("plugin_metrics")
def test_metrics_that_cannot_be_computed_are_refused(given, tmp_path, monkeypatch, world):
    """Of the other kind, unknown, or under the name of a score of the protocol: before anything is measured."""
    with pytest.raises(UserError, match=r"--metrics level cannot be computed over pairs here; choose one of: .*error"):
        reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--metrics", "level")
    with pytest.raises(UserError, match="--metrics error cannot be computed over images here; choose one of: level"):
        generate_images(given, monkeypatch, world, tmp_path / "g.json", "--metrics", "error")
    with pytest.raises(UserError, match="--metrics ssim: the protocol has a score of this name"):
        reconstruct(given, monkeypatch, world, tmp_path / "r.json", "--metrics", "ssim")


# ---------------------------------------------------------------------------------------------- reference statistics
def test_reference_statistics_are_computed_once_and_kept(tmp_path, monkeypatch, world):
    """The second call reads the file; other images, sizes or weights have a file of their own."""
    extractor = Lite0Extractor(AssetsConfig())

    def reference_of(split, image_size=16):
        images = SourceImages(IMAGES[split], split, image_size, skip_broken=False)
        return ReferenceImages(images, split, extractor).reference(tmp_path, world)

    first = reference_of("train")
    expected = extractor(pixels("train"))["pool"].double().numpy()
    np.testing.assert_allclose(first.pool[0], expected.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first.pool[1], np.cov(expected.T), rtol=1e-2, atol=1e-5)
    forward = extractor.forward
    monkeypatch.setattr(extractor, "forward", lambda images: pytest.fail("computed again"))
    again = reference_of("train")
    assert again.facts == first.facts and first.facts["num_images"] == 30
    assert all(np.array_equal(a, b) for a, b in zip(again.pool, first.pool, strict=True))
    monkeypatch.setattr(extractor, "forward", forward)
    reference_of("val")
    reference_of("train", image_size=8)
    monkeypatch.setattr(extractor, "stamp", "other weights")
    reference_of("train")
    assert len(list(tmp_path.glob("reference_*.npz"))) == 4


@pytest.mark.parametrize("parts", [[20, 30], [0, 50], [49, 1, 0]])
def test_moments_of_ranks_are_those_of_all_images(parts):
    """For any division, a rank without images included; equal on all ranks."""
    features = torch.randn(50, 5, dtype=torch.float64) * torch.arange(1, 6) + 100
    pieces = features.split(parts)

    def work(world):
        moments = Moments(5)
        for chunk in pieces[world.rank].split(3):
            if len(chunk):
                moments.update(chunk)
        return moments.merged(world)

    for merged in mini.on_ranks(len(parts), work):
        assert merged.count == 50
        np.testing.assert_allclose(merged.mean(), features.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance(), np.cov(features.numpy().T), rtol=1e-11)


def test_results_are_plain_json(given, tmp_path, monkeypatch, world):
    """No NaN or infinity: any reader can parse the file."""
    reconstruct(given, monkeypatch, world, tmp_path / "r.json")
    json.loads((tmp_path / "r.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
