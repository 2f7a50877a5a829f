"""Every evaluation entry runs on every family of tokenizers and generators: one index per token and several, learned
and rotary positions, plain and factorized heads.
"""

import sys

import mini
import pytest
import tiny
import torch
from small_networks import generator_config_for

from autoregressive.extract_codes import extract_split
from autoregressive.models.registry import build_generator
from engine.config import load_config
from engine.data.sources import open_source
from engine.world import World
from evaluations import compare, generation, linear_probe, reconstruction, search_cfg, val_loss, visualize
from evaluations.report import __main__ as report
from evaluations.results import read_result
from tokenizer import load_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

CNN = "base_channels: 4, channel_multipliers: [1, 2, 2], encoder_res_blocks: 1, decoder_res_blocks: 1"
FAMILIES = {
    "hybrid": mini.TOKENIZER,
    "llamagen": [
        f"model={{name: llamagen, llamagen: {{z_channels: 8, cnn: {{{CNN}, mid_blocks: 2, norm_groups: 1}}}}, "
        "quantizer: {vq: {codebook_size: 32, codebook_dim: 4}}}",
        "data={image_size: 16}",
    ],
    "wetok": [
        f"model={{name: wetok, wetok: {{cnn: {{{CNN}, mid_blocks: 1, norm_groups: 2}}}}, "
        "quantizer: {name: gq, gq: {num_groups: 2, group_dim: 3}}}",
        "data={image_size: 16}",
    ],
    "var_vae": [
        f"model={{name: var_vae, var_vae: {{z_channels: 8, cnn: {{{CNN}, mid_blocks: 1, norm_groups: 1}}}}, "
        "quantizer: {name: multi_scale, multi_scale: {scales: [1, 2, 4], codebook_size: 32, codebook_dim: 4}}}",
        "data={image_size: 16}",
    ],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """`train` and `val` in ImageNet layout: two classes of small PNG files."""
    root = tmp_path_factory.mktemp("images")
    tiny.write_images(root / "train", per_class=6, seed=1)
    tiny.write_images(root / "val", per_class=3, seed=2)
    return root


# That of VAR has more tokens than cells; it is a slow test, because others have most of its parts.
@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if n == "var_vae" else []) for n in FAMILIES]
)
def trained(request, images, tmp_path_factory):
    """The flags of a tokenizer of this family and a GPT over its codes, and the folder of these codes."""
    root = tmp_path_factory.mktemp(request.param)
    config = load_config(TokenizerTrainConfig, overrides=FAMILIES[request.param])
    mini.export(root / "tokenizer", config, mini.tokenizer_of(config))
    tokenizer = load_tokenizer(root / "tokenizer")

    positions = "rope2d" if request.param == "llamagen" else "learned"
    gpt_config = generator_config_for(tokenizer, 2, f"model.gpt.positions={positions}")
    torch.manual_seed(3)
    mini.export(root / "gpt", gpt_config, build_generator(gpt_config.model))

    world = World(0, 1, 0, torch.device("cpu"))
    data = load_config(
        TokenizerTrainConfig,
        overrides=[
            "data.name=folder", f"data.root={images / 'train'}", f"data.val_root={images / 'val'}",
            "data.image_size=16",
        ],
    ).data  # fmt: skip
    for split in ("train", "val"):
        extract_split(tokenizer, open_source(data, split), data, split, "flip", root / "codes", 4, world)
    return ["--vq-ckpt", root / "tokenizer"], ["--gpt-ckpt", root / "gpt"], root / "codes"


def run(evaluate, module, monkeypatch, world, output, *flags):
    monkeypatch.setattr(sys, "argv", ["entry", "--output", str(output), "--device", "cpu", *map(str, flags)])
    evaluate(module.parse_args(), world)
    return read_result(output)["metrics"]


def test_every_evaluation_runs(trained, images, tmp_path, monkeypatch, world):
    """From images and from codes; the validation loss of both is the same."""
    tokenizer, gpt, codes = trained
    train, val = ["--data-path", images / "train"], ["--val-path", images / "val"]

    def call(module, name, *flags, evaluate="evaluate"):
        return run(getattr(module, evaluate), module, monkeypatch, world, tmp_path / name, *tokenizer, *flags)

    metrics = call(reconstruction, "r.json", *val, "--force")
    assert {"psnr", "codebook_usage", "bits_per_image", "frechet_lite0_reconstruction"} <= metrics.keys()

    samples = [*gpt, *train, "--num-fid-samples", 6, "--force"]
    metrics = call(generation, "g.json", *samples, "--code-path", codes)
    values = {name for name in metrics if not name.endswith(("_se", "_low", "_high"))}
    assert {"distinct", "memorized", "frechet_lite0_generated", "frechet_lite0_noise"} == values

    metrics = call(search_cfg, "s.json", *samples, "--scales", "1,2", evaluate="search")
    assert metrics["best_guidance_scale"] in (1, 2)

    from_images = call(val_loss, "v.json", *gpt, *val)
    assert call(val_loss, "c.json", *gpt, "--code-path", codes) == pytest.approx(from_images, rel=1e-5)


def test_probes_pictures_and_pages_run(trained, images, tmp_path, entry):
    """Linear probes of both networks, principal components, comparison and report."""
    (_, tokenizer), (_, gpt), _codes = trained
    data = [f"data={{name: folder, root: {images / 'train'}, val_root: {images / 'val'}, image_size: 16}}"]
    data += ["data={num_workers: 0, global_batch_size: 4}", "loop.device=cpu"]
    probe = ["probe={features: cached, epochs: 1, warmup_epochs: 0}", f"network.tokenizer={tokenizer}"]
    for source, network in {"tokenizer": [], "gpt": [f"network.gpt={gpt}"]}.items():
        folder = tmp_path / f"linear_probe_{source}"
        arguments = [*data, *probe, f"network.source={source}", *network, f"loop.run_dir={folder}"]
        assert entry(linear_probe.main, *arguments)[0] == 0
        assert 0 <= read_result(folder / "result.json")["metrics"]["top1"] <= 1

    held_out = ["--val-path", images / "val", "--num-images", 2]
    components = tmp_path / "evaluations" / "pca.npz"
    assert entry(visualize.main, "--vq-ckpt", tokenizer, *held_out, "--output", components)[0] == 0
    assert components.with_suffix(".png").is_file()

    result = tmp_path / "linear_probe_gpt" / "result.json"
    assert "top1" in entry(compare.main, result, result)[1]
    assert entry(report.main, tmp_path)[0] == 0 and (tmp_path / "report.html").is_file()
