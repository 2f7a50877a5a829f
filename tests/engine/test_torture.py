"""The short form of `bash scripts/torture.sh`: SIGKILL from outside, in one process and to one of two."""

import json

from torture import torture


def test_killed_runs_are_the_runs_that_nobody_killed(tmp_path):
    """Six kills of a GPT, a probe and a two-process GPT: every newest checkpoint and every end has the fingerprint of
    the unbroken run.
    """
    job = torture(tmp_path, kills=6, seed=0, names=("gpt x1", "probe x1", "gpt x2"))
    lines = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert (job.kills.total(), job.differences, job.unreadable) == (6, 0, 0)
    assert len(lines) == 6 and all(line["same"] and line["digest"] and line["phase"] for line in lines)
    assert any(line["case"] == "gpt x2" for line in lines)
