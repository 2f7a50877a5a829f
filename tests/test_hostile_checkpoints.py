"""Checkpoint files that would do harm: nothing in them runs, memory stays bounded, one clear message names the file.

Every file goes through the reader in a process of its own whose memory is limited, so a test that fails cannot hurt.
"""

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint.foreign.reader import read_checkpoint
from engine.messages import UserError

ROOT = Path(__file__).parents[1]
SPARE_MEMORY = 700 * 2**20  # bytes beyond what Python with torch takes

READ = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from engine.checkpoint.foreign.reader import read_checkpoint
from engine.messages import UserError

before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + {SPARE_MEMORY},) * 2)
for path in sys.argv[1:]:
    try:
        weights = read_checkpoint(path)
        total = sum(float(t.float().sum()) for t in weights.state.values())
        print("READ", path, sorted(weights.state), weights.foreign)
    except UserError as error:
        print("REFUSED", str(error).replace(chr(10), " ")[:600])
"""


def read_apart(*paths: Path, cwd: Path) -> list[str]:
    """One line per file: what a process with little memory said of it."""
    command = [sys.executable, "-c", READ, *map(str, paths)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


# ---------------------------------------------------------------------------------------------- files by hand
def torch_zip(
    path: Path, pickled: bytes, records: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED
) -> Path:
    """A file as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in (records or {}).items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(elements: int, key: str = "0") -> bytes:
    """The instructions for a storage of float32."""
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(elements) + b"tQ"


def build_vector(shape: int, stored: bytes, stride: int = 1, offset: int = 0) -> bytes:
    """The instructions for a vector of `shape` elements in a storage."""
    build = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return build + stored + number(offset) + number(shape) + b"\x85" + number(stride) + b"\x85\x89}tR"


def tensor(elements: int, shape: int, stride: int = 1, offset: int = 0) -> bytes:
    """The instructions for a vector of `shape` elements in a storage that claims to have `elements`."""
    return build_vector(shape, storage(elements), stride, offset)


def state_dict(value: bytes) -> bytes:
    return b"\x80\x02}" + text("x") + value + b"s."


def model_with(value: bytes) -> bytes:
    """A healthy tensor, and beside it whatever `value` makes."""
    return b"\x80\x02}" + text("model") + b"}" + text("x") + tensor(4, 4) + b"ss" + text("other") + value + b"s."


GOOD = {"0": struct.pack("<4f", 1, 2, 3, 4)}


def test_the_files_by_hand_are_what_torch_writes(tmp_path):
    """Otherwise the tests below would show nothing."""
    path = torch_zip(tmp_path / "x.pt", state_dict(tensor(4, 4)), GOOD)
    assert torch.equal(read_checkpoint(path).state["x"], torch.tensor([1.0, 2.0, 3.0, 4.0]))


# ---------------------------------------------------------------------------------------------- code
def calls(marker: Path) -> dict[str, bytes]:
    """Instructions that would leave a file behind, each in another way."""
    command = f"touch {marker}"
    write = f"open({str(marker)!r}, 'w')"
    return {
        "reduce": b"cposix\nsystem\n" + text(command) + b"\x85R",
        "eval": b"cbuiltins\neval\n" + text(write) + b"\x85R",
        "exec": b"c__builtin__\nexec\n" + text(write) + b"\x85R",
        "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR" + text(command) + b"\x85R",
        "inst": b"(" + text(command) + b"ios\nsystem\n",
        "obj": b"(cos\nsystem\n" + text(command) + b"o",
        "newobj": b"csubprocess\nPopen\n(" + text("touch") + text(str(marker)) + b"l\x85\x81",
        "newobj_ex": b"cos\nsystem\n" + text(command) + b"\x85}\x92",
        "stack_global": text("os") + text("system") + b"\x93" + text(command) + b"\x85R",
        "dotted": text("os") + text("path.os.system") + b"\x93" + text(command) + b"\x85R",
        "build": b"cevil_module\nEvil\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb",
        "import": b"cevil_module\nanything\n",
        "called stub": b"cevil_module\nEvil\n)R" + text(command) + b"\x85R",
        "torch loader": b"ctorch.storage\n_load_from_bytes\nC" + bytes([4]) + b"cos." + b"\x85R",
        "rebuild": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN" + text(command) + b"\x85NtR",
        "reconstructor": b"ccopy_reg\n_reconstructor\n(cevil_module\nEvil\ncbuiltins\nobject\nNtR",
    }


NAMES = tuple(calls(Path("x")))


def test_nothing_runs_and_nothing_is_imported(tmp_path):
    """The weights beside it are read. `evil_module` lies where Python would find it, and would leave a file behind."""
    marker = tmp_path / "ran"
    evil = f"open({str(marker)!r}, 'w')\nclass Evil:\n    def __setstate__(self, state): open({str(marker)!r}, 'w')\n"
    (tmp_path / "evil_module.py").write_text(evil)
    paths = [torch_zip(tmp_path / f"{name}.pt", model_with(value), GOOD) for name, value in calls(marker).items()]
    lines = read_apart(*paths, cwd=tmp_path)
    assert not marker.exists()
    assert [line.split()[0] for line in lines] == ["READ"] * len(NAMES), "\n".join(lines)
    assert all("['x']" in line for line in lines)
    assert "posix.system" in lines[0]


@pytest.mark.parametrize("name", ["reduce", "eval", "inst", "stack_global", "import"])
def test_the_files_are_not_harmless(name, tmp_path):
    """pickle itself does run them."""
    marker = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w')\nanything = 1\n")
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
    pickled = b"\x80\x04" + calls(marker)[name] + b"."
    subprocess.run([sys.executable, "-c", code, pickled.hex()], cwd=tmp_path, check=False, capture_output=True)
    assert marker.exists()


def test_old_files_and_plain_pickles_run_nothing_either(tmp_path):
    marker = tmp_path / "ran"
    harm = calls(marker)["reduce"]
    start = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    (tmp_path / "plain").write_bytes(b"\x80\x02" + harm + b".")
    (tmp_path / "first").write_bytes(b"\x80\x02" + harm + b"." + b"".join(start[1:]))
    (tmp_path / "system").write_bytes(b"".join(start[:2]) + b"\x80\x02" + harm + b"." + b"\x80\x02}." + b"\x80\x02].")
    (tmp_path / "keys").write_bytes(b"".join(start) + b"\x80\x02}." + b"\x80\x02" + harm + b".")
    lines = read_apart(*(tmp_path / name for name in ("plain", "first", "system", "keys")), cwd=tmp_path)
    assert not marker.exists()
    assert [line.split()[0] for line in lines] == ["REFUSED"] * 4, "\n".join(lines)


# ---------------------------------------------------------------------------------------------- memory
HUGE = 10 * 2**30 // 4  # elements of 10 GB


def old_file(elements: int) -> bytes:
    """A file of the old format whose only storage claims to have `elements`."""
    start = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    keys = pickle.dumps(["0"], protocol=2)
    return b"".join(start) + state_dict(tensor(elements, elements)) + keys + struct.pack("<q", elements) + bytes(64)


def hostile(folder: Path) -> dict[str, Path]:
    """Files that would take much memory, or overflow a stack."""
    deep = b"]" * 200 + b"a" * 199
    claims = {
        "storage of 10 GB": state_dict(tensor(HUGE, HUGE)),
        "tensor of 10 GB in a small storage": state_dict(tensor(4, HUGE)),
        "repeated number of 10 GB": state_dict(tensor(4, HUGE, stride=0)),
        "offset": state_dict(tensor(4, 1, offset=HUGE)),
        "negative": state_dict(tensor(-4, -4)),
        "negative stride": state_dict(tensor(4, 4, stride=-1)),
        "huge integer": state_dict(b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20),
        "bytearray of 10 GB": state_dict(b"cbuiltins\nbytearray\n" + number(4 * HUGE) + b"\x85R"),
        "text of 1 GB": state_dict(b"X" + struct.pack("<I", 2**30) + b"short"),
        "bytes of 10 GB": b"\x80\x04\x8e" + struct.pack("<Q", 4 * HUGE) + b"short.",
        "bytearray8 of 10 GB": b"\x80\x05\x96" + struct.pack("<Q", 4 * HUGE) + b"short.",
        "frame of 10 GB": b"\x80\x04\x95" + struct.pack("<Q", 4 * HUGE) + b"N.",
        "memo": b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".",
        "nested lists": state_dict(deep),
        "nested tuples": state_dict(b")" + b"\x85" * 200_000),
        "nested key": b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.",
        "marks": b"\x80\x02" + b"(" * 100_000 + b".",
        "billion laughs": state_dict(b")" + b"2\x86" * 60),
        "instructions": b"\x80\x02" + b"]0" * 1_500_000 + b"}.",
        "no end": b"\x80\x02]" + b"]" * 1000,
        "pop of nothing": b"\x80\x020000.",
        "unknown memo": b"\x80\x02h\x07.",
        "extension": b"\x80\x02\x82\x01.",
        "network in itself": b"\x80\x02cm\nM\n)\x81q\x00}"
        + text("_modules")
        + b"}("
        + text("a")
        + b"h\x00"
        + text("b")
        + b"h\x00usb.",
        "many copies": state_dict(b"](" + b"N" * 3000 + b"eq\x000" + b"ctorch\nSize\nh\x00\x85R0" * 2000 + b"N"),
    }
    paths = {name: torch_zip(folder / f"{i}.pt", pickled, GOOD) for i, (name, pickled) in enumerate(claims.items())}

    # Containers.
    paths["zip bomb"] = torch_zip(folder / "bomb.pt", b"]" * 2**28, compression=zipfile.ZIP_DEFLATED)
    paths["compressed storage"] = torch_zip(
        folder / "compressed.pt", state_dict(tensor(2**28 // 4, 2**28 // 4)), {"0": bytes(2**28)}, zipfile.ZIP_DEFLATED
    )
    paths["old file of 10 GB"] = folder / "old.pt"
    paths["old file of 10 GB"].write_bytes(old_file(HUGE))
    paths["safetensors of 10 GB"] = folder / "x.safetensors"
    header = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (HUGE, 4 * HUGE)
    paths["safetensors of 10 GB"].write_bytes(struct.pack("<Q", len(header)) + header)
    paths["safetensors with a header of 4 GB"] = folder / "y.safetensors"
    paths["safetensors with a header of 4 GB"].write_bytes(struct.pack("<Q", 2**32 - 1) + b"{}")
    many = b"".join(text(f"x{i}") + tensor(2**20, 2**20) + b"s" for i in range(400))
    paths["one storage 400 times"] = torch_zip(folder / "many.pt", b"\x80\x02}" + many + b".", {"0": bytes(2**22)})
    return paths


def test_memory_stays_bounded_and_every_message_names_its_file(tmp_path):
    paths = hostile(tmp_path)
    lines = read_apart(*paths.values(), cwd=tmp_path)
    assert len(lines) == len(paths), "\n".join(lines)
    for (name, path), line in zip(paths.items(), lines, strict=True):
        assert line.startswith("REFUSED") and str(path) in line, f"{name}: {line}"
        assert line.count(str(path)) == 1 and len(line) < 500, f"{name}: {line}"


def test_a_claim_of_the_zip_directory_is_checked(tmp_path):
    """A record that is said to lie elsewhere, or to be longer than the file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict(tensor(4, 4)))
        archive.writestr("archive/data/0", GOOD["0"])
    content = bytearray(buffer.getvalue())
    entry = content.rfind(b"PK\x01\x02")
    paths = []
    for name, (position, value) in {"size": (20, 2**30), "place": (42, 2**20)}.items():
        changed = bytearray(content)
        fields = (position, position + 4) if name == "size" else (position,)
        for field in fields:
            changed[entry + field : entry + field + 4] = struct.pack("<I", value)
        paths.append(tmp_path / f"{name}.pt")
        paths[-1].write_bytes(changed)
    lines = read_apart(*paths, cwd=tmp_path)
    assert all(line.startswith("REFUSED") and "truncated or not a PyTorch checkpoint" in line for line in lines), lines


def test_storages_that_overlap_are_refused(tmp_path):
    """A small file whose 400 records all lie in the same 4 MB, and one whose records lie in each other."""
    buffer = io.BytesIO()
    count = 400
    with zipfile.ZipFile(buffer, "w") as archive:
        pickled = b"\x80\x02}" + b"".join(
            text(f"x{i}") + build_vector(2**20, storage(2**20, str(i))) + b"s" for i in range(count)
        )
        archive.writestr("archive/data.pkl", pickled + b".")
        archive.writestr("archive/data/0", bytes(2**22))
    content = bytearray(buffer.getvalue())

    # The list of records gets 399 more that name the same place.
    start = content.rfind(b"PK\x01\x02")
    end = content.rfind(b"PK\x05\x06")
    entry = bytes(content[start:end])
    more = b""
    for index in range(1, count):
        name = f"archive/data/{index}".encode()
        more += entry[:28] + struct.pack("<H", len(name)) + entry[30:46] + name
    closing = bytearray(content[end:])
    closing[8:12] = struct.pack("<HH", count + 1, count + 1)
    closing[12:16] = struct.pack("<I", struct.unpack("<I", closing[12:16])[0] + len(more))
    path = tmp_path / "overlap.pt"
    path.write_bytes(bytes(content[:end]) + more + bytes(closing))
    (line,) = read_apart(path, cwd=tmp_path)
    assert line.startswith("REFUSED") and ("another name where it lies" in line or "overlap" in line)


def test_a_record_that_is_given_twice_is_refused(tmp_path):
    """Which one counts would depend on the reader."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = torch_zip(tmp_path / "x.pt", state_dict(tensor(4, 4)), GOOD)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(UserError, match="gives a record twice"):
        read_checkpoint(path)


CIRCLES = {
    "list": b"]q\x00h\x00a",
    "dict": b"}q\x00" + text("model") + b"h\x00s",
    "object in its attributes": b"cm\nM\n)\x81q\x00}" + text("a") + b"h\x00sb",
    "tuple of a list": b"]q\x00(h\x00h\x00ta",
    "set of sets": b"cbuiltins\nset\n]cbuiltins\nset\n]\x85Ra\x85R",
}


@pytest.mark.parametrize("name", CIRCLES)
def test_circles_beside_the_weights_do_no_harm(name, tmp_path):
    """A value that holds itself, beside healthy weights, or as the only content."""
    beside = torch_zip(tmp_path / "beside.pt", model_with(CIRCLES[name]), GOOD)
    alone = torch_zip(tmp_path / "alone.pt", b"\x80\x04" + CIRCLES[name] + b".", GOOD)
    lines = read_apart(beside, alone, cwd=tmp_path)
    is_flat = name != "set of sets"  # a key that is a container is refused wherever it stands
    assert lines[0].startswith("READ" if is_flat else "REFUSED") and lines[1].startswith("REFUSED"), lines


def damaged_bytes(content: bytes, random: np.random.Generator) -> bytes:
    """`content` with up to five other bytes."""
    damaged = np.frombuffer(content, np.uint8).copy()
    places = random.integers(0, len(damaged), size=random.integers(1, 6))
    damaged[places] = random.integers(0, 256, size=len(places))
    return damaged.tobytes()


def other_instructions(content: bytes, random: np.random.Generator) -> bytes:
    """A zip file of torch.save whose pickle has up to three other, more or fewer instructions."""
    instructions = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as changed:
        for name in archive.namelist():
            record = bytearray(archive.read(name))
            for _ in range(random.integers(1, 4) if name.endswith("data.pkl") else 0):
                place = int(random.integers(0, len(record)))
                length = int(random.integers(0, 4))
                record[place : place + length] = instructions[random.integers(0, len(instructions))]
            changed.writestr(name, bytes(record))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("style", "change"), [("new", damaged_bytes), ("old", damaged_bytes), ("new", other_instructions)]
)
def test_any_damage_is_read_or_refused(style, change, tmp_path):
    """Changed bytes, or changed instructions: weights, or one error that names the file."""
    buffer = io.BytesIO()
    content = {"model": {"x": torch.ones(3, 4)}, "args": {"lr": 0.1, "names": ["a", ("b", 3)]}, "other": Path("a")}
    torch.save(content, buffer, _use_new_zipfile_serialization=style == "new")
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.pt"
    for _ in range(400):
        path.write_bytes(change(buffer.getvalue(), random))
        try:
            assert read_checkpoint(path, is_quiet=True).state
        except UserError as error:
            assert str(path) in str(error)
