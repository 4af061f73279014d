"""A sender of a large body goes on no faster than the application takes it, also through Serve's proxy.

The proxy reads a request as fast as it comes and hands it on from a queue without a bound, and so does the replica:
most of a large upload would lie in their memory. Here the proxy's side reads on only while what the application has
not taken yet is little. How much it has taken the application says in a small file, for both run on one machine. Where
they do not, nobody says anything, and the body goes as fast as it comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heimdallr_ray.folders import FILE_MODE, make_private
from heimdallr_ray.ids import new_id

logger = logging.getLogger(__name__)

FOLDER: Final = "HR_FLOW_FOLDER"
"""Environment variable: where the files are. Without it nothing is held back."""
HEADER: Final = b"x-heimdallr-flow"
LEAST_BYTES = 1 << 20
"""Smaller bodies are not worth a file."""
WINDOW_BYTES = 8 << 20
"""Of a body may be on its way between the two sides."""
POLL_S = 0.005
UNHEARD_S = 10.0
"""An application that does not say anything for so long, where the window is full, is none of ours."""
_NAME = re.compile(rb"[0-9a-f]{32}")
_HEARD_AT = 8


def proxy_middlewares() -> list[Middleware]:
    """For Serve's proxy (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return []
    make_private(Path(folder))
    return [Middleware(HoldingBack, folder=Path(folder))]


def _body_bytes(scope: Scope) -> int:
    """As announced; more than any bound where that is not said."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if lengths and lengths[0].isdigit():
        return int(lengths[0][:20])
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    return 1 << 63 if chunked else 0


class _Taken:
    """The file in which the application says how much it has taken."""

    def __init__(self, folder: Path) -> None:
        """A new one.

        Raises:
            OSError: it cannot be made.
        """
        self.name = new_id()
        self._path = folder / self.name
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        os.pwrite(self._descriptor, bytes(_HEARD_AT + 1), 0)
        self.closed = False
        """The application has answered: whoever still reads its request is not held back."""

    def look(self) -> tuple[bool, int]:
        """Whether the application has said anything, and how many bytes it has taken."""
        content = os.pread(self._descriptor, _HEARD_AT + 1, 0)
        return content[_HEARD_AT:] == b"\1", int.from_bytes(content[:_HEARD_AT], "little")

    def close(self) -> None:
        """The file is gone."""
        self.closed = True
        with suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


class HoldingBack:
    """The proxy's side: bodies come in no faster than they are taken."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        """`folder`: where the application looks too."""
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A stranger's word about our own file is none.
        headers = [(name, value) for name, value in scope["headers"] if name != HEADER]
        taken = self._file() if _body_bytes(scope) >= LEAST_BYTES else None
        if taken is None:
            await self._app({**scope, "headers": headers}, receive, send)
            return
        try:
            headers.append((HEADER, taken.name.encode("ascii")))
            await self._app({**scope, "headers": headers}, _held_back(receive, taken), send)
        finally:
            taken.close()

    def _file(self) -> _Taken | None:
        try:
            return _Taken(self._folder)
        except OSError as error:
            logger.warning("flow.not_governed", extra={"reason": error.strerror or type(error).__name__})
            return None


def _held_back(receive: Receive, taken: _Taken) -> Receive:
    sent = 0
    governed = True

    async def wait_for_room() -> None:
        nonlocal governed
        began = time.monotonic()
        while not taken.closed:
            heard, count = taken.look()
            if sent - count <= WINDOW_BYTES:
                return
            if not heard and time.monotonic() - began > UNHEARD_S:
                governed = False
                logger.warning("flow.not_governed", extra={"reason": "the application says nothing"})
                return
            await asyncio.sleep(POLL_S)

    async def held_back() -> Message:
        nonlocal sent
        if governed:
            await wait_for_room()
        message = await receive()
        sent += len(message.get("body", b""))
        return message

    return held_back


class SayingWhatIsTaken:
    """The application's side."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        folder = os.environ.get(FOLDER)
        self._folder = Path(folder) if folder else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        descriptor = self._file(scope)
        if descriptor is None:
            await self._app(scope, receive, send)
            return
        taken = pending = 0
        answered = False

        async def saying() -> Message:
            nonlocal taken, pending
            # Who asks for the next is done with the last one. Behind the answer the descriptor may be another file's.
            taken, pending = taken + pending, 0
            if not answered:
                os.pwrite(descriptor, taken.to_bytes(_HEARD_AT, "little"), 0)
            message = await receive()
            pending = len(message.get("body", b""))
            return message

        try:
            os.pwrite(descriptor, b"\1", _HEARD_AT)
            await self._app(scope, saying, send)
        finally:
            answered = True
            os.close(descriptor)

    def _file(self, scope: Scope) -> int | None:
        if self._folder is None or scope["type"] != "http":
            return None
        name = next((value for name, value in scope["headers"] if name == HEADER), b"")
        if not _NAME.fullmatch(name):
            return None
        try:
            return os.open(self._folder / name.decode("ascii"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
