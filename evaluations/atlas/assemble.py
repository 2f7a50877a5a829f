"""Puts the page together, with as good pictures as fit into it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from evaluations.atlas.gather import SubjectPart
from evaluations.atlas.page import MAX_BYTES, render
from evaluations.atlas.sheets import fitting_sheets
from evaluations.atlas.subject import Place
from evaluations.report.curves import curves

MAX_CHARTS = 2_000_000  # characters of the charts of one run; where there are more, the page says so
SPARE = 100_000  # bytes that are left free for what is added with the pictures
SAMPLES_SHARE = 1 / 5  # of the room of a subject, at most


def assemble(title: str, parts: Sequence[SubjectPart], places: Sequence[Place], what: str, attribution: str) -> str:
    """The whole page as HTML, at most `MAX_BYTES` long. Raises UserError where the pictures do not fit.

    `what` says which images it is about, `attribution` who made them.
    """
    charts = [charts_of(place) for place in places]
    num_images = len(parts[0].facts["tokens"]["images"])
    summary = f"{num_images} of {parts[0].num_counted:,} {what}; codes are counted over all of these."
    footer = f"<footer>{escape(attribution)}</footer>" if attribution else ""

    # Everything but the many pictures, which tells how much room these have.
    subjects = [part.facts for part in parts]
    fixed_size = len(render(title, summary, subjects, charts, footer).encode())
    take_pictures(parts, MAX_BYTES - fixed_size - SPARE)
    return render(title, summary, subjects, charts, footer)


def take_pictures(parts: Sequence[SubjectPart], room: int) -> None:
    """Stores the pictures of all subjects in `room` characters, an equal share for each."""
    for part in parts:
        room_left = room // len(parts)
        if part.samples is not None:
            (sheet,) = fitting_sheets([part.samples.pictures], int(SAMPLES_SHARE * room_left), "the samples")
            part.take_samples(sheet)
            room_left -= len(sheet.uri)
        sets = [replacements.pictures for replacements in part.replacements]
        part.take_replacements(fitting_sheets(sets, room_left, "the pictures of replaced tokens"))


def charts_of(place: Place) -> str:
    """The training curves of a run as HTML."""
    run = place.run_folder()
    text = curves(run) if run is not None else ""
    if len(text) > MAX_CHARTS:
        return '<p class="note">The training curves are too long for this page; the report of the run has them.</p>'
    return text
