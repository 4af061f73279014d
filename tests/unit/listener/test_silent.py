"""Who makes room: a peer that has only connected, from where most such peers are, and never one that has asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator

import pytest

from heimdallr_ray.listener.wire.silent import CROWD, KEPT_S, LEAST_REQUEST_BYTES, PATIENCE_S, SilentPeers
from tests.support.intake import wait_for

Connect = Callable[[], tuple[socket.socket, socket.socket]]


class Hours:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def peers(hours: Hours) -> Generator[SilentPeers]:
    made = SilentPeers(hours)
    yield made
    made.close()


@pytest.fixture
def connect() -> Generator[Connect]:
    """Gives both ends of a new connection: the peer's, and ours."""
    open_now: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def made() -> tuple[socket.socket, socket.socket]:
            theirs = socket.create_connection(server.getsockname(), timeout=10)
            ours, _ = server.accept()
            open_now.extend((theirs, ours))
            return theirs, ours

        yield made
    for one in open_now:
        one.close()


def is_ended(peer: socket.socket) -> bool:
    peer.settimeout(5)
    return peer.recv(1) == b""


def test_of_the_largest_crowd_the_one_that_came_first_makes_room(
    hours: Hours, peers: SilentPeers, connect: Connect
) -> None:
    ends: list[socket.socket] = []
    for address in ("a", "b", "b", "a", "b"):
        theirs, ours = connect()
        peers.add(ours, address)
        # The connection itself is in another process by now.
        os.close(ours.detach())
        ends.append(theirs)
        hours.now_s += 0.001
    assert peers.make_room() == ""
    hours.now_s += PATIENCE_S
    assert peers.make_room() == "b"
    assert is_ended(ends[1])
    assert peers.make_room() == "a"
    assert is_ended(ends[0])
    assert len(peers) == 3


def test_one_of_a_crowd_need_not_have_waited(hours: Hours, peers: SilentPeers, connect: Connect) -> None:
    for address in ("lone", *["crowd"] * CROWD):
        peers.add(connect()[1], address)
    assert peers.make_room() == ""
    peers.add(connect()[1], "crowd")
    assert peers.make_room() == "crowd"
    assert peers.make_room() == ""
    hours.now_s += PATIENCE_S
    assert peers.make_room() == "crowd"


def test_who_has_asked_or_gone_or_was_there_for_long_makes_none(
    hours: Hours, peers: SilentPeers, connect: Connect
) -> None:
    asking, whispering, leaving = (connect() for _ in range(3))
    for _, ours in (asking, whispering, leaving):
        peers.add(ours, "a")
    hours.now_s += PATIENCE_S
    asking[0].sendall(bytes(LEAST_REQUEST_BYTES))
    whispering[0].sendall(bytes(LEAST_REQUEST_BYTES - 1))
    leaving[0].close()

    def left() -> bool:
        peers.forget()
        return len(peers) == 1

    wait_for(left, 10, "those that asked or left to be forgotten")
    hours.now_s += KEPT_S
    assert peers.make_room() == ""
    assert len(peers) == 0
    # Nothing happened to their connections.
    asking[1].sendall(b"yes")
    assert asking[0].recv(3) == b"yes"


def test_a_connection_ends_where_its_process_has_closed_it(peers: SilentPeers, connect: Connect) -> None:
    theirs, ours = connect()
    peers.add(ours, "a")
    theirs.sendall(bytes(LEAST_REQUEST_BYTES))
    assert len(ours.recv(1024)) == LEAST_REQUEST_BYTES
    ours.close()
    theirs.settimeout(0.2)
    with pytest.raises(TimeoutError):
        theirs.recv(1)
    peers.forget()
    assert len(peers) == 0
    assert is_ended(theirs)
