"""Makes docs/recipes.md: `python tests/recipes_table.py`. Published numbers are data here, all else is from configs."""
# ruff: noqa: E402

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the call as a script

from recipes import CONFIGS, kind_of, load, name_of

from engine.config import flatten
from tokenizer import train as tokenizer_train
from tokenizer.quantizers.vq import VQConfig
from tokenizer.training.checks import network_on_meta, terms_of

PAGE = ROOT / "docs" / "recipes.md"
FOLDERS = {  # folder under configs/ -> heading; one that is not there is left out
    "vq": "GigaTok: tokenizers and their ablations",
    "gpt": "GigaTok: GPTs",
    "llamagen": "LlamaGen: tokenizers and GPTs",
    "wetok": "WeTok: tokenizers and their ablations",
}
COLUMNS = ["config", "what it is", "loss terms", "teacher", "options that differ", "optimizer", "batch", "steps"]
COLUMNS += ["epochs", "rFID", "LPIPS", "gFID", "accuracy, %", "source of the numbers"]
TABLE_5 = "GigaTok, table 5; AR probing; the base there: 1.01, 0.223, 6.10, 61.9"
TABLE_6 = "GigaTok, table 6; AR probing; the base there: 0.85, 0.212, 5.55, 64.4"
TABLE_7 = "GigaTok, table 7; AR probing; the base there: 1.22, 0.228, 6.39, 58.6"
# config -> the last five columns; every number stands in the header of the YAML file too
EXPECTED = {
    "wetok/WeTok_24": "0.12 | | | | WeTok, table 4, ImageNet 256 px; PSNR 32.06",
    "wetok/WeTok_48": "0.20 | | | | WeTok, table 4, ImageNet 256 px; PSNR 29.63",
    "wetok/WeTok_192": "0.60 | | | | WeTok, table 4, ImageNet 256 px; PSNR 24.77",
    "wetok/WeTok_768": "3.49 | | | | WeTok, table 4, ImageNet 256 px; PSNR 20.77",
    "gpt/GPT_wetok_XL": "| | WeTok, factor 16 2.31 | | WeTok, table 5; Inception Score 276.55",
    "wetok/WeTok_f8_imagenet": "0.19 | | | | WeTok, table 3; PSNR 29.69",
    "wetok/WeTok_f16_imagenet": "0.61 | | | | WeTok, table 3; PSNR 24.50",
    "wetok/ablation/generative_decoder": "5.37; stage 2 3.90 | | | | WeTok, table 2; PSNR 20.53; stage 2 20.72",
    "vq/VQ_SS256": "1.01 | 0.2226 | | | GigaTok README, S-S",
    "vq/VQ_SB256": "0.89 | 0.2121 | | | GigaTok README, S-B",
    "vq/VQ_BL256": "0.81 | 0.2059 | | | GigaTok README, B-L",
    "vq/VQ_BL256_dino_disc": "0.51 | 0.2056 | | | GigaTok README, B-L (dino disc)",
    "vq/VQ_XLXXL256": "0.79 | 0.1947 | | | GigaTok README, XL-XXL",
    "vq/VQ_SL256": "0.83 | 0.206 | 5.19 | 60.6 | GigaTok, table 2; AR probing",
    "vq/VQ_BS256": "0.98 | 0.221 | 6.56 | 64.5 | GigaTok, table 2; AR probing",
    "vq/ablation/align_layer_2": f"1.06 | 0.224 | 6.26 | 63.4 | {TABLE_5}",
    "vq/ablation/align_layer_4": f"1.07 | 0.223 | 6.07 | 58.6 | {TABLE_5}",
    "vq/ablation/teacher_clip_b": f"0.91 | 0.210 | 6.35 | 61.4 | {TABLE_6}",
    "vq/ablation/teacher_siglip": f"0.92 | 0.210 | 6.20 | 56.7 | {TABLE_6}",
    "vq/ablation/semantic_weight_0.25": f"1.28 | 0.226 | 6.27 | 57.0 | {TABLE_7}",
    "vq/ablation/semantic_weight_0.75": f"1.27 | 0.236 | 6.29 | 58.6 | {TABLE_7}",
    "vq/ablation/semantic_weight_1.0": f"1.38 | 0.239 | 6.27 | 62.5 | {TABLE_7}",
    "gpt/GPT_B256": "| | S-S 4.05; S-B 3.83; B-L 3.26; B-L (dino disc) 3.33; XL-XXL 3.15 | "
    "62.6; 62.9; 67.6; 67.7; 72.0 | GigaTok README, by tokenizer",
    "gpt/GPT_XL256": "| | B-L 2.13 | 70.6 | GigaTok README, by tokenizer",
    "gpt/GPT_XXL256": "| | B-L 2.03; XL-XXL 1.98 | 69.4; 74.0 | GigaTok README, by tokenizer; without guidance",
    "gpt/ar_probe": "| | S-S 6.10; S-B 5.65; S-L 5.19; B-S 6.56; B-L 4.82 | 61.9; 59.8; 60.6; 64.5; 66.9 | "
    "GigaTok, table 2 (S-S: table 5), by tokenizer",
    "llamagen/VQ_16": "2.19; at 384 px 0.94; at 512 px 0.70 | | | | LlamaGen README; larger images measured at 256 px; "
    "PSNR 20.79, SSIM 0.675 (data range 2) from GigaTok, supplementary table 3",
    "llamagen/VQ_8": "0.59 | | | | LlamaGen README",
    "llamagen/GPT_B_256": "| | 5.46 | | LlamaGen README; guidance 2.0 by its issue 48",
    "llamagen/GPT_B_384": "| | 6.09 | | LlamaGen README; guidance 2.0; measured at 256 px",
    "llamagen/GPT_L_256": "| | 3.80 | | LlamaGen README; guidance not published",
    "llamagen/GPT_L_384": "| | 3.07 | | LlamaGen README; guidance 2.0; measured at 256 px",
    "llamagen/GPT_XL_256": "| | 3.39 | | WeTok, table 5; no checkpoint was released",
    "llamagen/GPT_XL_384": "| | 2.62 | | LlamaGen README; guidance 1.75; measured at 256 px",
    "llamagen/GPT_XXL_256": "| | 3.09 | | GigaTok, table 3; no checkpoint was released",
    "llamagen/GPT_XXL_384": "| | 2.34 | | LlamaGen README; guidance 1.75; measured at 256 px",
    "llamagen/GPT_3B_384": "| | 2.18 | | LlamaGen README; guidance 1.65; measured at 256 px",
}


def listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())


INTRODUCTION = f"""\
# Recipes

Made by `python tests/recipes_table.py` from the YAML files under `configs/`; a test keeps both equal. Do not edit.

- Loss terms: name, weight, and the first and last update in which they count (updates count from 1).
- Teacher: the network of the semantic regularization, and the decoder block that it is compared with.
- Options that differ from the defaults: of the quantizer, for a GPT of its model. Defaults of the quantizer `vq`:
  {listed(flatten(VQConfig()))}.
- Epochs are counted as in GigaTok's paper: 5,000 steps at batch 256 (1,280,000 images).
- A number is the published one of the full recipe; none was measured with this code. gFID and accuracy of a tokenizer
  are those of AR probing (a GPT-B of 50 epochs). The README of GigaTok counts where its supplementary table 3 differs.
"""


def header_of(path: Path) -> str:
    """The comment on top of a YAML file, in one line."""
    return " ".join(re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0].replace("#", "").split())


def terms_cell(config: Any) -> str:
    """Loss terms by the updates in which they count."""
    kinds = {"perceptual": f" ({config.loss.perceptual})", "adversarial": f" ({config.loss.discriminator.name})"}
    windows: dict[str, list[str]] = {}
    for term in terms_of(config, network_on_meta(config)):
        last = term.last + 1  # updates are counted from 1 in tables
        window = f"{term.first + 1:,} to " + ("end" if last >= config.loop.steps else f"{last:,.0f}")
        windows.setdefault(window, []).append(f"{term.name} {term.weight:g}{kinds.get(term.name, '')}")
    return "; ".join(f"{window}: {', '.join(terms)}" for window, terms in windows.items())


def differing(section: Any, skip: tuple[str, ...] = ()) -> str:
    """Every key that is not at its default."""
    default = flatten(type(section)())
    return listed({k: v for k, v in flatten(section).items() if v != default[k] and k not in skip}) or "none"


def optimizer_cell(config: Any, optim: Any) -> str:
    rate = f"{optim.schedule} {optim.lr:g}" + ("" if optim.schedule == "constant" else f" to {optim.end_lr:g}")
    rate += f" in the last {optim.decay_fraction:.0%}" if optim.schedule == "wsd" else ""
    decay = f"decay {optim.weight_decay:g}" + (" of matrices" if optim.decay_params == "matrices" else "")
    rest = f"clip {optim.max_grad_norm:g}" + (f", averaged by {config.ema_decay:g}" if config.ema_decay else "")
    return (
        f"AdamW, betas {optim.betas[0]} and {optim.betas[1]}, {rate}, warm-up {optim.warmup_steps:,}, {decay}, {rest}"
    )


def cells_of(path: Path) -> list[str]:
    """The cells of a recipe, in the order of COLUMNS."""
    config, _ = load(path)
    trainings = tokenizer_train.phases_of(config) if getattr(config, "phases", None) else [config]
    if kind_of(path) == "gpt":
        terms, teacher, options = ["1 to end: cross entropy 1"], "", differing(config.model, skip=("size",))
    else:
        terms, options = [terms_cell(one) for one in trainings], differing(config.model.quantizer)
        block, name = config.model.hybrid.semantic_layer, config.semantic.teacher
        teacher = f"{name}, block {block}" if name else "none"
    link, what = f"[{path.stem}](../configs/{name_of(path)})", re.split(r"\.\s", header_of(path))[0]
    terms_text, optimizers = (
        "<br>".join(dict.fromkeys(c)) for c in (terms, [optimizer_cell(one, one.optim) for one in trainings])
    )
    batch, steps = config.data.global_batch_size, [one.loop.steps for one in trainings]
    run = [f"{batch:,}", " + ".join(f"{n:,}" for n in steps), f"{sum(steps) * batch / (5000 * 256):.4g}"]
    expected = EXPECTED.get(name_of(path).removesuffix(".yaml"), "| | | | no number is published").split("|")
    return [link, what, terms_text, teacher, options, optimizers, *run, *(cell.strip() for cell in expected)]


def page() -> str:
    """The text of docs/recipes.md. IMGNET_ROOT must be set."""
    parts = [INTRODUCTION]
    for folder, heading in FOLDERS.items():
        rows = [cells_of(path) for path in sorted((CONFIGS / folder).rglob("*.yaml"))]
        table = [COLUMNS, ["---"] * len(COLUMNS), *rows]
        parts += [f"## {heading}\n", "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"] if rows else []
    return "\n".join(parts)


if __name__ == "__main__":
    os.environ.setdefault("IMGNET_ROOT", "imagenet")
    PAGE.write_text(page(), encoding="utf-8")
