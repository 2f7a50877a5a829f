"""What a checkpoint file is, seen from its content and never from its name, and where its bytes lie.

    zip            torch.save since PyTorch 1.6: `data.pkl` and one uncompressed record per storage
    pickles        torch.save before: five pickles, then the storages; or a plain pickle
    safetensors    a JSON header, then the numbers

Anything else is named for what it is: a web page, a Git LFS pointer, an archive.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.foreign.inert import Foreign, PickleError
from engine.checkpoint.foreign.tensors import Place, TensorFile
from engine.checkpoint.foreign.unpickler import read_pickle
from engine.checkpoint.manifest import CheckpointError

MAX_PICKLE = 2**26  # bytes of data.pkl; real ones have some kB per 100 tensors
MAX_DIRECTORY = 2**26  # bytes of the list of records of a zip file
MAX_NESTING = 128  # levels of containers in the content
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save before PyTorch 1.6

# The first bytes of files that are no checkpoints.
OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"\xfd7zXZ", "xz-compressed; unpack it first"),
    (b"BZh", "bzip2-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml|body)", re.IGNORECASE)
LFS_POINTER = re.compile(rb"version https://git-lfs[^\n]*\n(?:.*\n)*?oid sha256:(\w+)\nsize (\d+)")


@dataclass(frozen=True)
class Content:
    """What a file holds: a tree of plain values, `StoredTensor`s and inert objects, and the bytes of the tensors."""

    tree: Any
    file: TensorFile
    foreign: tuple[str, ...]  # classes and functions of the inert objects in it


def unreadable(path: Path, reason: str) -> CheckpointError:
    """The error for a file that is no checkpoint, or is damaged."""
    return CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {reason}")


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins with `start` is a safetensors file: the length of its header, then JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32


def read_content(path: Path) -> Content:
    """The content of a zip file or of pickles. Raises CheckpointError for anything else, and for damaged files."""
    with path.open("rb") as file:
        start = file.read(1024)
    _require_checkpoint(path, start)
    try:
        tree, places = _read_zip(path) if start[:4] == b"PK\x03\x04" else _read_pickles(path)
        foreign = _survey(tree)
    except CheckpointError:  # which is a ValueError, and says all
        raise
    except PickleError as error:
        raise unreadable(path, f"its pickle holds {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, NotImplementedError) as error:
        raise unreadable(path, " ".join(str(error).split())[:200]) from error
    return Content(tree, TensorFile(path, places), foreign)


def _require_checkpoint(path: Path, start: bytes) -> None:
    """Raises CheckpointError that names what a file is, if it is certainly no checkpoint."""
    if not start:
        raise unreadable(path, "it is empty")
    pointer = LFS_POINTER.match(start)
    if pointer:
        raise CheckpointError(
            f"{path} is a Git LFS pointer to {int(pointer[2]):,} bytes (sha256 {pointer[1][:16].decode()}...), "
            "not the weights; fetch them with: git lfs pull"
        )
    if WEB_PAGE.match(start):
        raise CheckpointError(f"{path} is a web page (HTML), not weights: the download went wrong; download it again")
    for magic, kind in OTHER_FILES:
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {kind}, not a checkpoint")
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive, not a checkpoint; unpack it first")


# ------------------------------------------------------------------------------------------------ zip files
def _read_zip(path: Path) -> tuple[Any, dict[str, Place]]:
    """(tree, place of each storage) of a file of torch.save since PyTorch 1.6."""
    _require_small_directory(path)
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if len(records) < len(archive.infolist()):
            raise unreadable(path, "it gives a record twice")
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise unreadable(path, "it is a zip file without one data.pkl in it")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in records:
            raise CheckpointError(f"{path} is a TorchScript program, not weights; save its state_dict instead")

        # The pickle, and the order of bytes.
        pickle_record = records[pickles[0]]
        if pickle_record.file_size > MAX_PICKLE:
            raise unreadable(
                path, f"its pickle claims {pickle_record.file_size:,} bytes; up to {MAX_PICKLE:,} are read"
            )
        with path.open("rb") as file:
            pickled = _record_bytes(path, file, pickle_record)
            order = records.get(f"{folder}byteorder")
            if order is not None and order.file_size < 16 and _record_bytes(path, file, order) != b"little":
                raise unreadable(path, "it was written on a big-endian machine")

            tree, _ = read_pickle(io.BytesIO(pickled))
            prefix = f"{folder}data/"
            places = {
                name.removeprefix(prefix): _record_place(path, file, record)
                for name, record in records.items()
                if name.startswith(prefix)
            }
    _require_apart(path, places)
    return tree, places


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript program, by the names of its records; nothing in it is read or run."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        _require_small_directory(path)
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (CheckpointError, zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # damaged: its reader says how


def _require_small_directory(path: Path) -> None:
    """Raises CheckpointError where a zip file's list of records is huge: `zipfile` would read it whole."""
    end_record, large_end_record = b"PK\x05\x06", b"PK\x06\x06"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16 - 128))
        tail = file.read()

    # The end record is the last thing, but for a comment; that of a large file stands 76 bytes before it.
    end = len(tail) - 22
    if tail[end : end + 4] != end_record:
        end = tail.rfind(end_record)
    if end < 0:
        raise unreadable(path, "its end is missing")
    directory_size = int.from_bytes(tail[end + 12 : end + 16], "little")
    large_end = end - 76
    if large_end >= 0 and tail[large_end : large_end + 4] == large_end_record:
        directory_size = int.from_bytes(tail[large_end + 40 : large_end + 48], "little")
    if directory_size > MAX_DIRECTORY:
        raise unreadable(path, f"its list of records claims {directory_size:,} bytes")


def _require_apart(path: Path, places: dict[str, Place]) -> None:
    """Raises CheckpointError where storages overlap, as in a small file that claims to hold much."""
    end = 0
    for place in sorted(places.values(), key=lambda place: place.first):
        if place.num_bytes and place.first < end:
            raise unreadable(path, "its records overlap")
        end = max(end, place.first + place.num_bytes)


def _record_place(path: Path, file: io.BufferedReader, record: zipfile.ZipInfo) -> Place:
    """The place of an uncompressed record. Raises CheckpointError for another one.

    A checksum of 0 is none: `torch.serialization.set_crc32_options(False)` writes it.
    """
    if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size or record.flag_bits & 1:
        raise unreadable(path, f"its record {record.filename[:80]!r} is compressed, which torch.save never does")
    file.seek(record.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise unreadable(path, f"its record {record.filename[:80]!r} is not where the zip file says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    if file.read(name_length) != record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437"):
        raise unreadable(path, f"its record {record.filename[:80]!r} has another name where it lies")
    first = record.header_offset + 30 + name_length + extra_length
    return Place(first, record.file_size, record.CRC or None)


def _record_bytes(path: Path, file: io.BufferedReader, record: zipfile.ZipInfo) -> bytes:
    place = _record_place(path, file, record)
    file.seek(place.first)
    content = file.read(place.num_bytes)
    if len(content) < place.num_bytes:
        raise unreadable(path, f"its record {record.filename[:80]!r} is cut off")
    if place.crc is not None and zlib.crc32(content) != place.crc:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {record.filename[:80]!r} is wrong; copy or download the file again"
        )
    return content


# ------------------------------------------------------------------------------------------------ pickles
def _read_pickles(path: Path) -> tuple[Any, dict[str, Place]]:
    """(tree, place of each storage) of a file of torch.save before PyTorch 1.6, or of a plain pickle."""
    size = path.stat().st_size
    with path.open("rb") as file:
        tree, _ = read_pickle(file)
        if type(tree) is not int or tree != OLD_MAGIC:
            return tree, {}

        # Version of the format, the writer's machine, the content, the order of storages.
        read_pickle(file)
        machine, _ = read_pickle(file)
        if isinstance(machine, dict) and machine.get("little_endian", True) is not True:
            raise unreadable(path, "it was written on a big-endian machine")
        tree, storages = read_pickle(file)
        keys, _ = read_pickle(file)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise unreadable(path, "it has no list of storages")

        # Each storage follows its number of elements.
        places = {}
        position = file.tell()
        for key in keys:
            file.seek(position)
            num_elements = int.from_bytes(file.read(8), "little")
            position += 8
            storage = storages.get(key)
            if storage is None:
                raise unreadable(path, f"its storage {key[:80]!r} belongs to nothing")
            num_bytes = num_elements * storage.dtype.itemsize
            if position + num_bytes > size:
                raise unreadable(path, "the numbers of its tensors are cut off")
            places[key] = Place(position, num_bytes)
            position += num_bytes
        return tree, places


# ------------------------------------------------------------------------------------------------ the tree
def _parts(value: Any) -> list[Any]:
    """What a container or an inert object holds."""
    if isinstance(value, Foreign):
        return [*value.items.values(), value.state]
    if type(value) is dict:
        return list(value.values())
    return list(value) if type(value) in (list, tuple) else []


def _survey(tree: Any) -> tuple[str, ...]:
    """The names of the inert objects. Raises PickleError for containers that are nested too deeply."""
    names: set[str] = set()
    for value in _walk(tree):
        if isinstance(value, Foreign):
            names.add(value.name)
    return tuple(sorted(names))


def _walk(tree: Any) -> list[Any]:
    """Every value of a tree once, level by level. Raises PickleError for containers that are nested too deeply."""
    seen = {id(tree)}
    values = [tree]
    level = [tree]
    for _ in range(MAX_NESTING):
        level = [part for value in level for part in _parts(value)]
        level = list({id(part): part for part in level if id(part) not in seen}.values())
        seen.update(id(part) for part in level)
        values += level
        if not level:
            return values
    raise PickleError(f"more than {MAX_NESTING} nested containers")
