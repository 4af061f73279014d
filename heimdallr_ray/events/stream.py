"""The event table as a stream of Server-Sent Events (WHATWG HTML, section 9.2).

`encode` and `comment` are pure; `Feed` reads the table. An event tells what changed, never whose study it is: the
client fetches the study with its own rights.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import DatabaseBusy

POLL_S = 0.4
"""A change is on the wire within this time plus one query."""
HEARTBEAT_S = 15.0
"""Proxies close idle connections; a comment keeps this one open."""
STREAM_S = 300.0
"""A stream ends by itself, so that a replica can be drained; the client comes back with Last-Event-ID."""
RETRY_MS = 1500
BATCH = 200
"""Events per read; a client that is further behind than MAX_BEHIND is told to fetch everything anew."""
MAX_BEHIND = 2000
MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class Event:
    """One row of the event table as the stream tells it."""

    id: int
    at: datetime
    kind: str
    study_uid: str | None
    old: str | None
    new: str | None


class EventSource(Protocol):
    """Where events come from; both calls block and are made in a thread."""

    def latest(self) -> int:
        """The id of the newest event; 0 where there is none."""
        ...

    def after(self, event_id: int, limit: int) -> list[Event]:
        """At most `limit` events with a larger id, oldest first."""
        ...


def encode(kind: str, payload: dict[str, Any], event_id: int | None = None) -> bytes:
    """One message. JSON holds no bare newline, so `data` is a single line."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {kind}\ndata: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that clients ignore."""
    return f": {text}\n\n".encode()


def encode_event(event: Event) -> bytes:
    """`event` as a message named `study` (or `job` where it belongs to no study)."""
    payload = {
        "id": event.id,
        "at": event.at.isoformat(),
        "kind": event.kind,
        "study_uid": event.study_uid,
        "old": event.old,
        "new": event.new,
    }
    return encode("study" if event.study_uid else "job", payload, event.id)


def parse_last_event_id(text: str | None) -> int | None:
    """The id a client saw last, or None where it saw none or sent nonsense."""
    text = (text or "").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        return None
    value = int(text)
    return value if value <= MAX_ID else None


class Feed:
    """Streams for many clients from one table.

    All streams of a process share one look at the newest id per POLL_S; rows are read only by a stream that is behind.
    """

    def __init__(
        self,
        source: EventSource,
        clock: Clock,
        in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        stream_s: float = STREAM_S,
    ) -> None:
        self._source = source
        self._clock = clock
        self._in_thread = in_thread
        self._stream_s = stream_s
        self._lock = asyncio.Lock()
        self._latest = 0
        self._looked_at = float("-inf")

    async def latest(self) -> int:
        """The newest id, at most POLL_S old."""
        async with self._lock:
            if self._clock.monotonic() - self._looked_at >= POLL_S:
                self._latest = int(await self._in_thread(self._source.latest))
                self._looked_at = self._clock.monotonic()
            return self._latest

    async def messages(self, last_event_id: int | None) -> AsyncIterator[bytes]:
        """Encoded messages after `last_event_id`, until the stream's time is over.

        Without an id, with one from the future (the database was replaced) or one too far behind, the first message is
        `resync`, which carries the id to go on from. A database that does not answer is skipped, not an end.
        """
        yield f"retry: {RETRY_MS}\n\n".encode()
        position = last_event_id
        ends_at = self._clock.monotonic() + self._stream_s
        spoke_at = self._clock.monotonic()
        while self._clock.monotonic() < ends_at:
            chunks: list[bytes] = []
            try:
                latest = await self.latest()
                if position is None or position > latest or latest - position > MAX_BEHIND:
                    position = latest
                    chunks.append(encode("resync", {"id": latest}, latest))
                elif latest > position:
                    events: list[Event] = await self._in_thread(self._source.after, position, BATCH)
                    chunks.extend(encode_event(event) for event in events)
                    position = events[-1].id if events else latest
            except DatabaseBusy:
                chunks.append(comment("database busy"))
            now = self._clock.monotonic()
            if not chunks and now - spoke_at >= HEARTBEAT_S:
                chunks.append(comment("alive"))
            if chunks:
                spoke_at = now
                yield b"".join(chunks)
            await asyncio.sleep(POLL_S)
        yield comment("end of stream, come back")
