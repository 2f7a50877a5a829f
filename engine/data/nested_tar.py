"""Images in tar files that lie in a tar file: ImageNet's training images as they are downloaded.

    ILSVRC2012_img_train.tar:  n01440764.tar  n01443537.tar ...     one per class; its name is that of the class
    n01440764.tar:             n01440764_10026.JPEG ...

Neither is compressed, so that every image is one stretch of bytes of the outer file, and nothing is unpacked. Images
are numbered as they would be in the unpacked folder, one sub-folder per class: classes and files in alphabetical
order. Order of samples, labels and facts of the set are the same, and a run may go on with one instead of the other.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.arithmetic import ceil_div
from engine.data.base import PathKind
from engine.data.folders import ACCEPTED, NAMES_DIGEST, SIZED_FILES, SIZES_DIGEST, identity_of, version_of
from engine.data.identity import digest_of
from engine.data.images import ImageError, decode_image, printable
from engine.data.index_file import Index, cached_index, file_state, index_path
from engine.data.listing import is_hidden, is_image_name
from engine.data.name_table import NameTable
from engine.data.tar_members import Place, check_end, read_member
from engine.messages import UserError

INDEX_FORMAT = 1  # of the cached index
TAR_SUFFIX = ".tar"


def _is_file(path: str | Path) -> bool:
    return str(path).endswith(TAR_SUFFIX) and Path(path).is_file()


# ------------------------------------------------------------------------------------------------ the index
def _cache_path(path: Path, skip_broken: bool) -> Path:
    """The file of the cached index; its name changes when the tar file does."""
    return index_path("nested", INDEX_FORMAT, *file_state(path), skip_broken)


def _build_index(path: Path, skip_broken: bool) -> Index:
    """Scans a tar file of tar files. Raises UserError if it is torn, or not as expected."""
    try:
        with (
            tarfile.open(path, "r:") as outer,
            tqdm(total=path.stat().st_size, desc="looking up images", unit="B", unit_scale=True, disable=None) as bar,
        ):
            listing = _Scan(printable(path), skip_broken)
            for member in outer:
                listing.add_class(outer, member)
                bar.update(member.offset_data + member.size - bar.n)
            check_end(outer)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is not a readable tar file of tar files ({error}); fetch it again") from error
    return listing.index()


class _Scan:
    """What was met in a tar file of tar files so far."""

    def __init__(self, where: str, skip_broken: bool) -> None:
        self.where = where
        self.skip_broken = skip_broken
        self.places: dict[str, dict[str, Place]] = {}  # class -> name of an image -> where it lies in the outer file
        self.num_hidden = 0

    def add_class(self, outer: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Looks into a member of the outer file. Raises ImageError or UserError for what is no class."""
        if member.isdir():
            return
        name = PurePosixPath(member.name).name
        if is_hidden(name):
            self.num_hidden += 1
            return
        if not member.isreg() or not name.endswith(TAR_SUFFIX):
            self._refuse(member.name, "a tar file of the images of a class")
            return
        class_name = printable(name.removesuffix(TAR_SUFFIX))
        if class_name in self.places:
            raise UserError(f"{self.where} holds two tar files of the class {class_name}")

        images: dict[str, Place] = {}
        with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
            for image in inner:
                place = self._place(member, image)
                if place is not None:
                    images[str(PurePosixPath(image.name))] = place
            check_end(inner)
        if not images:
            raise UserError(f"{self.where}: {member.name} holds no images")
        self.places[class_name] = images

    def _place(self, outer: tarfile.TarInfo, image: tarfile.TarInfo) -> Place | None:
        """Where an image lies in the outer file; None for what is left out."""
        if image.isdir():
            return None
        if is_hidden(PurePosixPath(image.name).name):
            self.num_hidden += 1
            return None
        if not image.isreg() or image.issparse() or not is_image_name(image.name) or image.size >= 2**32:
            self._refuse(f"{outer.name}: {image.name}", f"an image file ({ACCEPTED})")
            return None
        return Place(outer.offset_data + image.offset_data, image.size)

    def _refuse(self, name: str, expected: str) -> None:
        """Raises ImageError for a member that is not what is expected, unless such members are skipped."""
        if not self.skip_broken:
            raise ImageError(f"{self.where}: {name} is not {expected}; leave it out, or set data.skip_broken=true")

    def index(self) -> Index:
        """The images in the order of the unpacked folder. Raises UserError if there are none."""
        if not self.places:
            raise UserError(f"{self.where} holds no tar files of classes")

        # One row per image: classes and names in alphabetical order.
        class_names = sorted(self.places)
        rows = [
            (f"{class_name}/{name}", *self.places[class_name][name], label)
            for label, class_name in enumerate(class_names)
            for name in sorted(self.places[class_name])
        ]
        names, starts, sizes, labels = zip(*rows, strict=True)
        table = NameTable.of(names)

        # The digests are those of the unpacked folder.
        facts = {
            "class_names": class_names,
            "num_hidden": self.num_hidden,
            NAMES_DIGEST: digest_of(table.all_encoded()),
            SIZES_DIGEST: digest_of(str(size).encode() for size in sizes[:: ceil_div(len(sizes), SIZED_FILES)]),
        }
        columns = {
            "names": table.content,
            "name_ends": table.ends,
            "starts": np.array(starts, dtype=np.int64),
            "sizes": np.array(sizes, dtype=np.uint32),
            "labels": np.array(labels, dtype=np.int32),
        }
        return Index(facts, columns)


# ------------------------------------------------------------------------------------------------ the source
class NestedTarSource(PathKind):
    """The images of a tar file of tar files, one per class, by number.

    Raises UserError for a file that is missing, torn or without images, and ImageError for what is no image in it,
    unless that is skipped.
    """

    decodes_files = True
    mixed_held_out = True

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        self.require(root, key)
        self.file = Path(root)
        self.name = printable(root)
        index = cached_index(_cache_path(self.file, skip_broken), lambda: _build_index(self.file, skip_broken))
        self.names = NameTable(index.columns["names"], index.columns["name_ends"])
        self.starts, self.sizes, self.labels = (index.columns[name] for name in ("starts", "sizes", "labels"))
        self.class_names: list[str] = index.facts["class_names"]
        self.num_hidden: int = index.facts["num_hidden"]
        self._digests = {key: index.facts[key] for key in (NAMES_DIGEST, SIZES_DIGEST)}

    @classmethod
    def require(cls, root: str | Path, key: str) -> None:
        if not _is_file(root):
            raise UserError(f"{key}={printable(root)!r} is not a tar file of tar files, one per class")

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """A tar file whose first member is one."""
        if not _is_file(path):
            return False
        try:
            with tarfile.open(path, "r:") as outer:
                first = outer.next()
        except (tarfile.TarError, OSError):
            return False
        return first is not None and first.name.endswith(TAR_SUFFIX)

    @classmethod
    def build_index(cls, root: str | Path, key: str, skip_broken: bool = False) -> Path:
        """Scans the tar file, where its index is not there yet; returns the file of the index."""
        return _cache_path(cls(root, key, skip_broken).file, skip_broken)

    def __len__(self) -> int:
        return len(self.labels)

    def _bytes(self, index: int) -> bytes:
        return read_member(self.file, self.starts[index], self.sizes[index])

    def image(self, index: int) -> Image.Image:
        return decode_image(lambda: self._bytes(index), self.where(index), self.decoding)

    def where(self, index: int) -> str:
        return f"{self.name}: {printable(self.names[index])}"

    def identity(self) -> str:
        """That of the unpacked folder: SHA-256 over names and sizes, and the content of evenly spread images."""
        listing = (
            name + f" {size}\n".encode() for name, size in zip(self.names.all_encoded(), self.sizes, strict=True)
        )
        return identity_of(listing, len(self), self._bytes) + self.decoding.suffix()

    def contents(self) -> dict[str, str]:
        """Digests of names and sizes, those of the unpacked folder."""
        return dict(self._digests)

    def version(self) -> str:
        return version_of([self.file]) + self.decoding.suffix()
