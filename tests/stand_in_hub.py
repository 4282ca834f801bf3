"""A server on this machine that answers the Hub's client as the Hub does, for repositories of small files."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class StandIn:
    """Attributes: ``url``, ``repositories`` {name: {file: bytes}}, ``private``, ``asked`` (method and path of every
    request), ``refuse`` (the status that all answers have instead, or 0), ``instead`` (gives what a path is
    answered with in place of what is right)."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refuse, self.url = 0, ""
        self.instead: Callable[[str], tuple[int, dict[str, str], bytes]] | None = None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        self.asked.append(f"{method} {path}")
        if self.refuse:
            return self.refuse, {}, b"{}"
        if self.instead is not None:
            return self.instead(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {})
            self.private[name] = "private" in (asked.get("visibility"), asked.get("private") and "private")
            return 200, {}, json.dumps({"url": f"{self.url}/{name}"}).encode()
        if path == "/api/validate-yaml":
            return 200, {}, b'{"errors": [], "warnings": []}'
        parts = path.strip("/").split("/")
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            return self.model("/".join(parts[2:4]), parts[4:], body)
        if parts[0] == "datasets":
            parts = parts[1:]
        return self.file("/".join(parts[:2]), unquote("/".join(parts[4:])))

    def model(self, name: str, rest: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What is asked of a repository as a whole."""
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        told: Any = {
            "id": name,
            "modelId": name,
            "sha": "0" * 40,
            "private": True,
            "siblings": [{"rfilename": file} for file in self.repositories[name]],
        }
        if rest[:1] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            told = {"files": files}
        elif rest[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            told = {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
        elif rest[:1] == ["tree"]:
            below = unquote("/".join(rest[2:]))
            told = [entry for entry in self.entries(name) if entry["path"].startswith(f"{below}/" if below else "")]
        elif rest[:1] == ["paths-info"]:
            asked = parse_qs(body.decode())["paths"]
            told = [entry for entry in self.entries(name) if entry["path"] in asked]
        return 200, {}, json.dumps(told).encode()

    def entries(self, name: str) -> list[dict[str, Any]]:
        """The files and folders of a repository."""
        files = self.repositories[name]
        folders = {str(folder) for file in files for folder in PurePosixPath(file).parents} - {"."}
        own = [
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for file, data in files.items()
        ]
        return own + [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]

    def file(self, name: str, file: str) -> tuple[int, dict[str, str], bytes]:
        """One file of a repository."""
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if file not in self.repositories[name]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40}, b""
        data = self.repositories[name][file]
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": "0" * 40}, data


@contextmanager
def served() -> Iterator[StandIn]:
    """Inside, the server answers at ``url``."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = hub.answer(self.command, urlsplit(self.path).path, body)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = handle_one

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
