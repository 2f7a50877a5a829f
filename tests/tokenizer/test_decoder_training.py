"""A decoder that is trained alone, and a discriminator that is trained before the tokenizer meets it."""

import itertools
import json
import shutil
from pathlib import Path

import mini
import pytest
import small_networks
import tiny
import torch
from ranks import on_ranks

import autoregressive.sample
import autoregressive.train
import tokenizer.train
from autoregressive import extract_codes
from autoregressive.code_writer import CodeWriter
from autoregressive.codes import CodesError, CodesManifest, CodeStore
from autoregressive.extract_codes import manifest_of
from autoregressive.loading import load_gpt, require_pair
from engine.checkpoint.code_maker import CodeMaker
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, read_manifest
from engine.checkpoint.weights import export_folder
from engine.data.decoding import DEFAULT_DECODING
from engine.data.images import image_tensor, read_image
from engine.data.sources import open_source
from engine.messages import ConfigError
from engine.run_log import read_metrics
from engine.world import World
from evaluations.fingerprint import digests
from tokenizer import load_tokenizer
from tokenizer.models.base import Tokenizer
from tokenizer.models.hybrid import HybridTokenizer
from tokenizer.training.checks import validate
from tokenizer.training.phases import phases_of
from tokenizer.training.task import TokenizerTask

DECODER = ("train_parts=decoder", "loss.discriminator.start_step=1", "loss.discriminator.warmup_steps=3")
FROZEN = ("encoder.", "query_encoder.", "quant_proj.", "quantizer.")


def train(world, run_dir, images, *overrides: str) -> None:
    tokenizer.train.train(tiny.tokenizer_config(run_dir, images, *tiny.GAN, *overrides), world)


@pytest.fixture(scope="module")
def base(tmp_path_factory, image_folder, world) -> Path:
    """A trained tokenizer with an EMA, and a GPT on its codes that says what older programs said."""
    root = tmp_path_factory.mktemp("base")
    train(world, root / "tokenizer", image_folder)
    network = load_tokenizer(root / "tokenizer")
    tiny.write_codes(root / "codes", network.provenance.fingerprint)
    config = tiny.gpt_config(root / "gpt", root / "codes", root / "tokenizer", "loop.steps=2")
    autoregressive.train.train(config, world)
    return root


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory, image_folder, world):
    """(run folder of a decoder trained alone, what its network was like in every step)."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    seen: list[dict] = []
    real = TokenizerTask.train_step

    def watched(self, batches, step):
        metrics = real(self, batches, step)
        state = self.tokenizer.state_dict()
        model, averages = ({k: v.clone() for k, v in state[name].items()} for name in ("model", "ema"))
        modes = {name: child.training for name, child in self.tokenizer.module.named_children()}
        discriminator = [p.clone() for p in self.discriminator.module.parameters()]
        moments = {name: {k: v.clone() for k, v in m.items()} for name, m in state["optimizer"]["state"].items()}
        seen.append({"metrics": metrics, "model": model, "ema": averages, "modes": modes,
                     "discriminator": discriminator, "moments": moments})  # fmt: skip
        return metrics

    TokenizerTask.train_step = watched
    try:
        train(world, folder, image_folder, *DECODER, f"init={base / 'tokenizer'}")
    finally:
        TokenizerTask.train_step = real
    return folder, seen


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ------------------------------------------------------------------------------------------------ the decoder alone
def test_encoder_quantizer_and_codes_are_those_of_the_start(base, tuned):
    """Bit for bit those of the EMA, which makes the codes, in raw weights and EMA alike; the decoder is another one."""
    before = load_tokenizer(base / "tokenizer")
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    codes = before.tokenize(images)
    for kind in ("model", "ema"):
        after = load_tokenizer(tuned[0], weights=kind)
        state, start = after.state_dict(), before.state_dict()
        changed = {name for name in state if not torch.equal(state[name], start[name])}
        assert changed and not any(name.startswith(FROZEN) for name in changed)
        assert torch.equal(after.tokenize(images), codes)
        assert before.codes_fingerprint() == after.codes_fingerprint()
        assert before.provenance.fingerprint != after.provenance.fingerprint
        assert not torch.equal(before.detokenize(codes), after.detokenize(codes))


def test_frozen_parts_have_no_moments_and_stay_in_evaluation_mode(tuned):
    last = tuned[1][-1]
    assert last["moments"] and not any(name.startswith(FROZEN) for name in last["moments"])
    assert last["modes"] == {name: name in HybridTokenizer.decoder_parts for name in last["modes"]}
    metrics = last["metrics"]
    assert metrics["loss"].item() == pytest.approx((metrics["reconstruction_l2"] + 0.1 * metrics["adversarial"]).item())


def test_codes_and_generators_of_before_stay_valid(base, tuned, tmp_path, image_folder, world):
    """Also those whose files name the whole tokenizer alone, as older programs wrote them."""
    before, after = load_tokenizer(base / "tokenizer"), load_tokenizer(tuned[0])
    gpt = load_gpt(base / "gpt")
    assert gpt.provenance.stamp["codes_fingerprint"] == after.codes_fingerprint()
    assert gpt.provenance.stamp["tokenizer_fingerprint"] == before.provenance.fingerprint
    for network in (before, after):
        require_pair(gpt, network)
        CodeStore(base / "codes", "train").require(network.code_maker(), "it")  # a store without `codes_fingerprint`
    del gpt.provenance.stamp["codes_fingerprint"]
    require_pair(gpt, after)

    # An extraction by the one is an extraction by the other.
    source = open_source(tiny.tokenizer_config(tmp_path, image_folder).data, "train")
    manifests = [manifest_of(network, source, "train", "flip", DEFAULT_DECODING) for network in (before, after)]
    assert manifests[0].fingerprint != manifests[1].fingerprint
    CodeWriter(tmp_path / "codes", manifests[0], 4, rank=0).create(torch.zeros(len(source)).numpy())
    writer = CodeWriter(tmp_path / "codes", manifests[1], 4, rank=0)
    writer.create(torch.zeros(len(source)).numpy())
    writer.finish()
    assert CodeWriter(tmp_path / "codes", manifests[0], 4, rank=0).finished()

    # The training of a generator goes on with it, and is the same training.
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, later in zip(runs, (base / "tokenizer", tuned[0]), strict=True):
        for path, stop_at in ((base / "tokenizer", 1), (later, 0)):
            autoregressive.train.train(
                tiny.gpt_config(run, base / "codes", path, "loop.steps=2", f"loop.stop_at={stop_at}"), world
            )
    assert digests(runs[0]) == digests(runs[1])
    stamps = [read_manifest(checkpoint_folders(run)[-1])["stamp"] for run in runs]
    assert stamps[0]["tokenizer_fingerprint"] == stamps[1]["tokenizer_fingerprint"] == before.provenance.fingerprint


def extract(entry, tokenizer, code_path) -> tuple[int, str]:
    """What the command of extraction says: (exit code, its log)."""
    flags = ["--vq-ckpt", tokenizer, "--code-path", code_path, "--num-workers", 0, "--device", "cpu"]
    code, _, err = entry(extract_codes.main, *flags)
    return code, err


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_store_serves_the_tokenizer_whose_decoder_was_trained_on(base, tuned, tmp_path, entry, monkeypatch):
    """Extraction with it extracts nothing; the generator of the codes draws with its decoder. So with a store of an
    older version, which names the whole tokenizer alone."""
    code, err = extract(entry, base / "tokenizer", tmp_path / "codes")
    assert code == 0, err
    for manifest in ({}, {"codes_fingerprint": ""}):
        for path in (tmp_path / "codes").rglob("manifest.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
        before = files_of(tmp_path / "codes")
        with monkeypatch.context() as patch:
            patch.setattr(CodeWriter, "write", lambda *given: pytest.fail("a code was extracted again"))
            code, err = extract(entry, tuned[0], tmp_path / "codes")
        assert code == 0 and err.count("images are already there") == 2, err
        assert files_of(tmp_path / "codes") == before
        run = tmp_path / f"gpt_{len(manifest)}"
        train_gpt = tiny.gpt_config(run, tmp_path / "codes", base / "tokenizer", "loop.steps=1")
        autoregressive.train.train(train_gpt, World(0, 1, 0, torch.device("cpu")))
        out = tmp_path / f"samples_{len(manifest)}"
        flags = ["--vq-ckpt", tuned[0], "--gpt-ckpt", run, "--qual-num", 1, "--class-idx", 0, "--sample-dir", out]
        code, _, err = entry(autoregressive.sample.main, *flags, "--device", "cpu")
        assert code == 0, err
        tokens = autoregressive.generate(load_gpt(run), [0], guidance_scale=2.0, seed=0)
        (picture,) = out.rglob("000000.png")
        expected = load_tokenizer(tuned[0]).detokenize(tokens, output="uint8")[0]
        assert torch.equal(image_tensor(read_image(picture)), expected)


def test_a_store_of_another_encoder_is_refused_with_what_to_do(base, tuned, tmp_path, entry):
    """Also one that could be of the same encoder, where neither the store nor the tokenizer says so."""
    assert extract(entry, base / "tokenizer", tmp_path / "codes")[0] == 0
    config = load_tokenizer(tuned[0]).provenance.config
    network = load_tokenizer(tuned[0])
    export_folder(tmp_path / "without_stamp", config, {"model": network.state_dict()})
    with torch.no_grad():
        network.quantizer.codebook[0, 0] += 1
    export_folder(tmp_path / "other", config, {"model": network.state_dict()})

    code, err = extract(entry, tmp_path / "other", tmp_path / "codes")
    assert code == 2 and "holds other codes (of another tokenizer" in err and "--code-path" in err
    assert "its encoder or quantizer is another one" in err
    assert extract(entry, tmp_path / "without_stamp", tmp_path / "codes")[0] == 0  # by the fingerprint of its encoder

    # The store of an older version, for whose tokenizer nobody vouches.
    for path in (tmp_path / "codes").rglob("manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"codes_fingerprint": ""}))
    code, err = extract(entry, tmp_path / "without_stamp", tmp_path / "codes")
    assert code == 2 and "of an older version, which names whole tokenizers alone" in err and "--code-path" in err
    maker = load_tokenizer(tmp_path / "without_stamp").code_maker()
    with pytest.raises(
        CodesError, match=r"older version.* Use the one that made them, or extract codes with the given"
    ):
        CodeStore(tmp_path / "codes", "train").require(maker, "runs/mine")


def test_another_encoder_is_refused(base, tuned, tmp_path, image_folder, world):
    """A codebook that differs in one number is another one, whatever the decoder."""
    network = load_tokenizer(tuned[0])
    with torch.no_grad():
        network.quantizer.codebook[0, 0] += 1
    config = tiny.tokenizer_config(tmp_path, image_folder)
    export_folder(tmp_path / "other", config, {"model": network.state_dict()})
    other = load_tokenizer(tmp_path / "other")
    with pytest.raises(ConfigError, match="was trained on codes of tokenizer"):
        require_pair(load_gpt(base / "gpt"), other)
    with pytest.raises(CodesError, match="another tokenizer"):
        CodeStore(base / "codes", "train").require(other.code_maker(), "other")


def test_makers_of_codes():
    """With both fingerprints of codes these decide; else the whole network, or one that it was before."""
    new, tuned = CodeMaker("a", "codes"), CodeMaker("b", "codes", ("a",))
    assert tuned.makes_codes_of(new) and new.makes_codes_of(tuned)
    assert tuned.makes_codes_of(CodeMaker("a")) and new.makes_codes_of(CodeMaker("a"))
    assert not new.makes_codes_of(CodeMaker("b")) and not tuned.makes_codes_of(CodeMaker("c"))
    assert not CodeMaker("a", "others", ("a",)).makes_codes_of(new)
    assert CodesManifest(**dict.fromkeys(CodesManifest.__dataclass_fields__, "") | {"fingerprint": "a"}).maker == (
        CodeMaker("a")
    )


def test_a_run_of_the_decoder_names_what_it_was(base, tuned, tmp_path, image_folder, world):
    """A second training from the first one's end names both."""
    fingerprints = [load_tokenizer(base / "tokenizer").provenance.fingerprint]
    assert load_tokenizer(tuned[0]).provenance.stamp["decoder_of"] == fingerprints
    train(world, tmp_path / "run", image_folder, "train_parts=decoder", f"init={tuned[0]}", "loop.steps=1")
    fingerprints.append(load_tokenizer(tuned[0]).provenance.fingerprint)
    assert load_tokenizer(tmp_path / "run").provenance.stamp["decoder_of"] == fingerprints


# ------------------------------------------------------------------------------------------------ the warm start
def test_the_warm_up_leaves_the_tokenizer_as_it_is(base, tuned):
    """For three updates: weights, averages, windows and moments. The discriminator has moved in each of them."""
    start = load_tokenizer(base / "tokenizer").state_dict()
    seen = tuned[1]
    for step in range(3):
        assert same(seen[step]["model"], start) and same(seen[step]["ema"], start)
        assert all((m["exp_avg"] == 0).all() and m["step"] == 0 for m in seen[step]["moments"].values())
        assert "adversarial" not in seen[step]["metrics"] and "discriminator" in seen[step]["metrics"]
    for earlier, later in itertools.pairwise(seen):
        moved = [not torch.equal(a, b) for a, b in zip(earlier["discriminator"], later["discriminator"], strict=True)]
        assert any(moved)
    assert not same(seen[3]["model"], start) and "adversarial" in seen[3]["metrics"]


def test_without_a_warm_up_nothing_is_different(base, tmp_path, image_folder, world):
    """`warmup_steps=0` and `train_parts=all` are the training of before."""
    train(world, tmp_path / "run", image_folder, "train_parts=all", "loss.discriminator.warmup_steps=0")
    assert digests(tmp_path / "run") == digests(base / "tokenizer")


@pytest.mark.parametrize("strategy", ["one", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_run_goes_on_inside_the_warm_up(strategy, base, tmp_path, image_folder, world):
    """Stopped in it and behind it: the same as without a stop. What it started from may be gone by then."""
    init = tmp_path / "start"
    shutil.copytree(base / "tokenizer", init)
    options = [*DECODER, f"init={init}", "loop.steps=5"]

    def run(folder: str, *more: str) -> None:
        if strategy == "one":
            train(world, tmp_path / folder, image_folder, *options, *more)
        else:
            on_ranks(2, tmp_path / "ranks" / folder / str(len(more)), train, tmp_path / folder, image_folder, *options,
                     "loop.strategy=fsdp", *more)  # fmt: skip

    run("unbroken")
    run("stopped", "loop.stop_at=2")
    shutil.rmtree(init)
    if strategy == "one":
        run("stopped", "loop.stop_at=4")
    run("stopped")
    assert digests(tmp_path / "stopped") == digests(tmp_path / "unbroken")
    network, start = load_tokenizer(tmp_path / "stopped"), load_tokenizer(base / "tokenizer")
    assert network.codes_fingerprint() == start.codes_fingerprint()


# ------------------------------------------------------------------------------------------------ phases and checks
def test_the_decoder_as_a_phase(tmp_path, image_folder, world):
    """Phase 2 starts from the averages of phase 1 and keeps its codes; the warm-up is counted over all phases."""
    phases = "phases=[{steps: 3, lr: 1e-3}, {steps: 3, lr: 1e-3, train_parts: decoder}]"
    later = ("loss.discriminator.start_step=4", "loss.discriminator.warmup_steps=2")
    train(world, tmp_path / "run", image_folder, phases, *later)
    one, two = (load_tokenizer(tmp_path / "run" / name) for name in ("phase_1", "phase_2"))
    assert one.codes_fingerprint() == two.codes_fingerprint()
    assert two.provenance.stamp["decoder_of"] == [one.provenance.fingerprint]
    records = [record for record in read_metrics(tmp_path / "run" / "phase_2") if "discriminator" in record]
    assert ["adversarial" in record for record in records] == [False, False, True]


@pytest.mark.parametrize(
    ("start_step", "warmup_steps", "expected"),
    [(2, 3, (1, 1)), (6, 4, (3, 4)), (1, 2, (1, 0)), (3, 5, (1, 4))],
)
def test_a_warm_up_counts_over_all_phases(start_step, warmup_steps, expected, image_folder):
    """A phase that begins after 3 updates: what is left of the warm-up, and where it begins."""
    discriminator = f"loss.discriminator={{start_step: {start_step}, warmup_steps: {warmup_steps}}}"
    config = tiny.tokenizer_config(
        "run", image_folder, *tiny.GAN, discriminator, "phases=[{steps: 3, lr: 1}, {steps: 9, lr: 1}]"
    )
    later = phases_of(config)[1].loss.discriminator
    assert (later.start_step, later.warmup_steps) == expected


def test_bad_settings_are_named(image_folder, tmp_path, base, tuned, world, monkeypatch):
    def problem(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            validate(tiny.tokenizer_config(tmp_path, image_folder, *tiny.GAN, *overrides))
        return str(caught.value)

    assert "name a tokenizer as init" in problem("train_parts=decoder")
    assert "before the tokenizer meets the discriminator" in problem("loss.discriminator.warmup_steps=9")
    assert "warmup_steps=-1 must be 0 or more" in problem("loss.discriminator.warmup_steps=-1")
    monkeypatch.setattr(HybridTokenizer, "decoder_parts", ())
    assert "does not say which of its parts decode" in problem("train_parts=decoder", "init=somewhere")
    monkeypatch.undo()

    # A run does not change what it trains.
    with pytest.raises(CheckpointError, match="train_parts: checkpoint 'decoder', now 'all'"):
        train(world, tuned[0], image_folder)


def test_a_network_that_names_no_decoder_has_one_fingerprint(base, monkeypatch):
    """Its codes may depend on all of it."""
    monkeypatch.setattr(HybridTokenizer, "decoder_parts", Tokenizer.decoder_parts)
    network = load_tokenizer(base / "tokenizer")
    assert network.codes_fingerprint() == network.provenance.fingerprint


@pytest.mark.parametrize("model", list(small_networks.SECTIONS))
def test_codes_depend_on_no_part_that_decodes(model):
    """In every family: other numbers in `decoder_parts` change pictures and no code, and only they get gradients."""
    quantizer = "multi_scale" if model == "var_vae" else "vq"
    config = small_networks.tokenizer_config(model, quantizer)
    network = mini.tokenizer_of(config).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes, fingerprint = network.encode(images).indices, network.codes_fingerprint()
    pictures = network.decode_indices(codes)
    with torch.no_grad():
        for name in network.decoder_parts:
            for parameter in network.get_submodule(name).parameters():
                parameter += 0.1
    assert torch.equal(network.encode(images).indices, codes) and network.codes_fingerprint() == fingerprint
    assert not torch.equal(network.decode_indices(codes), pictures)

    network.train_decoder_alone()
    network.train()
    output = network(images)
    output.reconstructions.square().mean().backward()
    moved = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert moved == set(network.decoder_parts)
    assert not network.trained_quantizer_losses and network.training and not network.quantizer.training
