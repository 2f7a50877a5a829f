"""With `entropy_statistics=global` the entropy loss, too, is one training over any processes and strategies."""

import shutil

import pytest
import tiny
from ranks import on_ranks
from test_exactness import EVERYWHERE, assert_close_runs

import tokenizer.train
from engine.run_log import read_metrics
from engine.world import World

# At the released 0.01 logits are 100 times latents, rounding included: of a sample entropy of 0.03 nats 5e-5 differ.
SOFT = "entropy_statistics: global, entropy_temperature: 0.1"
ENTROPY = ["loss.entropy_weight=0.05", "loss.discriminator.lecam_weight=0.05"]
OWN_BATCH = ("val/entropy", "val/codebook_entropy", "val_ema/entropy", "val_ema/codebook_entropy")  # docs/exactness.md


def wetok(mode: str) -> tuple[str, list[str]]:
    """WeTok with a discriminator without batch statistics."""
    return tiny.WETOK, [
        f"model.quantizer.gq={{codebook_entropy: {mode}, {SOFT}}}",
        "loss.discriminator.patchgan.norm=none",
    ]


VARIANTS = {  # name -> base config, overrides; all with GAN, LeCam and averages
    "vq": (tiny.TOKENIZER, [*tiny.GAN, *ENTROPY, f"model.quantizer.vq={{{SOFT}}}"]),
    "gq pooled": wetok("pooled"),
    "gq per group": wetok("per_group"),
}
LOCAL = {"vq": "vq", "gq pooled": "gq"}  # variant -> section, also trained with the statistics of each process
CHAIN = ["loop.save_every=2", "loop.keep_last=9"]


def train(world: World, run_dir, images, variant: str, *overrides: str) -> None:
    base, own = VARIANTS[variant]
    tokenizer.train.train(tiny.tokenizer_config(run_dir, images, *own, *EVERYWHERE, *overrides, base=base), world)


def train_all(world: World, root, images) -> None:
    """Every variant under both strategies, in the same two processes."""
    for variant in VARIANTS:
        for strategy in ("ddp", "fsdp"):
            more = CHAIN if (variant, strategy) == ("gq pooled", "fsdp") else []
            train(world, root / f"{variant} {strategy}", images, variant, f"loop.strategy={strategy}", *more)
    for variant, section in LOCAL.items():
        own = f"model.quantizer.{section}.entropy_statistics=local"
        train(world, root / f"{variant} local", images, variant, own, "loop.steps=1")


@pytest.fixture(scope="module")
def root(tmp_path_factory, image_folder, world):
    """Runs of each variant in one process, as DDP x2 and as FSDP2 x2."""
    folder = tmp_path_factory.mktemp("entropy")
    for variant in VARIANTS:
        train(world, folder / f"{variant} one", image_folder, variant)
    on_ranks(2, folder / "ranks", train_all, folder, image_folder)
    return folder


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_entropy_loss_does_not_depend_on_processes_or_strategy(variant, root):
    """Both entropies, LeCam, gradient norms and all else of 6 steps: one process = DDP x2 = FSDP2 x2."""
    names = {"entropy", "sample_entropy", "codebook_entropy", "lecam", "grad_norm"}
    records = [r for r in read_metrics(root / f"{variant} one") if "loss" in r]
    assert names <= set(records[-1]) and records[0]["codebook_entropy"] != records[-1]["codebook_entropy"]
    for strategy in ("ddp", "fsdp"):
        assert_close_runs(root / f"{variant} one", root / f"{variant} {strategy}", without=OWN_BATCH)


def test_such_a_run_may_go_on_with_any_number_of_processes(root, image_folder, world, tmp_path):
    """Two steps as FSDP2 x2, two in one process, two as DDP x4: the run of one process."""
    run = shutil.copytree(root / "gq pooled fsdp", tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    train(world, run, image_folder, "gq pooled", *CHAIN)
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    on_ranks(4, tmp_path / "ranks", train, run, image_folder, "gq pooled", *CHAIN)
    log = (run / "log.txt").read_text()
    assert "resumed from step 2 of 6" in log and "resumed from step 4 of 6" in log
    assert_close_runs(root / "gq pooled one", run, without=OWN_BATCH)


def test_statistics_of_one_process_are_others(root):
    """So that equal curves mean something: as released, two processes have another codebook entropy from step 1 on."""
    for variant in LOCAL:
        one, two = (read_metrics(root / f"{variant} {name}")[0]["codebook_entropy"] for name in ("one", "local"))
        assert one != pytest.approx(two, rel=5e-4)
