"""Files of the baselines' tokenizers, as their authors' code writes them, measured by the documented command.

The networks are small and their weights seeded; the names in the files, the recipes and the reader are the real ones.
"""

import shlex
from pathlib import Path

import pytest
import torch
from recipes import CONFIGS
from tiny import write_images

import tokenizer.convert
from engine.config import load_sections
from evaluations import reconstruction
from evaluations.recipe_headers import facts_of
from evaluations.results import read_result
from tokenizer import load_tokenizer
from tokenizer.loading import TokenizerSections
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import build_tokenizer
from tokenizer.published.layout import export_state
from tokenizer.published.merged import ema_key
from tokenizer.published.registry import layout_of, layout_rules
from tokenizer.published.var_vae import HITS

CNN = "{base_channels: 8, channel_multipliers: [1, 2, 2], norm_groups: 4, encoder_res_blocks: 1, decoder_res_blocks: 1}"
SIZE = 16  # pixels, and a grid of 4 x 4
# recipe -> what makes its network small
SMALL = {
    "open_magvit2/imagenet_256_L": f"{{wetok: {{cnn: {CNN}}}}}",
    "ibq/imagenet256_16384": f"{{llamagen: {{z_channels: 8, cnn: {CNN}}}, "
    "quantizer: {ibq: {codebook_size: 64, codebook_dim: 8}}}",
    "maskgit/maskgit_vqgan_imagenet_f16_256": f"{{maskgit_vq: {{cnn: {CNN}}}, "
    "quantizer: {vq: {codebook_size: 64, codebook_dim: 8}}}",
    "var/vae_ch160v4096z32": f"{{var_vae: {{z_channels: 8, cnn: {CNN}}}, "
    "quantizer: {multi_scale: {scales: [1, 2, 4], codebook_size: 64, codebook_dim: 8}}}",
}
WITHOUT_AVERAGES = ["maskgit/maskgit_vqgan_imagenet_f16_256", "var/vae_ch160v4096z32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root, per_class=3, seed=4, size=24)
    return root


@pytest.fixture(scope="module", params=SMALL)
def released(request, tmp_path_factory) -> tuple[str, Path, Path, Tokenizer]:
    """(recipe, a file of that family, the YAML of its architecture, the network that a user is given)."""
    folder = tmp_path_factory.mktemp("released")
    yaml = folder / "small.yaml"
    base = CONFIGS / f"{request.param}.yaml"
    yaml.write_text(f"base: {base}\nmodel: {SMALL[request.param]}\ndata: {{image_size: {SIZE}}}\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("IMGNET_ROOT", "imagenet")
        config = load_sections(TokenizerSections, yaml).model

    # Raw weights, and averages beside them where the family has them.
    rules, layout = layout_rules(config), layout_of(config)
    networks = [seeded(config, seed) for seed in (0, 1)]
    raw, averaged = (export_state(network.state_dict(), rules) for network in networks)
    content = raw
    if layout.holds_both_weights:
        both = raw | {ema_key(name): tensor for name, tensor in averaged.items()}
        both |= {"loss.discriminator.main.0.weight": torch.ones(3), "model_ema.num_updates": torch.tensor(5)}
        content = {"state_dict": both, "epoch": 3, "pytorch-lightning_version": "1.9"}
    elif "multi_scale" in SMALL[request.param]:
        content = raw | {HITS: torch.rand(7, 64)}  # a count, whose rows are not always those of the scales
    path = folder / "file.ckpt"
    torch.save(content, path)
    return request.param, path, yaml, networks[1] if layout.holds_both_weights else networks[0]


def seeded(config, seed: int) -> Tokenizer:
    """A network whose codes differ from image to image."""
    torch.manual_seed(seed)
    network = build_tokenizer(config, SIZE).eval()
    with torch.no_grad():
        for parameter in network.quantizer.parameters():
            torch.nn.init.normal_(parameter)
    return network


def test_a_file_is_measured_by_the_documented_command(released, images, tmp_path, entry):
    """Codes and images are those of the network that the file was written from; the result says how it was measured."""
    recipe, path, yaml, network = released
    measure = shlex.split(facts_of(CONFIGS / f"{recipe}.yaml").measure)
    measure = measure[: measure.index("--protocol") + 2] if measure else []  # a preset needs Inception's weights
    output = tmp_path / "result.json"
    command = ["--vq-ckpt", path, "--tok-config", yaml, "--val-path", images, "--output", output, "--device", "cpu"]
    code, _, err = entry(reconstruction.main, *command, *measure, "--extractor", "none", "--force")
    assert code == 0, err
    result = read_result(output)
    assert {"psnr", "ssim", "codebook_usage"} <= result["metrics"].keys()
    name = measure[1] if measure else "adm"
    assert result["protocol"]["name"] == name
    assert result["protocol"]["tokenizer"]["weights"] == (
        "ema" if layout_of_recipe(yaml).holds_both_weights else "model"
    )
    assert result["protocol"]["num_tokens"] == network.num_tokens

    loaded = load_tokenizer(path, config=yaml)
    pixels = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        codes = network.encode(pixels).indices
        assert torch.equal(loaded.encode(pixels).indices, codes) and len(codes.unique()) > 3
        assert torch.equal(loaded.decode_indices(codes), network.decode_indices(codes))


def layout_of_recipe(yaml: Path):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("IMGNET_ROOT", "imagenet")
        return layout_of(load_sections(TokenizerSections, yaml).model)


@pytest.mark.parametrize("released", WITHOUT_AVERAGES, indirect=True)
def test_a_file_is_converted_and_written_again(released, tmp_path, entry):
    """The file that is written has the names and shapes of the one that was read, and its values.

    Of files with averages, tests/tokenizer/test_other_files.py shows it.
    """
    _, path, yaml, network = released
    folder, back = tmp_path / "folder", tmp_path / "back.ckpt"
    for arguments in (
        ("--vq-ckpt", path, "--tok-config", yaml, "--output", folder),
        ("--vq-ckpt", folder, "--output", back),
    ):
        code, _, err = entry(tokenizer.convert.main, *arguments)
        assert code == 0, err
    written, read = (torch.load(file, weights_only=True) for file in (back, path))
    assert written.keys() == read.keys()
    for name, tensor in written.items():
        assert name == HITS or torch.equal(tensor, read[name]), name
    assert all(
        torch.equal(tensor, network.state_dict()[name])
        for name, tensor in load_tokenizer(back, config=yaml).state_dict().items()
        if not name.startswith("quantizer.recent_")
    )


def test_a_file_without_its_yaml_asks_for_it(released, tmp_path, entry):
    _, path, _, _ = released
    code, _, err = entry(
        reconstruction.main, "--vq-ckpt", path, "--val-path", tmp_path, "--output", tmp_path / "r.json"
    )
    assert code == 2 and "name the" in err and "YAML" in err
