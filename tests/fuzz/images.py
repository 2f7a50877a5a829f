"""Changes image files of every decoder of Pillow at random and reads them: a picture, or one clear error.

    PYTHONPATH=.:tests python tests/fuzz/images.py --count 20000 --seed 0
    PYTHONPATH=.:tests python tests/fuzz/images.py --seed 0 --case 137              (one case again, with its message)

A case is right if `read_image` raises an ImageError that names the file, or returns RGB of 8 bits in the size that
Pillow decodes, and the training crop of it is uint8 of the size asked for. A traceback, more than 10 seconds, a call of
another program, or more than 6 GiB of address space is wrong; so is a crash, which ends the whole fuzz.
"""

from __future__ import annotations

import io
import logging
import resource
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from fuzz.cases import TooLong, case_parser, time_limit
from fuzz.image_files import seed_files
from PIL import Image
from tqdm import tqdm

from engine.data.crops import random_crop
from engine.data.decoding import Decoding
from engine.data.images import ImageError, image_tensor, read_image

TIME_LIMIT = 10  # seconds per file
MEMORY_LIMIT = 6 * 2**30  # bytes of address space of this process
MAX_MESSAGE = 2000  # characters
CROP = 16
DECODINGS = (Decoding(), Decoding("black", "upright"))
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)  # that headers are often wrong about

Random = np.random.Generator


# ---------------------------------------------------------------------------------------------- changes
def changed(content: bytes, other: bytes, rng: Random) -> bytes:
    """One to three changes of a file; `other` is a file to take parts of."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        near = 64 if rng.random() < 0.5 else len(data)  # headers decide more than pixels
        place = int(rng.integers(min(near, len(data))))
        length = int(rng.integers(1, 9))
        match rng.integers(8):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place : place + length] = rng.bytes(min(length, len(data) - place))
            case 2:
                del data[place:]
            case 3:
                data += rng.bytes(length * 10)
            case 4:
                number = int(NUMBERS[rng.integers(len(NUMBERS))])
                size = int(rng.choice([1, 2, 4]))
                order = "little" if rng.random() < 0.5 else "big"
                data[place : place + size] = (number % 256**size).to_bytes(size, order)
            case 5:
                data[place : place + length] = bytes(length)
            case 6:
                start = int(rng.integers(max(1, len(other))))
                data[place:place] = other[start : start + length * 8]
            case _:
                del data[place : place + length]
    return bytes(data)


# ---------------------------------------------------------------------------------------------- one case
class Fuzz:
    """Runs cases by number; `wrong` lists those that violate the claim, `outcomes` counts the others by format."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "fuzzed.jpg"
        self.seed = seed
        self.seeds = seed_files()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0

    def content(self, case: int) -> tuple[str, bytes]:
        """(format, content) of a case: the seeds as they are, then changed ones."""
        if case < len(self.seeds):
            return self.seeds[case]
        rng = np.random.default_rng([self.seed, case])
        kind = sorted({kind for kind, _ in self.seeds})
        name = kind[rng.integers(len(kind))]  # every decoder alike, however many seeds it has
        of_kind = [content for seed_kind, content in self.seeds if seed_kind == name]
        other = self.seeds[rng.integers(len(self.seeds))][1]
        return name, changed(of_kind[rng.integers(len(of_kind))], other, rng)

    def run(self, case: int) -> str:
        """Runs one case; returns what came out."""
        kind, content = self.content(case)
        self.path.write_bytes(content)
        start = time.perf_counter()
        try:
            with time_limit(TIME_LIMIT):
                outcome = self._read(DECODINGS[case % 2])
        except TooLong:
            outcome = f"wrong: more than {TIME_LIMIT} s"
        except Exception as error:
            outcome = f"wrong: {type(error).__name__}: {str(error)[:300]}"
        self.slowest = max(self.slowest, time.perf_counter() - start)
        if outcome.startswith("wrong"):
            self.wrong.append(f"case {case} ({kind}): {outcome}")
        self.outcomes[kind, outcome.split(":")[0]] += 1
        return outcome

    def _read(self, decoding: Decoding) -> str:
        try:
            picture = read_image(self.path, decoding)
            with Image.open(io.BytesIO(self.path.read_bytes())) as plain:
                plain.load()
            if picture.mode != "RGB" or sorted(picture.size) != sorted(plain.size):
                return f"wrong: {picture.mode} of {picture.size}, not {plain.size}"
            crop = image_tensor(random_crop(picture, CROP, np.random.default_rng(0)))
            if crop.shape != (3, CROP, CROP) or str(crop.dtype) != "torch.uint8":
                return f"wrong: crop {crop.dtype} {tuple(crop.shape)}"
            pixels = np.asarray(picture.crop((0, 0, 1, 1)))
            return "picture" if pixels.dtype == np.uint8 and pixels.shape == (1, 1, 3) else f"wrong: {pixels.dtype}"
        except ImageError as error:
            named = str(self.path) in str(error) and len(str(error)) <= MAX_MESSAGE
            return f"refused: {error}" if named else f"wrong: the message does not name the file: {str(error)[:300]}"


def forbid_programs() -> None:
    """Makes every call of another program an error that is no Exception."""

    def refuse(*arguments, **_):
        raise SystemExit(f"a decoder calls another program: {arguments[:1]}")

    subprocess.Popen.__init__ = refuse


def main() -> None:
    args = case_parser(__doc__, 20_000, "changed image files").parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    forbid_programs()

    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        if args.case is not None:
            print(fuzz.run(args.case))
            return
        for case in tqdm(range(args.count), unit="file", disable=None):
            fuzz.run(case)
    for kind in sorted({kind for kind, _ in fuzz.outcomes}):
        counts = {name: count for (of, name), count in sorted(fuzz.outcomes.items()) if of == kind}
        print(f"{kind:10} " + "  ".join(f"{name} {count}" for name, count in counts.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{args.count} files, {len(fuzz.seeds)} seeds, slowest {fuzz.slowest:.1f} s, peak memory {peak:,.0f} MB")
    print("\n".join(fuzz.wrong) or "nothing wrong")
    raise SystemExit(bool(fuzz.wrong))


if __name__ == "__main__":
    main()
