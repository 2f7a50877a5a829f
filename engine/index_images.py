"""Looks up the images of a large set once, and writes an index that all later starts use.

    python -m engine.index_images --data-path /data/imagenet/train
    python -m engine.index_images --data-path '/data/shards/train-{000000..001023}.tar'
    python -m engine.index_images --data loose --data-path /data/photos --skip-broken

Listing a folder of 100 million files takes long, and so does scanning as many images in tar files. The index holds
their names or places, and their labels. It is mapped into memory: it is there once for all processes of a machine, and
a start takes seconds. It lies in $XDG_CACHE_HOME or ~/.cache. Trainings and evaluations find it there, by the path and
kind of the images and by --skip-broken, and say in the log that they use it.

The index of folders is refused once a name was added to one of them, or removed: run this command again. The index of
tar files is found by their sizes and times, so that changed ones are scanned anew. It is written as a whole or not at
all; after an interruption the command starts again.
"""

from __future__ import annotations

import argparse
import time

from engine.cli import entry_parser, run_entry
from engine.data.base import PathKind
from engine.data.sources import SOURCES, kind_of
from engine.messages import UserError, logger
from engine.preflight import Preflight, require


def parse_args() -> argparse.Namespace:
    kinds = sorted(name for name, kind in SOURCES.items() if issubclass(kind, PathKind))
    parser = entry_parser(__doc__)
    parser.add_argument("--data-path", required=True, help="the images, as in data.root: a folder, or tar files")
    parser.add_argument("--data", choices=kinds, help="kind of images, as in data.name (default: by what lies there)")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out what is no image, for runs with data.skip_broken=true"
    )
    return parser.parse_args()


def kind_from(args: argparse.Namespace) -> type[PathKind]:
    """The kind of images that the flags name. Raises UserError for a path where there are none."""
    return SOURCES[args.data or kind_of(args.data_path)]


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks whether there are images."""
    with preflight.collecting():
        kind_from(args).require(args.data_path, "--data-path")
        preflight.ready.append(f"--data-path: {args.data_path}")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    start = time.perf_counter()
    path = kind_from(args).build_index(args.data_path, "--data-path", args.skip_broken)
    seconds = time.perf_counter() - start
    if not path.is_file():
        raise UserError(f"the index {path} could not be written; set XDG_CACHE_HOME to a folder with room for it")
    logger.info("%s: %.1f MB, in %.1f s", path, path.stat().st_size / 1e6, seconds)


if __name__ == "__main__":
    run_entry(main)
