"""GigaTok GPTs from golden cases, and their outputs in the layout of the goldens."""

import functools
import re

import goldens
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.generate import Draw, Guidance
from autoregressive.gpt import GPT, SIZES, GPTConfig
from autoregressive.released import GPT_NAMES
from engine.checkpoint import load_strict
from tokenizer.released import import_state

TINY, FULL = "gigatok/tiny", "gigatok/real_seeded"
SCHEDULES = ("constant", "step", "linear")  # those built here
RELEASED_UNGUIDED = 1.0001  # the released scale where a schedule does not guide; linear also adds its 0.0001
FULL_NAME = re.compile(r"GPT-(\w+)_([12])d")
POSITIONS = {"1": "learned", "2": "rope2d"}


def tiny_cases() -> list[str]:
    """The GPTs of the tiny set: learned positions (gpt1d) and 2D rotary ones (gpt2d)."""
    return goldens.cases(TINY, "gpt1d") + goldens.cases(TINY, "gpt2d")


def full_cases() -> list[str]:
    """The GPTs of the full-size set, of the sizes that exist here."""
    named = {case: FULL_NAME.fullmatch(case) for case in goldens.cases(FULL, "GPT-")}
    return [case for case, match in named.items() if match and match[1].lower() in SIZES]


def generation_cases(kind: str) -> list[tuple[str, str]]:
    """(case, name) of all greedy (`gen_cases`) or sampled (`sample_cases`) runs with a schedule that exists here."""
    return [
        (case, name)
        for case in tiny_cases()
        for name, options in goldens.meta(TINY, case)[kind].items()
        if options.get("cfg_schedule", "constant") in SCHEDULES
    ]


def tiny_gpt(case: str) -> GPT:
    """A tiny case with its weights, in evaluation mode."""
    args = goldens.meta(TINY, case)["model_args"]
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
        positions=POSITIONS[re.search(r"([12])d", case)[1]],
    )
    gpt = GPT(config)
    load_strict(gpt, import_state(goldens.tensors(TINY, case, "weights"), gpt.state_dict(), GPT_NAMES), case)
    return gpt.eval()


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
    return lambda p, position: torch.multinomial(p, 1).squeeze(1)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


@functools.cache
@torch.no_grad()
def tiny_outputs(case: str) -> dict[str, Tensor]:
    """Teacher-forced outputs of a tiny case under the names of its io file, and `eval_loss`."""
    meta, io, gpt = goldens.meta(TINY, case), goldens.tensors(TINY, case), tiny_gpt(case)
    stride, labels, tokens = meta["logit_stride"], io["cond"], io["train_ids"]
    null, layers = torch.full_like(labels, gpt.null_class), meta["model_args"]["n_layer"]
    logits = gpt(labels, tokens)
    outputs = {
        "eval_loss": cross_entropy(logits, tokens),
        "inner_feat_half_depth": gpt.features(labels, tokens, layers // 2)[:, ::stride],
    }
    for name in io:
        if match := re.fullmatch(r"eval_logits_cond_null_on_(\w+)", name):
            both = io[f"ids_{match[1]}"].repeat(2, 1)
            outputs[name] = gpt(torch.cat([labels, null]), both)[:, ::stride]
        if match := re.fullmatch(r"inner_feat_layer(\d+)_nullclass_mean_over_tokens", name):
            outputs[name] = gpt.features(null, tokens, int(match[1])).mean(dim=1)
    return outputs


@functools.cache
@torch.inference_mode()
def full_outputs(case: str) -> dict[str, Tensor]:
    """Outputs of a full-size case under the names of its io file and its json; the model itself is not kept."""
    meta, rule = (
        goldens.meta(FULL, case),
        r"RandomState\(seed\+(\d+)\)\.randint\((\d+),\s*(\d+),\s*\((\d+),\s*(\d+)\)\)",
    )
    offset, low, high, batch, length = map(int, re.search(rule, meta["ids_rule"]).groups())
    size, layout = FULL_NAME.fullmatch(case).groups()
    config = GPTConfig(size=size.lower(), vocab_size=high, num_tokens=length, positions=POSITIONS[layout])
    with torch.device("meta"):
        gpt = GPT(config)
    gpt.to_empty(device="cpu").eval()
    goldens.fill_seeded(gpt, GPT_NAMES, "gigatok", meta["seed"])
    tokens = torch.from_numpy(np.random.RandomState(meta["seed"] + offset).randint(low, high, (batch, length)))
    labels = torch.tensor(meta["labels"])
    logits = gpt(labels, tokens)
    best = logits.topk(2, dim=-1)
    positions, vocabulary = goldens.strides(meta["stride"])
    return {
        "argmax": best.indices[..., 0],
        "argmax_margin": best.values[..., 0] - best.values[..., 1],
        "logits_strided": logits[:, ::positions, ::vocabulary].clone(),
        "inner_feat_half_depth_mean": gpt.features(labels, tokens, config.dims()[1] // 2).mean(dim=1),
        "loss": cross_entropy(logits, tokens),
        "logits_std": logits.std(),
        "n_params": torch.tensor(goldens.parameter_count(gpt)),
    }
