from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from heimdallr_ray.errors import DatabaseBusy
from heimdallr_ray.events import stream
from heimdallr_ray.events.stream import Event, Feed, encode, encode_event, parse_last_event_id
from tests.support.clock import FakeClock

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Source:
    """Events in a list; counts how often it is asked."""

    def __init__(self, n: int) -> None:
        self.events = [Event(i, AT, "study.state", "1.2.3", None, "queued") for i in range(1, n + 1)]
        self.looks = 0
        self.busy = 0

    def latest(self) -> int:
        self.looks += 1
        if self.busy > 0:
            self.busy -= 1
            raise DatabaseBusy
        return self.events[-1].id if self.events else 0

    def after(self, event_id: int, limit: int) -> list[Event]:
        return [event for event in self.events if event.id > event_id][:limit]


async def here(function: Any, *args: Any) -> Any:
    return function(*args)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Sleeping moves the clock instead of the wall."""
    fake = FakeClock()

    async def sleep(seconds: float) -> None:
        fake.advance(seconds)

    monkeypatch.setattr(stream.asyncio, "sleep", sleep)
    return fake


def collect(messages: AsyncIterator[bytes], n: int = 10_000) -> list[bytes]:
    async def run() -> list[bytes]:
        found: list[bytes] = []
        async for message in messages:
            found.append(message)
            if len(found) == n:
                break
        return found

    return asyncio.run(run())


def ids_of(messages: list[bytes]) -> list[int]:
    return [int(line[4:]) for m in messages for line in m.decode().splitlines() if line.startswith("id: ")]


def test_a_message_is_one_line_of_data_whatever_it_holds():
    text = encode("study", {"reason": "two\nlines\r\n\r\ndata: forged"}, 7).decode()
    assert text.startswith("id: 7\nevent: study\ndata: {")
    assert text.endswith("}\n\n")
    assert len(text.rstrip("\n").split("\n")) == 3


def test_an_event_names_the_study_and_nothing_of_the_patient():
    text = encode_event(Event(3, AT, "study.state", "1.2.3", "queued", "running")).decode()
    assert text == (
        "id: 3\nevent: study\n"
        'data: {"id":3,"at":"2026-01-02T03:04:05+00:00","kind":"study.state","study_uid":"1.2.3",'
        '"old":"queued","new":"running"}\n\n'
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        (" 12 ", 12),
        ("0", 0),
        ("", None),
        (None, None),
        ("-1", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 19, None),
    ],
)
def test_last_event_id_is_a_number_or_nothing(text: str | None, value: int | None):
    assert parse_last_event_id(text) == value


def test_a_client_that_comes_back_gets_what_it_missed_in_order_once(clock: FakeClock):
    messages = collect(Feed(Source(5), clock, here, stream_s=5).messages(2))
    assert ids_of(messages) == [3, 4, 5]


def test_a_new_client_is_told_where_it_stands(clock: FakeClock):
    messages = collect(Feed(Source(5), clock, here, stream_s=5).messages(None))
    assert messages[1] == b'id: 5\nevent: resync\ndata: {"id":5}\n\n'
    assert ids_of(messages) == [5]


@pytest.mark.parametrize("seen", [99, 1])
def test_a_client_from_the_future_or_the_distant_past_fetches_everything_anew(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, seen: int
):
    monkeypatch.setattr(stream, "MAX_BEHIND", 3)
    messages = collect(Feed(Source(9), clock, here, stream_s=5).messages(seen))
    assert b"event: resync" in messages[1]
    assert ids_of(messages) == [9]


def test_a_backlog_is_read_in_batches(clock: FakeClock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "BATCH", 4)
    messages = collect(Feed(Source(10), clock, here, stream_s=30).messages(0))
    assert ids_of(messages) == list(range(1, 11))
    assert [m.count(b"event: study") for m in messages if b"event" in m] == [4, 4, 2]


def test_a_quiet_stream_is_kept_open_and_then_ended(clock: FakeClock):
    messages = collect(Feed(Source(0), clock, here, stream_s=62).messages(0))
    assert messages.count(b": alive\n\n") == 4
    assert messages[-1].startswith(b": end")


def test_a_busy_database_does_not_end_the_stream(clock: FakeClock):
    source = Source(3)
    source.busy = 2
    messages = collect(Feed(source, clock, here, stream_s=10).messages(1))
    assert messages.count(b": database busy\n\n") == 2
    assert ids_of(messages) == [2, 3]


def test_many_streams_share_one_look_at_the_table():
    class Frozen(FakeClock):
        pass

    source = Source(1)
    feed = Feed(source, Frozen(), here)

    async def run() -> None:
        await asyncio.gather(*(feed.latest() for _ in range(50)))

    asyncio.run(run())
    assert source.looks == 1
