"""Plug-ins: a user's module or single .py file that puts components into the registries.

`plugins:` in a config and `--plugin` of every entry name it, as a module on PYTHONPATH (`my_package.quantizers`) or as
the path of one file (`my_quantizer.py`; in a YAML relative to that YAML). Importing it is all that happens: the file
registers its classes itself, such as `QUANTIZERS["mine"] = MyQuantizer`.

A run writes into its config and into the stamp of its checkpoints which plug-ins were loaded, each with the SHA-256 of
its file. Readers of checkpoints never import because of that; they say which `--plugin` to add. In a config, a name
with a hash, `my_quantizer.py#sha256=...`, is imported only if the file still has that hash.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import file_sha256
from engine.messages import UserError, logger

HASH_MARK = "#sha256="


@dataclass(frozen=True)
class Plugin:
    """A loaded plug-in: the name to load it by again, and the SHA-256 of its file."""

    name: str  # module name, or absolute path of the file
    sha256: str

    def text(self) -> str:
        """As it stands in a saved config."""
        return f"{self.name}{HASH_MARK}{self.sha256}"


_loaded: dict[Path, Plugin] = {}  # file -> plug-in, in the order of loading


def loaded() -> list[Plugin]:
    """The plug-ins of this process, in the order in which they were loaded."""
    return list(_loaded.values())


def load(names: Sequence[str], folder: Path | None = None) -> None:
    """Imports plug-ins, each once. `folder` is where relative paths begin, by default the current folder.

    Raises UserError where one cannot be found or imported, or has another hash than its name says.
    """
    for text in names:
        name, _, sha256 = text.partition(HASH_MARK)
        _load(name, sha256, folder or Path.cwd())


def _load(name: str, sha256: str, folder: Path) -> None:
    file = _file_of(name, folder)
    plugin = _loaded.get(file)

    if plugin is None:
        plugin = Plugin(str(file) if _is_path(name) else name, file_sha256(file))
        if sha256 not in ("", plugin.sha256):
            raise UserError(
                f"plug-in {name} changed: the config names sha256 {sha256[:16]}, the file has {plugin.sha256[:16]}; "
                f"to use it as it is now, add --plugin {name}"
            )
        _import(plugin, file)
        _loaded[file] = plugin


def _is_path(name: str) -> bool:
    return name.endswith(".py")


def _file_of(name: str, folder: Path) -> Path:
    """The file of a plug-in. Raises UserError where there is none."""
    try:
        if _is_path(name):
            file = (folder / name).resolve()
            exists = file.is_file()
        else:
            spec = importlib.util.find_spec(name)
            file = Path(spec.origin).resolve() if spec is not None and spec.origin else folder
            exists = file.is_file()
    except (ImportError, AttributeError, OSError, TypeError, ValueError) as error:
        raise UserError(f"plug-in {name} cannot be found: {error}") from error

    if exists:
        return file
    if _is_path(name):
        raise UserError(f"plug-in {name} is no file (looked for {file})")
    raise UserError(f"plug-in {name} is neither a module on PYTHONPATH nor the path of a .py file")


def _import(plugin: Plugin, file: Path) -> None:
    """Runs the file as a module. Raises UserError, with the line of the file, for whatever goes wrong in it."""
    try:
        if _is_path(plugin.name):
            _import_file(file)
        else:
            importlib.import_module(plugin.name)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(
            f"plug-in {plugin.name} cannot be imported: {type(error).__name__}: {error} ({file}{where})"
        ) from error


def _import_file(file: Path) -> None:
    """Runs one file as a module whose name tells files of the same name in two folders apart."""
    name = f"plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


# ------------------------------------------------------------------------------------------------- command lines
class LoadPlugin(argparse.Action):
    """The argparse action of `--plugin`: imports the plug-in and collects its name."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, value: Any, option_string: str | None = None
    ) -> None:
        load([value])
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), value])


def load_from_arguments(arguments: Sequence[str]) -> None:
    """Imports what `--plugin` names on a command line, before a parser that offers components by name is built."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action=LoadPlugin, default=[])
    parser.parse_known_args(list(arguments))


def flags() -> list[str]:
    """The arguments with which a command that is started from here loads the same plug-ins."""
    return [part for plugin in loaded() for part in ("--plugin", plugin.name)]


# --------------------------------------------------------------------------------------------- saved configs and stamps
def stamp() -> dict[str, Any]:
    """What checkpoints say about the plug-ins of this process: {"plugins": {name: SHA-256}}, or nothing."""
    return {"plugins": {plugin.name: plugin.sha256 for plugin in loaded()}} if _loaded else {}


def names_in(plugins: Any, folder: Path) -> list[Plugin]:
    """The plug-ins that the list `plugins` of a config in `folder` names."""
    parts = [str(text).partition(HASH_MARK) for text in plugins or []]
    return [Plugin(str(folder / name) if _is_path(name) else name, sha256) for name, _, sha256 in parts]


def missing_hint(plugins: Any, folder: Path) -> str:
    """What to add to a message about a config in `folder` whose list `plugins` names some that are not loaded: which
    ones to name on the command line. Empty where all are loaded.
    """
    present = {plugin.sha256 for plugin in loaded()} | {plugin.name for plugin in loaded()}
    missing = [p for p in names_in(plugins, folder) if p.sha256 not in present and p.name not in present]
    return "".join(
        f"; it was trained with plug-in {p.name} (sha256 {p.sha256[:16] or 'unknown'}): add --plugin {p.name} "
        "(from Python: call engine.plugins.load first)"
        for p in missing
    )


def warn_changes(stamped: Mapping[str, str], where: Any) -> None:
    """Warns where the weights at `where` were trained with other plug-ins than those of this process."""
    for line in changes(stamped):
        logger.warning("%s: %s", where, line)


def changes(stamped: Mapping[str, str]) -> list[str]:
    """What differs between the plug-ins of a checkpoint's stamp and those of this process, as lines for the log."""
    now = {plugin.name: plugin.sha256 for plugin in loaded()}
    by_file_name = {Path(name).name: sha256 for name, sha256 in now.items()}
    lines = []
    for name, sha256 in stamped.items():
        present = now.get(name, by_file_name.get(Path(name).name))
        if present is None and sha256 not in now.values():
            lines.append(f"plug-in {name} (sha256 {sha256[:16]}) of the checkpoint is not loaded")
        elif present not in (None, sha256):
            lines.append(f"plug-in {name} changed since the checkpoint: sha256 {sha256[:16]} -> {present[:16]}")
    return lines
