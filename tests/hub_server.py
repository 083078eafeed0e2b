# SPDX-License-Identifier: Apache-2.0
"""
A Hub on this machine for the tests: what `huggingface_hub` asks of the real one to make, fill and read repositories of
models, answered over HTTP, with everything in memory. The client finds it by the environment variable `HF_ENDPOINT`.

Small files travel with the commit, large ones by the LFS protocol, which the client speaks where Xet is not installed
or `HF_HUB_DISABLE_XET` is set; they are stored under another host name than the Hub's, as the real ones are.
"""

import base64
import dataclasses
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LFS_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
INVALID_TOKEN = "Invalid credentials in Authorization header"
ELSEWHERE = [path for path in sys.path if path.endswith("site-packages")]
NO_TOKEN = "Invalid username or password."


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # each with all its files, by path
    titles: dict[str, str] = field(default_factory=dict)  # the commits by their titles
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> str:
        digests = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
        sha = hashlib.sha1(json.dumps([len(self.commits), digests]).encode()).hexdigest()
        self.commits[sha] = files
        self.titles[title] = self.branches[branch] = sha
        return sha

    def sha(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the newest commit on main."""
        return self.commits[self.branches["main"]]


@dataclass
class Fault:
    """The next `times` requests of a method and path fail: with a status, or where there is none by a cut line."""

    method: str
    path: str  # a regular expression
    status: int | None = None
    times: int = 1


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **content):
        super().__init__(message)
        self.status, self.message, self.code, self.content = status, message, code, content


class Hub(ThreadingHTTPServer):
    """
    Args:
        tokens: (user, role) of each, the role "read" or "write".
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, tuple[str, str]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []  # methods and paths
        self.lock = threading.Lock()

    url = property(lambda self: f"http://127.0.0.1:{self.server_port}")
    storage_url = property(lambda self: f"http://localhost:{self.server_port}")

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, token: str | None = None, packages: Sequence[str | Path] = ()) -> dict[str, str]:
        """
        The variables of a process for which this is the Hub.

        Args:
            home: where the process keeps what it downloads.
            packages: folders to import from. `ELSEWHERE`, with Python's `-S`: where the package is not installed.
        """
        variables = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        variables |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        variables |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost"}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, packages))
        return variables if token is None else {**variables, "HF_TOKEN": token}

    def create(self, name: str, private: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.commit("main", "initial commit", {".gitattributes": attributes.encode()})
        return repository

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return dataclasses.replace(fault)
        return None

    def handle_error(self, request, client_address):
        """Lines that are cut, by either side, are part of the tests."""


ROUTES: list[tuple[str, re.Pattern, Callable]] = []
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def route(method: str, path: str):
    def register(function):
        ROUTES.append((method, re.compile(path), function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.server.fault(self.command, path)
        if fault is not None and fault.status is None and self.command != "GET":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        self.cuts_answer = fault is not None and fault.status is None
        try:
            if fault is not None and fault.status is not None:
                raise HubError(fault.status, "a fault of the test")
            self.user, self.role = self.who()
            method = "GET" if self.command == "HEAD" else self.command
            for route_method, pattern, function in ROUTES:
                if route_method == method and (match := pattern.fullmatch(path)):
                    return function(self, **match.groupdict())
            raise HubError(404, f"no such route: {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.answer({"error": error.message, **error.content}, error.status, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args):
        pass

    def answer(self, content: dict | list | bytes, status: int = 200, headers: dict[str, str] | None = None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cuts_answer else content)
        self.close_connection |= self.cuts_answer

    def who(self) -> tuple[str | None, str | None]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise HubError(401, INVALID_TOKEN)
        return self.server.tokens.get(token, (None, None))

    def owns(self, repo: str) -> bool:
        return repo.split("/")[0] == self.user

    def readable(self, repo: str) -> Repository:
        repository = self.server.repositories.get(repo)
        if repository is None or (repository.private and not self.owns(repo)):
            if self.user is None:  # the code is what the client makes of this answer over https
                raise HubError(401, NO_TOKEN, "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, repo: str) -> Repository:
        repository = self.readable(repo)
        if self.user is None:
            raise HubError(401, NO_TOKEN)
        if not self.owns(repo) or self.role != "write":
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository


def metadata(card: bytes) -> dict:
    """
    Raises:
        HubError: the metadata of a card is no YAML mapping.
    """
    block = re.match(r"---\r?\n(.*?)\r?\n---", card.decode(), re.DOTALL)
    try:
        content = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        content = str(error)
    if not isinstance(content, dict):
        raise HubError(400, "Invalid metadata", errors=[{"message": f"metadata is no YAML mapping: {content}"}])
    return content


def is_large(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def object_id(path: str, content: bytes) -> str:
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@route("GET", "/api/whoami-v2")
def who_am_i(handler: Handler):
    if handler.user is None:
        raise HubError(401, NO_TOKEN)
    handler.answer({"type": "user", "name": handler.user, "orgs": [], "auth": {"accessToken": {"role": handler.role}}})


@route("POST", "/api/validate-yaml")
def validate_card(handler: Handler):
    metadata(json.loads(handler.body)["content"].encode())
    handler.answer({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repository(handler: Handler):
    request = json.loads(handler.body)
    if handler.user is None:
        raise HubError(401, NO_TOKEN)
    namespace = request.get("organization") or handler.user
    if namespace != handler.user or handler.role != "write":
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    name = f"{namespace}/{request['name']}"
    url = f"{handler.server.url}/{name}"
    if name in handler.server.repositories:
        raise HubError(409, "You already created this model repo", url=url)
    handler.server.create(name, private=request.get("visibility") == "private")
    handler.answer({"url": url})


@route("GET", f"/api/models/{REPO}/auth-check(?P<write>/write)?")
def check_access(handler: Handler, repo: str, write: str | None):
    (handler.writable if write else handler.readable)(repo)
    handler.answer({})


@route("POST", f"/api/models/{REPO}/preupload/(?P<revision>.+)")
def say_how_to_upload(handler: Handler, repo: str, revision: str):
    repository = handler.writable(repo)
    present = repository.commits[repository.sha(revision)]
    handler.answer(
        {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": object_id(path, present[path]) if path in present else None,
                }
                for path in (file["path"] for file in json.loads(handler.body)["files"])
            ]
        }
    )


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def say_where_to_upload(handler: Handler, repo: str):
    handler.writable(repo)
    objects = json.loads(handler.body)["objects"]
    for entry in objects:
        if entry["oid"] not in handler.server.lfs_objects:
            entry["actions"] = {"upload": {"href": f"{handler.server.storage_url}/lfs/{entry['oid']}"}}
    handler.answer({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def store_object(handler: Handler, oid: str):
    if hashlib.sha256(handler.body).hexdigest() != oid:
        raise HubError(400, "the content is another than was announced")
    handler.server.lfs_objects[oid] = handler.body
    handler.answer(b"")


@route("GET", "/lfs/(?P<oid>[0-9a-f]{64})")
def send_object(handler: Handler, oid: str):
    handler.answer(handler.server.lfs_objects[oid], headers={"ETag": f'"{oid}"'})


@route("POST", f"/api/models/{REPO}/commit/(?P<branch>.+)")
def commit(handler: Handler, repo: str, branch: str):
    repository = handler.writable(repo)
    files = dict(repository.commits[repository.sha(branch)])
    for line in handler.body.splitlines():
        key, value = (entry := json.loads(line))["key"], entry["value"]
        if key == "header":
            title = value["summary"]
        elif key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = handler.server.lfs_objects[value["oid"]]
    sha = repository.commit(branch, title, files)
    handler.answer({"success": True, "commitOid": sha, "commitUrl": f"{handler.server.url}/{repo}/commit/{sha}"})


@route("POST", f"/api/models/{REPO}/branch/(?P<branch>.+)")
def create_branch(handler: Handler, repo: str, branch: str):
    repository = handler.writable(repo)
    if branch in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{branch}")
    repository.branches[branch] = repository.sha(json.loads(handler.body or b"{}").get("startingPoint", "main"))
    handler.answer({})


@route("POST", f"/api/models/{REPO}/tag/(?P<revision>.+)")
def create_tag(handler: Handler, repo: str, revision: str):
    repository = handler.writable(repo)
    repository.tags[json.loads(handler.body)["tag"]] = repository.sha(revision)
    handler.answer({})


@route("GET", f"/api/models/{REPO}(/revision/(?P<revision>.+))?")
def describe(handler: Handler, repo: str, revision: str | None):
    repository = handler.readable(repo)
    sha = repository.sha(revision or "main")
    files = repository.commits[sha]
    data = metadata(files.get("README.md", b""))
    handler.answer(
        {
            "id": repo,
            "sha": sha,
            "private": repository.private,
            "siblings": [{"rfilename": path} for path in files],
            "tags": data.get("tags", []),
            **{name: data[name] for name in ("pipeline_tag", "library_name") if name in data},
        }
    )


@route("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def list_files(handler: Handler, repo: str, revision: str, folder: str | None):
    repository = handler.readable(repo)
    is_recursive = "recursive=true" in handler.path.lower()
    prefix = f"{folder}/" if folder else ""
    found = {}
    for path, content in repository.commits[repository.sha(revision)].items():
        below = path.removeprefix(prefix).split("/")
        if not path.startswith(prefix):
            continue
        if len(below) > 1 and not is_recursive:
            path = prefix + below[0]
            found[path] = {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
            continue
        found[path] = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if is_large(path):
            found[path]["lfs"] = {"oid": object_id(path, content), "size": len(content), "pointerSize": 134}
    if folder and not found:
        raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
    handler.answer(list(found.values()))


@route("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def send_file(handler: Handler, repo: str, revision: str, path: str):
    repository = handler.readable(repo)
    sha = repository.sha(revision)
    headers = {"X-Repo-Commit": sha}
    if path not in repository.commits[sha]:
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return handler.answer(b"Entry not found", 404, headers)
    content = repository.commits[sha][path]
    oid = object_id(path, content)
    if is_large(path):
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        headers["Location"] = f"{handler.server.storage_url}/lfs/{oid}"
        return handler.answer(b"", 302, headers)
    handler.answer(content, headers=headers | {"ETag": f'"{oid}"'})
