"""An HTTP server for one file that behaves as it is told: with ranges, without, cutting, slow, changing, lying."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Behaviour:
    """What the server does; tests change it while it runs.

    Attributes:
        content: the file.
        files: path to content, in the place of one file; other paths are not found.
        ranges: answer ranges.
        if_range: heed If-Range.
        cut_after: bytes of each answer after which the connection is closed; None: whole answers.
        statuses: answered first, one a request.
        chunked: say no length.
        trickle: (bytes, seconds) of each piece.
        tag: ETag; None: of the content.
        redirect: Location for every request.
        on_post: answer to a POST: status and body; None: the file.
    """

    content: bytes = b""
    files: dict[str, bytes] | None = None
    ranges: bool = True
    if_range: bool = True
    cut_after: int | None = None
    statuses: list[int] = field(default_factory=list)
    chunked: bool = False
    trickle: tuple[int, float] | None = None
    tag: str | None = None
    redirect: str = ""
    on_post: tuple[int, dict[str, Any]] | None = None
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    sent: int = 0
    after_answer: Callable[[Self], None] | None = None

    def etag_of(self, content: bytes) -> str:
        return self.tag if self.tag is not None else f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    @property
    def etag(self) -> str:
        return self.etag_of(self.content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def _answer(self, body: bytes) -> None:
        told = self.behaviour
        told.seen.append((self.command, self.path, dict(self.headers), body))
        if told.redirect:
            self._plain(302, b"", {"Location": told.redirect})
        elif told.statuses:
            self._plain(told.statuses.pop(0), b"later", {})
        elif body and told.on_post is not None:
            status, document = told.on_post
            self._plain(status, json.dumps(document).encode(), {"Content-Type": "application/json"})
        elif told.files is not None and self.path not in told.files:
            self._plain(404, b"", {})
        else:
            self._file()
        if told.after_answer is not None:
            told.after_answer(told)

    def _plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _file(self) -> None:
        told = self.behaviour
        first, content = 0, told.content if told.files is None else told.files[self.path]
        tag = told.etag_of(content)
        asked = self.headers.get("Range", "")
        same = self.headers.get("If-Range") in (None, tag) or not told.if_range
        partial = bool(asked) and told.ranges and same
        if partial:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            if first >= len(content):
                self._plain(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if tag:
            self.send_header("ETag", tag)
        if told.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        rest = content[first:]
        cut = told.cut_after is not None and told.cut_after < len(rest)
        rest = rest[: told.cut_after] if cut else rest
        size, pause_s = told.trickle or (1 << 16, 0.0)
        try:
            for start in range(0, len(rest), size):
                piece = rest[start : start + size]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if told.chunked else piece)
                told.sent += len(piece)
                if pause_s:
                    time.sleep(pause_s)
            if told.chunked and not cut:
                self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some of the tests are about."""


@contextmanager
def serving_file(behaviour: Behaviour) -> Generator[str]:
    """The base URL while it is served."""
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
