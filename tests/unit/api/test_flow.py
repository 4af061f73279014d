"""A body comes in no faster than it is taken, whatever lies between; who says nothing is not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from heimdallr_ray.api import flow
from heimdallr_ray.api.flow import FOLDER, HEADER, HoldingBack, SayingWhatIsTaken, proxy_middlewares

CHUNK = 64 << 10
HANG_S = 60.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "flow"))
    (middleware,) = proxy_middlewares()
    assert middleware.cls is HoldingBack
    assert (tmp_path / "flow").stat().st_mode & 0o077 == 0
    return tmp_path / "flow"


class Client:
    """Sends `size` bytes as fast as they are read."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.read = 0

    async def receive(self) -> Message:
        count = min(CHUNK, self.left)
        self.left -= count
        self.read += count
        return {"type": "http.request", "body": bytes(count), "more_body": self.left > 0}

    def scope(self, *headers: tuple[bytes, bytes]) -> Scope:
        length = (b"content-length", str(self.left).encode())
        return {"type": "http", "headers": [length, *headers]}


def through_a_queue(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Any:
    """As Serve: a task reads the request into a queue without a bound, the application from there."""

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        queue = asyncio.Queue[Message]()

        async def fetch() -> None:
            while True:
                message = await receive()
                queue.put_nowait(message)
                if not message.get("more_body"):
                    return

        task = asyncio.create_task(fetch())
        try:
            await app(scope, queue.get, send)
        finally:
            task.cancel()

    return between


async def never(_message: Message) -> None:
    raise AssertionError


def run(what: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(what, HANG_S)

    asyncio.run(bounded())


def test_what_is_on_its_way_stays_little_however_slow_the_application_is(folder: Path) -> None:
    client = Client(200 * flow.LEAST_BYTES)
    on_the_way: list[int] = []

    async def application(scope: Scope, receive: Receive, _send: Send) -> None:
        taken = 0
        while True:
            message = await receive()
            taken += len(message["body"])
            # As a disk that takes its time.
            if taken % (4 << 20) == 0:
                await asyncio.sleep(0.02)
            on_the_way.append(client.read - taken)
            if not message["more_body"]:
                break
        assert taken == 200 * flow.LEAST_BYTES
        assert [value for name, value in scope["headers"] if name == HEADER] != []

    run(HoldingBack(through_a_queue(SayingWhatIsTaken(application)), folder)(client.scope(), client.receive, never))
    assert max(on_the_way) <= flow.WINDOW_BYTES + 2 * CHUNK
    assert max(on_the_way) > flow.WINDOW_BYTES // 2
    assert list(folder.iterdir()) == []


def test_an_application_that_answers_at_once_is_not_sent_the_rest(folder: Path) -> None:
    client = Client(100 << 20)

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        await asyncio.sleep(0.2)

    run(HoldingBack(through_a_queue(SayingWhatIsTaken(application)), folder)(client.scope(), client.receive, never))
    assert client.read <= flow.WINDOW_BYTES + 2 * CHUNK
    assert list(folder.iterdir()) == []


def test_who_reads_on_behind_the_answer_reaches_no_file_of_anybody(folder: Path, tmp_path: Path) -> None:
    client = Client(100 << 20)
    receives: list[Receive] = []

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        receives.append(receive)
        await receive()

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        receives.append(receive)
        await SayingWhatIsTaken(application)(scope, receive, send)

    async def all_of_it() -> None:
        await HoldingBack(between, folder)(client.scope(), client.receive, never)
        # The numbers of the descriptors are given out again.
        others = [(tmp_path / name).open("w+b", buffering=0) for name in "abcd"]
        for receive in receives:
            for _ in range(2 * flow.WINDOW_BYTES // CHUNK):
                await receive()
        assert [other.read() for other in others] == [b""] * 4
        for other in others:
            other.close()

    run(all_of_it())


def test_one_that_says_nothing_is_waited_for_a_while_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "UNHEARD_S", 0.2)
    client = Client(20 << 20)

    async def elsewhere(_scope: Scope, receive: Receive, _send: Send) -> None:
        await asyncio.sleep(0.1)
        assert client.read <= flow.WINDOW_BYTES + 2 * CHUNK
        while (await receive())["more_body"]:
            pass

    run(HoldingBack(through_a_queue(elsewhere), folder)(client.scope(), client.receive, never))
    assert client.left == 0


@pytest.mark.parametrize("given", [b"", b"x" * 32, b"../" * 10, b"0" * 32])
def test_a_stranger_s_word_about_our_file_is_none(folder: Path, given: bytes) -> None:
    other = folder / ("0" * 32)
    other.write_bytes(b"as it was")
    seen: list[Scope] = []

    async def application(scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        seen.append(scope)

    small = Client(100)
    whole = HoldingBack(SayingWhatIsTaken(application), folder)
    run(whole(small.scope((HEADER, given)), small.receive, never))
    assert [name for name, _ in seen[0]["headers"]] == [b"content-length"]
    large = Client(flow.LEAST_BYTES)
    run(whole(large.scope((HEADER, given)), large.receive, never))
    assert [value for name, value in seen[1]["headers"] if name == HEADER] != [given]
    assert other.read_bytes() == b"as it was"


def test_without_a_folder_nothing_is_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert proxy_middlewares() == []
    client = Client(20 << 20)

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        await asyncio.sleep(0.05)
        assert client.left == 0
        while (await receive())["more_body"]:
            pass

    # The folder has gone: the upload matters more.
    vanished = HoldingBack(through_a_queue(SayingWhatIsTaken(application)), tmp_path / "gone")
    run(vanished(client.scope(), client.receive, never))
