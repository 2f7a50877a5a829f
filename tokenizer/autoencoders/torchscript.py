"""Autoencoders as programs in TorchScript, as Cosmos's tokenizers are published: they run only where they are trusted.

    autoencoder.jit                 images -> images
    encoder.jit and decoder.jit     images -> latents or indices, and back; in one folder

Unlike every other file that is read here, such a file holds code of its own, which runs with the rights of the user.
So `--trust-jit` must say that its publisher is trusted. Where a program returns several things, the first one counts.
Images are given in [-1,1], in the type of the program's parameters (or `--jit-dtype`), with sides that are multiples
of 16. Nobody tells the size of the images in its training, its codes or how many there are.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.foreign.containers import is_torchscript
from engine.checkpoint.manifest import file_sha256, json_digest
from engine.messages import UserError
from tokenizer.autoencoders.base import Autoencoder, provenance_config
from tokenizer.loading import Provenance

WHOLE, PARTS = "autoencoder.jit", ("encoder.jit", "decoder.jit")
ALIGNMENT = 16  # pixels; fits the factors 8 and 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"  # that of the program's parameters


class TorchScriptAutoencoder(Autoencoder):
    """See the module docstring."""

    factor = ALIGNMENT

    def __init__(self, programs: list[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.image_size = None
        self.programs = nn.ModuleList(programs)
        self.dtype = dtype

    # ------------------------------------------------------------------------------------------------ its files
    @classmethod
    def recognizes(cls, source: str | Path) -> bool:
        path = Path(source)
        if path.is_dir():
            return (path / WHOLE).is_file() or all((path / name).is_file() for name in PARTS)
        return path.is_file() and is_torchscript(path)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str,
        trust_jit: bool,
        jit_dtype: str = AUTO,
        header_only: bool = False,
        **others: Any,
    ) -> TorchScriptAutoencoder:
        if not trust_jit:
            raise UserError(
                f"{source} is a TorchScript program: it holds code of its own, which would run here with your rights "
                "(files, network). If you trust its publisher, add --trust-jit"
            )
        files = program_files(Path(source))
        programs = [] if header_only else [_load_program(file, device) for file in files]
        autoencoder = cls(programs, _dtype_of(programs, jit_dtype)).eval().requires_grad_(False)

        # Its identity is that of the files: code counts as weights do.
        hashes = {} if header_only else {file.name: file_sha256(file) for file in files}
        autoencoder.provenance = Provenance(
            path=str(source),
            weights="model",
            fingerprint=json_digest(hashes) if hashes else "",
            stamp={"torchscript": hashes},
            config=provenance_config(None),
            network_facts=autoencoder.facts,
        )
        return autoencoder

    # ------------------------------------------------------------------------------------------------ its use
    def through(self, images: Tensor) -> Tensor:
        found = images.to(self.dtype)
        for program in self.programs:
            try:
                found = _first_tensor(program(found))
            except (RuntimeError, TypeError) as error:
                raise UserError(
                    f"{self.provenance.path}: the program fails: {_last_line(error)} "
                    f"(images were given as {self.dtype}; --jit-dtype names another type)"
                ) from error
        return found

    def summary(self) -> str:
        return f"TorchScript program, trusted, {self.image_size} px"

    def facts(self) -> dict[str, Any]:
        return {"network": "TorchScript program", "dtype": str(self.dtype).removeprefix("torch.")}


def program_files(source: Path) -> list[Path]:
    """The programs of a source, in the order in which images pass them."""
    if source.is_file():
        return [source]
    whole = source / WHOLE
    return [whole] if whole.is_file() else [source / name for name in PARTS]


def _load_program(path: Path, device: str) -> nn.Module:
    """A program that the user trusts. Raises UserError where it cannot be loaded."""
    try:
        with warnings.catch_warnings():
            # The user has no other file to choose: that torch advises other formats is for the publisher.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated")
            return torch.jit.load(path, map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be loaded as TorchScript: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    """What an error of a program says at its end, behind the traceback of TorchScript."""
    lines = [line.strip() for line in str(error).splitlines() if line]
    return lines[-1] if lines else type(error).__name__


def _dtype_of(programs: list[nn.Module], asked: str) -> torch.dtype:
    """The type that images are given in: the one asked for, or that of the parameters; float32 where there are none."""
    if asked != AUTO:
        return DTYPES[asked]
    tensors = (tensor for program in programs for tensor in (*program.parameters(), *program.buffers()))
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _first_tensor(output: Any) -> Tensor:
    """What counts of the output of a program. Raises TypeError where there is no tensor."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(f"it returns a {type(first).__name__}, and a tensor is needed")
    return first
