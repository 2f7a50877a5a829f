"""Writes a part of a trained network as one file for other programs, and compares the file with the network first.

    python -m autoregressive.export runs/quickstart/tokenizer --part encode --output encode.pt2
    python -m autoregressive.export runs/quickstart/tokenizer --part decode --output decode.onnx
    python -m autoregressive.export runs/quickstart/gpt --part step --output step.onnx

Parts of a tokenizer are encode (images -> indices) and decode (indices -> images), those of a generator step (label,
token, position, cache -> logits, cache) and, where a token has several indices, head (hidden states, indices ->
logits). A masked generator has one part, pass (label, tokens with masks -> logits). Generators that write bits or draw
whole scales, and published ones of RAR, have none; a GPT of any order is written for raster. A .pt2 file is a program
of torch.export, an .onnx file is for ONNX Runtime and others. The batch size is free.

The file gets its name once it gives what the network gives: numbers within 1e-6 (pt2) or 1e-3 (onnx), and the same code
for 99.9 % of the tokens, where each other one is a near tie. What was measured is printed and written beside the file
as FILE.json, with the fingerprint of the weights. Nothing is overwritten without --replace.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoregressive.exporting.formats import EXPORT_FORMATS, ExportFormat
from autoregressive.exporting.generator_parts import GENERATOR_PARTS, module_of
from autoregressive.exporting.parts import Part, Port
from autoregressive.exporting.tokenizer_parts import TOKENIZER_PARTS
from autoregressive.exporting.verification import verify
from autoregressive.loading import load_gpt, survey_gpt
from engine.atomic_file import atomic_file, write_atomic
from engine.checkpoint.manifest import file_sha256
from engine.cli import add_weights_flag, entry_parser, run_entry
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.outputs import refuse
from engine.preflight import Preflight, require
from engine.run_record import library_versions
from tokenizer.cli import add_image_size_flag, set_image_size, trained_network_help
from tokenizer.loading import load_tokenizer, survey_tokenizer

MARK = "visual-tokenizers: exported part of a network"  # the entry `format` of the JSON beside a file


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # Which network, and which part of it.
    parser.add_argument("network", metavar="RUN", help=trained_network_help("tokenizer or generator"))
    parser.add_argument("--part", required=True, choices=[*TOKENIZER_PARTS, *GENERATOR_PARTS])
    parser.add_argument("--config", help="YAML file of the architecture, for a published file")
    add_weights_flag(parser)
    add_image_size_flag(parser)

    # The file.
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="file to write: FILE.pt2 or FILE.onnx"
    )
    parser.add_argument("--format", choices=list(EXPORT_FORMATS), help="default: as the suffix of --output says")
    parser.add_argument("--replace", action="store_true", help="replace the file, and the JSON beside it")
    return parser.parse_args()


def facts_file(output: Path) -> Path:
    """The JSON beside an exported file."""
    return output.with_name(f"{output.name}.json")


def format_of(args: argparse.Namespace) -> ExportFormat:
    """The format that the flags ask for. Raises UserError where they contradict each other, or a package is missing."""
    suffix = args.output.suffix.removeprefix(".")
    name = args.format or suffix
    if name not in EXPORT_FORMATS or name != suffix or args.output.is_dir():
        accepted = args.format or " or .".join(EXPORT_FORMATS)
        raise UserError(f"--output {args.output} must be the name of a file that ends in .{accepted}")
    EXPORT_FORMATS[name].require_packages()
    return EXPORT_FORMATS[name]()


def require_free(args: argparse.Namespace) -> None:
    """Raises UserError where a file would be overwritten without --replace."""
    for path in (args.output, facts_file(args.output)):
        if path.exists() and not args.replace:
            raise refuse(path, "--output", "exists already (--replace replaces it)")


def network_of(args: argparse.Namespace) -> nn.Module:
    """The trained network, on the CPU."""
    if args.part in TOKENIZER_PARTS:
        tokenizer = load_tokenizer(args.network, config=args.config, weights=args.weights)
        set_image_size(tokenizer, args.image_size, args.network)
        return tokenizer
    if args.image_size is not None:
        raise UserError(f"--image-size {args.image_size}: --part {args.part} is of a generator, which has no images")
    return load_gpt(args.network, config=args.config, weights=args.weights)


def part_of(args: argparse.Namespace, network: nn.Module) -> Part:
    """The part of the network that --part names. Raises UserError where it has none."""
    return (TOKENIZER_PARTS | GENERATOR_PARTS)[args.part](network)


def export(args: argparse.Namespace) -> None:
    """Writes, compares, and only then names the file."""
    network = network_of(args)
    part = part_of(args, network)
    kind = format_of(args)
    require_free(args)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    logger.info("tracing %s of %s", part.name, args.network)
    with atomic_file(args.output) as temporary:
        kind.write(part, temporary)
        logger.info("comparing it with the network")
        measured = verify(part, kind.open(part, temporary), kind.tolerance)
        sha256 = file_sha256(temporary)
    _write_facts(args.output, part, kind, {"network": _network_facts(network), "measured": measured, "sha256": sha256})

    # For people.
    for name, value in measured.items():
        logger.info("  %s: %s", name.replace("_", " "), value)
    size = args.output.stat().st_size
    logger.info("wrote %s (%s bytes) and %s", args.output, f"{size:,}", facts_file(args.output).name)


def _network_facts(network: nn.Module) -> dict[str, Any]:
    """What the JSON says about the network; where it lay is nobody's business."""
    return {name: fact for name, fact in network.provenance.facts().items() if name != "path"}


def _write_facts(output: Path, part: Part, kind: ExportFormat, more: dict[str, Any]) -> None:
    """Writes the JSON beside an exported file."""
    facts = {
        "format": MARK,
        "part": part.name,
        "inputs": [
            _port(port) | _size(port, tensor) for port, tensor in zip(part.inputs, part.example(1), strict=True)
        ],
        "outputs": [_port(port) for port in part.outputs],
        "accepted": asdict(kind.tolerance),
        "libraries": library_versions(*kind.packages),
        **more,
    }
    write_atomic(facts_file(output), to_json(facts, indent=1))


def _port(port: Port) -> dict[str, Any]:
    """An input or output, for the JSON."""
    return {"name": port.name, "meaning": port.meaning}


def _size(port: Port, tensor: Tensor) -> dict[str, Any]:
    """The type and shape of an input; the batch is the word for any number."""
    shape = ["batch" if dim == port.batch_dim else size for dim, size in enumerate(tensor.shape)]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the network, the packages of the format and a place for the file."""
    with preflight.collecting():
        format_of(args)
        require_free(args)
    preflight.output_file(args.output, "--output")
    with preflight.collecting():
        survey = survey_tokenizer if args.part in TOKENIZER_PARTS else survey_gpt
        network = survey(args.network, config=args.config, weights=args.weights, hashed=preflight.hashes)
        if args.part in GENERATOR_PARTS:
            module_of(args.part, network)
        preflight.ready.append(f"RUN: {args.network}")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    export(args)


if __name__ == "__main__":
    run_entry(main)
