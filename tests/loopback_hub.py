"""A stand-in of the Hugging Face hub on this machine: what huggingface_hub asks of it, and a record of all requests.

It keeps repositories of models with commits, in memory: creation, listing, commits with small and large (LFS) files,
and downloads. A private repository is found with a token only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbackToken"
LARGE = ".safetensors"  # suffix of files that go through LFS


@dataclass
class Repo:
    """A repository: its commits, oldest first, each with {path: SHA-256 of the content}."""

    is_private: bool
    commits: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def commit(self, files: dict[str, str]) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files.items())}".encode()).hexdigest()
        self.commits.append((name, files))
        return name

    def at(self, revision: str) -> tuple[str, dict[str, str]] | None:
        """(commit, files) of a revision; None where there is none."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class LoopbackHub:
    """The state of the stand-in; `requests` are (method, path without host)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.contents: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()  # that were sent
        self.endpoint = ""

    def add(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return digest

    def seed(self, name: str, files: dict[str, bytes], is_private: bool = False) -> str:
        """Puts files into a repository, as somebody else would; returns the commit."""
        repo = self.repos.setdefault(name, Repo(is_private))
        earlier = repo.commits[-1][1] if repo.commits else {}
        return repo.commit({**earlier, **{path: self.add(content) for path, content in files.items()}})

    def fetched(self) -> set[str]:
        """The files that were asked for."""
        return {path.split("/resolve/")[1].split("/", 1)[1] for _, path in self.requests if "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    """One request. `server.hub` is the state."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Nothing on the console."""

    # -------------------------------------------------------------------------------------------- answers
    def answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"})

    # -------------------------------------------------------------------------------------------- requests
    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def is_known(self) -> bool:
        """Whether the request comes from somebody who may write."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token:
            self.server.hub.tokens.add(token)
        return token == TOKEN

    def repo(self, name: str) -> Repo | None:
        """A repository that the sender may see; otherwise it is answered that there is none."""
        repo = self.server.hub.repos.get(name)
        known = self.is_known()
        if repo is None or (repo.is_private and not known):
            self.refuse(404 if known else 401, "RepoNotFound")
            return None
        return repo

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append((self.command, path))
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                getattr(self, name)(**match.groupdict())
                return
        self.body()
        self.refuse(404, "NoSuchRoute")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self) -> None:
        wish = json.loads(self.body())
        if not self.is_known():
            return self.refuse(401, "Unauthorized")
        name = f"{wish['organization']}/{wish['name']}"
        is_private = wish.get("visibility") == "private" or wish.get("private", False)
        if name in self.server.hub.repos:
            return self.refuse(409, "Exists")
        repo = self.server.hub.repos[name] = Repo(is_private)
        repo.commit({".gitattributes": self.server.hub.add(b"*.safetensors filter=lfs\n")})
        return self.answer_json({"url": f"{self.server.hub.endpoint}/{name}", "name": name, "id": name})

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self.repo(name)
        if repo is None:
            return None
        found = repo.at(revision or "main")
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in found[1]]
        facts = {"id": name, "modelId": name, "sha": found[0], "private": repo.is_private, "siblings": siblings}
        return self.answer_json(facts)

    def tree(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        entries = []
        for path, digest in found[1].items():
            size = len(self.server.hub.contents[digest])
            lfs = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if path.endswith(LARGE) else {}
            entries.append({"type": "file", "path": path, "size": size, "oid": digest[:40], **lfs})
        return self.answer_json(entries)

    def validate(self) -> None:
        self.body()
        self.answer_json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        files = json.loads(self.body())["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self.answer_json({"files": modes})

    def lfs_batch(self, name: str) -> None:
        objects = [
            {**wish, "actions": {"upload": {"href": f"{self.server.hub.endpoint}/lfs/{wish['oid']}"}}}
            for wish in json.loads(self.body())["objects"]
        ]
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, digest: str) -> None:
        assert self.server.hub.add(self.body()) == digest
        self.answer(200)

    def commit(self, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        if not self.is_known():
            return self.refuse(403, "Forbidden")
        repo = self.server.hub.repos[name]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repo.commits[-1][0]):
            return self.refuse(412, "PreconditionFailed")
        files = dict(repo.commits[-1][1])
        for line in lines[1:]:
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            files[value["path"]] = value["oid"] if is_large else self.server.hub.add(base64.b64decode(value["content"]))
        oid = repo.commit(files)
        return self.answer_json({"commitUrl": f"{self.server.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.repo(name)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None or file not in found[1]:
            return self.refuse(404, "EntryNotFound")
        digest = found[1][file]
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{digest}"'}
        return self.answer(200, self.server.hub.contents[digest], headers)


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{NAME}", "info"),
    ("GET", rf"/api/models/{NAME}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<digest>\w+)", "lfs_put"),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET HEAD", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
)


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """The stand-in, on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = LoopbackHub()
    server.hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(hub: LoopbackHub, cache, monkeypatch, *, offline: bool = False) -> None:
    """Makes huggingface_hub talk to the stand-in, or to nobody; it reads its environment only when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its transfers have a server of their own
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
