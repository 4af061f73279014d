"""Senders that stop in the middle give up their place, over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Generator
from urllib.parse import urlsplit

import pytest

from heimdallr_ray.api import bodies
from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.api.dicomweb import MAX_REQUESTS
from tests.support.related import BOUNDARY, TYPE
from tests.support.server import serving


@pytest.fixture
def address(empty: ApiServices, monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[str, int]]:
    monkeypatch.setattr(bodies, "STALL_S", 1.0)
    with serving(create_app(empty)) as base:
        parts = urlsplit(base)
        yield parts.hostname or "", parts.port or 0


def begin(address: tuple[str, int]) -> socket.socket:
    """A STOW request that sends its first part's header, and then nothing."""
    connection = socket.create_connection(address, 10)
    head = (
        f"POST /dicomweb/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE}\r\nContent-Length: 100000\r\n\r\n"
    )
    connection.sendall(f"{head}--{BOUNDARY}\r\n\r\n".encode())
    return connection


def status(connection: socket.socket) -> int:
    connection.settimeout(20)
    return int(connection.recv(4096).split(b" ", 2)[1])


def test_senders_that_stop_are_answered_and_their_places_are_free(address: tuple[str, int]) -> None:
    began = time.monotonic()
    stalled = [begin(address) for _ in range(MAX_REQUESTS)]
    time.sleep(0.3)
    one_too_many = begin(address)
    assert status(one_too_many) == 503
    assert [status(connection) for connection in stalled] == [408] * MAX_REQUESTS
    assert time.monotonic() - began < 15
    again = begin(address)
    assert status(again) == 408
    for connection in (*stalled, one_too_many, again):
        connection.close()


def test_a_client_that_goes_leaves_nothing(address: tuple[str, int], empty: ApiServices) -> None:
    connection = begin(address)
    time.sleep(0.3)
    connection.close()
    deadline = time.monotonic() + 10
    while any(empty.receiver.spool.incoming.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
