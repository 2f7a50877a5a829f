"""What the comment on top of a recipe says, in lines that programs read too.

# GigaTok S-S (136M), 256 px, ImageNet: 256 tokens of 16,384 codes.      what it is, with its parameters
# Published: rFID 1.01, LPIPS 0.2226            numbers of the authors; (LABEL) says what they are of, where there
# Published (stage 2): rFID 3.90                are several
# Source: GigaTok README, S-S                   where they stand
# Measure: --protocol wetok                     flags of evaluations.reconstruction with which they are measured
# Released: S-S | [file.pt](https://...)        a checkpoint: name, for a GPT whose codes, file
# Cost: 32.2 GB on each of 8 GPUs, by --plan 8. Time: neither published nor measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

FACTS = re.compile(r"(Published|Source|Measure|Released|Parameters|Cost)\b.*:")  # lines that are no prose
SIZE = re.compile(r" \((\d[\d.]*)([MB])\)")
COST = re.compile(r"Cost: ([\d.]+) GB on each of (\d+) GPUs")


@dataclass
class Facts:
    """The numbers and files that a header names."""

    numbers: dict[str, dict[str, str]] = field(default_factory=dict)  # metric -> {label: value}
    source: str = ""
    measure: str = ""  # flags of evaluations.reconstruction
    released: list[list[str]] = field(default_factory=list)
    parameters: str = ""  # of the network, such as 136M
    cost: tuple[float, int] | None = None  # (GB per GPU, GPUs) of its command

    def value(self, metric: str, label: str = "") -> str:
        """One number; that without a label where there is none of `label`."""
        values = self.numbers.get(metric, {})
        return values.get(label, values.get("", ""))


def header_lines(path: Path) -> list[str]:
    """The comment on top of a YAML file; lines that are indented belong to those above."""
    comment = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))[0]
    return re.sub(r"\n# {3,}", " ", comment).replace("# ", "").splitlines()


def header_of(path: Path) -> str:
    """The comment on top of a YAML file in one line, without the facts."""
    return " ".join(line for line in header_lines(path) if not FACTS.match(line))


def summary_of(path: Path) -> str:
    """What a recipe is, in a few words: the first sentence of its header up to the first colon, without its size."""
    sentence = re.split(r"\.\s", header_of(path))[0]
    summary = re.sub(r"^Overlay for \S+: ", "", sentence).partition(": ")[0]
    return SIZE.sub("", summary)


def facts_of(path: Path) -> Facts:
    """Reads the lines of a header that are no prose, and the size in its prose."""
    # The lines that begin with the name of a fact.
    facts = Facts()
    for line in header_lines(path):
        if published := re.match(r"Published(?: \((.*)\))?: (.*)", line):
            for item in published[2].split(", "):
                metric, _, value = item.rpartition(" ")
                facts.numbers.setdefault(metric, {})[published[1] or ""] = value
        elif line.startswith("Source: "):
            facts.source = line.removeprefix("Source: ")
        elif line.startswith("Measure: "):
            facts.measure = line.removeprefix("Measure: ")
        elif line.startswith("Released: "):
            facts.released.append([cell.strip() for cell in line.removeprefix("Released: ").split("|")])
        elif line.startswith("Parameters: "):
            facts.parameters = line.removeprefix("Parameters: ").rstrip(".")
        elif cost := COST.match(line):
            facts.cost = (float(cost[1]), int(cost[2]))

    # A size in the prose counts before that of a line.
    size = SIZE.search(header_of(path))
    if size:
        facts.parameters = f"{size[1]}{size[2]}"
    return facts
