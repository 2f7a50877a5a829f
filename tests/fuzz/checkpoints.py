"""Changes checkpoints of every layout at random and reads them: the right weights, or one clear error.

    PYTHONPATH=.:tests python tests/fuzz/checkpoints.py --count 2000 --seed 0
    PYTHONPATH=.:tests python tests/fuzz/checkpoints.py --seed 0 --case 137         (one case again, with its message)

Layouts: tokenizers of GigaTok, LlamaGen, WeTok, Open-MAGVIT2 and IBQ, GPTs of GigaTok, LlamaGen and WeTok, each as a
zip file, as an old file without one, and as safetensors; and checkpoint folders of this project. A case is right if

- the product refuses the file with an error that names it, or
- the loaded weights are exactly those that the changed file says, as computed here from its content, or as read by
  `torch.load(weights_only=True)`; and files with checksums never give other weights than those that were written.

Files without checksums (old ones, safetensors) may give other finite weights after a changed byte: nobody can see it.
They are counted as "unseen". A traceback, more than 10 seconds, numbers that are not finite, or other weights are
wrong.
"""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tiny
import torch
from fuzz.cases import TooLong, case_parser, time_limit
from fuzz.checkpoint_changes import (
    CONTENT_CHANGES,
    Content,
    Random,
    changed_bytes,
    changed_instructions,
    expected_state,
)
from fuzz.checkpoint_layouts import Layout, State, layouts
from safetensors.torch import save
from torch import Tensor, nn

import autoregressive.train
import tokenizer.train
from autoregressive.loading import load_gpt
from engine.checkpoint.manifest import checkpoint_folders
from engine.messages import UserError
from engine.world import World
from tokenizer import load_tokenizer

TIME_LIMIT = 10  # seconds per case
MAX_MESSAGE = 3000  # letters
FORMATS = ("zip", "old", "safetensors")
REFUSED, RIGHT, UNSEEN = "refused", "right", "unseen"


class Wrong(Exception):
    """A case that violates the claim."""


# ---------------------------------------------------------------------------------------------- reading
def loaded_or_refused(load: Callable[[Path], nn.Module], path: Path) -> nn.Module | str:
    """The network, or the message of the error. Raises Wrong for any other end."""
    try:
        with time_limit(TIME_LIMIT):
            network = load(path)
    except UserError as error:
        if str(path) not in str(error) or len(str(error)) > MAX_MESSAGE:
            raise Wrong(f"the message does not name the file, or is long: {str(error)[:300]}") from error
        return str(error)
    except TooLong:
        raise Wrong(f"more than {TIME_LIMIT} s") from None
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {str(error)[:300]}") from error
    bad = [name for name, value in network.named_parameters() if not value.isfinite().all()]
    if bad:
        raise Wrong(f"weights that are not finite: {bad[0]}")
    return network


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], tensor) for name, tensor in second.items())


# ---------------------------------------------------------------------------------------------- files
def written(layout: Layout, content: Content, file_format: str) -> bytes:
    """The bytes of a file with a content."""
    buffer = io.BytesIO()
    if file_format != "safetensors":
        torch.save(content, buffer, _use_new_zipfile_serialization=file_format == "zip")
        return buffer.getvalue()

    # Two sets in one file get prefixes; objects cannot be saved.
    has_two = layout.key == "ema"
    state = dict(content[layout.key])
    if has_two:
        state = {f"ema.{name}": tensor for name, tensor in state.items()}
        state |= {f"model.{name}": tensor for name, tensor in content["model"].items()}
    return save({name: tensor.clone().contiguous() for name, tensor in state.items()})


def content_case(layout: Layout, file_format: str, path: Path, random: Random) -> tuple[str, str]:
    """Changes the content and writes it properly: what the file says must be read, or refused."""
    change = list(CONTENT_CHANGES)[random.integers(len(CONTENT_CHANGES))]
    content = CONTENT_CHANGES[change](layout, random)
    path.write_bytes(written(layout, content, file_format))
    found = loaded_or_refused(layout.load, path)

    harmless = change in ("wrappers", "foreign objects")
    expected = expected_state(layout.chosen(layout.content if harmless else content), layout.healthy)
    if isinstance(found, str):
        before, after = layout.chosen(layout.content), layout.chosen(content)
        has_same_shapes = all(name in after and after[name].shape == before[name].shape for name in before)
        is_other_file = change in ("swapped tensors", "other precision") and has_same_shapes and expected is not None
        if harmless or is_other_file:
            raise Wrong(f"good weights are refused: {found[:300]}")
        return change, REFUSED
    if change == "given twice":
        raise Wrong("a tensor that is given twice was read")
    if expected is None or not same(layout.exported(found), expected):
        raise Wrong("other weights than the file says")
    return change, RIGHT


def bytes_case(layout: Layout, file_format: str, path: Path, random: Random) -> tuple[str, str]:
    """Changes bytes of a file. With checksums, only what was written may be read."""
    change, content = changed_bytes(written(layout, layout.content, file_format), random)
    path.write_bytes(content)
    found = loaded_or_refused(layout.load, path)
    if isinstance(found, str):
        return change, REFUSED
    if same(layout.exported(found), layout.healthy):
        return change, RIGHT
    if file_format == "zip":
        raise Wrong("other weights from a file with checksums")
    compare_with_torch(layout, path, found, file_format)
    return change, UNSEEN


def instructions_case(layout: Layout, file_format: str, path: Path, random: Random) -> tuple[str, str]:
    """Changes instructions of the pickle: what torch reads must be read too, or refused."""
    path.write_bytes(changed_instructions(written(layout, layout.content, file_format), random))
    found = loaded_or_refused(layout.load, path)
    if isinstance(found, str):
        return "inserted opcodes", REFUSED
    if same(layout.exported(found), layout.healthy):
        return "inserted opcodes", RIGHT
    compare_with_torch(layout, path, found, file_format)
    return "inserted opcodes", UNSEEN


def compare_with_torch(layout: Layout, path: Path, found: nn.Module, file_format: str) -> None:
    """Raises Wrong where torch.load, if it reads the file, reads other weights under the chosen key."""
    if file_format == "safetensors":
        return
    try:
        content = torch.load(path, weights_only=True)
        chosen = layout.chosen(content)
        tensors = {name: tensor for name, tensor in chosen.items() if isinstance(tensor, Tensor)}
    except Exception:  # whatever a damaged file makes of it
        return
    expected = expected_state(tensors, layout.healthy)
    if expected is not None and not same(layout.exported(found), expected):
        raise Wrong("torch.load reads other weights")


# ---------------------------------------------------------------------------------------------- folders
@dataclass(frozen=True)
class StepFolder:
    """A checkpoint folder of this project, and how it is loaded."""

    name: str
    folder: Path
    load: Callable[[Path], nn.Module]


def step_folders(root: Path) -> list[StepFolder]:
    """The checkpoints of a tokenizer and of a GPT of three steps, with discriminator and EMA."""
    world = World(0, 1, 0, torch.device("cpu"))
    tiny.write_images(root / "images" / "train", per_class=4, seed=1)
    tiny.write_images(root / "images" / "val", per_class=2, seed=2)
    options = [*tiny.GAN, "loop.steps=3"]
    tokenizer.train.train(tiny.tokenizer_config(root / "tokenizer", root / "images", *options), world)
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    config = tiny.gpt_config(root / "gpt", root / "codes", root / "tokenizer", "loop.steps=3", "ema_decay=0.9")
    autoregressive.train.train(config, world)
    return [
        StepFolder("our tokenizer folder", checkpoint_folders(root / "tokenizer")[-1], load_tokenizer),
        StepFolder("our GPT folder", checkpoint_folders(root / "gpt")[-1], load_gpt),
    ]


def folder_case(source: StepFolder, path: Path, random: Random) -> tuple[str, str]:
    """Changes, or removes, a file of a checkpoint folder."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source.folder, path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and "state" not in file.parts)
    file = files[random.integers(len(files))]
    if random.integers(8) == 0:
        file.unlink()
        change = "removed file"
    else:
        change, content = changed_bytes(file.read_bytes(), random)
        file.write_bytes(content)
    found = loaded_or_refused(source.load, path)
    if isinstance(found, str):
        return change, REFUSED
    if change == "removed file" and file.name in ("manifest.json", "ema.safetensors"):
        return change, RIGHT  # an export has none; `auto` then takes what is there
    if not same(found.state_dict(), source.load(source.folder).state_dict()):
        raise Wrong(f"other weights after a change of {file.name}")
    return change, RIGHT


# ---------------------------------------------------------------------------------------------- all of it
@dataclass
class Fuzz:
    """All layouts, and what was seen."""

    root: Path
    seed: int
    outcomes: Counter = field(default_factory=Counter)  # (layout, change, outcome)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layouts = layouts(self.root)
        self.folders = step_folders(self.root)

    def run(self, case: int) -> None:
        """Case number `case`, the same for the same seed."""
        random = np.random.default_rng([self.seed, case])
        is_folder = random.integers(8) == 0
        name = "?"
        try:
            if is_folder:
                source = self.folders[random.integers(len(self.folders))]
                name = source.name
                change, outcome = folder_case(source, self.root / "step_00000003", random)
            else:
                layout = self.layouts[random.integers(len(self.layouts))]
                file_format = FORMATS[random.integers(3)]
                name = f"{layout.name}, {file_format}"
                kinds = [content_case, bytes_case] + [instructions_case] * (file_format != "safetensors")
                kind = kinds[random.integers(len(kinds))]
                change, outcome = kind(layout, file_format, self.root / "changed.pt", random)
        except Wrong as error:
            self.wrong.append(f"seed {self.seed} case {case} ({name}): {error}")
        else:
            self.outcomes[name, change, outcome] += 1

    def table(self) -> str:
        """Numbers by change and outcome."""
        changes = sorted({change for _, change, _ in self.outcomes})
        lines = [f"{'change':20} {REFUSED:>8} {RIGHT:>8} {UNSEEN:>8}"]
        for change in changes:
            numbers = [
                sum(n for (_, c, o), n in self.outcomes.items() if (c, o) == (change, outcome))
                for outcome in (REFUSED, RIGHT, UNSEEN)
            ]
            lines.append(f"{change:20} " + " ".join(f"{number:8}" for number in numbers))
        return "\n".join(lines)


def main() -> None:
    args = case_parser(__doc__, 2000, "changed checkpoints").parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        if args.case is not None:
            logging.basicConfig(level=logging.INFO, format="%(message)s")
        cases = range(args.count) if args.case is None else [args.case]
        for number, case in enumerate(cases, start=1):
            fuzz.run(case)
            if number % 200 == 0:
                print(f"{number} of {len(cases)}, {len(fuzz.wrong)} wrong", flush=True)
    print(fuzz.table())
    print(f"{len(cases)} changed checkpoints, {len(fuzz.wrong)} wrong", *fuzz.wrong, sep="\n")
    raise SystemExit(1 if fuzz.wrong else 0)


if __name__ == "__main__":
    main()
