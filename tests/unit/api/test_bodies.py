"""Size and pace of a body."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from starlette.requests import ClientDisconnect, Request

from heimdallr_ray.api import bodies
from heimdallr_ray.api.bodies import PACE_BYTES, PACE_S, Slots, ThreadBody, measured, require_acceptable
from heimdallr_ray.errors import HeimdallrError, NotReady, Rejected, SlowSender, TooLarge, UnsupportedMedia
from tests.support.clock import FakeClock


def read(chunks: list[bytes], clock: FakeClock, *, pause_s: float = 0.0, max_bytes: int = 1 << 30) -> list[bytes]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            clock.advance(pause_s)
            yield chunk

    async def whole() -> list[bytes]:
        return [chunk async for chunk in measured(stream(), max_bytes, clock)]

    return asyncio.run(whole())


def test_a_body_passes_unchanged():
    assert read([b"one", b"", b"two"], FakeClock()) == [b"one", b"two"]


def test_a_body_that_is_too_large_ends_with_the_byte_too_many():
    assert read([b"x" * 10, b"y" * 10], FakeClock(), max_bytes=20)
    with pytest.raises(TooLarge):
        read([b"x" * 10, b"y" * 11], FakeClock(), max_bytes=20)


def test_a_trickle_is_given_up_and_a_slow_line_is_not():
    with pytest.raises(SlowSender, match="64 KiB"):
        read([b"x"] * 100, FakeClock(), pause_s=1.0)
    enough = PACE_BYTES // int(PACE_S) + 1
    assert len(read([b"x" * enough] * 100, FakeClock(), pause_s=1.0)) == 100


def test_a_trickle_after_a_gush_is_given_up_too():
    with pytest.raises(SlowSender):
        read([b"x" * (1 << 20), *[b"x"] * 100], FakeClock(), pause_s=1.0)


def test_silence_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "STALL_S", 0.05)

    async def stream() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(30)

    async def whole() -> None:
        async for _ in measured(stream(), 100, FakeClock()):
            pass

    with pytest.raises(SlowSender, match="nothing came"):
        asyncio.run(whole())


def test_a_client_that_goes_is_told_apart():
    async def stream() -> AsyncIterator[bytes]:
        yield b"x"
        raise ClientDisconnect

    async def whole() -> None:
        async for _ in measured(stream(), 100, FakeClock()):
            pass

    with pytest.raises(Rejected, match="went away"):
        asyncio.run(whole())


def request(**headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": named})


@pytest.mark.parametrize("length", ["101", "9" * 30])
def test_what_is_announced_as_too_large_does_not_come(length: str):
    with pytest.raises(TooLarge):
        require_acceptable(request(content_length=length), 100)
    require_acceptable(request(content_length="100"), 100)
    require_acceptable(request(content_length="many"), 100)  # the server's own matter


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_not_inflated(encoding: str):
    with pytest.raises(UnsupportedMedia):
        require_acceptable(request(content_encoding=encoding), 100)
    require_acceptable(request(content_encoding="identity"), 100)


def test_places_are_counted_and_given_back():
    slots = Slots(1)

    async def run() -> None:
        async with slots.one():
            with pytest.raises(NotReady):
                async with slots.one():
                    pass
        async with slots.one():
            pass

    asyncio.run(run())


def test_a_thread_reads_what_the_loop_holds_and_no_more():
    asked = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal asked
        for number in range(5):
            asked += 1
            yield bytes([number])

    async def run() -> list[bytes]:
        body = iter(ThreadBody(stream(), asyncio.get_running_loop()))
        first = await asyncio.to_thread(next, body)
        assert asked == 1
        return [first, *await asyncio.to_thread(list, body)]

    assert asyncio.run(run()) == [bytes([number]) for number in range(5)]


def test_a_thread_hears_the_error_of_the_stream_and_the_end_of_the_request():
    async def fails() -> AsyncIterator[bytes]:
        yield b"x"
        raise TooLarge("enough")

    async def run() -> list[HeimdallrError]:
        heard: list[HeimdallrError] = []
        loop = asyncio.get_running_loop()

        def read_all(body: ThreadBody) -> None:
            try:
                list(body)
            except HeimdallrError as error:
                heard.append(error)

        await asyncio.to_thread(read_all, ThreadBody(fails(), loop))
        gone = ThreadBody(fails(), loop)
        gone.abandon()
        await asyncio.to_thread(read_all, gone)
        return heard

    first, second = asyncio.run(run())
    assert isinstance(first, TooLarge)
    assert second.detail == "the request is gone"
    assert threading.active_count() < 50
