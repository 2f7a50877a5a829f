"""What a notebook passes by mistake is one clear error that names the argument; the right value beside it works."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from autoregressive import GPT, generate, load_gpt
from autoregressive.guidance import Guidance
from autoregressive.sampling import greedy
from engine import shipped_models
from engine.checkpoint import near_sources
from engine.config import load_config
from engine.data.images import to_float
from engine.messages import UserError
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.cli import config_among
from tokenizer.models.registry import build_tokenizer
from tokenizer.token_tools import interpolate, map_tokens, replace_tokens, token_map
from tokenizer.training.config import TokenizerTrainConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
CODES = torch.arange(16).reshape(2, 8)
NAN = to_float(mini.random_images(3))
NAN[1, 0, 2, 3] = torch.nan


@dataclass(frozen=True)
class Networks:
    folder: Path
    tokenizer: Tokenizer  # 1D: 16 px, 8 tokens of 32 codes
    grid: Tokenizer  # 2D: 8 px, 4 x 4 tokens of 2 x 4 codes, other sizes too
    gpt: GPT  # 4 classes


@pytest.fixture(scope="module")
def loaded(networks, tmp_path_factory):
    path = tmp_path_factory.mktemp("wetok") / "config.yaml"
    path.write_text(tiny.WETOK)
    config = load_config(TokenizerTrainConfig, [path])
    grid = build_tokenizer(config.model, config.data.image_size).eval().requires_grad_(False)
    gpt = GPT.from_pretrained(networks)
    gpt.provenance.stamp["classes"] = {"names": ["ant", "bee", "cat", "dog"], "are_named": True}
    return Networks(networks, Tokenizer.from_pretrained(networks), grid, gpt)


# Argument of a function -> the call with it, right values, and wrong ones with the message.
@dataclass(frozen=True)
class Argument:
    call: Callable[[Networks, Any], Any]
    right: list[Any]
    wrong: list[tuple[Any, str]]


def of_generate(name: str, right: list[Any], wrong: list[tuple[Any, str]], **options: Any) -> Argument:
    return Argument(lambda n, value: generate(n.gpt, 0, **options, **{name: value}), right, wrong)


def network(n: Networks, value: Any) -> Any:
    """A network of the fixture by its name."""
    return getattr(n, value) if isinstance(value, str) and hasattr(n, value) else value


ARGUMENTS = {
    "generate: generator": Argument(
        lambda n, value: generate(network(n, value), 0),
        ["gpt"],
        [
            ("tokenizer", r"generator must be a generator, such as GPT.from_pretrained\(.*\), not a HybridTokenizer"),
            ("runs/gpt", "generator='runs/gpt' must be a generator"),
            (None, "generator=None must be a generator"),
        ],
    ),
    "generate: labels": Argument(
        lambda n, value: generate(n.gpt, value),
        [3, "dog", ["dog", 3], np.array(["dog", "ant"]), np.array([3, "dog"], object), torch.tensor(3), (np.int8(3),)],
        [
            ("Dog", "has no class 'Dog'; it has 4: 'ant', 'bee', 'cat', 'dog'; did you mean 'dog'"),
            ("dogs", "did you mean 'dog'"),
            (b"dog", "labels=b'dog' must be numbers or names of classes, one or several"),
            ({0: 1}, "labels={0: 1} must be numbers or names"),
            (None, "labels=None must be numbers or names"),
            (np.array([0.5]), "labels are of type float64; whole numbers are accepted"),
            (np.array([[0, 1]]), r"labels have shape \(1, 2\)"),
            ([2**70], f"label {2**70} is not known: the generator has the classes 0..3"),
            ([[0, 1]], r"label=\[0, 1\] must be the number or the name of a class"),
        ],
    ),
    "generate: guidance_scale": of_generate(
        "guidance_scale",
        [2, 2.0, (2.0,), [2.0], np.float32(2), torch.tensor(2.0), None],
        [
            ("2", "guidance_scale='2' must be 1"),
            (True, "guidance_scale=true must be 1"),
            (["a"], r"guidance_scale=\('a',\) must be 1"),
            (float("nan"), "guidance_scale=nan must be 1"),
        ],
    ),
    "generate: guidance": of_generate(
        "guidance",
        [Guidance(scale=2.0), None],
        [
            (2.0, r"guidance=2.0 must be a Guidance \(a scale alone is guidance_scale=2.0\)"),
            ({"scale": 2.0}, "guidance={'scale': 2.0} must be a Guidance"),
        ],
    ),
    "generate: sample_ids": of_generate(
        "sample_ids",
        [[7], (7,), range(7, 8), np.array([7]), torch.tensor([7], dtype=torch.uint8)],
        [
            (["a"], "sample_ids are texts; whole numbers are accepted"),
            ([0.5], "sample_ids are of type float64"),
            (7, "sample_ids must be 1 whole numbers from 0, one per label"),
            ([[0], [1, 2]], "sample_ids are no table of numbers"),
        ],
    ),
    "generate: draw": of_generate("draw", [greedy], [("greedy", "draw='greedy' must be a function, such as greedy")]),
    "generate: seed": of_generate(
        "seed", [0, np.int64(3)], [("0", "seed='0' must be a whole number"), (1.0, "seed=1.0 must be a whole number")]
    ),
    "generate: temperature": of_generate(
        "temperature", [1, [0.5]], [("1", "temperature='1' must be above 0"), (None, "temperature=null must be above")]
    ),
    "generate: top_k": of_generate("top_k", [5, [5]], [("5", "top_k='5' must be 0"), (5.0, "top_k=5.0 must be 0")]),
    "generate: top_p": of_generate("top_p", [0.5], [("0.5", r"top_p='0.5' must be in \(0, 1\]"), ([2], "must be in")]),
    "Guidance": Argument(
        lambda n, value: Guidance(**value),
        [{"scale": 2.0, "last_guided": 3}],
        [
            ({"last_guided": "3"}, "last_guided='3' must be -1 or more"),
            ({"start": None}, "start=null must be a finite number"),
            ({"schedule": ["step"]}, r"schedule=\['step'\] must be one of"),
            ({"scale": [1.5, 2.0]}, "or a tuple of such numbers"),
        ],
    ),
    "tokenize: images": Argument(
        lambda n, value: n.tokenizer.tokenize(value),
        [PICTURE, [PICTURE, PIXELS, to_float(mini.random_images(1))]],
        [
            (None, "images: NoneType is no image"),
            (np.zeros((0, 0, 3), np.uint8), r"images: shape \(0, 0, 3\) holds no pixels"),
            (np.zeros((0, 0), np.float32), r"shape \(0, 0\) holds no pixels"),
            (Image.new("RGB", (0, 0)), r"images: a picture of 0 x 0 \(width x height\) holds no pixels"),
            ([PICTURE, 7, None], "image 1: int is no image"),
            (NAN, r"images: pixels are not finite \(NaN or infinity\) for row 1; pixels must be numbers"),
            ([PICTURE, NAN[1]], "image 1: pixels are not finite"),
            (NAN[0].to_sparse(), r"numbers of type float32 \(sparse_coo\) are no pixels"),
            (NAN[0].to(torch.float8_e4m3fn), "numbers of type float8_e4m3fn are no pixels"),
            ("https://pictures/cat.png", "is an address; images are not fetched"),
            (str(Path(__file__).parent), r"is a folder; give its files, such as sorted"),
            ("x" * 5000, r"there is no image file x+\.\.\."),
        ],
    ),
    "tokenize: value_range": Argument(
        lambda n, value: n.tokenizer.tokenize(PIXELS / 255.0, value_range=value),
        [(0, 1), [0.0, 1.0]],
        [("01", "value_range='01' must be"), (("0", "1"), "must be .black, white."), (1, "value_range=1 must be")],
    ),
    "detokenize: tokens": Argument(
        lambda n, value: n.tokenizer.detokenize(value),
        [CODES, CODES.tolist(), list(CODES), CODES.numpy().astype(np.uint8), CODES[0]],
        [
            (None, "tokens are None; whole numbers are accepted"),
            (["a"] * 8, "tokens are texts"),
            ([], "there are no tokens: they have shape"),
            ([torch.zeros(8), torch.zeros(7)], "the tensors in the list have different shapes"),
            ([[2**63] * 8], f"tokens hold {2**63}, which has more than 64 bits"),
        ],
    ),
    "detokenize: tokens of several indices": Argument(
        lambda n, value: n.grid.detokenize(value),
        [torch.zeros(1, 16, 2, dtype=torch.int64), np.zeros((16, 2), np.int64)],
        [(np.zeros((1, 16), np.int64), r"tokens have shape \(1, 16\); accepted: \(B, N, 2\), or \(N, 2\)")],
    ),
    "detokenize: grid": Argument(
        lambda n, value: n.grid.detokenize(np.zeros((16, 2), np.int64), grid=value),
        [(4, 4), [4, 4], None, (2, 8)],
        [
            (4, r"grid=4 must be \(rows, columns\), two whole numbers from 1 up"),
            ((4.0, 4), "grid=4.0 must be"),
            ((-4, -4), r"grid=\(-4, -4\) must be"),
            ((1, 4, 4), r"grid=\(1, 4, 4\) must be"),
            ("4x4", "grid='4x4' must be"),
        ],
    ),
    "token_map": Argument(
        lambda n, value: token_map(*[network(n, part) for part in value]),
        [("grid", np.zeros((16, 2), np.int64)), ("grid", np.zeros((16, 2), np.int64), (2, 8))],
        [
            (("gpt", CODES), r"tokenizer must be a tokenizer, such as Tokenizer.from_pretrained\(.*\), not a GPT"),
            ((CODES, "grid"), "not a Tensor of shape .2, 8. and type int64"),
            (("grid", np.zeros((16, 2), np.int64), (-4, -4)), r"grid=\(-4, -4\) must be"),
        ],
    ),
    "map_tokens": Argument(
        lambda n, value: map_tokens(value),
        [[[[0, 1], [2, 3]]], np.zeros((1, 2, 2), np.int64)],
        [([0, 1], r"token maps have shape \(2,\)"), ("a", "token maps are a str; whole numbers are accepted")],
    ),
    "replace_tokens: replacements": Argument(
        lambda n, value: replace_tokens(n.tokenizer, CODES, value),
        [{0: 7}, {np.int64(3): np.int64(7)}, {3: torch.tensor(7)}, {}],
        [
            ([(0, 7)], r"replacements=\[\(0, 7\)\] must be a mapping of tokens to codes, such as {0: 7, 1: 7}"),
            ({"0": 7}, "token='0' must be a whole number: the keys of replacements"),
            ({0.5: 7}, "token=0.5 must be a whole number"),
            ({True: 7}, "token=True must be a whole number"),
            ({0: [7, 8]}, r"replacements\[0\]=\[7, 8\] must be one code in 0..31"),
            ({0: "7"}, r"replacements\[0\]='7' must be one code"),
            ({5: 32}, r"the code 32 \(replacements\[5\]\) is not in 0..31"),
            ({8: 0}, "there is no token 8; an image has 0..7"),
        ],
    ),
    "replace_tokens of several indices": Argument(
        lambda n, value: replace_tokens(n.grid, np.zeros((16, 2), np.int64), {5: value}),
        [(3, 2), [3, 2], np.array([3, 2])],
        [
            (3, r"replacements\[5\]=3 must be 2 codes, one per index of a token"),
            ((3, 2, 1), "must be 2 codes"),
            ((3, 4), r"the code 4 \(replacements\[5\], index 1\) is not in 0..3"),
        ],
    ),
    "interpolate: steps": Argument(
        lambda n, value: interpolate(n.tokenizer, PICTURE, PICTURE, steps=value),
        [2, np.int64(3), torch.tensor(2)],
        [(2.5, "steps=2.5 must be a whole number, 2 or more"), ("8", "steps='8' must be a"), (True, "steps=True must")],
    ),
    "interpolate: pictures": Argument(
        lambda n, value: interpolate(n.tokenizer, *value, steps=2),
        [(PICTURE, PIXELS)],
        [
            ((PICTURE, None), "second: NoneType is no image"),
            ((mini.random_images(2), PICTURE), "first is a batch of 2"),
        ],
    ),
    "from_pretrained: source": Argument(
        lambda n, value: Tokenizer.from_pretrained(n.folder if value == "networks" else value),
        ["networks"],
        [
            (None, "source=None must be a folder .run, checkpoint or export., a published file, hf-hub:"),
            (3, "source=3 must be a folder"),
            ("", "source='' must be a folder"),
            (["runs/a"], r"source=\['runs/a'\] must be a folder"),
        ],
    ),
    "from_pretrained: device": Argument(
        lambda n, value: GPT.from_pretrained(n.folder, device=value),
        ["cpu", torch.device("cpu"), "auto"],
        [
            ("foo", "device='foo' is not known; accepted: auto, cpu, cuda, cuda:1"),
            (None, "device=None is not known"),
            ("meta", "device='meta': it holds no numbers"),
        ],
    ),
    "from_pretrained: config": Argument(
        lambda n, value: Tokenizer.from_pretrained(n.folder, config=value),
        [None],
        [
            (3, "config=3 must be the YAML file of an architecture, or the name of a recipe"),
            ("vq/VQ_SS256", "brings its own config: config vq/VQ_SS256 is for published files alone; leave it out"),
        ],
    ),
    "save_pretrained: folder": Argument(
        lambda n, value: n.tokenizer.save_pretrained(value),
        [],
        [
            (None, "folder=None must be the path of a new folder"),
            (3, "folder=3 must be the path"),
            ("", "folder='' must be the path"),
            (__file__, "test_python_face.py is a file, and a folder is needed there"),
            (f"{__file__}/below", "test_python_face.py is a file, and a folder is needed there"),
            ("/proc/net-of-mine", "/proc/net-of-mine cannot be made"),
            ("hf-hub:lab/net", "folder='hf-hub:lab/net' is no folder; .* evaluations.publish"),
        ],
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_named_and_the_right_one_works(loaded, name):
    argument = ARGUMENTS[name]
    for value in argument.right:
        argument.call(loaded, value)
    for value, message in argument.wrong:
        with pytest.raises(UserError, match=message) as caught:
            argument.call(loaded, value)
        assert "\n" not in str(caught.value)


def test_settings_that_stand_for_the_same_draw_the_same(loaded):
    """A list, a NumPy number and a tensor are what they hold."""
    expected = generate(loaded.gpt, [0, 1], guidance_scale=2.0, top_k=5, seed=1)
    for scale, top_k in (([2.0], [5]), (np.float32(2), np.int64(5)), (torch.tensor(2.0), torch.tensor(5))):
        assert torch.equal(generate(loaded.gpt, np.array([0, 1]), guidance_scale=scale, top_k=top_k, seed=1), expected)


# ------------------------------------------------------------------------------------------------ networks that differ
def test_a_network_that_is_not_ready_is_refused(networks):
    """In training mode and in half precision it would give other codes, or fail deep inside."""
    tokenizer, gpt = load_tokenizer(networks), load_gpt(networks)
    calls = [
        lambda: tokenizer.tokenize(PICTURE),
        lambda: tokenizer.detokenize(CODES),
        lambda: interpolate(tokenizer, PICTURE, PICTURE, steps=2),
    ]
    for change, message in ((tokenizer.train, "call eval"), (lambda: tokenizer.eval().half(), "call float")):
        change()
        for call in calls:
            with pytest.raises(UserError, match=message):
                call()
    gpt.train()
    with pytest.raises(UserError, match=r"the generator is in training mode.*call eval"):
        generate(gpt, 0)


def test_pictures_are_decoded_alike_by_all_functions(networks):
    """As in the training of the tokenizer: transparent pixels lie on its background."""
    tokenizer = load_tokenizer(networks)
    tokenizer.provenance.config.data.background = "black"
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    expected = tokenizer.detokenize(tokenizer.tokenize(Image.new("RGB", (16, 16))))
    assert torch.equal(tokenizer.detokenize(tokenizer.tokenize(clear)), expected)
    assert torch.allclose(interpolate(tokenizer, clear, clear, steps=2), expected.expand(2, -1, -1, -1), atol=1e-5)


# ------------------------------------------------------------------------------------------------ sources
@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a run of its own below runs/, and one model that comes with the program."""
    for folder in ("runs/quickstart/tokenizer", "runs/pictures"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(near_sources, "shipped_names", lambda: ["shipped:digits", "shipped:letters"])
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("digits", "shipped:digits"),
        ("Digit", "shipped:digits"),
        ("shipped/digits", "shipped:digits"),
        ("Shipped:letters", "shipped:letters"),
        ("quickstart", "runs/quickstart"),
        ("runs/quikstart", "runs/quickstart"),
        ("lab/net", "hf-hub:lab/net"),
        ("lab/net@v2", "hf-hub:lab/net@v2"),
        ("hf:lab/net", "hf-hub:lab/net"),
        ("hf://lab/net", "hf-hub:lab/net"),
        ("HF_hub:lab/net@main", "hf-hub:lab/net@main"),
        ("https://hub.example/lab/net/tree/main", "hf-hub:lab/net"),
    ],
)
def test_a_name_that_is_not_there_suggests_what_is_meant(place, typed, meant):
    for load in (Tokenizer.from_pretrained, GPT.from_pretrained):
        with pytest.raises(UserError, match=rf"is not a folder of weights .*; did you mean {meant}\?$"):
            load(typed)


@pytest.mark.parametrize("typed", ["nothing", "runs/nothing", "picture", "./lab/net", "runs/pictures-2", "a/b/c"])
def test_nothing_is_suggested_where_nothing_is_near(place, typed):
    with pytest.raises(UserError, match=r"\(a run, a checkpoint, or an exported model\)$"):
        Tokenizer.from_pretrained(typed)


@pytest.mark.parametrize("kind", ["folder", "run of several", "shipped"])
def test_a_config_beside_a_source_that_brings_its_own_is_refused(networks, kind, tmp_path):
    """One rule for all: used for a published file, refused for the others, which would not read it."""
    source = {"folder": networks / "tokenizer", "run of several": networks, "shipped": shipped_models.DEFAULT}[kind]
    for load, config in ((load_tokenizer, "vq/VQ_SS256"), (load_gpt, "gpt/GPT_B256")):
        path = networks / "gpt" if kind == "folder" and load is load_gpt else source
        with pytest.raises(UserError, match=f"{path} brings its own config: config {config} is for published files"):
            load(path, config=config)
    with pytest.raises(UserError, match="brings its own config: another one is for"):
        load_gpt(networks, config=load_gpt(networks).provenance.config.model)


def test_a_config_that_serves_several_networks_is_for_the_published_files():
    """A folder among them brings its own; where each network has its config, so has the folder, which refuses it."""
    assert [config_among(["a.yaml"], ["a.pt", "runs/b", "c.pt"], number) for number in range(3)] == [
        "a.yaml",
        None,
        "a.yaml",
    ]
    assert [config_among(["a.yaml", "b.yaml"], ["a.pt", "runs/b"], number) for number in range(2)] == [
        "a.yaml",
        "b.yaml",
    ]
    assert config_among([], ["a.pt"], 0) is None


def test_without_a_gpu_the_error_says_why(networks, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", torch.device("cuda", 0)):
        with pytest.raises(UserError, match=r"device='cuda.*': no GPU can be used: .* all the same: device=\"cpu\""):
            load_gpt(networks, device=device)


def test_a_folder_is_not_written_over_a_file(loaded, tmp_path):
    file = tmp_path / "weights"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(UserError, match=f"{file} is a file, and a folder is needed there; nothing is overwritten"):
            loaded.tokenizer.save_pretrained(path)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]
