"""A stand-in of the hub's HTTP interface, on a port of this machine: repositories as dictionaries of files."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Repositories = dict[str, dict[str, bytes]]
SHA = "0" * 40


def handler(repositories: Repositories) -> type[BaseHTTPRequestHandler]:
    """What answers: making, listing, committing to and reading from repositories."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def answer(self, data: object = None, status: int = 200, raw: bytes | None = None, **headers: str) -> None:
            body = json.dumps(data).encode() if raw is None else raw
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self) -> None:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/api/repos/create":
                told = json.loads(body)
                name = "/".join(filter(None, (told.get("organization"), told["name"])))
                repositories.setdefault(name, {})
                self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif found := re.match(r"/api/models/(\w+/[\w-]+)/preupload/", self.path):
                files = [each["path"] for each in json.loads(body)["files"]]
                self.answer({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            elif found := re.match(r"/api/models/(\w+/[\w-]+)/commit/", self.path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        repositories[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"http://{self.headers['Host']}/{found[1]}/commit/{SHA}"
                self.answer({"commitUrl": url, "commitOid": SHA, "success": True})
            else:
                self.refuse()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if (found := re.match(r"/api/models/(\w+/[\w-]+)/tree/", path)) and found[1] in repositories:
                files = repositories[found[1]].items()
                self.answer([{"type": "file", "path": p, "size": len(raw), "oid": SHA} for p, raw in files])
            elif (found := re.match(r"/api/models/(\w+/[\w-]+)", path)) and found[1] in repositories:
                files = repositories[found[1]].items()
                siblings = [{"rfilename": path, "size": len(raw)} for path, raw in files]
                self.answer({"id": found[1], "sha": SHA, "siblings": siblings})
            elif (found := re.match(r"/(\w+/[\w-]+)/resolve/[^/]+/(.+)", path)) and found[1] in repositories:
                raw = repositories[found[1]][found[2]]
                self.answer(raw=raw, X_Repo_Commit=SHA, ETag=f'"{hashlib.sha256(raw).hexdigest()}"')
            else:
                self.refuse()

        do_HEAD = do_GET  # noqa: N815

    return Handler


@contextmanager
def hub() -> Iterator[tuple[str, Repositories]]:
    """Serve; yields the address and the repositories."""
    repositories: Repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(repositories))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", repositories
    finally:
        server.shutdown()
