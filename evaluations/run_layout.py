"""Where the pipelines put the parts of a run, and where the report looks for them."""

from __future__ import annotations

from pathlib import Path

REPORT_STAGE = "report"  # of every pipeline; it writes the page while it runs itself
SWEEP_RECORD = "sweep.json"  # in the folder of a sweep: its runs with their values


class RunLayout:
    """The folders of a run. `root` is the folder of the whole run; nothing needs to exist."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

        # Trained networks, each a run folder of its own.
        self.tokenizer = self.root / "tokenizer"
        self.generator = self.root / "gpt"
        self.classifier = self.root / "classifier"
        self.text_reader = self.root / "text_reader"
        self.generator_probe = self.root / "linear_probe_gpt"
        self.tokenizer_probe = self.root / "linear_probe_tokenizer"

        # What else the stages write.
        self.codes = self.root / "codes"
        self.samples = self.root / "samples"
        self.evaluations = self.root / "evaluations"
        self.ar_probe = self.root / "ar_probe"

    def result(self, name: str) -> Path:
        """The file of one evaluation, such as `reconstruction`."""
        return self.evaluations / f"{name}.json"

    def arrays(self, name: str) -> Path:
        """The arrays beside the result `name`."""
        return self.evaluations / f"{name}.npz"
