"""Tokenizers of flexible length: what an image loses with fewer tokens, as their last validation measured it."""

from __future__ import annotations

from engine.run_log import read_metrics
from evaluations.report.charts import Points, line_chart
from evaluations.report.curves import trainings_of
from evaluations.report.page import section
from evaluations.report.run_folder import RunFolder

PSNR, USAGE = "val/psnr_tokens_", "val/codebook_usage_from_token_"


def lengths(run: RunFolder) -> str:
    """PSNR of held-out images over the number of their tokens, and the codes that each part of the tokens uses."""
    # Two charts for each training that has measured it, of its last validation.
    charts = []
    for training in trainings_of(run):
        records = [record for record in read_metrics(training.folder) if any(key.startswith(PSNR) for key in record)]
        if not records:
            continue
        psnrs, usages = lengths_of(records[-1])
        charts.append(line_chart("PSNR by number of tokens", {"held out": psnrs}, "dB", "tokens"))
        charts.append(
            line_chart("Codebook usage from a token to the next length", {"held out": usages}, "% of codes", "token")
        )

    # What they say, above them.
    text = (
        "<p>Held-out images, decoded from their first tokens, at the last validation. Tokens at the end that use few "
        "codes say little.</p>"
    )
    content = f'{text}<div class="charts">{"".join(charts)}</div>' if charts else ""
    return section("Images from fewer tokens", content, "lengths")


def lengths_of(record: dict[str, float]) -> tuple[Points, Points]:
    """(PSNR over the number of tokens, % of codes over the first token of a part) of a validation, ascending."""
    usages = [(first, 100 * usage) for first, usage in _points(record, USAGE)]
    return _points(record, PSNR), usages


def _points(record: dict[str, float], prefix: str) -> Points:
    """[(number in the key, value), ...] by ascending number, of the keys that are `prefix` and a number."""
    values = {int(key.removeprefix(prefix)): value for key, value in record.items() if key.startswith(prefix)}
    return sorted(values.items())
