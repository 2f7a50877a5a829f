"""Publishes trained networks: weights as safetensors, their config without private paths, and a model card.

    python -m evaluations.publish runs/quickstart --to shared/digits --license mit
    python -m evaluations.publish runs/VQ_SS256 --to hf-hub:my-organization/VQ_SS256 --license apache-2.0 \\
        --results results/VQ_SS256.json --data-text "ImageNet-1k, training images"
    python -m evaluations.publish runs/VQ_SS256 --to hf-hub:my-organization/VQ_SS256 --check     (writes nothing)

RUN is the folder of a run, a checkpoint or an exported network; of a pipeline such as the quick start, or a model that
comes with the program (`shipped:NAME`), its tokenizer and its GPT. Results are taken from the run folder, from the card
beside weights that were published before, or from --results; numbers without the stamp of their protocol are refused.
No file names a path, a user or a host; of the names in a run, those of classes are published.

A new repository of the hub is private, and an existing file is replaced only with --replace. You log in by the means of
huggingface_hub (`hf auth login`, or HF_TOKEN); this program reads no token. `Tokenizer.from_pretrained` and
`GPT.from_pretrained` load what was published (docs/publish.md).
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from safetensors import safe_open

from engine.checkpoint.manifest import file_sha256
from engine.cli import add_weights_flag, entry_parser, run_entry
from engine.counts import counted
from engine.data.images import read_image
from engine.hub import is_address
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.sharing import private_words
from evaluations.publication.card import CardTexts, model_card
from evaluations.publication.destination import Destination, destination_of
from evaluations.publication.earlier_card import CARD_FILE, LICENSE_NAME, license_of
from evaluations.publication.measured import chosen_results
from evaluations.publication.networks import WEIGHTS_FILE, PublishedNetwork, Source, sources_of
from evaluations.results import read_result

PICTURE = "picture.png"


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, a checkpoint, an exported network, or a pipeline")
    parser.add_argument("--to", required=True, help="a folder (PATH or folder:PATH), or hf-hub:organization/name")
    add_weights_flag(parser)
    parser.add_argument("--replace", action="store_true", help="replace files that are there; nothing is ever deleted")

    # The card.
    parser.add_argument(
        "--results", nargs="+", type=Path, default=[], metavar="FILE", help="result files (default: those of the run)"
    )
    parser.add_argument(
        "--license",
        help="license of the weights, as SPDX names it: mit, apache-2.0, cc-by-4.0, ... (default: that of the card "
        "beside weights that were published before)",
    )
    parser.add_argument("--data-text", default="", metavar="TEXT", help="a sentence about the training images")
    parser.add_argument("--title", help="heading of the card (default: the name of the repository, or what it is)")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="a picture for the card, such as a grid of samples; its pixels alone",
    )
    return parser.parse_args()


def names_of(sources: Sequence[Source], args: argparse.Namespace) -> list[str]:
    """The files that will be written."""
    pictures = [PICTURE] if args.picture is not None else []
    return [*(name for source in sources for name in source.names()), CARD_FILE, *pictures]


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the networks, the results, and a free place."""
    sources: list[Source] = []
    with preflight.collecting():
        sources = sources_of(args.run)
        parts = ", ".join(str(source.folder) for source in sources)
        preflight.ready.append(f"run: {parts}")

    # What the card tells.
    for path in args.results:
        with preflight.collecting():
            read_result(path)
            preflight.ready.append(f"--results: {path}")
    if args.picture is not None:
        preflight.file(args.picture, "--picture")
    if args.license is not None and not re.fullmatch(LICENSE_NAME, args.license):
        preflight.problem(f"--license {args.license!r} must be a name of SPDX in lower case, such as mit or cc-by-4.0")

    # Where it goes.
    with preflight.collecting():
        destination = destination_of(args.to)
        destination.require_free(names_of(sources, args), args.replace)
        preflight.ready.append(f"--to: {destination.text()}")


# ------------------------------------------------------------------------------------------------ writing
def write_picture(source: Path, target: Path) -> None:
    """Writes the pixels of an image file as PNG: no text, profile or camera data goes with them."""
    picture = read_image(source, hint="")
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(target, format="PNG")


def title_of(args: argparse.Namespace, networks: Sequence[PublishedNetwork], destination: Destination) -> str:
    """The heading of the card: never the name of a folder here, which may be private."""
    if args.title:
        return args.title
    if is_address(destination.address):
        return destination.address.rpartition("/")[2]
    kinds = " and ".join(network.source.kind for network in networks)
    recipes = " and ".join(network.recipe for network in networks if network.recipe)
    return kinds.capitalize() + (f" of {recipes}" if recipes else "")


def require_public(files: dict[str, Path]) -> None:
    """Raises UserError where a text of the publication, or the header of its weights, names a place of this machine."""
    for name, file in files.items():
        if file.suffix == ".png":
            continue
        text = header_text(file) if file.name == WEIGHTS_FILE else file.read_text(encoding="utf-8")
        words = list(dict.fromkeys(private_words(text)))
        if words:
            raise UserError(
                f"{name} would tell {', '.join(map(repr, words[:3]))} of this machine; nothing was published "
                "(change what names it: a text flag, a name of a class, or a key of the config)"
            )


def header_text(file: Path) -> str:
    """The metadata in the header of a safetensors file, with the stamp."""
    with safe_open(file, framework="pt") as weights:
        return "\n".join(f"{key}: {value}" for key, value in (weights.metadata() or {}).items())


def publish(args: argparse.Namespace) -> None:
    """Writes everything to a temporary folder, looks at it once more, and brings it to its place."""
    sources = sources_of(args.run)
    destination = destination_of(args.to)
    destination.require_free(names_of(sources, args), args.replace)
    networks = [source.load(args.weights) for source in sources]
    results = chosen_results(args.run, args.results, networks)
    license_name = args.license or license_of(network.card for network in networks)

    with tempfile.TemporaryDirectory(prefix="publish-") as temporary:
        folder = Path(temporary)
        files: dict[str, Path] = {}
        for network in networks:
            files |= network.write(folder)
        if args.picture is not None:
            files[PICTURE] = folder / PICTURE
            write_picture(args.picture, files[PICTURE])

        # The card comes last: it names the hashes of all others.
        hashes = {name: file_sha256(file) for name, file in files.items()}
        title = title_of(args, networks, destination)
        picture = PICTURE if args.picture is not None else ""
        texts = CardTexts(title, destination.address, license_name, args.data_text, picture)
        files[CARD_FILE] = folder / CARD_FILE
        files[CARD_FILE].write_text(model_card(networks, results, texts, hashes), encoding="utf-8")
        require_public(files)
        address = destination.write(files, title)

    for name, digest in hashes.items():
        logger.info("%s  %s", digest, name)
    if license_name is None:
        logger.warning("the card says that no license is stated: --license NAME states one")
    logger.info("published to %s with %s; load it by this name", address, counted(len(results), "result"))


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    publish(args)


if __name__ == "__main__":
    run_entry(main)
