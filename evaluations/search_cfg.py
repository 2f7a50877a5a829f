"""Looks for the guidance scale with the smallest distance, by the papers' zero-order search or over a list of scales.

    bash scripts/sample_c2i_search_cfg.sh --search --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 \\
        --gt-npz-path VIRTUAL_imagenet256_labeled.npz --cfg-schedule step --output results/search.json
    python -m evaluations.search_cfg --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --num-fid-samples 200 --scales 1,1.5,2,3 --output runs/quickstart/evaluations/search.json

From a start the scale moves by --step to the better neighbour until both are worse; --coarse-step searches with a
wider step first. Without --cfg-scale the start is the published one of the size and schedule. Every scale that was
measured is kept in OUTPUT.partial.json with all settings, so that a killed search goes on; OUTPUT is written at the end
and holds the best scale, its metrics, and the curve. A finished search is not done again: the same command leaves it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoregressive.cli import gpt_from, settings_of
from autoregressive.models.base import Generator
from engine.checkpoint.manifest import write_atomic
from engine.cli import entry_parser, run_entry
from engine.messages import UserError, logger
from engine.world import World
from evaluations.cli import extractor_of, output_of, reference_from, run_evaluation
from evaluations.generated import Sampler, add_sampled_flags, labels_of, measured
from evaluations.results import changed_facts, read_result, write_result
from tokenizer.cli import images_from, tokenizer_from

STARTS = {  # schedule -> size of the GPT -> scale at which the released search starts
    "step": {"b": 2.5, "l": 1.75, None: 1.25},
    "constant": {"b": 2.0, None: 1.75},
    "linear": {None: 2.0},
}


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_sampled_flags(parser)
    parser.add_argument("--search", action="store_true", help="the mode of this entry; kept for published commands")
    parser.add_argument("--step", type=float, default=0.25, help="distance of neighbouring scales (default 0.25)")
    parser.add_argument("--coarse-step", type=float, help="search with this step first, then from there with --step")
    parser.add_argument("--max-scale", type=float, default=math.inf)
    parser.add_argument("--scales", help='measure exactly these instead, such as "1,1.5,2"')
    parser.set_defaults(cfg_scale=None)  # None: the published start
    return parser.parse_args()


def zero_order_search(
    measure: Callable[[float], float], start: float, step: float = 0.25, high: float = math.inf
) -> float:
    """The scale from 1 to `high` where `measure` is smallest among its neighbours at distance `step`, walking from
    `start`: GigaTok's search, which looks up before it looks down.
    """
    tried: dict[float, float] = {}
    scale: float | None = start
    while scale is not None:
        tried[scale] = measure(scale)
        best = min(tried, key=tried.__getitem__)
        neighbours = [round(best + step, 6), round(best - step, 6)]
        scale = next((s for s in neighbours if 1 <= s <= high and s not in tried), None)
    return best


def start_of(gpt: Generator, schedule: str, tokenizer_path: str = "") -> float:
    """Where the released search starts; it knows the XXL tokenizer by its name."""
    if (schedule, gpt.published_size) == ("constant", "b") and "XXL" in tokenizer_path:
        return 1.75
    starts = STARTS.get(schedule, {None: 2.0})
    return starts.get(gpt.published_size, starts[None])


class Curve:
    """The scales measured so far, on disk with the settings that they belong to."""

    def __init__(self, path: Path, settings: dict[str, Any], world: World) -> None:
        self.path, self.settings, self.world, self.rows = path, json.loads(json.dumps(settings)), world, {}
        self.missing: dict[str, str] = {}
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path} is damaged ({error}); remove it") from error
            self.missing = stored.get("unavailable", {})
            changed = changed_facts(stored["settings"], self.settings)
            if changed:
                raise UserError(
                    f"{path} holds a search with other settings ({'; '.join(changed)[:500]}); use another --output"
                )
            self.rows = {row["guidance_scale"]: row["metrics"] for row in stored["rows"]}

    def add(self, scale: float, metrics: dict[str, float], missing: dict[str, str]) -> None:
        self.rows[scale] = metrics
        self.missing |= missing
        if self.world.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(
                self.path,
                json.dumps({"settings": self.settings, "rows": self.listed(), "unavailable": self.missing}, indent=1),
            )

    def listed(self) -> list[dict[str, Any]]:
        return [{"guidance_scale": scale, "metrics": self.rows[scale]} for scale in sorted(self.rows)]


def search(args: argparse.Namespace, world: World) -> None:
    output = output_of(args, "search")
    if not 0 < args.step < math.inf or not 0 < (args.coarse_step or 1) < math.inf:
        raise UserError("--step and --coarse-step must be above 0")
    extractor = extractor_of(args, world)
    if extractor is None:
        raise UserError("a search needs a distance: --extractor none cannot be used")
    tokenizer = tokenizer_from(args, world.device)
    gpt = gpt_from(args, tokenizer, world.device)
    start = args.cfg_scale
    if start is None:
        start = start_of(gpt, args.cfg_schedule, f"{args.vq_ckpt} {args.tok_config}")
    if isinstance(start, tuple):
        raise UserError("a search moves one scale, the same for all indices of a token; give one --cfg-scale")
    if not 1 <= start <= args.max_scale:
        raise UserError(
            f"the search starts at scale {start:g}, outside 1..--max-scale {args.max_scale:g}; see --cfg-scale"
        )
    args.cfg_scale = start
    settings, size = settings_of(args), args.image_size_eval or tokenizer.image_size
    data = images_from(args, tokenizer)
    keep = extractor.metric == "fid"
    reference = reference_from(args, "generation", data, size, extractor, output.parent, world, keep)
    labels = labels_of(args.labels, args.num_fid_samples, gpt.num_classes, settings.seed)
    sampler = Sampler(gpt, tokenizer, settings, labels, args.labels, args.per_proc_batch_size, size, world)
    facts = sampler.protocol(reference)
    for section, key in (("sampler", "guidance_scale"), ("tokenizer", "path"), ("gpt", "path")):
        facts[section].pop(key, None)
    facts["fp16_emulation"] = args.fp16_emulation
    curve = Curve(output.with_suffix(".partial.json"), facts, world)
    plan = {name: getattr(args, name) for name in ("cfg_scale", "step", "coarse_step", "scales")}
    plan = {**curve.settings, "search": plan | {"max_scale": f"{args.max_scale:g}"}}
    if output.is_file():  # a pipeline may be killed before it notes that this was its end
        changed = changed_facts(read_result(output).get("settings", {}), plan)
        if changed:
            raise UserError(
                f"{output} holds a finished search with other settings ({'; '.join(changed)[:500]}); "
                "give another --output, or remove it"
            )
        if world.is_main:
            curve.path.unlink(missing_ok=True)
            logger.info("%s holds this search, finished before", output)
        return
    world.barrier()

    def measure(scale: float) -> float:
        if scale not in curve.rows:
            sampler.settings = replace(settings, guidance=replace(settings.guidance, scale=scale))
            curve.add(scale, *measured(sampler, extractor, reference, args.fp16_emulation))
        value = next(iter(curve.rows[scale].values()))
        logger.info("guidance scale %g: %s", scale, "  ".join(f"{k} {v:.4g}" for k, v in curve.rows[scale].items()))
        return value

    if args.scales is not None:
        best = min(scales_of(args.scales), key=measure)
    else:
        if args.coarse_step is not None:
            start = zero_order_search(measure, start, args.coarse_step, args.max_scale)
        best = zero_order_search(measure, start, args.step, args.max_scale)
    sampler.settings = replace(settings, guidance=replace(settings.guidance, scale=best))
    if world.is_main:
        metrics = {"best_guidance_scale": best, **curve.rows[best]}
        more = {"curve": curve.listed(), "unavailable": curve.missing, "settings": plan}
        write_result(output, metrics, sampler.protocol(reference), **more)
        curve.path.unlink()


def scales_of(text: str) -> list[float]:
    """`"1,1.5"` -> [1.0, 1.5]; anything else is an error that says what is accepted."""
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--scales {text!r} must be numbers separated by commas, such as 1,1.5,2") from None
    bad = [scale for scale in scales if not 1 <= scale < math.inf]
    if bad:
        raise UserError(f"--scales has {bad[0]:g}; a guidance scale is 1 (off) or more")
    return scales


def main() -> None:
    run_evaluation(parse_args(), search)


if __name__ == "__main__":
    run_entry(main)
