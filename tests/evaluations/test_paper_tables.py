"""`python -m evaluations.paper_tables`: printed numbers, files and commands of tables with tokenizers."""

import json
import shlex

import pytest
from recipes import CONFIGS

from engine.recipe_names import recipe_files
from evaluations import paper_tables as command
from evaluations import reconstruction
from evaluations.protocols.registry import PROTOCOLS
from evaluations.recipe_headers import facts_of

TABLES = [command.read_table(name) for name in command.table_names()]
ROWS = [(table, row) for table in TABLES for row in table.rows]


def test_both_tables_are_there():
    assert [(table.name, len(table.rows)) for table in TABLES] == [("wetok_3", 25), ("wetok_4", 22)]
    for table, row in ROWS:
        assert bool(row.file) != bool(row.missing) and bool(row.flags) == (row.recipe is None and not row.missing), row
        assert row.numbers.keys() <= {column.name for column in table.columns} and any(row.numbers.values())
        assert {name for numbers in row.numbers.values() for name in numbers} <= command.MEASURED.keys()
        assert row.recipe is None or (row.recipe in recipe_files() and row.file)


def test_headers_of_recipes_have_the_numbers_of_the_table_that_they_name():
    """Each number stands where a person looks for it; the table of the paper is its source."""
    compared = 0
    for table, row in ROWS:
        if row.recipe is None:
            continue
        facts = facts_of(CONFIGS / f"{row.recipe}.yaml")
        if facts.source.startswith(f"WeTok, table {table.name[-1]}"):
            printed = row.numbers["imagenet_256"]
            assert {name: facts.value(name) for name in printed if facts.value(name)} == {
                name: number for name, number in printed.items() if facts.value(name)
            }, row.recipe
            compared += 1
    assert compared >= 14


@pytest.fixture
def printed(entry):
    """`printed(*arguments)`: what the command prints."""

    def call(*arguments):
        code, out, err = entry(command.main, *arguments)
        assert code == 0, err
        return out

    return call


def test_commands_measure_the_files_that_are_there(printed, tmp_path, monkeypatch):
    """One for each column with images; the others are comments, and every command is accepted."""
    files = ("imagenet_256_L.ckpt", "imagenet_128_L.ckpt", "vq_ds16_c2i.pt", "downsample16/WeTok.ckpt")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "val").mkdir()
    shown = printed(
        "wetok_3", "--files", tmp_path, "--images", f"imagenet={tmp_path / 'val'}", "--commands"
    ).splitlines()
    calls = [line for line in shown if not line.startswith("#")]
    assert len(calls) == len(files) and len(shown) == 25
    assert any(line.startswith("# IBQ") and "imagenet256_16384.ckpt is not there" in line for line in shown)
    assert any("not built here" in line for line in shown)

    outputs = set()
    for line in calls:
        program, dash, module, *flags = shlex.split(line)
        assert (program, dash, module) == command.COMMAND
        monkeypatch.setattr("sys.argv", ["entry", *flags])
        args = reconstruction.parse_args()
        assert args.protocol in PROTOCOLS and args.extractor == "inception"
        outputs.add(args.output)
    assert len(outputs) == len(files)
    (narrow,) = (line for line in calls if "imagenet_128_L" in line)
    assert "--image-size 256" in narrow and "--protocol wetok" in narrow


def test_whole_images_have_no_size(printed, tmp_path):
    """Table 4 measures each file on up to four sets; without images it says which are missing."""
    for name in ("pretrain256_16384.ckpt", "vq_ds16_t2i.pt"):
        (tmp_path / name).touch()
    text = printed("wetok_4", "--files", tmp_path, "--images", f"coco={tmp_path}", "--commands")
    calls = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(calls) == 3 and sum("--original-resolution" in line for line in calls) == 1
    assert "# Open-MAGVIT2-I-PT, ImageNet, whole images: name its images, --images imagenet=FOLDER" in text


def test_networks_of_other_programs_need_no_recipe(printed, tmp_path, monkeypatch):
    """A folder of diffusers has a command of its own; one that brings code is for the user to decide."""
    (tmp_path / "FLUX.1-dev" / "vae").mkdir(parents=True)
    (tmp_path / "Cosmos-0.1-Tokenizer-DI16x16").mkdir()
    (tmp_path / "Cosmos-0.1-Tokenizer-DI16x16" / "autoencoder.jit").touch()
    shown = printed("wetok_4", "--files", tmp_path, "--images", f"coco={tmp_path}", "--commands").splitlines()
    (call,) = (line for line in shown if not line.startswith("#"))
    program, dash, module, *flags = shlex.split(call)
    assert (program, dash, module) == command.COMMAND and "--tok-config" not in flags
    monkeypatch.setattr("sys.argv", ["entry", *flags])
    args = reconstruction.parse_args()
    assert (args.image_size, args.protocol, args.trust_jit) == (256, "wetok", False)
    assert args.output.name == "FLUX-VAE-FLUX.1-dev-vae-coco_256.json"
    programs = [line for line in shown if line.startswith("# Cosmos brings code; if you trust its publisher: python")]
    assert len(programs) == 2 and all("--trust-jit" in line for line in programs)
    assert [("--image-size 256" in line, "--original-resolution" in line) for line in programs] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_measured_numbers_stand_beside_printed_ones(printed, tmp_path):
    table = command.read_table("wetok_3")
    (row,) = (row for row in table.rows if row.recipe == "open_magvit2/imagenet_256_L")
    path = command.result_path(tmp_path, table, row, table.columns[0])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metrics": {"rfid": 1.189, "psnr": 22.6}, "protocol": {}}))
    assert "ImageNet, 256 px: rFID 1.17 (here 1.19), PSNR 22.64 (here 22.60)" in printed(
        "wetok_3", "--results", tmp_path
    )
    (record,) = json.loads(printed("wetok_3", "--results", tmp_path, "--json"))
    measured = {row["recipe"]: row["measured"]["imagenet_256"] for row in record["rows"] if row["recipe"]}
    assert measured.pop("open_magvit2/imagenet_256_L") == {"rFID": 1.189, "PSNR": 22.6}
    assert not any(measured.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wetok_5"], "table 'wetok_5' is not known; choose one of: wetok_3, wetok_4"),
        (["--images", "val"], "--images 'val' must be NAME=FOLDER"),
    ],
)
def test_wrong_arguments_are_named(entry, arguments, message):
    code, _, err = entry(command.main, *arguments)
    assert code == 2 and message in err
