"""Tokenizers of flexible length: what an image loses with fewer tokens, as their last validation measured it."""

from __future__ import annotations

from engine.run_log import read_metrics
from evaluations.report.charts import Points, line_chart
from evaluations.report.curves import trainings_of
from evaluations.report.page import section
from evaluations.report.pictures import KINDS
from evaluations.report.records import Records
from evaluations.report.run_folder import RunFolder

PSNR, USAGE = "psnr_tokens_", "codebook_usage_from_token_"


def lengths(run: RunFolder) -> str:
    """PSNR of held-out images over the number of their tokens, and the codes that each part of the tokens uses."""
    # Two charts for each training that has measured it, of its last validation.
    charts = []
    for training in trainings_of(run):
        psnrs, usages = lengths_of(read_metrics(training.folder))
        if psnrs:
            charts.append(line_chart("PSNR by number of tokens", psnrs, "dB", "tokens"))
            charts.append(line_chart("Codebook usage from a token to the next length", usages, "% of codes", "token"))

    # What they say, above them.
    text = (
        "<p>Held-out images, decoded from their first tokens, at the last validation. Tokens at the end that use few "
        "codes say little.</p>"
    )
    content = f'{text}<div class="charts">{"".join(charts)}</div>' if charts else ""
    return section("Images from fewer tokens", content, "lengths")


def lengths_of(records: Records) -> tuple[dict[str, Points], dict[str, Points]]:
    """(PSNR over the number of tokens, % of codes over the first token of a part), each by the name of the weights.

    Of the last validation that measured them, ascending; without weights that it did not measure.
    """
    psnrs: dict[str, Points] = {}
    usages: dict[str, Points] = {}
    for kind, name in KINDS.items():
        prefix = f"{kind}/"
        measured = [record for record in records if any(key.startswith(prefix + PSNR) for key in record)]
        if measured:
            psnrs[name] = _points(measured[-1], prefix + PSNR)
            usages[name] = [(first, 100 * usage) for first, usage in _points(measured[-1], prefix + USAGE)]
    return psnrs, usages


def _points(record: dict[str, float], prefix: str) -> Points:
    """[(number in the key, value), ...] by ascending number, of the keys that are `prefix` and a number."""
    values = {int(key.removeprefix(prefix)): value for key, value in record.items() if key.startswith(prefix)}
    return sorted(values.items())
