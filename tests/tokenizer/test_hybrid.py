"""The hybrid tokenizer: every size in the config is honoured, sizes that do not fit are named, and initial values."""

import math

import mini
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.config import load_config
from engine.data.images import to_float
from engine.messages import ConfigError
from tokenizer.models.attention import MultiheadAttention
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.cnn_blocks import AdaptiveGroupNorm, DepthToSpaceUpsample, Downsample, depth_to_space
from tokenizer.models.query_transformer import QueryEncoder, TransformerConfig, multi_level_pooling, pooling_boxes
from tokenizer.models.registry import ModelConfig, build_tokenizer
from tokenizer.published.registry import layout_rules

PUBLISHED = {  # encoder and decoder size -> parameters with the semantic head (the table of the released models)
    ("small", "small"): 136_073_227,
    ("small", "base"): 232_399_627,
    ("base", "small"): 224_861_195,
    ("base", "large"): 621_637_131,
    ("xl", "xxl"): 2_893_970_443,
}


@pytest.fixture
def without_arithmetic():
    """Tensors inside have shapes and no content."""
    with FakeTensorMode():
        yield


def on_meta(image_size: int, *overrides: str) -> nn.Module:
    """A model without memory: its shapes and counts can be checked at any size."""
    with torch.device("meta"):
        return build_tokenizer(load_config(ModelConfig, overrides=overrides), image_size).eval()


def faked(image_size: int, *overrides: str) -> nn.Module:
    """The same, but able to run on tensors without content (inside `FakeTensorMode`)."""
    config = load_config(ModelConfig, overrides=["hybrid.init=torch", *overrides])
    return build_tokenizer(config, image_size).eval()


def named_sizes(encoder: str, decoder: str) -> list[str]:
    return [f"hybrid.encoder.size={encoder}", f"hybrid.decoder.size={decoder}"]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny_model(*overrides: str) -> nn.Module:
    return mini.tokenizer_of(mini.tokenizer_config(*overrides)).eval()


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


# ---------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(("encoder", "decoder"), PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(encoder, decoder):
    model = on_meta(256, *named_sizes(encoder, decoder))
    assert parameters(model) == PUBLISHED[encoder, decoder]
    assert parameters(model.encoder) == 26_143_232
    assert parameters(model.decoder) == 50_161_155


@pytest.mark.parametrize("image_size", [32, 64, 256])
@pytest.mark.parametrize("num_tokens", [1, 2, 64])
@pytest.mark.usefixtures("without_arithmetic")
def test_image_size_and_number_of_tokens_set_the_shapes(image_size, num_tokens):
    """The published CNN divides the size by 16; reconstructions have the size of the images."""
    grid = image_size // 16
    num_tokens = min(num_tokens, 2 * grid * grid)  # the finest level has half of the tokens as boxes
    model = faked(image_size, *named_sizes("small", "small"), f"hybrid.num_tokens={num_tokens}")
    x = torch.empty(2, 3, image_size, image_size)
    out = model(x, shortcut=True, semantic=True)
    assert out.encoder_features.shape == out.decoder_features.shape == (2, 256, grid, grid)
    assert out.quantized.indices.shape == (2, num_tokens)
    assert out.quantized.z_q.shape == (2, num_tokens, 8)
    assert out.reconstructions.shape == out.shortcut_reconstructions.shape == x.shape
    assert out.semantic_features.shape == (2, grid * grid, 768)
    assert model.decode_indices(out.quantized.indices).shape == x.shape


@pytest.mark.usefixtures("without_arithmetic")
def test_every_size_of_the_config_is_honoured():
    """Encoder and decoder differ in width, layers and heads; CNN, quantizer and head have their own sizes."""
    model = faked(
        24,
        "hybrid.encoder={width: 24, layers: 1, heads: 3}",
        "hybrid.decoder={width: 32, layers: 3, heads: 4}",
        "hybrid.num_tokens=4",
        "hybrid.z_channels=10",
        "hybrid.cnn={base_channels: 6, channel_multipliers: [1, 3], encoder_res_blocks: 3, decoder_res_blocks: 4, "
        "mid_blocks: 1, norm_groups: 2}",
        "hybrid.semantic_layer=2",
        "hybrid.semantic_dim=7",
        "quantizer.vq={codebook_size: 50, codebook_dim: 5}",
    )
    sides = {model.query_encoder: (24, 1, 3), model.query_decoder: (32, 3, 4)}
    for side, (width, layers, heads) in sides.items():
        assert len(side.transformer) == layers
        assert {block.self_attn.heads for block in side.transformer} == {heads}
        assert {block.multihead_attn.heads for block in side.transformer} == {heads}
        assert side.embed.weight.shape == (width, 10)
        assert side.transformer[0].linear1.weight.shape == (4 * width, width)
        assert side.positional_embedding.shape == (144, width)
        assert side.latent_positional_embedding.shape == (4, width)
    assert [len(level.res) for level in model.encoder.conv_blocks] == [3, 3]
    assert [len(level.res) for level in model.decoder.conv_blocks] == [4, 4]
    assert len(model.encoder.mid) == len(model.decoder.mid) == 1
    assert model.encoder.conv_in.out_channels == model.decoder.conv_out.in_channels == 6
    assert model.encoder.conv_out.in_channels == model.decoder.conv_in.out_channels == 18
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {2}
    assert {m.groups for m in model.modules() if isinstance(m, AdaptiveGroupNorm)} == {2}
    assert model.quantizer.codebook.shape == (50, 5)
    assert model.query_decoder.semantic_head[-1].weight.shape == (7, 128)
    assert model(torch.empty(1, 3, 24, 24)).reconstructions.shape == (1, 3, 24, 24)


@pytest.mark.parametrize(
    ("image_size", "overrides", "message"),
    [
        (250, [], r"data\.image_size=250 .*multiple of 16"),
        (256, ["hybrid.num_tokens=96"], r"hybrid\.num_tokens=96 must be a power of 2"),
        (256, ["hybrid.num_tokens=0"], r"hybrid\.num_tokens=0 must be a power of 2"),
        (256, ["hybrid.num_tokens=-4"], r"hybrid\.num_tokens=-4 must be a power of 2"),
        (32, ["hybrid.num_tokens=64"], r"model\.hybrid\.num_tokens=64 does not fit.*4x8 boxes.*2x2 grid"),
        (64, ["hybrid.num_tokens=64"], r"model\.hybrid\.num_tokens=64 does not fit.*4x8 boxes.*4x4 grid"),
        (48, ["hybrid.num_tokens=8"], r"model\.hybrid\.num_tokens=8 does not fit.*2x2 boxes.*3x3 grid"),
        (256, ["hybrid.semantic_layer=7"], r"model\.hybrid\.semantic_layer=7 must lie in 1\.\.6"),
        (256, ["hybrid.semantic_layer=0"], r"model\.hybrid\.semantic_layer=0 must lie in 1\.\.6"),
        (256, ["hybrid.encoder.width=64"], r"hybrid\.encoder\.width=64 must be null where size=small is set"),
        (256, ["hybrid.decoder.size=huge"], r"hybrid\.decoder\.size='huge' must be one of: .*small"),
        (
            256,
            ["hybrid.encoder={size: null, width: 64}"],
            r"hybrid\.encoder\.layers=null must be .* where width is set",
        ),
        (256, ["hybrid.encoder={size: null}"], r"model\.hybrid\.encoder: give size"),
        (256, ["hybrid.encoder={size: null, width: 64, layers: 1, heads: 5}"], r"encoder\.width=64 .*by heads=5"),
        (256, ["hybrid.encoder={size: null, width: 64, layers: 0, heads: 4}"], r"encoder\.layers=0 must be 1 or more"),
        (256, ["hybrid.cnn.base_channels=100"], r"hybrid\.cnn\.norm_groups=32 must be a divisor .*\[100, 100, 200"),
        (256, ["hybrid.cnn.channel_multipliers=[]"], r"hybrid\.cnn\.channel_multipliers=\[\] must be a list of one"),
        (256, ["hybrid.cnn.channel_multipliers=[1,0]"], r"cnn\.channel_multipliers=\[1, 0\] must be .*each 1 or more"),
        (256, ["hybrid.cnn.decoder_res_blocks=0"], r"hybrid\.cnn\.decoder_res_blocks=0 must be 1 or more"),
        (256, ["hybrid.cnn.mid_blocks=-1"], r"hybrid\.cnn\.mid_blocks=-1 must be 0 or more"),
        (256, ["hybrid.z_channels=0"], r"hybrid\.z_channels=0 must be 1 or more"),
        (256, ["hybrid.position_std=-0.1"], r"hybrid\.position_std=-0\.1 must be 0 or more"),
        (256, ["llamagen.z_channels=0"], r"llamagen\.z_channels=0 must be 1 or more"),
        (256, ["name=vit"], r"name='vit' must be one of: .*hybrid"),
        (256, ["quantizer.name=pq"], r"quantizer\.name='pq' must be one of: .*vq"),
        (256, ["hybrid.layout=3d"], r"layout"),
    ],
)
def test_a_size_that_does_not_fit_names_its_key(image_size, overrides, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        on_meta(image_size, *named_sizes("small", "small"), *overrides)


def test_all_wrong_sizes_are_named_at_once():
    """One line per field, also of sections below each other."""
    wrong = ["hybrid.cnn={encoder_res_blocks: 0, norm_groups: 0}", "hybrid.num_tokens=3", "hybrid.decoder={width: -2}"]
    with pytest.raises(ConfigError, match="6 problems") as error:
        load_config(ModelConfig, overrides=wrong)
    lines = sorted(line.split()[0] for line in str(error.value).splitlines()[1:])
    assert lines == [
        "hybrid.cnn.encoder_res_blocks=0",
        "hybrid.cnn.norm_groups=0",
        "hybrid.decoder.heads=null",
        "hybrid.decoder.layers=null",
        "hybrid.decoder.width=-2",
        "hybrid.num_tokens=3",
    ]


def test_images_of_another_size_are_refused_early():
    """Before any layer runs, by every way in; the message has both sizes."""
    model = tiny_model()
    for call in (model, model.encode, model.encode_features):
        for wrong in (torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 16, 8)):
            with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), found \(2, "):
                call(wrong)


# ---------------------------------------------------------------------------------------------- pieces
def test_depth_to_space_undoes_a_plain_space_to_depth():
    """Loops over the four offsets: group dy*2+dx of channels holds pixel (2y+dy, 2x+dx)."""
    x = torch.randn(2, 3, 6, 4)
    deep = torch.cat([x[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=1)
    assert torch.equal(depth_to_space(deep), x)
    up = DepthToSpaceUpsample(3)
    assert torch.equal(up(x), depth_to_space(up.conv1(x)))


def test_downsampling_pads_right_and_below_only():
    """Output (y,x) reads the 3x3 window that begins at (2y,2x)."""
    down, x = Downsample(2), torch.randn(1, 2, 4, 4)
    padded = torch.zeros(1, 2, 5, 5)
    padded[:, :, :4, :4] = x
    for row in range(2):
        for column in range(2):
            window = padded[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected = (down.conv.weight * window).sum((1, 2, 3)) + down.conv.bias
            torch.testing.assert_close(down(x)[0, :, row, column], expected, atol=1e-6, rtol=1e-5)


def test_adaptive_group_norm_against_loops():
    """Per sample: gain linear in the unbiased spread of the style, bias linear in its mean, no `1 +`."""
    norm = AdaptiveGroupNorm(6, 4, 3)
    x, style = torch.randn(2, 6, 5, 5), torch.randn(2, 4, 3, 3) * 3 + 1
    out = norm(x, style)
    for b in range(2):
        values = style[b].reshape(4, 9).double()
        mean = values.sum(1) / 9
        spread = ((values - mean[:, None]).square().sum(1) / 8 + 1e-6).sqrt()
        gain = norm.gamma.weight.double() @ spread + norm.gamma.bias.double()
        bias = norm.beta.weight.double() @ mean + norm.beta.bias.double()
        for c in range(6):
            group = x[b, 2 * (c // 2) : 2 * (c // 2) + 2].double()
            normed = (x[b, c].double() - group.mean()) / (group.var(unbiased=False) + 1e-6).sqrt()
            torch.testing.assert_close(out[b, c].double(), gain[c] * normed + bias[c], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("exponent", range(11))
def test_pooling_boxes_sum_to_the_number_of_tokens(exponent):
    """Levels 1x1, 1x1, 1x2, 2x2, 2x4, ...: each has as many boxes as all before it together."""
    boxes = pooling_boxes(2**exponent)
    counts = [rows * columns for rows, columns in boxes]
    assert sum(counts) == 2**exponent
    assert all(counts[i] == sum(counts[:i]) for i in range(1, len(counts)))
    assert all(columns in (rows, 2 * rows) for rows, columns in boxes)
    with pytest.raises(ValueError, match="not a power of 2"):
        pooling_boxes(3 * 2**exponent)


def test_pooling_against_loops():
    """Boxes of every level in row-major order, coarse to fine."""
    x = torch.randn(2, 3, 8, 8)
    expected = []
    for rows, columns in pooling_boxes(64):
        height, width = 8 // rows, 8 // columns
        for r in range(rows):
            for c in range(columns):
                box = x[:, :, r * height : (r + 1) * height, c * width : (c + 1) * width]
                expected.append(box.mean((2, 3)))
    torch.testing.assert_close(multi_level_pooling(x, 64), torch.stack(expected, dim=1))


# ---------------------------------------------------------------------------------------------- the whole model
def test_decoding_indices_gives_the_reconstruction():
    """encode -> indices -> decode_indices is the full pass, up to the rounding of the rotation trick."""
    model, x = tiny_model(), images(3)
    with torch.no_grad():
        out, coded = model(x), model.encode(x)
        assert torch.equal(coded.indices, out.quantized.indices)
        torch.testing.assert_close(model.decode(coded.z_q), out.reconstructions)
        torch.testing.assert_close(model.decode_indices(coded.indices), out.reconstructions, atol=1e-4, rtol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    model, x = tiny_model(), images(4)
    with torch.no_grad():
        together, alone = model(x), [model(x[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together.reconstructions, torch.cat([o.reconstructions for o in alone]))
    assert torch.equal(together.quantized.indices, torch.cat([o.quantized.indices for o in alone]))


def test_only_what_is_asked_for_is_computed():
    """No shortcut image, semantic features or entropies by default; the shortcut decodes the encoder's features."""
    model, x = tiny_model(), images()
    with torch.no_grad():
        out = model(x)
        assert out.shortcut_reconstructions is None
        assert out.semantic_features is None
        assert out.quantized.losses.keys() == {"codebook", "commitment"}
        out = model(x, shortcut=True, semantic=True, entropy=True)
        assert torch.equal(out.shortcut_reconstructions, model.decoder(model.encoder(x)))
        assert out.quantized.losses.keys() == {
            "codebook",
            "commitment",
            "sample_entropy",
            "codebook_entropy",
            "entropy",
        }


def test_semantic_head_reads_the_stream_right_after_its_block():
    """Head of the tokens after block 1 (from 1), before the last norm; later blocks do not reach it."""
    model, x = tiny_model("model.hybrid.decoder.layers=3", "model.hybrid.semantic_layer=2"), images()
    decoder = model.query_decoder
    with torch.no_grad():
        z = model.post_quant_proj(model.encode(x).z_q)
        out = model(x, semantic=True).semantic_features
        memory = decoder.embed(decoder.ln_pre(z))
        tokens = memory[:, :1].expand(-1, 16, -1)
        for block in decoder.transformer[:2]:
            tokens = block(tokens, memory, decoder.positional_embedding, decoder.latent_positional_embedding)
        torch.testing.assert_close(out, decoder.semantic_head(tokens))
        torch.testing.assert_close(decoder.features(z, last_layer=2)[0], tokens)
    without = tiny_model("model.hybrid.semantic_layer=null")
    assert without.query_decoder.semantic_head is None
    assert without(x).semantic_features is None


def test_every_latent_token_and_every_pixel_matters():
    """Changing one pixel changes latents; changing any one index changes the image everywhere it can."""
    model, x = tiny_model(), images(1)
    with torch.no_grad():
        other = x.clone()
        other[0, 0, 3, 5] += 0.5
        assert not torch.equal(model.latents(model.encoder(x)), model.latents(model.encoder(other)))
        indices = model.encode(x).indices
        base = model.decode_indices(indices)
        for n in range(8):
            changed = indices.clone()
            changed[0, n] = (changed[0, n] + 1) % 32
            assert not torch.allclose(model.decode_indices(changed), base), n


# ---------------------------------------------------------------------------------------------- initial values
def test_released_initialization():
    """Linear and convolution: truncated normal 0.02 and bias 0; attention inputs xavier; norms 1 and 0; tables
    width^-0.5; what touches the quantizer keeps PyTorch's default.
    """
    torch.manual_seed(0)
    config = load_config(
        ModelConfig, overrides=[f"hybrid.{s}={{width: 64, layers: 2, heads: 4}}" for s in ("encoder", "decoder")]
    )
    config.hybrid.cnn = CNNConfig(base_channels=32, norm_groups=8, channel_multipliers=[1, 2])
    config.hybrid.semantic_layer = 1
    model = build_tokenizer(config, 32)
    inner = {"quant_proj", "post_quant_proj"}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in inner:
            tolerance = 5 * 0.02 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(0.02, abs=tolerance), name
            assert module.weight.abs().max() < 0.02 * 6, name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
    for block in [*model.query_encoder.transformer, *model.query_decoder.transformer]:
        for attention in (block.self_attn, block.multihead_attn):
            bound = math.sqrt(6 / (64 + 3 * 64))
            assert 0.98 * bound < attention.in_proj_weight.abs().max() <= bound
            assert not attention.in_proj_bias.any()
    for side in (model.query_encoder, model.query_decoder):
        for table in (side.positional_embedding, side.latent_positional_embedding):
            assert table.std().item() == pytest.approx(64**-0.5, rel=0.05)
    for name in inner:
        layer = model.get_submodule(name)
        bound = 1 / math.sqrt(layer.in_features)
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.any()
    torch.testing.assert_close(model.quantizer.codebook.norm(dim=-1), torch.ones(16384))


def test_own_initialization_options():
    """`init: torch` keeps PyTorch's bounds, `position_std` and `adaptive_gain` set what they say."""
    model = tiny_model(
        "model.hybrid.position_std=0.5", "model.hybrid.cnn.adaptive_gain=0.75", "model.hybrid.num_tokens=32"
    )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.weight.abs().max() <= 1 / math.sqrt(module.weight[0].numel()) + 1e-7
    assert model.query_encoder.embed.bias.any()
    assert model.query_encoder.positional_embedding.std().item() == pytest.approx(0.5, rel=0.15)
    assert model.query_decoder.latent_positional_embedding.std().item() == pytest.approx(0.5, rel=0.15)
    for norm in model.decoder.adaptive:
        assert torch.equal(norm.gamma.bias, torch.full_like(norm.gamma.bias, 0.75))
    for norm in tiny_model("model.hybrid.cnn.adaptive_gain=0", "model.hybrid.init=released").decoder.adaptive:
        assert not norm.gamma.bias.any()


def test_transformer_sizes_by_name_and_by_number():
    """A named size is its row of the published table; own numbers are taken as they are."""
    assert TransformerConfig(size="base").dims("model.x") == (768, 12, 12)
    assert TransformerConfig(width=6, layers=5, heads=3).dims("model.x") == (6, 5, 3)


def test_queries_of_the_encoder_are_pooled_after_the_embedding():
    """Without blocks, the tokens are the projected averages of the embedded map, positions not included."""
    torch.manual_seed(0)
    side = QueryEncoder((12, 0, 2), 4, 8, 6, None)
    maps = torch.randn(2, 6, 4, 4)
    embedded = side.embed(F.layer_norm(maps.flatten(2).transpose(1, 2), (6,), side.ln_pre.weight, side.ln_pre.bias))
    means = multi_level_pooling(embedded.transpose(1, 2).reshape(2, 12, 4, 4), 8)
    torch.testing.assert_close(side.features(maps), side.ln_post(side.global_proj(means)))


@pytest.mark.parametrize("layout", ["1d", "2d"])
def test_qk_norm_normalizes_queries_and_keys_of_every_attention(layout):
    """Scaling their weights changes nothing; it has no published layout."""
    extra = [] if layout == "1d" else ["model.hybrid.layout=2d", "model.hybrid.block=vit", "model.hybrid.num_tokens=16"]
    config = mini.tokenizer_config("model.hybrid.qk_norm=true", *extra)
    model = mini.tokenizer_of(config).eval()
    images = to_float(mini.random_images(2))
    before = model(images).reconstructions
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.in_proj_weight.data[:32] *= 40
    torch.testing.assert_close(model(images).reconstructions, before, atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match="qk_norm=true: no published layout has it"):
        layout_rules(config.model)
