"""A stand-in for the Hugging Face hub on loopback: what its client asks of it to upload."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Serves repositories of models; a context manager.

    ``repositories`` holds the files of each by path; ``private`` the names of those made so;
    ``commits`` the messages, in order. A request without the token of ``TOKENS`` gets 401, one
    with the token that only reads 403. Paths that match a pattern of ``answers`` get that status.
    """

    TOKENS = ("hf_writes", "hf_reads")

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.answers: dict[str, int] = {}
        self.large: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self._is_allowed(path):
            self._answer(200, {"id": path.removeprefix("/api/models/"), "xetEnabled": False})

    def do_PUT(self) -> None:
        oid, body = self.path.removeprefix("/large/"), self._body()
        if self._refused(self.path):
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._answer(200)

    def do_POST(self) -> None:
        body = self._body()
        if not self._is_allowed(self.path):
            return
        if self.path == "/api/repos/create":
            self._create(**json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            self._answer(200, {"files": [_mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._answer(200, {"objects": [self._instruct(o) for o in json.loads(body)["objects"]]})
        elif self.path.endswith("/commit/main"):
            self._commit(self.path.split("/api/models/")[1].removesuffix("/commit/main"), body)
        else:
            self._answer(404)

    def _create(self, name: str, organization: str, private: bool = False, **_: object) -> None:
        repository = f"{organization}/{name}"
        is_there = repository in self.hub.repositories
        self.hub.repositories.setdefault(repository, {})
        if private and not is_there:
            self.hub.private.add(repository)
        self._answer(409 if is_there else 200, {"url": f"{self.hub.address}/{repository}"})

    def _instruct(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """How to send a large file; nothing if it is there."""
        if wanted["oid"] in self.hub.large:
            return wanted
        href = f"{self.hub.address}/large/{wanted['oid']}"
        return wanted | {"actions": {"upload": {"href": href}}}

    def _commit(self, repository: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.commits.append(value["summary"])
                continue
            content = (
                self.hub.large[value["oid"]]
                if entry["key"] == "lfsFile"
                else base64.b64decode(value["content"])
            )
            self.hub.repositories[repository][value["path"]] = content
        url = f"{self.hub.address}/{repository}/commit/1"
        self._answer(200, {"commitUrl": url, "commitOid": "1"})

    def _is_allowed(self, path: str) -> bool:
        """Whether the token may ask for it; answers if it may not."""
        if self._refused(path):
            return False
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        writes, reads = Hub.TOKENS
        if token not in (writes, reads):
            self._answer(401)
        elif token == reads and self.command == "POST":
            self._answer(403)
        return token == writes or (token == reads and self.command == "GET")

    def _refused(self, path: str) -> bool:
        for pattern, status in self.hub.answers.items():
            if fnmatch.fnmatch(path, pattern):
                self._answer(status)
                return True
        return False

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: object = None) -> None:
        body = json.dumps({} if content is None else content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    is_large = file["path"].endswith(".safetensors")
    mode = "lfs" if is_large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
