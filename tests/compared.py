"""What the parity tests of this run compared, for the summary at the end of it."""

import os
from pathlib import Path

OWN_GOLDENS = Path(__file__).parent / "goldens"
GOLDENS = Path(os.environ.get("PARITY_GOLDENS") or OWN_GOLDENS)
DEVICE = os.environ.get("PARITY_DEVICE") or "cpu"  # where the networks run that are compared with goldens
COMPARISONS: list[tuple[float, float, str]] = []  # (difference, limit, what)
