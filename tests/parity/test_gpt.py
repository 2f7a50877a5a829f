"""The GPTs of GigaTok (learned or 2D rotary positions) and LlamaGen give the released numbers, in every way they are
run.
"""

import goldens
import gpts
import pytest
import torch

from autoregressive.generate import generate
from autoregressive.published import GPT_NAMES
from autoregressive.sampling import greedy
from tokenizer.published.layout import export_state

ELSEWHERE = ("cond", "train_ids", "ids_", "train_logits_")  # inputs, and what the other tests compare
TINY_TENSORS = [(f, c, n) for f, c in gpts.tiny_cases() for n in goldens.names(f, c) if not n.startswith(ELSEWHERE)]
FULL_TENSORS = [(f, c, n) for f, c in gpts.full_cases() for n in goldens.names(f, c)]
SCALES = [(f, c, n) for f, c in gpts.tiny_cases() for n in goldens.meta(f, c).get("cfg_per_token", {})]
FULL_LOSSES = ("loss", "logits_std")
LABEL_DROPS = [
    (f, c, n) for f, c in gpts.tiny_cases() for n in ("train_drop_none", "train_drop_all") if n in goldens.meta(f, c)
]


@pytest.mark.parametrize(("folder", "case", "name"), TINY_TENSORS)
def test_teacher_forced_output_is_that_of_the_released_code(folder, case, name):
    """Logits of class and null class, fed at once or token by token, and the hidden states that the probe reads."""
    actual, expected = gpts.tiny_outputs(folder, case)[name], goldens.tensors(folder, case)[name]
    goldens.assert_close(actual, expected, f"{folder} {case} {name}")


@pytest.mark.parametrize(("folder", "case"), gpts.tiny_cases())
def test_validation_loss_and_parameter_count(folder, case):
    """The plain mean cross entropy over all positions, and as many parameters as released."""
    meta = goldens.meta(folder, case)
    goldens.assert_loss(gpts.tiny_outputs(folder, case)["eval_loss"], meta["eval_loss"], f"{folder} {case} eval_loss")
    assert goldens.parameter_count(gpts.tiny_gpt(folder, case)) == meta["n_params"]


@pytest.mark.parametrize(("folder", "case"), gpts.tiny_cases())
def test_export_gives_the_published_state_dict_back(folder, case):
    """Published weights that were imported leave again under the same names with equal values."""
    published = goldens.tensors(folder, case, "weights")
    goldens.assert_same_state(export_state(gpts.tiny_gpt(folder, case).state_dict(), GPT_NAMES), published)


@pytest.mark.parametrize(("folder", "case", "name"), LABEL_DROPS)
def test_one_training_pass_has_the_released_loss_and_gradients(folder, case, name):
    """Loss and the gradient norm of every parameter, with all labels kept or all replaced by the null class."""
    expected, io = goldens.meta(folder, case)[name], goldens.tensors(folder, case)
    gpt, labels, tokens = gpts.tiny_gpt(folder, case).train(), io["cond"], io["train_ids"]
    logits = gpt(labels, tokens, torch.full_like(labels, name == "train_drop_all", dtype=torch.bool))
    loss = gpts.cross_entropy(logits, tokens)
    loss.backward()
    assert list(logits.shape) == expected["logits_shape"]
    goldens.assert_loss(loss, expected["loss"], f"{folder} {case} {name} loss")
    goldens.assert_gradient_norms(gpt, GPT_NAMES, expected["grad_norms"], f"{folder} {case} {name}")
    strided = f"train_logits_{name.removeprefix('train_')}_strided"
    if strided in io:
        stride = goldens.meta(folder, case)["logit_stride"]
        goldens.assert_close(logits[:, ::stride], io[strided], f"{folder} {case} {strided}")


@pytest.mark.parametrize(("folder", "case", "name"), SCALES)
def test_guidance_scale_of_every_token(folder, case, name):
    """The first token is fully guided, whatever the schedule; the others follow it."""
    meta = goldens.meta(folder, case)
    scales = gpts.guidance_of(meta["gen_cases"][name]).scales(meta["model_args"]["block_size"])
    expected = torch.tensor(meta["cfg_per_token"][name])
    goldens.assert_close(torch.tensor(scales), expected, f"{folder} {case} {name}", 1e-6)


@pytest.mark.parametrize(("folder", "case", "name"), gpts.generation_cases("gen_cases"))
def test_greedy_tokens_are_those_of_the_released_code(folder, case, name):
    """Token by token with cached keys and values, also where the unconditional rows are dropped on the way."""
    run, io = goldens.meta(folder, case)["gen_cases"][name], goldens.tensors(folder, case)
    tokens = generate(gpts.tiny_gpt(folder, case), io["cond"], draw=greedy, guidance=gpts.guidance_of(run))
    goldens.assert_equal(tokens, io[f"ids_{name}"], f"{folder} {case} {name}")


@pytest.mark.parametrize(("folder", "case", "name"), gpts.generation_cases("sample_cases"))
def test_sampled_tokens_are_those_of_the_released_code(folder, case, name):
    """With the released random numbers, temperature, top-k and top-p, the same tokens are drawn."""
    meta, io = goldens.meta(folder, case), goldens.tensors(folder, case)
    run = meta["sample_cases"][name]
    tokens = generate(
        gpts.tiny_gpt(folder, case),
        io["cond"],
        draw=gpts.released_draw(meta["sampling_note"]),
        guidance=gpts.guidance_of(run),
        temperature=run["temperature"],
        top_k=run["top_k"],
        top_p=run["top_p"],
    )
    goldens.assert_equal(tokens, io[f"ids_{name}"], f"{folder} {case} {name}")


@pytest.mark.parametrize(("folder", "case", "name"), FULL_TENSORS)
def test_full_size_gpt_output_is_that_of_the_released_code(folder, case, name):
    """A published size: names, shapes, heads and widths as released."""
    actual, expected = gpts.full_outputs(folder, case)[name], goldens.tensors(folder, case)[name]
    goldens.assert_tensor(actual, expected, name, f"{folder} {case} {name}")


@pytest.mark.parametrize(("folder", "case"), gpts.full_cases())
def test_full_size_gpt_loss_and_parameter_count(folder, case):
    """Mean cross entropy, spread of the logits, the closest decision, and the published number of parameters."""
    outputs, meta = gpts.full_outputs(folder, case), goldens.meta(folder, case)
    for name in FULL_LOSSES:
        goldens.assert_loss(outputs[name], meta[name], f"{folder} {case} {name}")
    if "min_argmax_margin" in meta:
        expected = torch.tensor(meta["min_argmax_margin"])
        goldens.assert_close(outputs["min_argmax_margin"], expected, f"{folder} {case} min_argmax_margin")
    assert outputs["n_params"].item() == meta["n_params"]
