"""Files of the baselines' generators, as their authors' code writes them, sampled and measured by documented commands.

Networks are small and their weights seeded, so that no number says anything; the names in the files, the recipes, the
readers, the published settings of the sampler and the commands are the real ones.
"""

import json
from dataclasses import dataclass

import pytest
import torch
from recipes import CONFIGS
from tiny import write_images

import autoregressive.convert
from autoregressive import load_gpt, sample
from autoregressive.cli import settings_of
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.loading import GeneratorSections
from autoregressive.models.registry import build_generator
from autoregressive.published import layout_of
from autoregressive.published_samplers import PUBLISHED_SAMPLERS
from engine.config import load_sections
from evaluations import generation
from evaluations.results import read_result
from tokenizer.loading import TokenizerSections, load_tokenizer
from tokenizer.models.registry import build_tokenizer
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_rules

CNN = "{base_channels: 8, channel_multipliers: [1, 2, 2], norm_groups: 4, encoder_res_blocks: 1, decoder_res_blocks: 1}"
SIZE = 16  # pixels, and a grid of 4 x 4
SIZES = "size: null, width: 16, layers: 2, heads: 2, num_tokens: 16, num_classes: 4"


@dataclass(frozen=True)
class Family:
    """What makes the networks of a family small."""

    tokenizer: str  # recipe
    small_tokenizer: str
    small_generator: str
    in_one_file: bool = True  # the tokenizer lies in the file of the generator


FAMILIES = {
    "open_magvit2/AR_256_B": Family(
        "open_magvit2/imagenet_256_L_6_12",
        f"{{wetok: {{cnn: {CNN}}}, quantizer: {{gq: {{group_dim: 7, index_bits: [3, 4]}}}}}}",
        f"{{gpt: {{{SIZES}, codebook_sizes: [8, 16]}}}}",
    ),
    "ibq/AR_256_L": Family(
        "ibq/imagenet256_16384",
        f"{{llamagen: {{z_channels: 8, cnn: {CNN}}}, quantizer: {{ibq: {{codebook_size: 64, codebook_dim: 8}}}}}}",
        f"{{adaln_gpt: {{{SIZES}, vocab_size: 64}}}}",
    ),
    "rar/rar_l": Family(
        "maskgit/maskgit_vqgan_imagenet_f16_256",
        f"{{maskgit_vq: {{cnn: {CNN}}}, quantizer: {{vq: {{codebook_size: 64, codebook_dim: 8}}}}}}",
        f"{{rar: {{{SIZES}, mlp_width: 32, vocab_size: 64}}}}",
        in_one_file=False,
    ),
    "var/var_d16": Family(
        "var/vae_ch160v4096z32",
        f"{{var_vae: {{z_channels: 8, cnn: {CNN}}}, "
        "quantizer: {multi_scale: {scales: [1, 2, 4], codebook_size: 64, codebook_dim: 8}}}",
        "{next_scale: {size: null, width: 16, layers: 2, heads: 2, num_classes: 4, "
        "scales: [1, 2, 4], vocab_size: 64, code_dim: 8}}",
        in_one_file=False,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def released(request, tmp_path_factory):
    """(recipe, flags that name the published files, the generator that was written, with the codes it needs)."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp("released")
    yamls = {}
    for name, recipe, small in (
        ("tokenizer", family.tokenizer, family.small_tokenizer), ("generator", request.param, family.small_generator),
    ):  # fmt: skip
        yamls[name] = folder / f"{name}.yaml"
        size = f"data: {{image_size: {SIZE}}}\n" if name == "tokenizer" else ""
        yamls[name].write_text(f"base: {CONFIGS / recipe}.yaml\nmodel: {small}\n{size}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("IMGNET_ROOT", "imagenet")
        tokenizer_config = load_sections(TokenizerSections, yamls["tokenizer"]).model
    config = load_sections(GeneratorSections, yamls["generator"]).model

    # The files: Lightning's with both networks, or plain state dicts.
    torch.manual_seed(0)
    tokenizer, network = build_tokenizer(tokenizer_config, SIZE), build_generator(config)
    with torch.no_grad():
        for parameter in (*network.parameters(), *tokenizer.quantizer.parameters()):
            torch.nn.init.normal_(parameter, std=0.5)
    network.adopt_codes(tokenizer.quantizer)
    state = export_state(tokenizer.state_dict(), layout_rules(tokenizer_config))
    ((key, of_generator),) = layout_of(config).export(network).items()
    if family.in_one_file:
        vq = gpt = folder / "AR.ckpt"
        both = of_generator | {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
        torch.save({key: both, "epoch": 3, "pytorch-lightning_version": "1.9"}, gpt)
    else:
        vq, gpt = folder / "tokenizer.bin", folder / "generator.bin"
        torch.save(state, vq)
        torch.save(of_generator, gpt)
    flags = ["--vq-ckpt", vq, "--tok-config", yamls["tokenizer"], "--gpt-ckpt", gpt, "--gpt-config", yamls["generator"]]
    return request.param, flags, network.eval()


def test_images_are_those_of_the_network_and_the_published_sampler(released, tmp_path, entry):
    recipe, flags, network = released
    folder = tmp_path / "samples"
    command = [*flags, "--sampler", recipe, "--class-idx", "1,2", "--qual-num", "4", "--sample-dir", folder]
    code, _, err = entry(sample.main, *command, "--device", "cpu")
    assert code == 0, err
    assert len(list(folder.rglob("*.png"))) == 4 + 3 and f"sampler {recipe}: " in err
    facts = json.loads((folder / "written.json").read_text())["settings"]["sampler"]
    expected = PUBLISHED_SAMPLERS[recipe]
    scale = facts["guidance"]["scale"]
    assert (tuple(scale) if isinstance(scale, list) else scale) == expected["cfg_scale"]
    assert facts["guidance"]["schedule"] == expected.get("cfg_schedule", "constant")

    loaded = load_gpt(flags[5], config=flags[7])
    loaded.adopt_codes(load_tokenizer(flags[1], config=flags[3]).quantizer)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(generate(loaded, [0, 3], seed=1), generate(network, [0, 3], seed=1))


def test_the_documented_command_measures_the_files(released, tmp_path, entry):
    """Without Inception's weights, so without a gFID; the facts of the result say how it was sampled."""
    recipe, flags, _ = released
    write_images(tmp_path / "images", per_class=3, seed=4, size=24)
    output = tmp_path / "result.json"
    command = [*flags, "--sampler", recipe, "--temperature", "0.9", "--data-path", tmp_path / "images"]
    command += ["--num-fid-samples", "6", "--extractor", "none", "--force", "--output", output, "--device", "cpu"]
    code, _, err = entry(generation.main, *command)
    assert code == 0, err
    facts = read_result(output)["protocol"]["sampler"]
    assert facts["temperature"] == 0.9, "what is typed wins"
    assert ("guidance_power" in facts) == ("cfg_power" in PUBLISHED_SAMPLERS[recipe])


def test_a_file_is_converted_and_written_again(released, tmp_path, entry):
    """A published file becomes a folder, and that the file of the generator alone: the same names and values."""
    _, flags, _ = released
    folder, back = tmp_path / "folder", tmp_path / "back.ckpt"
    for command in (("--gpt-ckpt", flags[5], "--gpt-config", flags[7], "--output", folder),
                    ("--gpt-ckpt", folder, "--output", back)):  # fmt: skip
        code, _, err = entry(autoregressive.convert.main, *command)
        assert code == 0, err
    written, read = (torch.load(path, weights_only=True) for path in (back, flags[5]))
    written, read = (content.get("state_dict", content) for content in (written, read))
    of_generator = {name: tensor for name, tensor in read.items() if not name.startswith("first_stage_model.")}
    assert written.keys() == of_generator.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in of_generator.items())


def test_power_cosine_begins_unguided_and_ends_near_the_scale():
    """1 + (s - 1) (1 - cos(pi (t / N)^p)) / 2; the ratio never reaches 1, and `first_token` is not read."""
    scales = Guidance(scale=16.0, schedule="power_cosine", power=2.75).scales(256)
    expected = {0: 1.0, 15: 1.0000061874694692, 128: 1.8030798329465325, 255: 15.99575864575135}
    assert {token: scales[token] for token in expected} == pytest.approx(expected, rel=1e-12)
    assert Guidance(scale=3.0, schedule="power_cosine").scales(2) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("recipe", PUBLISHED_SAMPLERS)
def test_a_published_sampler_sets_flags_that_exist(recipe, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sample", "--sampler", recipe])
    args = sample.parse_args()
    assert {flag: getattr(args, flag) for flag in PUBLISHED_SAMPLERS[recipe]} == PUBLISHED_SAMPLERS[recipe]
    guidance = settings_of(args).guidance
    assert guidance.scale == PUBLISHED_SAMPLERS[recipe]["cfg_scale"]
