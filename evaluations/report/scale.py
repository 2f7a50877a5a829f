"""What a number of a card should be seen beside: the images behind it, and other values that give it a scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import fingerprint, load_strict, read_weights
from engine.facts import changed_facts
from engine.messages import UserError
from engine.run_log import read_metrics
from evaluations.digits.model import Classifier, find_classifier
from evaluations.metrics.registry import find_metric, shown
from evaluations.report.run_folder import RunFolder
from evaluations.results import IGNORED_FACTS

Result = Mapping[str, Any]


def scale_of(metric: str, result: Result, run: RunFolder) -> str:
    """What a reader needs to judge a number of a result of a run; empty where nothing is known."""
    return "; ".join([*_about_images(metric, result), *_about_scale(metric, result, run)])


# ------------------------------------------------------------------------------------------------ images
def _about_images(metric: str, result: Result) -> Iterator[str]:
    """Over how many images, or code sequences, a number was measured."""
    protocol = result["protocol"]
    known = find_metric(metric)
    count = protocol.get("num_images")
    if known is None or not count or metric == "bits_per_image":
        return

    # One set of images, or two that are compared.
    reference = (protocol.get("reference") or {}).get("num_images")
    training = (protocol.get("training_codes") or {}).get("num_images")
    if "reference" in known.depends_on and reference:
        yield f"{count:,} images against {reference:,} real ones"
    elif "training_codes" in known.depends_on and training:
        yield f"{count:,} sequences against those of {training:,} training images"
    else:
        yield f"of {count:,} images"


# ------------------------------------------------------------------------------------------------ scale
def _about_scale(metric: str, result: Result, run: RunFolder) -> Iterator[str]:
    """Other values beside which a number can be judged, or what it consists of."""
    protocol = result["protocol"]
    known = find_metric(metric)
    if known is not None and known.anchors:
        yield from _anchors(known.anchors, protocol.get("reference"), run)
    if metric == "bits_per_image":
        yield from _bits(result)
    if metric == "codebook_usage" and protocol.get("codebook_size"):
        yield _codebooks(result)
    if metric == "label_agreement":
        accuracy = classifier_accuracy(run, (protocol.get("classifier") or {}).get("fingerprint"))
        yield (
            "the classifier's own accuracy on real images is not on record"
            if accuracy is None
            else f"the classifier itself is right on {accuracy:.1%} of real held-out images"
        )


def _anchors(anchors: Mapping[str, str], reference: Any, run: RunFolder) -> Iterator[str]:
    """Values of the same distance to the same reference for other images: `held-out real images 4.406 (500)`."""
    texts = []
    for name, what in anchors.items():
        for result in run.results.values():
            of_result = result["protocol"].get("reference")
            differences = changed_facts({"reference": reference}, {"reference": of_result})
            if name in result["metrics"] and not differences.keys() - set(IGNORED_FACTS):
                count = result["protocol"].get("num_images")
                texts.append(f"{what} {shown(name, result['metrics'][name])}{f' ({count:,})' if count else ''}")
                break
    if texts:
        yield f"for scale: {', '.join(texts)}"


def _bits(result: Result) -> Iterator[str]:
    """Tokens times bits; nothing where images have different numbers of tokens."""
    num_tokens = result["protocol"].get("num_tokens")
    if num_tokens:
        yield f"{num_tokens:,} tokens x {result['metrics']['bits_per_image'] / num_tokens:.4g} bits"


def _codebooks(result: Result) -> str:
    """How many codes there are: `256 codes`, or `2 x 256 codes` where a token has two indices of that size."""
    size = result["protocol"]["codebook_size"]
    num_tokens, bits = result["protocol"].get("num_tokens"), result["metrics"].get("bits_per_image")
    groups = bits / num_tokens / math.log2(size) if num_tokens and bits and size > 1 else 1.0
    is_several = groups > 1.5 and math.isclose(groups, round(groups))
    return f"{round(groups)} x {size:,} codes" if is_several else f"{size:,} codes"


def classifier_accuracy(run: RunFolder, expected: str | None) -> float | None:
    """The accuracy on held-out images of the classifier of a run, in 0..1.

    None where it is not on record, or where the weights in the run's folder are not the `expected` ones (a
    fingerprint), which judged the images.
    """
    folder = run.layout.classifier
    if expected is None or not folder.is_dir():
        return None
    try:
        weights, config = find_classifier(folder, classes=None)
        network = Classifier(config)
        load_strict(network, read_weights(weights.path), weights.path)
    except (UserError, CheckpointError):  # missing or damaged; whoever loads it says so
        return None
    if fingerprint(network) != expected:
        return None
    accuracies = [record["val/accuracy"] for record in read_metrics(folder) if "val/accuracy" in record]
    return accuracies[-1] if accuracies else None
