"""Writes a second golden folder of the layout of tests/goldens, to test tests/parity with.

Case names and optional names differ, parts are left out, and a GPT has indices of unequal widths. Values come from the
stored goldens, or for that GPT, which the published code never built, from our own code on other seeds.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.token_by_token import next_token_loss
from autoregressive.published import WETOK_NAMES
from autoregressive.sampling import greedy
from tokenizer.published.layout import export_state

STORED = Path(__file__).parent / "goldens"
BITS = [3, 6, 5]  # of the indices of a token: the first one is not the widest


def write_other_goldens(root: Path) -> None:
    """Fills the folder `root`."""
    (root / "wetok" / "tiny").mkdir(parents=True)
    (root / "llamagen" / "tiny").mkdir(parents=True)
    (root / "ibq" / "tiny_seeded").mkdir(parents=True)
    write_tokenizer(root / "wetok" / "tiny")
    write_gpt(root / "wetok" / "tiny")
    write_llamagen(root / "llamagen" / "tiny")
    write_ibq(root / "ibq" / "tiny_seeded")
    write_generator(root / "ibq" / "tiny_seeded")


def write_tokenizer(folder: Path) -> None:
    """WeTok's case under another name: other names of its odd images, without the generative decoder and all extras."""
    left_out = ("gd/", "depth_to_space/", "recon_from_indices", "stage2/", "loss/", "disc/")
    with np.load(STORED / "wetok" / "tiny" / "tokenizer.npz") as arrays:
        kept = {name.replace("odd/", "oblong/"): arrays[name] for name in arrays.files if not name.startswith(left_out)}
    np.savez(folder / "tokenizer_b.npz", **kept)
    shutil.copy(STORED / "wetok" / "tiny" / "tokenizer.weights.npz", folder / "tokenizer_b.weights.npz")
    facts = json.loads((STORED / "wetok" / "tiny" / "tokenizer.json").read_text(encoding="utf-8"))
    left_out_facts = ("stage2_step", "stage2_init", "activations_eval", "loss_variants")
    write_json(folder / "tokenizer_b.json", {name: fact for name, fact in facts.items() if name not in left_out_facts})


def write_llamagen(folder: Path) -> None:
    """One tokenizer of LlamaGen, whose second images have another name."""
    stored = STORED / "llamagen" / "tiny"
    tensors = load_file(stored / "tok16.io.safetensors")
    renamed = {name.replace("second_", "oblong_"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "tok_c.io.safetensors")
    shutil.copy(stored / "tok16.weights.safetensors", folder / "tok_c.weights.safetensors")
    facts = (stored / "tok16.json").read_text(encoding="utf-8").replace("second_", "oblong_")
    (folder / "tok_c.json").write_text(facts, encoding="utf-8")


def write_ibq(folder: Path) -> None:
    """The tokenizer of IBQ under another name, and without its margins."""
    stored = STORED / "ibq" / "tiny_seeded"
    tensors = load_file(stored / "tok_tiny.io.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "margin" not in name}, folder / "small.io.safetensors"
    )
    shutil.copy(stored / "tok_tiny.json", folder / "small.json")


def write_generator(folder: Path) -> None:
    """The generator of IBQ under another name, without its margins and the steps in its layers."""
    stored = STORED / "ibq" / "tiny_seeded"
    left_out = ("margin", "block0")
    tensors = load_file(stored / "AR_tiny.io.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in left_out)}
    save_file(kept, folder / "generator.io.safetensors")
    shutil.copy(stored / "AR_tiny.json", folder / "generator.json")


def write_gpt(folder: Path) -> None:
    """A GPT of WeTok with indices of 3, 6 and 5 bits, its weights from another seed."""
    torch.manual_seed(11)
    sizes = [2**bits for bits in BITS]
    config = GPTConfig(
        width=32, layers=2, heads=4, head="factorized", codebook_sizes=sizes, head_layers=1, num_tokens=9,
        num_classes=5, positions="rope2d", token_dropout=0.1, residual_dropout=0.1,
    )  # fmt: skip
    init_std = GPT(config).layers[0].attention.wqkv.weight.std().item()
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.copy_((0.3 * torch.randn_like(parameter)).half())
    np.savez(folder / "ar_uneven.weights.npz", **half(export_state(gpt.state_dict(), WETOK_NAMES)))

    # What the tests compare, at the width of each index.
    labels = torch.tensor([0, 3, 4])
    tokens = torch.stack([torch.randint(0, size, (3, 9)) for size in sizes], dim=-1)
    logits = gpt(labels, tokens)
    loss = next_token_loss(logits, tokens)
    gradients = torch.autograd.grad(loss, list(gpt.parameters()))
    norms = {name: g.norm() for (name, _), g in zip(gpt.named_parameters(), gradients, strict=True)}
    null = gpt(torch.full_like(labels, gpt.null_class), tokens)
    arrays = {"class": labels, **streams("", tokens)}
    losses = []
    for i, size in enumerate(sizes):
        arrays[f"logits{i}"] = logits[:, :, i, :size]
        losses.append(
            torch.nn.functional.cross_entropy(logits[:, :, i, :size].flatten(0, 1), tokens[:, :, i].flatten()).item()
        )
    arrays["logits0_uncond"] = null[:, :, 0, : sizes[0]]
    scales = [1.5, 2.0, 1.25]
    arrays |= streams("greedy_plain/", generate(gpt, labels, draw=greedy))
    arrays |= streams("greedy_scaled/", generate(gpt, labels, draw=greedy, guidance=Guidance(scale=tuple(scales))))
    np.savez(folder / "ar_uneven.npz", **{name: tensor.detach().numpy() for name, tensor in arrays.items()})

    facts = {
        "dim": 32, "spatial_n_layer": 2, "factorized_n_layer": 1, "n_head": 4, "block_size": 9, "class_num": 5,
        "factorized_k": len(BITS), "factorized_bits": BITS, "token_factorization": True, "token_drop": 0.1,
        "resid_dropout_p": 0.1,
    }  # fmt: skip
    meta = {
        "config": facts,
        "losses": losses,
        "loss": loss.item(),
        "grad_norms": {name: norm.item() for name, norm in export_state(norms, WETOK_NAMES).items()},
        "greedy_scaled_scales": scales,
        "heads_zero_at_init": True,
        "init_std_wqkv": init_std,
        "ffn_hidden": gpt.layers[0].feed_forward.w1.out_features,
    }
    write_json(folder / "ar_uneven.json", meta)


def streams(prefix: str, tokens: Tensor) -> dict[str, Tensor]:
    """(B,N,k) tokens as one array for each index."""
    return {f"{prefix}tokens{i}": tokens[..., i].int() for i in range(tokens.shape[-1])}


def half(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Weights as the goldens store them; these are exact in 16 bits."""
    return {name: tensor.half().numpy() for name, tensor in state.items()}


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
