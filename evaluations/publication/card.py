"""The model card: README.md of a publication. What it is, how it was trained, what was measured, how to load it.

It is written for people and for the hub, which reads the lines between the first two `---`. Every text that comes from
a run or a flag is escaped: names of classes may be anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from omegaconf import OmegaConf

from autoregressive.models.base import Generator
from engine.data.sources import attribution_of
from evaluations.publication.markdown import plain, table
from evaluations.publication.measured import PublishedResult
from evaluations.publication.networks import CONFIG_FILE, WEIGHTS_FILE, PublishedNetwork

SHOWN_CLASSES = 20
NOT_FID = "frechet_lite0"  # how its numbers are called, so that nobody takes them for others
TAGS = ("visual-tokenizer", "image-generation", "pytorch")
# Keys of the training that a reader looks for first, of those that a config has; all others are in its file.
SHOWN_KEYS = (
    "loop.steps", "data.global_batch_size", "data.image_size", "optim.schedule", "optim.lr", "ema_decay",
    "loop.precision", "loop.seed",
)  # fmt: skip
OF_PHASES = ("loop.steps", "optim.lr")  # of a training with phases, each phase has its own


@dataclass(frozen=True)
class CardTexts:
    """What only the publisher knows."""

    title: str
    address: str  # what to type to load it
    license: str | None = None  # SPDX name, such as mit; None: nobody has said
    data: str = ""  # a sentence about the training images
    picture: str = ""  # name of a picture in the publication
    storage: str = "in float32 or as they were trained"  # how the file holds the weights


def model_card(
    networks: Sequence[PublishedNetwork],
    results: Sequence[PublishedResult],
    texts: CardTexts,
    hashes: Mapping[str, str],
) -> str:
    """The text of README.md; `hashes` are {file of the publication: SHA-256}."""
    parts = [_front_matter(texts), f"# {plain(texts.title)}"]
    if texts.picture:
        parts.append(f"![Pictures of the model]({texts.picture})")
    parts += [_description(network) for network in networks]
    parts.append(_loading(networks, texts.address))
    parts += [_training(network, texts) for network in networks]
    parts.append(_results(results))
    parts.append(_license(texts.license))
    parts.append(_files(hashes, texts.storage))
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------ its parts
def _front_matter(texts: CardTexts) -> str:
    """What the hub reads."""
    facts: dict[str, Any] = {"tags": list(TAGS)}
    if texts.license:
        facts["license"] = texts.license
    return f"---\n{OmegaConf.to_yaml(OmegaConf.create(facts)).strip()}\n---"


def _description(network: PublishedNetwork) -> str:
    """What a network is: sizes, and the identity of its weights."""
    model = network.network
    name = OmegaConf.select(network.training_config, "model.name")
    rows: list[tuple[object, object]] = [
        (network.source.kind, name),
        ("parameters", f"{network.num_parameters:,}"),
        ("tokens per image", model.num_tokens),
    ]
    sizes = model.codebook_sizes if isinstance(model, Generator) else tuple(model.quantizer.group_sizes)
    rows.append(("codes per token", " x ".join(f"{size:,}" for size in sizes)))
    if isinstance(model, Generator):
        rows.append(("classes", _classes(model)))
        trained_on = model.provenance.stamp.get("tokenizer_fingerprint", "not known")
        rows.append(("fingerprint of its tokenizer", trained_on))
    else:
        rows.append(("images", f"{model.image_size} x {model.image_size} pixels"))
        rows.append(("quantizer", OmegaConf.select(network.training_config, "model.quantizer.name")))

    kind = "averaged (EMA)" if model.provenance.is_average else "raw"
    step = network.manifest.get("step")
    state = network.told.get("weights", kind) if step is None else f"{kind}, after {step:,} updates"
    rows.append(("weights", state))
    rows.append(("fingerprint", network.fingerprint))
    return f"## {network.source.kind.capitalize()}\n\n{table([('', ''), *rows])}"


def _classes(generator: Generator) -> str:
    """The number of classes, and the first names where they are known."""
    classes = generator.classes
    if not classes.are_named:
        return f"{len(classes)}, whose names are not known"
    more = ", ..." if len(classes) > SHOWN_CLASSES else ""
    return f"{len(classes)}: {', '.join(classes.names[:SHOWN_CLASSES])}{more}"


def _loading(networks: Sequence[PublishedNetwork], address: str) -> str:
    """How to use it from Python."""
    kinds = {network.source.kind for network in networks}
    lines = []

    # From images to tokens, and back.
    if "tokenizer" in kinds:
        lines += [
            "from tokenizer import Tokenizer", "", f'tokenizer = Tokenizer.from_pretrained("{address}")',
            'codes = tokenizer.tokenize("picture.jpg", fit="crop")',
            'pictures = tokenizer.detokenize(codes, output="pil")',
        ]  # fmt: skip

    # Tokens of new images, which a tokenizer decodes.
    if "generator" in kinds:
        decode = 'pictures = tokenizer.detokenize(tokens, output="pil")'
        lines += [""] if lines else []
        lines += [
            "from autoregressive import GPT, generate", "", f'gpt = GPT.from_pretrained("{address}")',
            "tokens = generate(gpt, [0, 1], guidance_scale=2.0, seed=0)",
            decode if "tokenizer" in kinds else f"{decode}  # with the tokenizer of the fingerprint above",
        ]  # fmt: skip
    code = "\n".join(lines)
    return f"## How to load it\n\n```python\n{code}\n```\n\nLoading is strict and runs no code of this repository."


def _training(network: PublishedNetwork, texts: CardTexts) -> str:
    """How it was trained: recipe, data, the most wanted keys, pretrained networks."""
    config = network.config()
    recipe = network.recipe or network.told.get("recipe", "not known, or not one of the packaged recipes")
    rows: list[tuple[object, object]] = [("recipe", recipe), *_data_rows(network, texts)]
    phases = OmegaConf.select(config, "phases") or []
    rows += [(f"phase {n}", f"{p.steps:,} updates, learning rate {p.lr:g}") for n, p in enumerate(phases, start=1)]
    keys = [key for key in SHOWN_KEYS if not (phases and key in OF_PHASES)]
    selected = {key: OmegaConf.select(config, key) for key in keys}
    rows += [(key, value) for key, value in selected.items() if value is not None]
    rows += [(f"pretrained: {name}", stamp) for name, stamp in network.stamp().get("networks", {}).items()]
    note = f"The whole config is in `{network.source.in_publication(CONFIG_FILE)}`."
    return f"## Training of the {network.source.kind}\n\n{table([('', ''), *rows])}\n\n{note}"


def _data_rows(network: PublishedNetwork, texts: CardTexts) -> Iterator[tuple[str, object]]:
    """The training images: what the publisher says, and what the checkpoint knows."""
    name = OmegaConf.select(network.training_config, "data.name")
    if texts.data:
        yield "data", texts.data
    if name:
        yield "kind of data", name
        if attribution_of(name):
            yield "made by", attribution_of(name)
    facts = network.manifest.get("data") or {}
    for split, of_split in facts.items():
        yield f"images, {split}", f"{of_split['images']:,} in {len(of_split['classes']):,} classes"
    if not facts:
        yield from ((row, text) for row, text in network.told.items() if row.startswith("images, "))


def _results(results: Sequence[PublishedResult]) -> str:
    """All numbers, each with the protocol by which it was measured."""
    if not results:
        return "## Results\n\nNo results were published with it."
    parts = ["## Results", "Measured on the weights of this repository. Compare numbers only where protocols agree."]
    if any(row[0].startswith(NOT_FID) for measured in results for row in measured.rows()):
        parts.append(plain(f"{NOT_FID} is a Frechet distance of EfficientNet-Lite0 features. It is not FID."))
    for measured in results:
        protocol = "\n".join(escape(line) for line in measured.protocol())
        parts.append(f"### {plain(measured.name)}\n\n{table(measured.rows())}")
        parts += [plain(note) for note in measured.notes()]
        parts.append(f"<details><summary>protocol</summary>\n\n<pre>\n{protocol}\n</pre>\n\n</details>")
    return "\n\n".join(parts)


def _license(name: str | None) -> str:
    """The license of the weights, which only the publisher can say."""
    return f"## License\n\n{plain(name) if name else 'The publisher has not stated a license for these weights.'}"


def _files(hashes: Mapping[str, str], storage: str) -> str:
    """The files with their hashes."""
    note = f"`{WEIGHTS_FILE}` holds the weights {storage}, and in its header their stamp."
    return f"## Files\n\n{table([('file', 'SHA-256'), *hashes.items()])}\n\n{note}"
