"""The files that a part of a network is exported to: how they are written, and called to be compared.

    pt2     a program of torch.export, for PyTorch without the code of this project
    onnx    a graph for ONNX Runtime and other programs

Both are traced on the CPU, in float32, with a free batch size. They hold the tensors that the part uses and no others.
"""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from autoregressive.exporting.parts import Part, Run, Tensors
from autoregressive.exporting.verification import Tolerance
from engine.installation import install_hint
from engine.messages import UserError

EXAMPLE_ROWS = 3  # of the batch that a module is traced with; a batch of 1 would look like a fixed size
MAX_ONNX_BYTES = 2**31 - 2**20  # one ONNX file holds 2 GiB, of which graph and names take a bit


class ExportFormat(ABC):
    """A kind of file. Its name is the value of `--format`, and the suffix of its files."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()  # beside torch
    tolerance: ClassVar[Tolerance]

    @classmethod
    def require_packages(cls) -> None:
        """Raises UserError where a package is missing."""
        missing = [package for package in cls.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format {cls.name} needs {', '.join(missing)} (the extra `export`); run: {install_hint('export')}"
            )

    @abstractmethod
    def write(self, part: Part, path: Path) -> None:
        """Writes the part. Raises UserError where it cannot be traced."""

    @abstractmethod
    def open(self, part: Part, path: Path) -> Run:
        """What calls a file that `write` wrote."""


class TorchProgram(ExportFormat):
    """See the module docstring."""

    name = "pt2"
    tolerance = Tolerance(values=1e-6, ties=1e-6)

    def write(self, part: Part, path: Path) -> None:
        import torch.export

        torch.export.save(traced(part), path)

    def open(self, part: Part, path: Path) -> Run:
        import torch.export

        module = torch.export.load(path).module()

        def run(*inputs: Tensor) -> Tensors:
            outputs = module(*inputs)
            return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

        return run


class OnnxGraph(ExportFormat):
    """See the module docstring."""

    name = "onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    tolerance = Tolerance(values=1e-3, ties=1e-4)

    def write(self, part: Part, path: Path) -> None:
        import torch.onnx

        program = traced(part)
        num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
        if num_bytes > MAX_ONNX_BYTES:
            size = f"{num_bytes / 1e9:.1f} GB"
            raise UserError(f"one ONNX file holds 2 GB, and these weights are {size}: use --format pt2")
        options = {
            "input_names": [port.name for port in part.inputs],
            "output_names": [port.name for port in part.outputs],
        }
        with _quiet("onnxscript"), _quiet("onnx_ir"):
            try:
                graph = torch.onnx.export(program, dynamo=True, verbose=False, **options)
            except torch.onnx.OnnxExporterError as error:
                raise UserError(f"--part {part.name} has operations that ONNX lacks: {_last_reason(error)}") from error
        graph.save(path, external_data=False)

    def open(self, part: Part, path: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [port.name for port in part.inputs]

        def run(*inputs: Tensor) -> Tensors:
            arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
            return tuple(torch.from_numpy(array) for array in session.run(None, arrays))

        return run


EXPORT_FORMATS: dict[str, type[ExportFormat]] = {kind.name: kind for kind in (TorchProgram, OnnxGraph)}


def _last_reason(error: BaseException) -> str:
    """The first line of the error that the others come from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hides notes of a library about what it did not optimize."""
    library_logger = logging.getLogger(name)
    level = library_logger.level
    library_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library_logger.setLevel(level)


# ------------------------------------------------------------------------------------------------ tracing
@torch.no_grad()
def traced(part: Part) -> torch.export.ExportedProgram:
    """The program of a part, with a free batch size and without the tensors that it does not use.

    Raises UserError where torch cannot trace it, as with a component whose Python code depends on values.
    """
    import torch.export

    batch = torch.export.Dim("batch")
    shapes = tuple(None if port.batch_dim is None else {port.batch_dim: batch} for port in part.inputs)
    try:
        program = torch.export.export(part.module, part.example(EXAMPLE_ROWS), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of many types, from all parts of the compiler
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"--part {part.name}: torch.export cannot trace this network ({reason})") from error
    return _without_unused(program)


def _without_unused(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """`program` without the parameters and buffers that its graph does not read, such as those of the other half."""
    from torch.export.graph_signature import ExportGraphSignature, InputKind

    # What no operation reads goes out of the graph.
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    kept = []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users:
            program.graph.erase_node(node)
        else:
            kept.append(spec)
    program.graph_module.recompile()

    # And out of the tensors.
    targets = {spec.target for spec in kept}
    return torch.export.ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=ExportGraphSignature(kept, program.graph_signature.output_specs),
        state_dict={name: value for name, value in program.state_dict.items() if name in targets},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=None,  # they would be stored, caches of a generator among them
        verifiers=program.verifiers,
        constants={name: value for name, value in program.constants.items() if name in targets},
    )
