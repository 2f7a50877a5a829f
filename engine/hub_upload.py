"""Writes files to a repository of the Hugging Face hub, in one commit, through huggingface_hub.

A new repository is private. A file that is there is replaced only where the caller says so; nothing is ever deleted.
The token is the one that huggingface_hub finds itself (HF_TOKEN, or `hf auth login`): it is never asked for, read from
a config, logged or stored here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.counts import counted
from engine.hub import PREFIX, HubAddress, is_offline, one_line, parse_address, quiet_requests
from engine.messages import UserError


@dataclass(frozen=True)
class Repository:
    """A repository of the hub as it is now."""

    name: str  # organization/name
    commit: str | None  # the newest one of its main branch; None where the repository does not exist yet
    files: frozenset[str]
    is_private: bool

    def text(self) -> str:
        """What a user wants to know of it before files go there."""
        if self.commit is None:
            return f"{PREFIX}{self.name} (will be made, private)"
        visibility = "private" if self.is_private else "PUBLIC"
        return f"{PREFIX}{self.name} ({visibility}, {counted(len(self.files), 'file')})"


def look_up(text: str) -> Repository:
    """The repository that an address without a revision names.

    Raises UserError for another address, where HF_HUB_OFFLINE forbids requests, and where the hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    address = parse_address(text)
    quiet_requests()
    if address.revision is not None:
        raise UserError(f"{text}: files are written to the main branch; leave out @{address.revision}")
    if is_offline():
        raise UserError(f"{text}: HF_HUB_OFFLINE forbids requests; unset it to publish to the hub")
    try:
        info = HfApi().model_info(address.repository)
    except GatedRepoError as error:
        raise UserError(f"{text} is gated, and you have no access to it") from error
    except RepositoryNotFoundError:
        return Repository(address.repository, None, frozenset(), True)
    except Exception as error:  # whatever the library's HTTP client raises, which differs between its versions
        raise UserError(f"{text} cannot be reached: {one_line(error)}") from error
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    return Repository(address.repository, info.sha, files, bool(info.private))


def require_free(repository: Repository, names: Collection[str], replace: bool) -> None:
    """Raises UserError where one of the files `names` is there, unless it may be replaced."""
    there = sorted(repository.files & set(names))
    if there and not replace:
        raise UserError(
            f"{PREFIX}{repository.name} has {', '.join(there[:3])} already; --replace replaces files, and the hub "
            "keeps the old ones in its history"
        )


def upload(repository: Repository, files: Mapping[str, Path], message: str) -> HubAddress:
    """Writes `files` {path in the repository: file here} in one commit, and returns its address.

    The repository is made where it does not exist, private. Where somebody else has written to it since `look_up`, the
    commit is refused. Raises UserError where the hub refuses anything.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    try:
        parent = repository.commit
        if parent is None:
            api.create_repo(repository.name, private=True, exist_ok=False)
            parent = api.model_info(repository.name).sha
        commit = api.create_commit(repository.name, operations, commit_message=message, parent_commit=parent)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = (
            " (log in with `hf auth login`, or set HF_TOKEN to a token that may write)" if status in (401, 403) else ""
        )
        raise UserError(f"{PREFIX}{repository.name}: the hub refuses: {one_line(error)}{hint}") from error
    except Exception as error:  # as above
        raise UserError(f"{PREFIX}{repository.name} cannot be written: {one_line(error)}") from error
    return HubAddress(repository.name, commit.oid)
