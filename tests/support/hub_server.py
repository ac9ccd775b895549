"""A local server that speaks as much of the Hugging Face hub's API as downloading a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", COMMIT)


@contextmanager
def serve_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve {repository: {path: content}}; gives the endpoint and the list of the files downloaded so far."""
    downloaded: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                files = repositories.get("/".join(parts[2:4]))
                revision = parts[5] if len(parts) > 5 else "main"
            else:
                files = repositories.get("/".join(parts[:2]))
                revision = parts[3]
            if files is None:
                return self.send(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})
            if revision not in REVISIONS:
                return self.send(404, b"", with_body, {"X-Error-Code": "RevisionNotFound"})
            if parts[0] != "api":
                return self.send_file(files, "/".join(parts[4:]), with_body)
            if parts[4:5] == ["tree"]:
                answer = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
            else:
                siblings = [{"rfilename": path} for path in files]
                answer = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}
            self.send(200, json.dumps(answer).encode(), with_body, {"Content-Type": "application/json"})

        def send_file(self, files: dict[str, bytes], path: str, with_body: bool) -> None:
            if path not in files:
                return self.send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            if with_body:
                downloaded.append(path)
            etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
            self.send(200, files[path], with_body, {"X-Repo-Commit": COMMIT, "ETag": etag})

        def send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()
        server.server_close()
