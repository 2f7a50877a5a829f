"""A folder with tiny networks, images, codes, results and broken files, and a working command line of every entry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tiny
import torch
from fuzz.checkpoint_layouts import network, tokenizer_configs
from PIL import Image
from safetensors.torch import save_file
from script_modules import ROOT

import autoregressive.train
import tokenizer.train
from autoregressive.loading import load_gpt
from engine.world import World
from tokenizer import load_tokenizer
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_rules

CHECK_ONLY = {
    *(
        f"evaluations.{name}"
        for name in (
            "ar_probe",
            "probe_checkpoints",
            "benchmarks",
            "classifier",
            "memory",
            "methods",
            "quickstart",
            "ship",
            "sweep",
            "text_reader",
        )
    ),
    *(f"evaluations.{name}" for name in ("train_vq_and_eval", "train_c2i_and_eval", "eval_c2i", "lin_probe_and_eval")),
    "engine.index_images",
    "evaluations.init",
    "evaluations.own_data.example",
}  # fmt: skip - they take minutes, need more images than there are here, or write into the cache of the user
TRAINERS = {"tokenizer.train", "autoregressive.train", "evaluations.linear_probe", "evaluations.classifier",
            "evaluations.text_reader"}  # fmt: skip


def build(root: Path) -> None:
    """Fills an empty folder; all paths of the command lines below are relative to it."""
    # Images and networks.
    world = World(0, 1, 0, torch.device("cpu"))
    tiny.write_images(root / "images" / "train", per_class=4, seed=1)
    tiny.write_images(root / "images" / "val", per_class=3, seed=2)
    tokenizer.train.train(tiny.tokenizer_config(root / "tokenizer", root / "images", *tiny.GAN, "loop.steps=2"), world)
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint, num_images=6)
    config = tiny.gpt_config(root / "gpt", root / "codes", root / "tokenizer", "loop.steps=2")
    autoregressive.train.train(config, world)
    assert load_gpt(root / "gpt")

    # Configs and other good files; two entries are run from the root of the repository.
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, root / name)
    (root / "tokenizer.yaml").write_text(tiny.TOKENIZER)
    (root / "gpt.yaml").write_text(tiny.GPT)
    (root / "recipe.yaml").write_text("model: {name: wetok}\n")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(root / "samples.npz", pixels)
    (root / "squares").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture[::-1]).save(root / "squares" / f"{number}.png")
    np.savez(root / "floats.npz", np.full((4, 8, 8, 3), np.nan, dtype=np.float32))
    for name, value in (("a", 1.5), ("b", 2.5)):
        result = {"metrics": {"psnr": value}, "protocol": {"kind": "reconstruction", "num_images": 6}}
        (root / f"{name}.json").write_text(json.dumps(result))
    measured = {"kind": "reconstruction", "tokenizer": {"path": "tokenizer", "fingerprint": "x"}}
    (root / "measured.json").write_text(json.dumps({"metrics": {"psnr": 1.5}, "protocol": measured}))
    shutil.copytree(root / "tokenizer", root / "report" / "tokenizer")
    (root / "report" / "evaluations").mkdir()
    shutil.copy(root / "a.json", root / "report" / "evaluations" / "a.json")
    word = {"image": "1", "ratio": 0.05, "read": "A", "truth": "A"}
    (root / "words.json").write_text(json.dumps([word]))
    (root / "nan.json").write_text('{"metrics": {"psnr": NaN}, "protocol": {}}')

    # Published files, good and bad.
    model = tokenizer_configs()["GigaTok"]
    state = export_state(network(model, 0).state_dict(), layout_rules(model))
    torch.save({"model": state}, root / "published.pt")
    torch.save({"model": {name: tensor * float("nan") for name, tensor in state.items()}}, root / "nan.pt")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, root / "published.safetensors")
    (root / "page.pt").write_text("<!doctype html><html>")
    (root / "torn.pt").write_bytes((root / "published.pt").read_bytes()[:500])

    # Wrong kinds of files and folders.
    (root / "empty").write_bytes(b"")
    (root / "empty_folder").mkdir()
    (root / "ünï cödé").mkdir()
    (root / "dead").symlink_to("nowhere")
    (root / "picture.png").write_bytes((root / "images" / "val" / "cat" / "000.png").read_bytes())
    (root / "broken").mkdir()
    (root / "broken" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    Image.new("RGB", (3, 200)).save(root / "broken" / "thin.png")


PATHS = [
    *("tokenizer", "gpt", "codes", "images", "images/train", "images/val", "squares", "empty_folder", "ünï cödé"),
    *("tokenizer.yaml", "gpt.yaml", "recipe.yaml", "samples.npz", "floats.npz", "a.json", "b.json", "nan.json"),
    *("words.json", "words.json/x"),
    *("published.pt", "nan.pt", "published.safetensors", "page.pt", "torn.pt", "picture.png", "broken"),
    *("empty", "dead", "missing", "missing/x", "picture.png/x", "tokenizer/checkpoints/step_00000002", "~"),
    *("tokenizer/metrics.jsonl", "", ".", "x" * 300, "a\nb"),
]

# Groups of arguments, apart by ` | `; whatever is written goes to a folder `OUT`.
PAIR = "--vq-ckpt tokenizer | --gpt-ckpt gpt"
PICTURES = "--data-path images/val"
SAMPLED = f"{PAIR} | --num-fid-samples 4 | --per-proc-batch-size 4 | --output OUT/r.json"
LITE0 = "--extractor efficientnet_lite0 | --force"
FOLDERS = "data.root=images/train | data.val_root=images/val | data.name=folder"
RUN = "loop.run_dir=OUT/run"
SIZES = "data.image_size=8 | data.num_workers=0 | data.global_batch_size=4 | loop.device=cpu"
PROBE = "network.source=tokenizer | probe.features=cached | probe.epochs=1 | probe.warmup_epochs=0"
COMMANDS = {
    "tokenizer.train": f"--config tokenizer.yaml | {FOLDERS} | {RUN} | loop.steps=1",
    "autoregressive.train": f"--config gpt.yaml | data.codes=codes | data.tokenizer=tokenizer | {RUN} | loop.steps=1",
    "evaluations.linear_probe": f"{FOLDERS} | {SIZES} | network.tokenizer=tokenizer | {PROBE} | {RUN}",
    "evaluations.classifier": f"{FOLDERS} | {SIZES} | model.num_classes=2 | {RUN} | loop.steps=1",
    "evaluations.text_reader": f"data.num_crops=64 | data.num_held_out=64 | {RUN} | loop.steps=1 | loop.device=cpu",
    "evaluations.text_readback": "--draw OUT/pictures | --image-size 32 | --num-pictures 1",
    "evaluations.tokbench": "--words words.json | --setting 256 | --read-by x | --output OUT/t.json",
    "evaluations.side_by_side": f"--vq-ckpt tokenizer | {PICTURES} | --num-images 2 | --sample-dir OUT/figure",
    "evaluations.ar_probe": (
        "--config quickstart/ar_probe | tokenizer=tokenizer | run_dir=OUT/run | search_flags=[--force] | "
        f"probe_overrides=[{','.join([*FOLDERS.split(' | '), *SIZES.split(' | ')])}]"
    ),
    "evaluations.probe_checkpoints": (
        "tokenizer | --output OUT/probed | --probes reconstruction | --reconstruction-flags=--extractor=none"
    ),
    "evaluations.methods": "--runs-dir OUT | --systems ema fsq | --seeds 2",
    "evaluations.quickstart": "--runs-dir OUT | --short",
    "evaluations.atlas": (
        "tokenizer | --gpt-ckpt gpt | --val-path images/val | --images 2 | --tokens 2 | --codes 2 | "
        "--counted-images 4 | --output OUT/atlas.html"
    ),
    "evaluations.ship": "digits=. | --output OUT/models | --num-fid-samples 4",
    "evaluations.train_vq_and_eval": "VQ_SS256 | loop.seed=1 | --scale tiny | --run-dir OUT/run",
    "evaluations.train_c2i_and_eval": "GPT_B256 | loop.seed=1 | --scale tiny | --run-dir OUT/run",
    "evaluations.eval_c2i": "--scale tiny | --run-dir OUT/run",
    "evaluations.lin_probe_and_eval": "--scale tiny | --probed tok | --run-dir OUT/run",
    "autoregressive.check_codes": "--code-path codes | --num-images 2",
    "evaluations.benchmarks": "--output OUT/b.json | --quick | --only quantizers | --threads 1",
    "evaluations.memory": "--batch-size 1 | --channels 8",
    "evaluations.estimate": "gpt.yaml | --gpus 1,2 | --device a100",
    "tokenizer.convert": "--vq-ckpt published.pt | --tok-config tokenizer.yaml | --output OUT/x",
    "autoregressive.convert": "--gpt-ckpt gpt | --output OUT/gpt.pt",
    "tokenizer.reconstruct": f"--vq-ckpt tokenizer | {PICTURES} | --num-images 2 | --sample-dir OUT/pictures",
    "autoregressive.extract_codes": "--vq-ckpt tokenizer | --data-path images/train | --code-path OUT/codes",
    "autoregressive.export": "tokenizer | --part encode | --output OUT/x.pt2",
    "autoregressive.sample": f"{PAIR} | --class-idx 0,1 | --qual-num 2 | --sample-dir OUT/samples",
    "evaluations.reconstruction": f"--vq-ckpt tokenizer | {PICTURES} | --extractor none | --output OUT/r.json",
    "evaluations.generation": f"{SAMPLED} | --extractor none",
    "evaluations.search_cfg": f"{SAMPLED} | {LITE0} | --scales 1,2",
    "evaluations.val_loss": f"{PAIR} | --code-path codes | --per-proc-batch-size 4 | --output OUT/v.json",
    "evaluations.measure": (
        f"--samples samples.npz | {LITE0} | --gt-npz-path squares | --reference-kind train | --output OUT/m.json"
    ),
    "evaluations.make_reference": f"{PICTURES} | --image-size 8 | --random-stand-in | --force | --output OUT/r.npz",
    "engine.index_images": "--data-path images/train | --data folder",
    "evaluations.compare": "a.json | b.json",
    "evaluations.data": "images/train | --limit 5 | --output OUT/survey.json",
    "evaluations.init": "images/train | --output OUT/recipes",
    "evaluations.own_data.example": "--output OUT/pictures | --count 36",
    "evaluations.fingerprint": "tokenizer",
    "evaluations.visualize": f"--vq-ckpt tokenizer | {PICTURES} | --num-images 2 | --output OUT/pca.npz",
    "evaluations.doctor": "tokenizer | --all",
    "evaluations.publish": "tokenizer | --to OUT/shared",
    "evaluations.recipes": "quickstart | --json",
    "evaluations.protocols": "adm | --json",
    "evaluations.paper_tables": "wetok_3 | --files images | --images imagenet=images/train | --commands",
    "evaluations.sweep": "--config tokenizer.yaml | --folder OUT/sweep | --grid optim.lr=1e-3,2e-3 | loop.steps=1",
    "evaluations.scaling": "measured.json | --plot psnr:parameters | --mixed | --output OUT/scaling",
    "evaluations.report": "report | --output OUT/page.html",
}


def command_lines(out: str) -> dict[str, list[list[str]]]:
    """A command line that ends well per entry, as groups of arguments; it writes to the folder `out`."""
    return {
        module: [group.replace("OUT", out).split(" ") for group in line.split(" | ")]
        for module, line in COMMANDS.items()
    }
