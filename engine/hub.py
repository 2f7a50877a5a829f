"""Networks on the Hugging Face hub: `hf-hub:organization/name@revision`, fetched through huggingface_hub.

Typing such an address is consent to fetch that repository, and no other one. Of it only `config.yaml`,
`*.safetensors` and `README.md` are fetched, into the cache of huggingface_hub. The revision (a branch, a tag or a
commit; by default the main branch) is resolved to a commit first, and the commit is stamped with the hashes of the
files. HF_HUB_OFFLINE=1 is obeyed: then only the cache is read. Tokens are the library's business; nothing here reads,
logs or stores one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engine.checkpoint.manifest import CheckpointError, file_sha256
from engine.messages import UserError, logger
from engine.yaml_files import read_own_layer

PREFIX = "hf-hub:"
ADDRESS = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# One folder of a repository of another program: organization/name/folder@revision.
FOLDER_ADDRESS = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<folder>[\w.-]+)(@(?P<revision>[\w./-]+))?")
FETCHED = ("config.yaml", "*.safetensors", "README.md")  # nothing else of a repository is ever fetched
SHA256_NAME = re.compile(r"[0-9a-f]{64}")  # name that the cache gives to a large file
HTTP_LOGGERS = ("httpx", "httpx2")  # of the library's HTTP client, in its versions
TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})  # values of HF_HUB_OFFLINE that switch it on


@dataclass(frozen=True)
class HubAddress:
    """A repository of the hub, at a revision or at its main branch."""

    repository: str  # organization/name
    revision: str | None = None  # a branch, a tag or a commit

    def text(self) -> str:
        """As it is typed."""
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class HubCopy:
    """The fetched files of a repository, at a commit."""

    repository: str
    commit: str
    folder: Path  # in the cache of the library
    part: str = ""  # the folder of the repository that was asked for

    def text(self) -> str:
        """The address of exactly these files."""
        part = f"/{self.part}" if self.part else ""
        return HubAddress(f"{self.repository}{part}", self.commit).text()

    def stamp(self, files: list[Path]) -> dict[str, Any]:
        """What the stamp of loaded weights says of where they came from, with the SHA-256 of `files`.

        Raises CheckpointError where the cache has named a file by another hash than it has.
        """
        hashes = {}
        for file in files:
            hashes[file.name] = file_sha256(file)
            stored_as = file.resolve().name
            if SHA256_NAME.fullmatch(stored_as) and stored_as != hashes[file.name]:
                raise CheckpointError(f"{file} is damaged: it has another hash than when it was fetched; delete it")
        return {"hub": {"repository": self.repository, "commit": self.commit, "sha256": hashes}}


# ------------------------------------------------------------------------------------------------ addresses
def is_address(path: str | Path) -> bool:
    """Whether a path is meant as an address of the hub."""
    return str(path).startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """Reads `hf-hub:organization/name@revision`. Raises UserError for anything else behind `hf-hub:`."""
    match = ADDRESS.fullmatch(text.removeprefix(PREFIX))
    if match is None or ".." in text:
        raise UserError(f"{text} is no address of the hub, which are {PREFIX}organization/name, or with @revision")
    return HubAddress(match["repository"], match["revision"])


def has_folder(text: str) -> bool:
    """Whether an address names one folder of a repository."""
    return FOLDER_ADDRESS.fullmatch(text.removeprefix(PREFIX)) is not None and ".." not in text


def is_offline() -> bool:
    """Whether the user has forbidden requests, by HF_HUB_OFFLINE now or when the library was imported."""
    import huggingface_hub.constants

    return huggingface_hub.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in TRUE_WORDS


def quiet_requests() -> None:
    """Keeps the single requests of the library's HTTP client out of the log of a command; warnings stay."""
    for name in HTTP_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


# ------------------------------------------------------------------------------------------------ fetching
def fetch(text: str, part: str | None = None) -> HubCopy:
    """Fetches the files of a network, or finds them in the cache, and says in the log which commit it is.

    `part` is the folder to look into where the repository holds several networks and none at its top. Raises UserError
    where the repository, the revision or the network is not there, and where requests are forbidden and the cache does
    not have it.
    """
    address = parse_address(text)
    offline = is_offline()
    folder = _snapshot_of_one_commit(text, address, offline, ignored="*/*")
    commit = folder.name

    # A repository with several networks has each in a folder of its own.
    if part is not None and not (folder / "config.yaml").is_file():
        same = HubAddress(address.repository, commit)
        folder = _snapshot(same, offline, part=f"{part}/", ignored=f"{part}/*/*") / part
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{text} (commit {commit}) holds no network of this program: it has no config.yaml")
    _require_plain(folder / "config.yaml", text)

    logger.info("%s: commit %s%s", text, commit, ", from the cache (HF_HUB_OFFLINE)" if offline else "")
    return HubCopy(address.repository, commit, folder)


def fetch_files(text: str, names: Sequence[str]) -> HubCopy:
    """Fetches those of the named files that a repository has, or one of its folders: of networks of other programs.

    `text` is `hf-hub:organization/name@revision`, or `hf-hub:organization/name/folder@revision`. Raises UserError as
    `fetch` does; which of the files must be there is the caller's to say.
    """
    match = FOLDER_ADDRESS.fullmatch(text.removeprefix(PREFIX)) if has_folder(text) else None
    address = parse_address(text) if match is None else HubAddress(match["repository"], match["revision"])
    part = "" if match is None else match["folder"]
    prefix = f"{part}/" if part else ""
    snapshot = _snapshot_of_one_commit(text, address, is_offline(), part=prefix, ignored=f"{prefix}*/*", names=names)
    return HubCopy(address.repository, snapshot.name, snapshot / part, part)


def _snapshot_of_one_commit(text: str, address: HubAddress, offline: bool, **which: Any) -> Path:
    """`_snapshot` of the commit that the revision stands for. Raises UserError where that changes meanwhile."""
    quiet_requests()
    resolved = None if offline else _resolve(address)
    snapshot = _snapshot(address, offline, **which)
    if resolved not in (None, snapshot.name):
        raise UserError(f"{text} changed while it was fetched; start the same command again")
    return snapshot


def _resolve(address: HubAddress) -> str:
    """The commit that a revision stands for now. Raises UserError where it cannot be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().model_info(address.repository, revision=address.revision).sha
    except RevisionNotFoundError as error:
        raise UserError(f"{address.text()}: {address.repository} has no revision {address.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{address.text()}: there is no such repository, or it is private and you are not logged in "
            "(`hf auth login`, or HF_TOKEN)"
        ) from error
    except Exception as error:  # whatever the library's HTTP client raises, which differs between its versions
        raise UserError(f"{address.text()} cannot be reached: {one_line(error)}") from error


def _snapshot(
    address: HubAddress, offline: bool, *, part: str = "", ignored: str, names: Sequence[str] = FETCHED
) -> Path:
    """The folder of the cache with the files of a repository, or of its folder `part`; missing files are fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            address.repository,
            revision=address.revision,
            allow_patterns=[part + name for name in names],
            ignore_patterns=[ignored],
            local_files_only=offline,
        )
    except Exception as error:  # as above
        if offline and isinstance(error, LocalEntryNotFoundError):
            raise UserError(
                f"{address.text()} is not in the cache of huggingface_hub, and HF_HUB_OFFLINE forbids to fetch it"
            ) from error
        raise UserError(f"{address.text()} cannot be fetched: {one_line(error)}") from error
    return Path(folder)


def _require_plain(config: Path, text: str) -> None:
    """Raises UserError where a config of the hub would read other files or environment variables of this machine."""
    base, tree = read_own_layer(config)
    if base is not None or _has_reference(OmegaConf.to_container(tree, resolve=False)):
        raise UserError(f"{text}: its config.yaml must hold plain values; `base:` and ${{...}} are refused")


def _has_reference(value: Any) -> bool:
    """Whether a value of a config, or one inside it, refers to something else."""
    if isinstance(value, Mapping):
        return any(_has_reference(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return any(_has_reference(item) for item in value)
    return isinstance(value, str) and "${" in value


def one_line(error: Exception) -> str:
    """What an error of the library says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
