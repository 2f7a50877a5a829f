"""The memory table: every cell is measured or says why not, and the factorized form stays flat."""

import json

from evaluations import memory


def test_the_table_has_every_cell(tmp_path, entry):
    """At batch 2: naive LFQ with 16 bits costs many times what the factorized form does; 40 bits are refused with the
    bytes they need and the groups that would fit; the sample entropy alone always fits.
    """
    factorized = memory.FACTORIZED.name
    output = tmp_path / "memory.json"
    sizes = ("--channels", "16", "40", "--batch-size", "2")
    code, out, err = entry(memory.main, *sizes, "--output", output)
    assert code == 0, err
    cells = {(c["method"], c["form"], c["channels"]): c for c in json.loads(output.read_text())["cells"]}
    assert len(cells) == 14 and out.count("\n| ") == 8 - 1
    assert cells["LFQ", "naive", 16]["mb"] > 200
    for method, form in (("LFQ", factorized), ("GQ", factorized), ("BSQ", factorized), ("BSQ", "naive")):
        assert cells[method, form, 16]["mb"] < 40
    assert cells["GQ", factorized, 40]["mb"] < 40 and cells["LFQ", memory.SAMPLE_ENTROPY_ALONE.name, 40]["mb"] < 40
    refused = cells["LFQ", factorized, 40]["refused"]
    assert "bytes" in refused and "num_groups=2 would fit for 40 channels" in refused


def test_channels_that_are_no_multiple_of_8_are_refused(entry):
    code, _, err = entry(memory.main, "--channels", "12")
    assert code == 2 and "multiples of 8" in err
