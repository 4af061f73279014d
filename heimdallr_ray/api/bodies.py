"""A request's body on its way in: its size, its pace, and how a thread reads it.

What one request may take is bounded in bytes by the settings, in time by these constants: a sender that stops, or that
sends a byte now and then, gives its place up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from threading import Event

from starlette.requests import ClientDisconnect, Request

from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import NotReady, Rejected, SlowSender, TooLarge, UnsupportedMedia

STALL_S = 30.0
"""The longest silence inside a body."""
PACE_S = 30.0
PACE_BYTES = 64 * 1024
"""At least so many bytes in each window of PACE_S: 2.2 kB/s, half of what the DICOM door asks for."""
_HAND_OVER_S = 2 * STALL_S
"""A thread's bound for one chunk, should the event loop itself be held up."""


class Slots:
    """Counts requests with a body; never waits, because one that waits would hold its connection for nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[None]:
        """A place for one request.

        Raises:
            NotReady: all are taken.
        """
        if self._taken >= self._limit:
            raise NotReady("too many uploads at the moment")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


def require_acceptable(request: Request, max_bytes: int) -> None:
    """Nothing happens where the header of `request` announces a body that may come.

    Raises:
        TooLarge: it announces more than `max_bytes`.
        UnsupportedMedia: the body is compressed as a whole; it would have to be inflated to be looked at.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 19 or int(declared) > max_bytes):
        raise TooLarge(f"larger than {max_bytes >> 20} MiB")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMedia("send the body without Content-Encoding")


async def measured(stream: AsyncIterator[bytes], max_bytes: int, clock: Clock) -> AsyncGenerator[bytes]:
    """The chunks of `stream`, as long as they are not too many and not too slow.

    Raises:
        TooLarge: more than `max_bytes`.
        SlowSender: silence for STALL_S, or less than PACE_BYTES in PACE_S.
        Rejected: the client went away.
    """
    total = in_window = 0
    window_ends = clock.monotonic() + PACE_S
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream, None), STALL_S)
        except TimeoutError as error:
            raise SlowSender(f"nothing came for {STALL_S:g} s") from error
        except ClientDisconnect as error:
            raise Rejected("the client went away") from error
        if chunk is None:
            return
        total += len(chunk)
        in_window += len(chunk)
        if total > max_bytes:
            raise TooLarge(f"larger than {max_bytes >> 20} MiB")
        now = clock.monotonic()
        if now >= window_ends:
            if in_window < PACE_BYTES:
                raise SlowSender(f"less than {PACE_BYTES >> 10} KiB came in {PACE_S:g} s")
            in_window, window_ends = 0, now + PACE_S
        if chunk:
            yield chunk


class ThreadBody:
    """An asynchronous body for one thread: the next chunk is fetched when the thread asks for it, so none piles up."""

    def __init__(self, stream: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        """`stream` is read on `loop`."""
        self._stream = stream
        self._loop = loop
        self._abandoned = Event()

    def abandon(self) -> None:
        """The request is gone: the thread's next read fails."""
        self._abandoned.set()

    def __iter__(self) -> Iterator[bytes]:
        """The chunks.

        Raises:
            SlowSender: the event loop handed over nothing in time.
            Rejected: the request is gone, and whatever the stream raises.
        """
        while True:
            if self._abandoned.is_set():
                raise Rejected("the request is gone")
            waiting = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            try:
                chunk = waiting.result(_HAND_OVER_S)
            except TimeoutError as error:
                waiting.cancel()
                raise SlowSender("the body was not handed over in time") from error
            if chunk is None:
                return
            yield chunk

    async def _next(self) -> bytes | None:
        return await anext(self._stream, None)
