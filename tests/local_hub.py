"""A hub of models on this machine: the part of the Hugging Face hub's HTTP interface that uploads and downloads of models use.

    with LocalHub() as hub:
        subprocess.run(…, env={**os.environ, "HF_ENDPOINT": hub.url, …})

huggingface_hub reads its variables when it is imported, so tests use it in processes of their own. TOKEN may write, and read PRIVATE;
GATED answers that permission is needed, BROKEN with the status 500.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

TOKEN = "hf_localtest"
PRIVATE, GATED, BROKEN = "owner/private", "owner/gated", "owner/broken"


@dataclass
class Repo:
    """The commits of a model, oldest first: their ids and files."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, files: dict[str, bytes]) -> str:
        merged = {**self.files("main")[1], **files} if self.commits else files
        sha = hashlib.sha1(repr((len(self.commits), sorted(merged.items()))).encode()).hexdigest()
        self.commits[sha] = merged
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit of a revision and its files; KeyError if there is none."""
        sha = list(self.commits)[-1] if revision == "main" else revision
        return sha, self.commits[sha]


class LocalHub:
    """A running hub. `repos`: by "owner/name"; `asked`: method and path of every request."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Refused(Exception):
    """An answer other than 200: status, the hub's code of the error, and the model of its url."""

    def __init__(self, status: int, code: str = "", name: str = "owner/name") -> None:
        self.status, self.code, self.name = status, code, name


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            made, more = self._made(path, body)
            status = 200
        except _Refused as refused:
            status, made = refused.status, json.dumps({"url": f"{self.hub.url}/{refused.name}"}).encode()
            more = {"X-Error-Code": refused.code} if refused.code else {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(made)), "Content-Type": "application/json", **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(made)

    def _made(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        """Body and headers of an answer."""
        writer = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if self.command == "POST" and not writer:
            raise _Refused(401)
        if path == "/api/whoami-v2":
            return _json({"name": "owner", "type": "user", "orgs": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if name in self.hub.repos:
                raise _Refused(409, name=name)  # the hub tells its url
            self.hub.repos[name] = Repo()
            return _json({"url": f"{self.hub.url}/{name}"})
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?", path)
        found = api or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        if found is None:
            raise _Refused(404)
        name, action, revision = found[1], found[2], found[3] or "main"
        repo = self._repo(name, writer)
        if action == "preupload":
            listed = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return _json({"files": listed})
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines() if line]
            sha = repo.add(
                {v["path"]: base64.b64decode(v["content"]) for v in (x["value"] for x in lines if x["key"] == "file")}
            )
            return _json({"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})
        try:
            sha, files = repo.files(revision)
        except (KeyError, IndexError):
            raise _Refused(404, "RevisionNotFound" if repo.commits else "EntryNotFound") from None
        if action == "resolve":
            if found[4] not in files:
                raise _Refused(404, "EntryNotFound")
            data = files[found[4]]
            return data, {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        if action == "tree":
            return _json([{"type": "file", "path": p, "size": len(d), "oid": _blob(d)} for p, d in files.items()])
        return _json({"id": name, "_id": name, "sha": sha, "siblings": [{"rfilename": p} for p in files], "tags": []})

    def _repo(self, name: str, writer: bool) -> Repo:
        if name == GATED:
            raise _Refused(403, "GatedRepo")
        if name == BROKEN:
            raise _Refused(500)
        if name not in self.hub.repos or (name == PRIVATE and not writer):
            raise _Refused(404 if writer else 401, "RepoNotFound")
        return self.hub.repos[name]


def _json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {}


def _blob(data: bytes) -> str:
    """git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
