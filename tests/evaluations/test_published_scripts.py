"""The published scripts: their stages and commands, what is missing for any of them, and a kill in every stage."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from forked_stages import ForkedStages, run_in_forks
from mains import main_of
from recipes import CONFIGS, kind_of, name_of, recipes

from autoregressive.training.build import network_on_meta
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.data.packaged import ArraySource, Mnist5k
from engine.data.sources import SOURCES
from engine.messages import UserError
from engine.pipeline import Stage, StageLog
from evaluations.pipelines import published_scripts as scripts
from evaluations.pipelines.published_variables import PUBLISHED, PublishedVariables
from evaluations.pipelines.requests import Request
from tokenizer.training.checks import validate
from tokenizer.training.config import TokenizerTrainConfig

BUILDERS = {
    "train_vq_and_eval": scripts.train_vq_and_eval,
    "train_c2i_and_eval": scripts.train_c2i_and_eval,
    "eval_c2i": scripts.eval_c2i,
    **{
        f"train_{name}_lin_probe_and_eval": lambda r, n=name: scripts.lin_probe_and_eval(r, n)
        for name in scripts.PROBES
    },
}
NETWORKS = {"VQ_CKPT": "runs/VQ", "GPT_CKPT": "runs/GPT"}


def script_of(name: str, *items: str, scale: str = "full", **variables: str) -> scripts.Script:
    """A script as a user calls it, with these variables set and no others."""
    args = Namespace(items=list(items), config=[], scale=scale, run_dir=Path("run"))
    return BUILDERS[name](Request(args, variables))


def arguments_of(script: scripts.Script, stage: str) -> list[str]:
    (found,) = [s for s in script.stages if s.name == stage]
    return found.arguments


# ------------------------------------------------------------------------------------------------ stages and commands
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_vq_and_eval", "tokenizer reconstruction codes gpt search val_loss report"),
        ("train_c2i_and_eval", "codes gpt search val_loss report"),
        ("eval_c2i", "generation val_loss report"),
        ("train_lm_lin_probe_and_eval", "linear_probe_gpt report"),
        ("train_tok_lin_probe_and_eval", "linear_probe_tokenizer report"),
        ("train_all_lin_probe_and_eval", "linear_probe_gpt linear_probe_tokenizer report"),
    ],
)
def test_the_stages_of_a_script(name, expected):
    """At full scale they start from the networks that variables name."""
    script = script_of(name, TOK_CONFIG="vq/VQ_SS256", GPT_MODEL="GPT-B", **NETWORKS)
    assert (script.name, " ".join(stage.name for stage in script.stages)) == (name, expected)


def test_variables_become_keys_and_flags():
    """Each where it belongs; epochs are those of the papers; a key on the command line wins, because it comes last."""
    script = script_of(
        "train_c2i_and_eval", "configs/gpt/GPT_L256.yaml", "optim.lr=5e-5",
        VQ_CKPT="runs/VQ", LM_EPOCH="50", LM_BSZ="512", LR="2e-4", WARM_ITER="200", FRACT_DECAY="0.1",
        CKPT_EVERY="1000", LM_STOP_ITER="70000", LM_PRECISION="bf16", DATA_PARALLEL="hsdp", GPT_2D="1",
        USE_QK_NORM="true", CFG_SCHEDULE="linear", CFG_SCALE="1.5", CFG_START_RATIO="0.2", TOP_K="100",
        EVAL_BATCH_PER_GPU="64", CODEPATH="my/codes", GT_NPZ_PATH="ref.npz",
    )  # fmt: skip
    training = arguments_of(script, "gpt")
    config = load_config(GPTTrainConfig, [training[1]], training[2:])
    loop, optim = config.loop, config.optim
    assert (config.model.gpt.size, config.model.gpt.positions, config.model.gpt.qk_norm) == ("l", "rope2d", True)
    assert (loop.steps, loop.stop_at, loop.save_every) == (125_000, 70_000, 1000)
    assert (loop.precision, loop.strategy, config.data.global_batch_size) == ("bf16", "hsdp", 512)
    assert (optim.lr, optim.warmup_steps, optim.decay_fraction) == (5e-5, 200, 0.1)
    assert (config.data.codes, config.data.tokenizer, loop.run_dir) == ("my/codes", "runs/VQ", "run/gpt")

    search = " ".join(arguments_of(script, "search"))
    for flags in (
        "--vq-ckpt runs/VQ --gpt-ckpt run/gpt", "--cfg-schedule linear", "--cfg-scale 1.5", "--step-start-ratio 0.2",
        "--top-k 100", "--precision bf16", "--per-proc-batch-size 64", "--labels random", "--gt-npz-path ref.npz",
    ):  # fmt: skip
        assert flags in search
    assert "--ten-crop" in arguments_of(script, "codes") and not script.notes


def test_variables_of_tokenizers_and_probes():
    script = script_of("train_vq_and_eval", TOK_CONFIG="VQ_SS256", TOK_EPOCH="2", TOK_BSZ="64", TOK_EARLY_STOP_ITER="9",
                       PRECISION="none", DATASET="loose")  # fmt: skip
    training = arguments_of(script, "tokenizer")
    assert {
        "loop.steps=40000", "data.global_batch_size=64", "loop.stop_at=9", "loop.precision=fp32", "data.name=loose"
    } <= set(training)  # fmt: skip
    script = script_of("train_tok_lin_probe_and_eval", VQ_CKPT="runs/VQ", LIN_BSZ="1024", FROM_DECODER="yes",
                       TOK_PRECISION="bf16")  # fmt: skip
    overrides = {"data.global_batch_size=1024", "network.source=decoder", "loop.precision=bf16"}
    assert overrides <= set(arguments_of(script, "linear_probe_tokenizer"))


def test_epochs_count_images_of_the_batch_that_is_trained_with():
    """That of a variable, of the command line, or of the recipe."""
    for items, variables in (([], {"LM_BSZ": "128"}), (["data.global_batch_size=128"], {})):
        script = script_of("train_c2i_and_eval", "gpt/GPT_B256", *items, LM_EPOCH="1", **NETWORKS, **variables)
        assert "loop.steps=10000" in arguments_of(script, "gpt")
    script = script_of("train_c2i_and_eval", "gpt/GPT_XXL256", LM_EPOCH="1", **NETWORKS)
    assert "loop.steps=2500" in arguments_of(script, "gpt")


def test_what_has_no_meaning_is_named():
    """Variables that mean nothing here, those of other scripts, and values that mean something else; no other one."""
    script = script_of(
        "train_c2i_and_eval", "gpt/GPT_B256", USE_ADALN="1", JSON_PATH="x.json", PRECISION="fp16", DATA_PARALLEL="sdp",
        TOK_EPOCH="3", VQ_EXP_DIR="runs/vq", IMGNET_ROOT="data", UNRELATED="1", **NETWORKS,
    )  # fmt: skip
    assert [note.split("=")[0] for note in script.notes] == [
        "PRECISION", "DATA_PARALLEL", "TOK_EPOCH", "GPT_CKPT", "USE_ADALN", "JSON_PATH"
    ]  # fmt: skip
    training = arguments_of(script, "gpt")
    assert "loop.strategy=fsdp" in training and not any(part.startswith("loop.precision") for part in training)


def test_an_architecture_is_for_published_files():
    """Beside a folder or a file that is not there, the note names that path: the script does know the variable."""
    architecture = {"TOK_CONFIG": "vq/VQ_SS256", "GPT_MODEL": "GPT-B"}
    notes = script_of("eval_c2i", VQ_CKPT="VQ_SS256_e100.pt", GPT_CKPT="runs/GPT", **architecture).notes
    assert [note.split(": ")[0] for note in notes[:2]] == [
        "TOK_CONFIG=vq/VQ_SS256 is not used", "GPT_MODEL=GPT-B is not used"
    ]  # fmt: skip
    assert "VQ_SS256_e100.pt is no file" in notes[0] and "runs/GPT is no file" in notes[1]


def test_every_published_variable_is_asked_for_or_explained():
    """By at least one script: none is silently dropped."""
    asked = set()
    variables = {"TOK_CONFIG": "VQ_SS256", "LM_CONFIG": "GPT_B256", "FRACT_DECAY": "0.1", **NETWORKS}
    for build in BUILDERS.values():
        for extra in ({}, {"DATASET": "imagenet"}):
            args = Namespace(items=[], config=[], scale="full", run_dir=Path("run"))
            request = Request(args, variables | extra)
            build(request)
            asked |= request.variables._asked
    for name in PUBLISHED:
        (note,) = PublishedVariables({name: "1"}).notes()
        assert note.startswith(f"{name}=1 is not used")
        assert name in asked or "this script" not in note, name


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("train_vq_and_eval", {}, "name the recipe of the tokenizer: .* or in TOK_CONFIG"),
        ("train_vq_and_eval", {"TOK_CONFIG": "nothing"}, "'nothing' is neither a YAML file nor the name of a recipe"),
        ("train_vq_and_eval", {"TOK_CONFIG": "VQ_SS256", "TOK_BSZ": "many"}, "TOK_BSZ=many must be a whole number"),
        ("train_c2i_and_eval", {"GPT_MODEL": "GPT-B"}, "VQ_CKPT is not set"),
        ("train_c2i_and_eval", {"GPT_MODEL": "GPT-B", **NETWORKS, "GPT_2D": "maybe"}, "GPT_2D=maybe must be one of: 1"),
        ("eval_c2i", {"VQ_CKPT": "runs/VQ"}, "GPT_CKPT is not set"),
        ("train_lm_lin_probe_and_eval", {**NETWORKS, "LM_PRECISION": "int4"}, "LM_PRECISION=int4 must be one of: none"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(name, variables, message):
    with pytest.raises(UserError, match=message):
        script_of(name, **variables)


def test_a_published_file_is_converted_and_takes_imagenet(tmp_path):
    """A GPT is trained for a tokenizer in a folder; evaluations and probes take the file as it is."""
    for name in ("vq.pt", "gpt.pt"):
        (tmp_path / name).touch()
    variables = {"VQ_CKPT": str(tmp_path / "vq.pt"), "GPT_CKPT": str(tmp_path / "gpt.pt"), "TOK_CONFIG": "VQ_SS256",
                 "GPT_MODEL": "GPT-B", "IMGNET_ROOT": "imagenet", "VAL_PATH": "held_out"}  # fmt: skip
    script = script_of("train_c2i_and_eval", **variables)
    assert [stage.name for stage in script.stages][:3] == ["tokenizer", "codes", "gpt"]
    assert script.stages[0].module == "tokenizer.convert" and script.stages[0].product == Path("run/tokenizer")
    codes = " ".join(arguments_of(script, "codes"))
    assert "--data-path imagenet/ILSVRC2012_img_train --val-path held_out" in codes
    assert "data.tokenizer=run/tokenizer" in arguments_of(script, "gpt")

    generation = " ".join(arguments_of(script_of("eval_c2i", **variables), "generation"))
    assert f"--gpt-ckpt {tmp_path / 'gpt.pt'} --tok-config {CONFIGS / 'vq/VQ_SS256.yaml'} --gpt-config" in generation
    probe = arguments_of(script_of("train_lm_lin_probe_and_eval", **variables), "linear_probe_gpt")
    assert f"network.gpt_config={CONFIGS / 'gpt/GPT_B256.yaml'}" in probe


def test_a_gpt_can_be_trained_on_images():
    """DATASET=imagenet: tokens of random crops are made in training, and no codes are extracted."""
    script = script_of("train_c2i_and_eval", "gpt/GPT_B256", DATASET="imagenet", VQ_CKPT="runs/VQ", IMGNET_ROOT="x")
    assert [stage.name for stage in script.stages] == ["gpt", "search", "val_loss", "report"]
    training = arguments_of(script, "gpt")
    assert training[3] == str(CONFIGS / "gpt/online.yaml") and "data.codes=" in training and not script.notes
    with pytest.raises(UserError, match="DATASET=mine must be imagenet_code"):
        script_of("train_c2i_and_eval", "gpt/GPT_B256", DATASET="mine", VQ_CKPT="runs/VQ")


# ------------------------------------------------------------------------------------------------ --scale tiny
@pytest.fixture
def imagenet(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")


TRAININGS = [path for path in recipes() if kind_of(path) in ("tokenizer", "gpt")]
# One of each family; `-m slow` has all.
QUICK = ("vq/VQ_SS256", "vq/VQ_BL256_2d", "vq/VQ_XLXXL256", "vq/ablation/vanilla", "llamagen/VQ_8", "wetok/WeTok_192",
         "open_magvit2/imagenet_128_L", "ibq/imagenet256_16384", "maskgit/maskgit_vqgan_imagenet_f16_256",
         "var/vae_ch160v4096z32", "var/var_d30", "rar/rar_b", "ibq/AR_256_B", "gpt/MaskGIT_B256",
         "gpt/GPT_XXL256", "gpt/GPT_wetok_B", "gpt/GPT_bits_L", "llamagen/GPT_B_384")  # fmt: skip


SCALES = [1, 2, 3, 4]  # of recipes whose tokens are no cells, which are those of VAR


def check_tiny_scale(path: Path) -> None:
    """16 tokens, with the quantizer and the losses of the recipe; where codes have scales, those of a grid of 4 x 4."""
    request = Request(Namespace(items=[], config=[], scale="tiny", run_dir=None), {})
    has_scales = name_of(path).startswith("var/")
    if kind_of(path) == "gpt":
        before, config = (load_config(GPTTrainConfig, f) for f in ([path], request.generator_files([path])))
        network = network_on_meta(config)
        assert network.codebook_sizes == network_on_meta(before).codebook_sizes
    else:
        before, config = (load_config(TokenizerTrainConfig, f) for f in ([path], request.tokenizer_files([path])))
        network = validate(config)
        if has_scales:
            config.model.quantizer.multi_scale.scales = before.model.quantizer.multi_scale.scales
        assert config.model.quantizer == before.model.quantizer
        assert (config.loss.perceptual, config.semantic) == (before.loss.perceptual, before.semantic)
    num_tokens = sum(side**2 for side in (SCALES if has_scales else [4]))
    assert network.num_tokens == num_tokens and config.loop.steps == 24
    # The codes of a recipe may be many, the rest of the network is small.
    assert sum(p.numel() for name, p in network.named_parameters() if not name.startswith("quantizer.")) < 12e6


@pytest.mark.parametrize("name", QUICK)
def test_a_recipe_has_a_tiny_scale(name, imagenet):
    check_tiny_scale(CONFIGS / f"{name}.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAININGS, ids=name_of)
def test_every_recipe_has_a_tiny_scale(path, imagenet):
    """Those of the quick start and of the user's own data are small already."""
    if name_of(path).split("/")[0] not in ("quickstart", "own_data", "tiny"):
        check_tiny_scale(path)


def test_variables_of_lengths_and_networks_are_set_aside():
    script = script_of("eval_c2i", scale="tiny", LM_EPOCH="300", CFG_SCALE="1.5", **NETWORKS)
    names = [stage.name for stage in script.stages]
    assert names == ["tokenizer", "codes", "gpt", "generation", "val_loss", "report"]
    reason = "is not used: --scale tiny has networks, data and lengths of its own"
    aside = ("LM_EPOCH=300", "GPT_CKPT=runs/GPT", "VQ_CKPT=runs/VQ")
    assert sorted(script.notes) == sorted(f"{name} {reason}" for name in aside)
    assert "--cfg-scale 1.5" in " ".join(arguments_of(script, "generation"))


# ------------------------------------------------------------------------------------------------ before it starts
CALLS = {
    "train_vq_and_eval": ["vq/VQ_SS256"],
    "train_c2i_and_eval": ["gpt/GPT_B256"],
    "eval_c2i": [],
    "lin_probe_and_eval": [],
}


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No published variable is set, no weights are there."""
    for name in PUBLISHED:
        monkeypatch.delenv(name, raising=False)
    for name in ("GPUS", "gpus", "NPROC_PER_NODE", "VQ_EXP_DIR", "LM_EXP_DIR", "LM_LIN_EXP_DIR", "GT_VAL_NPZ_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IMGNET_ROOT", str(tmp_path / "imagenet"))
    monkeypatch.setenv("GT_NPZ_PATH", str(tmp_path / "reference.npz"))
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path / "weights"))
    monkeypatch.delenv("ALLOW_DOWNLOAD", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CALLS)
def test_at_tiny_scale_everything_is_here(name, bare, entry):
    """Every command of every stage is accepted; nothing is made."""
    code, out, err = entry(main_of(f"evaluations.{name}"), *CALLS[name], "--scale", "tiny", "--check")
    assert code == 0 and out.startswith("ready:"), out + err
    assert "(written by the stage 'tokenizer')" in out and not list(bare.iterdir())


def test_a_dry_run_tells_stages_cost_and_all_that_is_missing(bare, entry, monkeypatch):
    """Of stages that come days later, too, each once; what earlier stages write is not missed."""
    monkeypatch.setenv("LM_CONFIG", "quickstart/gpt")  # small ones, whose cost is soon computed
    data = ["data.name=folder", "data.root=no1", "data.val_root=no2", "loop.device=cuda"]
    code, out, err = entry(main_of("evaluations.train_vq_and_eval"), "quickstart/tokenizer", *data, "--dry-run")
    assert code == 0, err
    assert "train_vq_and_eval: 7 stages in runs/vq/tokenizer" in out and "7. report (to do)" in out
    for stage in ("tokenizer", "gpt"):
        cost = out.partition(f"cost of the stage {stage} on 8 GPUs:\n")[2]
        assert "this recipe needs" in cost and "GPU hours" in cost
    missing = out.partition("on this machine: ")[2]
    for part in ("no1", "no2", "reference.npz"):
        assert missing.count(part) == 1, missing
    assert "(stage reconstruction, search)" in missing
    assert "runs/vq" not in missing and not list(bare.iterdir())


def test_nothing_starts_where_something_is_missing(bare, entry):
    """One message for all stages, and no folder."""
    code, out, err = entry(main_of("evaluations.train_vq_and_eval"), "vq/VQ_SS256")
    assert code == 2 and err.count("error: ") == 1 and "reference.npz" in err and not list(bare.iterdir()), out


def test_a_key_that_no_stage_knows_is_refused_at_once(bare, entry):
    arguments = ["vq/VQ_SS256", "loop.stepz=3", "--scale", "tiny"]
    code, _, err = entry(main_of("evaluations.train_vq_and_eval"), *arguments)
    assert code == 2 and "loop.stepz" in err and "(stage tokenizer)" in err


def test_the_generator_of_a_rehearsal_takes_the_codes_of_its_tokenizer(bare, entry):
    """Four codebooks in the place of one."""
    recipe = ["WeTok_f16_imagenet", "--scale", "tiny"]
    code, out, err = entry(main_of("evaluations.train_vq_and_eval"), *recipe, "--check")
    assert code == 0 and out.startswith("ready:"), out + err


def test_networks_that_do_not_fit_are_told_before_the_first_is_trained(bare, entry, monkeypatch):
    """A generator of GigaTok's codes, behind a tokenizer of four codebooks."""
    monkeypatch.setenv("LM_CONFIG", "gpt/GPT_B256")
    data = ["data.name=mnist5k", "data.root=null", "data.val_root=null", "loop.device=cpu"]
    code, _, err = entry(main_of("evaluations.train_vq_and_eval"), "WeTok_f16_imagenet", *data, "--check")
    assert code == 2 and "256 tokens of 16384 codes" in err and "tokenizer and gpt do not fit together" in err


def test_several_machines_are_refused(bare, entry, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    code, _, err = entry(main_of("evaluations.eval_c2i"), "--scale", "tiny", "--check")
    assert code == 2 and "NNODES=2: a whole recipe runs on one machine" in err


# ------------------------------------------------------------------------------------------------ a kill in every stage
def some_digits(config, split: str) -> ArraySource:
    """Enough for a distance of 112 features, and no more."""
    whole, count = Mnist5k.read(split), {"train": 150, "val": 115}[split]
    return ArraySource("mnist5k", whole.images[:count], whole.labels[:count], whole.class_names)


FEWER = ["loop.steps=6", "loop.save_every=2", "loop.eval_every=0", "validation.num_images=20", "semantic.weight=0",
         "loss.perceptual_weight=0", "loss.discriminator.weight=0"]  # fmt: skip


def test_a_kill_in_every_stage_changes_no_number(bare, monkeypatch):
    """The same command again and again: each stage is killed once, and goes on where it was."""
    monkeypatch.setattr(SOURCES["mnist5k"], "open", some_digits)
    module = "evaluations.train_vq_and_eval"
    call = ["vq/VQ_SS256", "--scale", "tiny", *FEWER]
    unbroken, broken = bare / "unbroken", bare / "broken"
    stages = ForkedStages(unbroken)
    assert run_in_forks(module, [*call, "--run-dir", str(unbroken)], stages) == 0
    names = ["tokenizer", "reconstruction", "codes", "gpt", "search", "val_loss", "report"]
    assert stages.ended == names

    stages = ForkedStages(broken, kills=True)
    codes = [run_in_forks(module, [*call, "--run-dir", str(broken)], stages) for _ in range(len(names) + 1)]
    assert codes == [2] * len(names) + [0] and stages.killed == stages.ended == names
    results = [json.loads((run / "results.json").read_text()) for run in (unbroken, broken)]
    assert results[0] == results[1] and set(results[0]["results"]) == {
        "reconstruction", "ar_probe/search", "ar_probe/val_loss"
    }  # fmt: skip
    assert (broken / "report.html").is_file()

    # Other settings do not pass for those that made what is there.
    code = run_in_forks(module, [*call, "loop.seed=1", "--run-dir", str(broken)], stages)
    assert code == 2 and json.loads((broken / "results.json").read_text()) == results[1]


def test_a_finished_product_is_not_made_again(tmp_path):
    """A stage that was killed between its end and the note of it."""
    stage = Stage("convert", ["false"], product=tmp_path / "there")
    assert not stage.is_done(StageLog(tmp_path))
    (tmp_path / "there").mkdir()
    assert stage.is_done(StageLog(tmp_path)) and [path.name for path in tmp_path.iterdir()] == ["there"]
