"""GPTs of GigaTok and LlamaGen from golden cases, and their outputs in the layout of the goldens."""

import functools
import re
from pathlib import Path

import goldens
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.guidance import Guidance
from autoregressive.loading import GeneratorSections
from autoregressive.models.gpt import GPT, SIZES, GPTConfig
from autoregressive.published import GPT_NAMES
from autoregressive.sampling import Draw
from engine.checkpoint.weights import load_strict
from engine.config import load_sections
from tokenizer.published.layout import import_state

TINY, FULL = ("gigatok/tiny", "llamagen/tiny"), ("gigatok/real_seeded", "llamagen/real_seeded")
CONFIGS = Path(__file__).parents[2] / "configs"
SCHEDULES = ("constant", "step", "linear")  # those built here
RELEASED_UNGUIDED = 1.0001  # the released scale where a schedule does not guide; linear also adds its 0.0001
FULL_NAME = re.compile(r"GPT-(\w+)_(1d|2d|\d+)")  # GigaTok's: type of positions; LlamaGen's: image size


def tiny_cases() -> list[tuple[str, str]]:
    """(folder, case) of the tiny GPTs."""
    return [(folder, case) for folder in TINY for case in goldens.cases(folder, "gpt")]


def full_cases() -> list[tuple[str, str]]:
    """(folder, case) of the full-size GPTs, of the sizes that exist here."""
    named = {(folder, case): FULL_NAME.fullmatch(case) for folder in FULL for case in goldens.cases(folder, "GPT-")}
    return [case for case, match in named.items() if match and match[1].lower() in SIZES]


def generation_cases(kind: str) -> list[tuple[str, str, str]]:
    """(folder, case, name) of all greedy (`gen_cases`) or sampled (`sample_cases`) runs with a schedule built here."""
    return [
        (folder, case, name)
        for folder, case in tiny_cases()
        for name, options in goldens.meta(folder, case)[kind].items()
        if options.get("cfg_schedule", "constant") in SCHEDULES
    ]


def tiny_gpt(folder: str, case: str) -> GPT:
    """A tiny case with its weights, in evaluation mode."""
    args, weights = goldens.meta(folder, case)["model_args"], goldens.tensors(folder, case, "weights")
    assert args["cls_token_num"] == 1 and args["model_type"] == "c2i" and not args["drop_path_rate"]
    assert args["resid_dropout_p"] == args["ffn_dropout_p"] and not args["attn_dropout_p"]
    config = GPTConfig(
        width=args["dim"],
        layers=args["n_layer"],
        heads=args["n_head"],
        vocab_size=args["vocab_size"],
        num_tokens=args["block_size"],
        num_classes=args["num_classes"],
        token_dropout=args["token_dropout_p"],
        residual_dropout=args["resid_dropout_p"],
        positions="learned" if "positional_embedding" in weights else "rope2d",
    )
    gpt = GPT(config)
    load_strict(gpt, import_state(weights, gpt.state_dict(), GPT_NAMES), case)
    return gpt.to(goldens.DEVICE).eval()


def full_config(case: str, vocab_size: int, num_tokens: int) -> GPTConfig:
    """The shipped config of a full-size case where there is one, else the size table."""
    size, kind = FULL_NAME.fullmatch(case).groups()
    path = CONFIGS / (f"gpt/GPT_{size}256.yaml" if kind == "1d" else f"llamagen/GPT_{size}_{kind}.yaml")
    if path.exists():
        config = load_sections(GeneratorSections, path).model.gpt
        assert (config.vocab_size, config.num_tokens) == (vocab_size, num_tokens)
        return config
    positions = "learned" if kind == "1d" else "rope2d"
    return GPTConfig(size=size.lower(), vocab_size=vocab_size, num_tokens=num_tokens, positions=positions)


def released_guidance(
    scale: float, schedule: str = "constant", options: dict | None = None, last: int = -1
) -> Guidance:
    """Guidance as the released code runs it."""
    names = {"window_start": "start"}
    renamed = {names[k]: v for k, v in (options or {}).items()}
    return Guidance(scale=scale, schedule=schedule, unguided_scale=RELEASED_UNGUIDED, last_guided=last, **renamed)


def guidance_of(run: dict) -> Guidance:
    """The guidance of an entry of `gen_cases` or `sample_cases`."""
    return released_guidance(
        run["cfg_scale"],
        run.get("cfg_schedule", "constant"),
        run.get("cfg_schedule_kwargs"),
        run.get("cfg_interval", -1),
    )


def released_draw(note: str) -> Draw:
    """One batched multinomial a token from the global generator, with the seed that `note` names."""
    torch.manual_seed(int(re.search(r"manual_seed\((\d+)\)", note)[1]))
    return lambda p, position: torch.multinomial(p.cpu(), 1).squeeze(1).to(p.device)  # random numbers of the CPU


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def cached_logits(gpt: GPT, labels: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Logits (B,count,V) of the first tokens, fed one by one through cached keys and values."""
    cache, inputs = gpt.new_cache(len(labels)), [labels, *tokens.unbind(1)]
    head_cache = gpt.head.new_cache(len(labels), gpt.dtype, gpt.device)
    hidden = (gpt.decode_hidden(inputs[position], position, cache) for position in range(count))
    return torch.stack([gpt.head.next_logits(x, None, 0, head_cache) for x in hidden], dim=1)


@functools.cache
@torch.no_grad()
def tiny_outputs(folder: str, case: str) -> dict[str, Tensor]:
    """Outputs of a tiny case in evaluation mode under the names of its io file, and `eval_loss`."""
    meta, io, gpt = goldens.meta(folder, case), goldens.tensors(folder, case), tiny_gpt(folder, case)
    stride, labels, tokens = meta["logit_stride"], io["cond"], io["train_ids"]
    null, layers = torch.full_like(labels, gpt.null_class), meta["model_args"]["n_layer"]
    both, half = torch.cat([labels, null]), gpt.features(labels, tokens, layers // 2)[:, ::stride]
    outputs = {
        "eval_loss": cross_entropy(gpt(labels, tokens), tokens),
        "inner_feat_half_depth": half,
        "hidden_after_half_depth_strided": half,
    }
    for name in io:
        if match := re.fullmatch(r"eval_logits_cond_null_on_(.+)", name):
            run = io[f"ids_{match[1]}"].repeat(2, 1)
            outputs[name] = gpt(both, run)[:, ::stride]
            outputs |= {
                n: cached_logits(gpt, both, run, io[n].shape[1]) for n in io if n.startswith("cached_logits_first")
            }
        if match := re.fullmatch(r"inner_feat_layer(\d+)_nullclass_mean_over_tokens", name):
            outputs[name] = gpt.features(null, tokens, int(match[1])).mean(dim=1)
    return outputs


@functools.cache
@torch.inference_mode()
def full_outputs(folder: str, case: str) -> dict[str, Tensor]:
    """Outputs of a full-size case under the names of its io file and its json; the model itself is not kept."""
    meta = goldens.meta(folder, case)
    rule = r"RandomState\(seed\+(\d+)\)\.randint\((\d+),\s*(\d+),\s*\((\d+),\s*(\d+)\)\)"
    offset, low, high, batch, length = map(int, re.search(rule, meta["ids_rule"]).groups())
    config = full_config(case, high, length)
    with torch.device("meta"):
        gpt = GPT(config)
    gpt.to_empty(device=goldens.DEVICE).eval()
    goldens.fill_seeded(gpt, GPT_NAMES, folder.split("/")[0], meta["seed"])
    rng = np.random.RandomState(meta["seed"] + offset)
    tokens = torch.from_numpy(rng.randint(low, high, (batch, length))).to(goldens.DEVICE)
    labels = torch.tensor(meta["labels"], device=goldens.DEVICE)
    logits = gpt(labels, tokens)
    best = logits.topk(2, dim=-1)
    positions, vocabulary = goldens.strides(meta["stride"])
    margins = best.values[..., 0] - best.values[..., 1]
    return {
        "argmax": best.indices[..., 0],
        "argmax_margin": margins,
        "min_argmax_margin": margins.min(),
        "logits_strided": logits[:, ::positions, ::vocabulary].clone(),
        "inner_feat_half_depth_mean": gpt.features(labels, tokens, config.dims()[1] // 2).mean(dim=1),
        "loss": cross_entropy(logits, tokens),
        "logits_std": logits.std(),
        "n_params": torch.tensor(goldens.parameter_count(gpt)),
    }
