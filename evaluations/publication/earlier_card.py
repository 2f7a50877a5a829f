"""The card that lies beside weights already, from when they were published or made part of the program.

Such weights have no run folder: their card is all that is known of them. What it says is published again with the same
weights: its license, what it knows of their training, and the results, each with its protocol. It is read as
`evaluations.publication.card` writes it, and only where it names these very weights; other text is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from itertools import takewhile
from pathlib import Path

from evaluations.publication.markdown import read_plain, read_table
from evaluations.results import TRAINED_SECTIONS

CARD_FILE = "README.md"
FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
LICENSE_NAME = r"[a-z0-9][a-z0-9.+-]*"  # of SPDX, in lower case, as the hub wants it
LICENSE = re.compile(rf"^license: ({LICENSE_NAME})$", re.MULTILINE)
# A result: its name, its table, notes, and its protocol with one fact a line.
RESULT = re.compile(
    r"^### (?P<name>[^\n]+)\n\n(?P<table>(?:\|[^\n]*\n)+)\n(?P<notes>(?:(?!#|<)[^\n]*\n)*)"
    r"<details><summary>protocol</summary>\n\n<pre>\n(?P<protocol>.*?)\n</pre>",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class CardResult:
    """A result as a card tells it: what `evaluations.publication.measured.MeasuredResult` says of a result file."""

    name: str  # for the heading: what was measured
    table: list[list[str]]
    remarks: list[str]
    facts: list[str]

    def rows(self) -> list[list[str]]:
        """A head, then metric, value and the columns of errors."""
        return self.table

    def notes(self) -> list[str]:
        """What is missing, and what should not be trusted."""
        return self.remarks

    def protocol(self) -> list[str]:
        """How the numbers were made, one fact a line."""
        return self.facts

    @property
    def fingerprint(self) -> str | None:
        """The weights that were measured: of a tokenizer and a generator, those of the generator."""
        facts = dict(fact.split(": ", 1) for fact in self.facts if ": " in fact)
        named = [facts.get(f"{network}.fingerprint") for network in TRAINED_SECTIONS]
        return next((fingerprint for fingerprint in reversed(named) if fingerprint), None)


@dataclass(frozen=True)
class EarlierCard:
    """A card, by its text."""

    text: str

    @property
    def license(self) -> str | None:
        """The license of the weights, where the card states one."""
        front = FRONT_MATTER.match(self.text)
        stated = LICENSE.search(front[1]) if front else None
        return stated[1] if stated else None

    def describes(self, kind: str, fingerprint: str) -> bool:
        """Whether its network of this kind, `tokenizer` or `generator`, has these weights."""
        return self._facts(kind.capitalize()).get("fingerprint") == fingerprint

    def training_facts(self, kind: str) -> Mapping[str, str]:
        """{row: text} of what it says of the training of a network: the state of the weights, recipe, images."""
        state = {row: text for row, text in self._facts(kind.capitalize()).items() if row == "weights"}
        return self._facts(f"Training of the {kind}") | state

    def results(self, fingerprints: Collection[str]) -> Iterator[CardResult]:
        """The results that were measured with one of these weights."""
        for match in RESULT.finditer(self._section("Results")):
            remarks = [read_plain(line) for line in match["notes"].splitlines() if line]
            facts = [unescape(line) for line in match["protocol"].splitlines()]
            result = CardResult(read_plain(match["name"]), read_table(match["table"].splitlines()), remarks, facts)
            if result.fingerprint in fingerprints:
                yield result

    def _section(self, heading: str) -> str:
        """The text below a heading, up to the next one of its level."""
        _, found, below = f"\n{self.text}".partition(f"\n## {heading}\n")
        return below.partition("\n## ")[0] if found else ""

    def _facts(self, heading: str) -> dict[str, str]:
        """The table of two columns below a heading."""
        lines = self._section(heading).lstrip("\n").splitlines()
        rows = read_table(takewhile(lambda line: line.startswith("|"), lines))
        return {row[0]: row[1] for row in rows if len(row) == 2}


def card_of(folder: Path, kind: str, fingerprint: str) -> EarlierCard | None:
    """The card of the weights in `folder`: beside them, or at the top of a publication of several networks."""
    for file in (folder / CARD_FILE, folder.parent / CARD_FILE):
        if file.is_file():
            card = EarlierCard(file.read_text(encoding="utf-8", errors="replace"))
            if card.describes(kind, fingerprint):
                return card
    return None


def license_of(cards: Iterable[EarlierCard | None]) -> str | None:
    """The license that the cards of all networks state; None where one has no card or no license, or they differ."""
    stated = {card.license if card is not None else None for card in cards}
    return stated.pop() if len(stated) == 1 else None
