"""A pair of networks that comes with the program: rounded to half precision, measured anew, with a card each.

The networks of a run are trained in float32. What ships are their values in half precision, which are other networks:
they have fingerprints of their own, and only what was measured with them stands on their cards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from autoregressive.codes import CodeStore
from autoregressive.loading import require_pair
from engine.atomic_file import atomic_file
from engine.checkpoint.manifest import file_sha256
from engine.checkpoint.weights import export_folder, fingerprint
from engine.data.sources import SOURCES
from engine.half_precision import STORED_DTYPE, as_stored, round_to_stored
from engine.messages import UserError, logger
from engine.outputs import refuse
from engine.pipeline import run_stages
from engine.sharing import private_words
from engine.shipped_models import PREFIX
from evaluations.metrics.registry import title
from evaluations.pipelines.quickstart import evaluation_stages
from evaluations.pipelines.stages import codes_stage
from evaluations.publication.card import CardTexts, model_card
from evaluations.publication.earlier_card import CARD_FILE
from evaluations.publication.measured import MeasuredResult, problem_of
from evaluations.publication.networks import CONFIG_FILE, WEIGHTS_FILE, PublishedNetwork, Source, sources_of
from evaluations.result_intervals import value_text
from evaluations.results import read_result, scalars_of
from evaluations.run_layout import RunLayout

FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
LICENSE = "mit"  # of this program, and of the models that come with it
DTYPE_NAME = str(STORED_DTYPE).removeprefix("torch.")
STORAGE = f"as {DTYPE_NAME}, which become float32 when they are loaded"
OWN_RESULT = {False: "reconstruction", True: "generation"}  # whether it is a generator -> the result on its card


@dataclass(frozen=True)
class ShippedNetwork:
    """One of the two networks."""

    published: PublishedNetwork  # with rounded weights
    trained_fingerprint: str  # of the weights before

    @property
    def part(self) -> str:
        """Its folder in the run, and below the name of the pair."""
        return self.published.source.part

    @property
    def fingerprint(self) -> str:
        """That of the rounded weights."""
        return self.published.fingerprint

    @property
    def result_name(self) -> str:
        """The result that stands on its card."""
        return OWN_RESULT[self.published.source.is_generator]


def pair_sources(run: Path) -> list[Source]:
    """The tokenizer and the generator of a run, in this order. Raises UserError where it has not both."""
    sources = sorted(sources_of(run), key=lambda source: source.is_generator)
    if [source.is_generator for source in sources] != [False, True]:
        raise UserError(f"{run} is no finished quick start: it must have a tokenizer and a generator")
    return sources


def rounded_pair(run: Path) -> list[ShippedNetwork]:
    """The tokenizer and the generator of a run, in this order, with weights that half precision can hold.

    Raises UserError where the run has not both, they do not belong together, or its images come from a folder.
    """
    tokenizer, generator = (source.load("auto") for source in pair_sources(run))
    require_pair(generator.network, tokenizer.network)
    images = OmegaConf.select(tokenizer.training_config, "data.name")
    if images not in SOURCES or SOURCES[images].needs_root:
        raise UserError(f"{run} was trained on data.name={images}: only images that come with a package can be shipped")

    shipped_tokenizer = _rounded(tokenizer, {})
    of_tokenizer = {
        **shipped_tokenizer.published.network.code_maker().stamp(),
        "trained_on_codes_of": shipped_tokenizer.trained_fingerprint,
    }
    return [shipped_tokenizer, _rounded(generator, of_tokenizer)]


def _rounded(published: PublishedNetwork, stamp: Mapping[str, str]) -> ShippedNetwork:
    """Rounds a loaded network, which becomes another one; `stamp` is what it says beside that."""
    network = published.network
    provenance = network.provenance
    round_to_stored(network)
    facts = {"rounded_from": provenance.fingerprint, **stamp}
    network.provenance = replace(provenance, fingerprint=fingerprint(network), stamp={**provenance.stamp, **facts})
    return ShippedNetwork(published, provenance.fingerprint)


# ------------------------------------------------------------------------------------------------ measured anew
def working_folder(run: Path, pair: list[ShippedNetwork]) -> Path:
    """Where the rounded networks of a run are written and measured: a folder for exactly these weights."""
    return run / "-".join(["shipped", *(network.fingerprint[:8] for network in pair)])


def measure(run: Path, pair: list[ShippedNetwork], num_samples: int) -> RunLayout:
    """Writes the rounded networks below the run and measures them as the quick start does; returns where.

    Stages that are done are skipped, as in every pipeline. Raises StageError where one fails.
    """
    work = RunLayout(working_folder(run, pair))
    for network in pair:
        folder = work.root / network.part
        if not folder.is_dir():
            published = network.published
            weights = {"model": as_stored(published.network.state_to_share())}
            stamp = {**published.stamp(), "stored_dtype": DTYPE_NAME}
            export_folder(folder, published.config(), weights, stamp)

    classifier = RunLayout(run).classifier
    stages = [
        codes_stage(work.tokenizer, work.codes),
        *evaluation_stages(work, classifier if classifier.is_dir() else None, num_samples),
    ]
    run_stages(work.root, stages)
    return work


def changed_codes(run: Path, work: RunLayout) -> Mapping[str, float]:
    """{split: fraction of the tokens whose code rounding has changed}; none where the run has lost its codes."""
    changed = {}
    for split in ("train", "val"):
        if (RunLayout(run).codes / split).is_dir():
            before, now = (CodeStore(codes, split).codes for codes in (RunLayout(run).codes, work.codes))
            if before.shape == now.shape:
                changed[split] = float(np.mean(before != now))
    return changed


# ------------------------------------------------------------------------------------------------ described
def write_cards(name: str, run: Path, pair: list[ShippedNetwork], work: RunLayout) -> None:
    """Writes the card of each network beside it.

    Raises UserError for results of other weights, and for a text that names a place of this machine.
    """
    for network in pair:
        path = work.result(network.result_name)
        result = read_result(path)
        problem = problem_of(result, [network.published])
        if problem is not None:
            raise UserError(f"{path} {problem}")

        # In its own folder a network is all there is.
        folder = work.root / network.part
        alone = replace(network.published, source=replace(network.published.source, part=""))
        hashes = {file: file_sha256(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
        heading = f"{name}: {network.published.source.kind} of the quick start"
        texts = CardTexts(heading, f"{PREFIX}{name}", LICENSE, storage=STORAGE)
        card = model_card([alone], [MeasuredResult(network.result_name, result)], texts, hashes)
        card += "\n" + "\n".join(_rounding(run, network, result, work)) + "\n"
        words = sorted(set(private_words(card)))
        if words:
            raise UserError(f"the card of {folder} would tell {', '.join(map(repr, words))} of this machine")
        with atomic_file(folder / CARD_FILE) as temporary:
            temporary.write_text(card, encoding="utf-8")


def _rounding(run: Path, network: ShippedNetwork, result: Mapping[str, Any], work: RunLayout) -> Iterator[str]:
    """The section on half precision: what it changed."""
    yield "## Half precision"
    yield ""
    yield (
        f"These are the weights of a training in float32 (fingerprint {network.trained_fingerprint[:16]}), rounded to "
        f"{DTYPE_NAME} to be small. All results above are of the rounded weights."
    )
    if not network.published.source.is_generator:
        for split, fraction in changed_codes(run, work).items():
            yield f"Rounding changed {fraction:.2%} of the codes of the images ({split})."

    # The same numbers of the weights before.
    before = RunLayout(run).result(network.result_name)
    if not before.is_file():
        return
    old, new = read_result(before)["metrics"], result["metrics"]
    yield ""
    yield "| metric | rounded | as trained |"
    yield "|---|---|---|"
    for metric in (metric for metric in scalars_of(new) if metric in scalars_of(old)):
        yield f"| {title(metric)} | {value_text(new, metric)} | {value_text(old, metric)} |"


# ------------------------------------------------------------------------------------------------ put in place
def require_free(target: Path, pair_folder: Path, parts: list[str], replaces: bool) -> None:
    """Raises UserError where a file of the target would be overwritten by another one."""
    for part in parts:
        for file in FILES:
            old, new = target / part / file, pair_folder / part / file
            is_equal = old.is_file() and new.is_file() and file_sha256(old) == file_sha256(new)
            if old.exists() and not is_equal and not replaces:
                raise refuse(old, "--output", "exists already (--replace replaces it)")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pair_bytes(folder: Path, parts: list[str]) -> int:
    """Bytes of the files of a pair that would be copied."""
    return sum((folder / part / file).stat().st_size for part in parts for file in FILES)


def copy_pair(work: Path, target: Path, parts: list[str]) -> None:
    """Copies the files of a pair, each as a whole."""
    for part in parts:
        (target / part).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            with atomic_file(target / part / file) as temporary:
                shutil.copyfile(work / part / file, temporary)
        logger.info("wrote %s", target / part)
