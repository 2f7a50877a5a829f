"""GigaTok's GPTs (learned or 2D rotary positions) give the released numbers, in every way they are run."""

import gigatok_gpts as gpts
import goldens
import pytest
import torch
from gigatok_gpts import FULL, TINY

from autoregressive.generate import generate, greedy
from autoregressive.released import GPT_NAMES
from tokenizer.released import export_state

FORCED = ("eval_logits", "inner_feat")
TINY_TENSORS = [(c, n) for c in gpts.tiny_cases() for n in goldens.names(TINY, c) if n.startswith(FORCED)]
FULL_TENSORS = [(c, n) for c in gpts.full_cases() for n in goldens.names(FULL, c)]
SCALES = [(c, n) for c in gpts.tiny_cases() for n in goldens.meta(TINY, c).get("cfg_per_token", {})]
FULL_LOSSES = ("loss", "logits_std")
LABEL_DROPS = [
    (c, n) for c in gpts.tiny_cases() for n in ("train_drop_none", "train_drop_all") if n in goldens.meta(TINY, c)
]


@pytest.mark.parametrize(("case", "name"), TINY_TENSORS)
def test_teacher_forced_output_is_that_of_the_released_code(case, name):
    """Logits of class and null class, and the hidden states that the linear probe reads."""
    goldens.assert_close(gpts.tiny_outputs(case)[name], goldens.tensors(TINY, case)[name], f"{case} {name}")


@pytest.mark.parametrize("case", gpts.tiny_cases())
def test_validation_loss_and_parameter_count(case):
    """The plain mean cross entropy over all positions, and as many parameters as released."""
    meta = goldens.meta(TINY, case)
    goldens.assert_loss(gpts.tiny_outputs(case)["eval_loss"], meta["eval_loss"], f"{case} eval_loss")
    assert goldens.parameter_count(gpts.tiny_gpt(case)) == meta["n_params"]


@pytest.mark.parametrize("case", gpts.tiny_cases())
def test_export_gives_the_published_state_dict_back(case):
    """Published weights that were imported leave again under the same names with equal values."""
    published = goldens.tensors(TINY, case, "weights")
    exported = export_state(gpts.tiny_gpt(case).state_dict(), GPT_NAMES)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in published.items())


@pytest.mark.parametrize(("case", "name"), LABEL_DROPS)
def test_one_training_pass_has_the_released_loss_and_gradients(case, name):
    """Loss and the gradient norm of every parameter, with all labels kept or all replaced by the null class."""
    expected, io = goldens.meta(TINY, case)[name], goldens.tensors(TINY, case)
    gpt, labels, tokens = gpts.tiny_gpt(case).train(), io["cond"], io["train_ids"]
    logits = gpt(labels, tokens, torch.full_like(labels, name == "train_drop_all", dtype=torch.bool))
    loss = gpts.cross_entropy(logits, tokens)
    loss.backward()
    assert list(logits.shape) == expected["logits_shape"]
    goldens.assert_loss(loss, expected["loss"], f"{case} {name} loss")
    goldens.assert_gradient_norms(gpt, GPT_NAMES, expected["grad_norms"], f"{case} {name}")
    strided = f"train_logits_{name.removeprefix('train_')}_strided"
    if strided in io:
        stride = goldens.meta(TINY, case)["logit_stride"]
        goldens.assert_close(logits[:, ::stride], io[strided], f"{case} {strided}")


@pytest.mark.parametrize(("case", "name"), SCALES)
def test_guidance_scale_of_every_token(case, name):
    """The first token is fully guided, whatever the schedule; the others follow it."""
    meta = goldens.meta(TINY, case)
    scales = gpts.guidance_of(meta["gen_cases"][name]).scales(meta["model_args"]["block_size"])
    goldens.assert_close(torch.tensor(scales), torch.tensor(meta["cfg_per_token"][name]), f"{case} {name}", 1e-6)


@pytest.mark.parametrize(("case", "name"), gpts.generation_cases("gen_cases"))
def test_greedy_tokens_are_those_of_the_released_code(case, name):
    """Token by token with cached keys and values, also where the unconditional rows are dropped on the way."""
    meta, io = goldens.meta(TINY, case), goldens.tensors(TINY, case)
    tokens = generate(gpts.tiny_gpt(case), io["cond"], draw=greedy, guidance=gpts.guidance_of(meta["gen_cases"][name]))
    goldens.assert_equal(tokens, io[f"ids_{name}"], f"{case} {name}")


@pytest.mark.parametrize(("case", "name"), gpts.generation_cases("sample_cases"))
def test_sampled_tokens_are_those_of_the_released_code(case, name):
    """With the released random numbers, temperature, top-k and top-p, the same tokens are drawn."""
    meta, io = goldens.meta(TINY, case), goldens.tensors(TINY, case)
    run = meta["sample_cases"][name]
    tokens = generate(
        gpts.tiny_gpt(case),
        io["cond"],
        draw=gpts.released_draw(meta["sampling_note"]),
        guidance=gpts.guidance_of(run),
        temperature=run["temperature"],
        top_k=run["top_k"],
        top_p=run["top_p"],
    )
    goldens.assert_equal(tokens, io[f"ids_{name}"], f"{case} {name}")


@pytest.mark.parametrize(("case", "name"), FULL_TENSORS)
def test_full_size_gpt_output_is_that_of_the_released_code(case, name):
    """A published size: names, shapes, heads and widths as released."""
    actual, expected = gpts.full_outputs(case)[name], goldens.tensors(FULL, case)[name]
    compare = goldens.assert_close if expected.is_floating_point() else goldens.assert_equal
    compare(actual, expected, f"{case} {name}")


@pytest.mark.parametrize("case", gpts.full_cases())
def test_full_size_gpt_loss_and_parameter_count(case):
    """Mean cross entropy, spread of the logits, and the published number of parameters."""
    outputs, meta = gpts.full_outputs(case), goldens.meta(FULL, case)
    for name in FULL_LOSSES:
        goldens.assert_loss(outputs[name], meta[name], f"{case} {name}")
    assert outputs["n_params"].item() == meta["n_params"]
