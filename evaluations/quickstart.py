"""The main job, end to end, on real images: tokenizer -> codes -> GPT -> samples -> metrics -> report.

    bash scripts/quickstart.sh                       handwritten digits (mnist5k), 32 px, minutes on 2 CPU cores
    bash scripts/quickstart.sh --data twemoji        colour emoji, 64 px, longer
    bash scripts/quickstart.sh --system wetok        WeTok: two stages of the tokenizer, a GPT with a factorised head
    NPROC_PER_NODE=2 bash scripts/quickstart.sh      the same on two processes
    bash scripts/quickstart.sh --fresh               a new run beside the old one, which stays
    bash scripts/quickstart.sh --short               a few steps of everything, with all losses on: a test, not a result
    bash scripts/quickstart.sh --seed 2              other initial weights and another order: how far do numbers move?
    bash scripts/quickstart.sh --complete            also guidance search, validation loss, both probes, AR probing

Running it again continues: finished stages are skipped, a killed one goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from engine.checkpoint.manifest import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.data.sources import attribution_of
from engine.messages import UserError, logger
from engine.pipeline import Stage, StageLog, python, run_stages
from engine.run_log import read_metrics
from evaluations.results import read_result

CONFIGS = Path("configs/quickstart")
GUIDANCE_SCALE = 2.0
NUM_SAMPLES = {"mnist5k": 1000, "twemoji": 1000}
IMAGE_SIZES = {"mnist5k": 32, "twemoji": 64}
SHORT_PHASES = "phases=[{steps: 20, lr: 1e-3}, {steps: 10, lr: 1e-3, generative_decoder: true}]"
SHORT_STEPS = {"tokenizer": 50, "gpt": 30, "classifier": 30}


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--data", default="mnist5k", choices=sorted(NUM_SAMPLES), help="images (default mnist5k)")
    parser.add_argument("--system", default="gigatok", choices=["gigatok", "wetok"], help="default gigatok")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where the run folder is made (default runs)"
    )
    parser.add_argument("--fresh", action="store_true", help="start over in quickstart-2, -3, ...; nothing is deleted")
    parser.add_argument(
        "--short", action="store_true", help="a few steps of everything, all losses on; numbers mean nothing"
    )
    parser.add_argument("--seed", type=positive, help="of all trainings; default: that of their YAMLs (0)")
    parser.add_argument(
        "--complete", action="store_true", help="also guidance search, validation loss, linear probes, AR probing"
    )
    return parser.parse_args()


def run_folder(args: argparse.Namespace) -> Path:
    """runs/quickstart, or with --fresh the first unused runs/quickstart-N; the newest one is continued."""
    system, data = (
        "" if args.system == "gigatok" else f"-{args.system}",
        "" if args.data == "mnist5k" else f"-{args.data}",
    )
    name = f"quickstart{system}{data}" + (f"-seed{args.seed}" if args.seed else "") + ("-short" if args.short else "")
    first = args.runs_dir / name
    numbered = [first, *(args.runs_dir / f"{name}-{n}" for n in range(2, 1000))]
    unused = next(i for i, folder in enumerate(numbered) if not folder.exists())
    return numbered[unused] if args.fresh or unused == 0 else numbered[unused - 1]


def configs_of(args: argparse.Namespace, name: str) -> list[Path]:
    """The YAML of a training, that of the system where it has its own, and the overlay of the data."""
    own, overlay = CONFIGS / args.system / f"{name}.yaml", CONFIGS / args.data / f"{name}.yaml"
    return [own if own.is_file() else CONFIGS / f"{name}.yaml", *([overlay] if overlay.is_file() else [])]


def stages_of(args: argparse.Namespace, run: Path) -> list[Stage]:
    """The commands of the journey; each can be typed by hand."""

    def train(name: str, module: str, *overrides: str) -> Stage:
        configs = configs_of(args, name)
        if args.short and name == "tokenizer" and args.system == "wetok":
            overrides = (*overrides, SHORT_PHASES)
        elif args.short and name == "tokenizer":
            configs.append(CONFIGS / "full.yaml")
        seed = [f"loop.seed={args.seed}"] if args.seed else []
        short = [f"loop.steps={SHORT_STEPS[name]}", "loop.log_every=10", "loop.eval_every=0"] if args.short else []
        flags = [part for path in configs for part in ("--config", str(path))]
        return python(name, module, *flags, f"loop.run_dir={run / name}", *seed, *overrides, *short)

    tokenizer, gpt, codes, results = run / "tokenizer", run / "gpt", run / "codes", run / "evaluations"
    has_classifier = args.data == "mnist5k"
    checked = ["--classifier", str(run / "classifier")] if has_classifier else []
    samples = 100 if args.short else NUM_SAMPLES[args.data]
    return [
        train("tokenizer", "tokenizer.train"),
        python("codes", "autoregressive.extract_codes", "--vq-ckpt", str(tokenizer), "--code-path", str(codes)),
        train("gpt", "autoregressive.train", f"data.codes={codes}", f"data.tokenizer={tokenizer}"),
        *([train("classifier", "evaluations.classifier")] if has_classifier else []),
        python(
            "reconstruction", "evaluations.reconstruction", "--vq-ckpt", str(tokenizer), "--reference", "train",
            "--output", str(results / "reconstruction.json"),
        ),
        python(
            "generation", "evaluations.generation", "--vq-ckpt", str(tokenizer), "--gpt-ckpt", str(gpt),
            "--code-path", str(codes), *checked, "--cfg-scale", str(GUIDANCE_SCALE),
            "--num-fid-samples", str(samples), "--per-proc-batch-size", "50",
            "--output", str(results / "generation.json"),
        ),
        *(more_evaluations(args, run) if args.complete else []),
    ]  # fmt: skip


def more_evaluations(args: argparse.Namespace, run: Path) -> list[Stage]:
    """Guidance search, validation loss, linear probes, principal components, and the chain of AR probing."""
    tokenizer, gpt, codes, results = run / "tokenizer", run / "gpt", run / "codes", run / "evaluations"
    pair = ["--vq-ckpt", str(tokenizer), "--gpt-ckpt", str(gpt)]
    short = ["probe.epochs=2", "probe.warmup_epochs=1"] if args.short else []
    data = [f"data.name={args.data}", f"data.image_size={IMAGE_SIZES[args.data]}"]

    def probe(name: str, *overrides: str) -> Stage:
        config, folder = CONFIGS / f"{name}.yaml", f"loop.run_dir={run / name}"
        own = [*data, f"network.tokenizer={tokenizer}", *overrides, *short]
        return python(name, "evaluations.linear_probe", "--config", str(config), *own, folder)

    chain = [f"tokenizer={tokenizer}", f"run_dir={run / 'ar_probe'}", f"num_fid_samples={50 if args.short else 200}"]
    chain.append(f"gpt_configs=[{','.join(map(str, configs_of(args, 'gpt')))}]")
    chain.append(f"gpt_overrides=[loop.steps={20 if args.short else 300}]")
    chain.append(f"probe_overrides=[{','.join([*data, *short])}]")
    return [
        python(
            "search", "evaluations.search_cfg", *pair, "--num-fid-samples", "50" if args.short else "500",
            "--per-proc-batch-size", "50", "--scales", "1,1.5,2,2.5,3,4", "--output", str(results / "search.json"),
        ),
        python(
            "val_loss", "evaluations.val_loss", *pair, "--code-path", str(codes),
            "--output", str(results / "val_loss.json"),
        ),
        probe("linear_probe_gpt", f"network.gpt={gpt}"),
        probe("linear_probe_tokenizer"),
        python("pca", "evaluations.visualize", "--vq-ckpt", str(tokenizer), "--output", str(results / "pca.npz")),
        python("ar_probe", "evaluations.ar_probe", "--config", str(CONFIGS / "ar_probe.yaml"), *chain),
    ]  # fmt: skip


def collect(run: Path, log: StageLog) -> dict:
    """The numbers of a finished run, fractions in 0..1, PSNR in dB, seconds by stage."""
    reconstruction = read_result(run / "evaluations" / "reconstruction.json")
    generation = read_result(run / "evaluations" / "generation.json")
    made, drawn = reconstruction["metrics"], generation["metrics"]
    accuracy = None
    if "label_agreement" in drawn:
        accuracy = [r["val/accuracy"] for r in read_metrics(run / "classifier") if "val/accuracy" in r][-1]
    return {
        "psnr": made["psnr"],
        "codebook_usage": made["codebook_usage"],
        "codebook_size": reconstruction["protocol"]["codebook_size"],
        "num_tokens": reconstruction["protocol"]["num_tokens"],
        "frechet_lite0": {
            "real": made["frechet_lite0_real"],
            "reconstruction": made["frechet_lite0_reconstruction"],
            "generated": drawn["frechet_lite0_generated"],
            "noise": drawn["frechet_lite0_noise"],
        },
        "label_agreement": drawn.get("label_agreement"),
        "classifier_accuracy": accuracy,
        "distinct": drawn["distinct"],
        "memorized": drawn["memorized"],
        "guidance_scale": generation["protocol"]["sampler"]["guidance_scale"],
        "seconds": log.seconds(),
    }


def table(results: dict) -> str:
    """The results for people."""
    frechet = results["frechet_lite0"]
    rows = [
        ("PSNR, held-out images", f"{results['psnr']:.2f} dB"),
        ("codebook usage", f"{results['codebook_usage']:.1%} of {results['codebook_size']} codes"),
        ("frechet_lite0 to training images: real held-out", f"{frechet['real']:.1f}"),
        ("                                  reconstructed", f"{frechet['reconstruction']:.1f}"),
        ("                                  generated", f"{frechet['generated']:.1f}"),
        ("                                  uniform noise", f"{frechet['noise']:.1f}"),
        ("distinct code sequences", f"{results['distinct']:.1%}"),
        ("memorized code sequences", f"{results['memorized']:.1%}"),
        ("guidance scale", f"{results['guidance_scale']:g}"),
        ("seconds, all stages", f"{sum(results['seconds'].values()):.0f}"),
    ]
    if results["label_agreement"] is not None:
        agreement = (
            f"{results['label_agreement']:.1%} (classifier: {results['classifier_accuracy']:.1%} on real images)"
        )
        rows.insert(6, ("generated digits that show their class", agreement))
    return "\n".join(f"  {name:50s} {value}" for name, value in rows)


def main() -> None:
    args = parse_args()
    if not CONFIGS.is_dir():
        raise UserError("run this from the root of the repository: bash scripts/quickstart.sh")
    if args.system == "wetok" and args.data != "mnist5k":
        raise UserError(f"--system wetok has settings for --data mnist5k only, not for {args.data}")
    run = run_folder(args)
    logger.info("quick start on %s in %s (%s)", args.data, run, attribution_of(args.data))
    log = run_stages(run, stages_of(args, run))
    write_atomic(run / "results.json", json.dumps(collect(run, log), indent=1))
    report = Stage(
        "report", ["env", "NPROC_PER_NODE=1", "bash", "scripts/launch.sh", "-m", "evaluations.report", str(run)], True
    )
    log = run_stages(run, [report])
    results = collect(run, log)
    write_atomic(run / "results.json", json.dumps(results, indent=1))
    print(f"\n{table(results)}\n\n  {run / 'results.json'}\n  {run / 'report.html'}\n  {run / 'samples.png'}")


if __name__ == "__main__":
    run_entry(main)
