"""The first screen of a page of one run: what it is, how it ended, and its most wanted numbers with their meaning."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from engine.counts import counted
from engine.pipeline import StageLog
from engine.run_log import read_metrics
from evaluations.metrics.registry import headline_metrics, meaning, title
from evaluations.report.curves import Training, trainings_of
from evaluations.report.ending import (
    Ending,
    date_text,
    duration_text,
    pipeline_ending,
    progress_of,
    starts_of,
    training_ending,
    warnings_of,
)
from evaluations.report.networks import network_facts, network_text
from evaluations.report.page import Card, cards, details, section
from evaluations.report.records import RECORDED_VALUES, best_step, newest_values
from evaluations.report.run_folder import RunFolder, config_of
from evaluations.report.scale import scale_of
from evaluations.result_intervals import value_text
from evaluations.results import forced_mark, scalars_of

MAX_WARNINGS = 30  # that are listed


# ------------------------------------------------------------------------------------------------ how it went
def ending_of(run: RunFolder) -> Ending:
    """How a run ended: a single training by its own log, a pipeline by its stages, else by its trainings."""
    if run.is_training:
        return training_ending(run.path)
    of_pipeline = pipeline_ending(run.path)
    if of_pipeline is not None:
        return of_pipeline
    endings = [(training, training_ending(training.folder)) for training in trainings_of(run) if training.exists]
    for training, ending in endings:
        if ending.state != "finished":
            return Ending(ending.state, f"{training.title}: {ending.text}")
    counts = [(len(endings), "training"), (len(run.results), "result")]
    return Ending("finished", " and ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts))


def network_list(lines: Sequence[str]) -> str:
    """One line per network; empty text without any."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="networks">{items}</ul>' if items else ""


def badge(ending: Ending) -> str:
    """The state as a colored word, and the sentence behind it."""
    return f'<p class="ending"><span class="badge {ending.state}">{ending.state}</span> {escape(ending.text)}</p>'


def device_text(start: Mapping[str, Any]) -> str:
    """What a training computed on: `1 process on cpu (2 threads)`."""
    device = start.get("device") or {}
    name = device.get("name") or device.get("type", "an unknown device")
    threads = f" ({device['threads']} threads)" if "threads" in device else ""
    count = start.get("processes", 1)
    return f"{count} process{'es' if count != 1 else ''} on {name}{threads}"


def facts_of_training(training: Training) -> list[tuple[str, str]]:
    """(name, text) of when and where a network was trained."""
    # When.
    progress = progress_of(training.folder)
    facts = []
    if progress.began is not None:
        facts.append(("began", date_text(progress.began)))
    if progress.seconds:
        starts = f" in {progress.starts} starts" if progress.starts > 1 else ""
        facts.append(("took", duration_text(progress.seconds) + starts))

    # On what, and by which code: as of the newest start.
    all_starts = starts_of(training.folder)
    if all_starts:
        newest = all_starts[-1]
        facts.append(("on", device_text(newest)))
        git = newest.get("git") or {}
        sha = str(git.get("sha", "unknown"))[:10]
        facts.append(("code", f"commit {sha}{' with changes' if git.get('dirty') is True else ''}"))
    return facts


def fact_list(facts: Sequence[tuple[str, str]]) -> str:
    """Names with their texts, in one line where there is room."""
    return '<dl class="facts">' + "".join(f"<dt>{escape(n)}</dt><dd>{escape(text)}</dd>" for n, text in facts) + "</dl>"


def command_text(arguments: Sequence[str]) -> str:
    """The command line of a start, by its module instead of the path of the file; that of `vt` as it was typed."""
    if arguments[0].startswith("vt "):
        return f"{arguments[0]} {shlex.join(arguments[1:])}"
    program = PurePath(arguments[0])
    module = ".".join([*program.parts[-2:-1], program.stem]).removesuffix(".__main__")
    return f"python -m {module} {shlex.join(arguments[1:])}"


# ------------------------------------------------------------------------------------------------ numbers
def result_cards(run: RunFolder) -> list[Card]:
    """The most wanted numbers of the results. If several have one, the first counts; probes are told apart."""
    order = headline_metrics()
    chosen: dict[tuple[str, str], Card] = {}
    for name, result in run.results.items():
        for metric in scalars_of(result["metrics"]):
            where = f" ({name})" if metric == "top1" else ""
            if metric in order and (metric, where) not in chosen:
                number = f"{value_text(result['metrics'], metric)}{forced_mark(metric, result)}"
                scale = scale_of(metric, result, run)
                chosen[metric, where] = Card(number, title(metric) + where, meaning(metric), scale)
    return [chosen[key] for key in sorted(chosen, key=lambda key: order.index(key[0]))]


def training_cards(training: Training) -> list[Card]:
    """The newest recorded values of a training; where an earlier validation was better, the card says so."""
    records = read_metrics(training.folder)
    newest = newest_values(records)
    chosen = []
    for value in RECORDED_VALUES:
        if value.key not in newest:
            continue
        text = value.explanation
        best = best_step(records, value) if value.is_validation else None
        if best is not None and best[1] != newest[value.key]:
            text += f"; best {value.text(best[1])} at step {best[0]:,}"
        chosen.append(Card(value.text(newest[value.key]), value.full_title, text))
    return chosen


# ------------------------------------------------------------------------------------------------ the screen
def first_screen(run: RunFolder) -> str:
    """What the run is, how it ended, and its headline numbers."""
    trainings = [training for training in trainings_of(run) if training.exists]
    parts = [network_list([network_text(training.title, network_facts(training)) for training in trainings])]
    parts.append(badge(ending_of(run)))
    if run.is_training:
        parts.append(fact_list(facts_of_training(trainings[0])))

    # The numbers of results; those of the training where there are none.
    chosen = result_cards(run)
    if not chosen and len(trainings) == 1:
        chosen = training_cards(trainings[0])
    parts.append(cards(chosen))
    if any("lite0" in card.name for card in chosen):
        parts.append(
            "<p>frechet_lite0 is a Frechet distance of EfficientNet-Lite0 features. It is not FID, and has no unit: "
            "read it beside the values of real images and of noise. It depends on the number of images.</p>"
        )
    return "".join(parts)


def provenance(run: RunFolder) -> str:
    """How the networks were trained: when, where, the commands, the configs, and what the logs warned of."""
    parts = []
    for training in trainings_of(run):
        if not training.exists:
            continue
        commands = dict.fromkeys(
            command_text(start["command"]) for start in starts_of(training.folder) if start.get("command")
        )
        config = config_of(training.folder)
        warnings = warnings_of(training.folder)
        content = [
            fact_list(facts_of_training(training)) if not run.is_training else "",
            details("command", f"<pre>{escape(chr(10).join(commands))}</pre>" if commands else ""),
            details("config", f"<pre>{escape(OmegaConf.to_yaml(config))}</pre>" if config else ""),
            details(
                f"{counted(len(warnings), 'warning')} in the log", _list(warnings[:MAX_WARNINGS]) if warnings else ""
            ),
        ]
        heading = "" if run.is_training else f"<h3>{escape(training.title)}</h3>"
        parts.append(heading + "".join(content))

    log = StageLog(run.path)
    if log.stages:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td class='n'>{duration_text(stage['seconds'])}</td></tr>"
            for name, stage in log.stages.items()
        )
        parts.append(f"<h3>Time of the stages</h3><table><tbody>{rows}</tbody></table>")
    return section("How it was made", "".join(parts), "made")


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
