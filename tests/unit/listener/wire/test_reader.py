"""Whose time counts: what the peer lets us wait, never what our own disk takes."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest

from heimdallr_ray.listener.wire import pdu, reader
from heimdallr_ray.listener.wire.reader import Cut, PduReader
from heimdallr_ray.listener.wire.stream import Stream
from heimdallr_ray.listener.wire.turn import Turn

GRACE_S = 0.5
BODY = bytes(1000)


@pytest.mark.parametrize("whose", ["ours", "the peer's"])
def test_only_the_peers_time_counts(monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    monkeypatch.setattr(reader, "MESSAGE_GRACE_S", GRACE_S)
    monkeypatch.setattr(reader, "TICK_S", 0.1)
    ours, theirs = socket.socketpair()
    turn = Turn()
    with ours, theirs, turn:
        read = PduReader(Stream(ours, turn), 0.0, lambda: False, lambda: None)
        read.accepted()
        read.message_began()
        message = struct.pack(">BBI", pdu.P_DATA, 0, len(BODY)) + BODY
        theirs.sendall(message[:500])
        if whose == "ours":
            # The disk stands still in the middle of a message; the peer's next bytes come in two pieces.
            time.sleep(3 * GRACE_S)
            theirs.sendall(message[500:700])
            threading.Timer(GRACE_S / 5, lambda: theirs.sendall(message[700:])).start()
            kind, start, end = read.next()
            assert (kind, end - start) == (pdu.P_DATA, len(BODY))
        else:
            with pytest.raises(Cut, match="slow_sender"):
                read.next()


def test_what_is_held_is_let_go_before_it_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BUFFER_BYTES", 32 << 10)
    ours, theirs = socket.socketpair()
    turn = Turn()
    seen: list[bytes] = []
    held: list[memoryview] = []

    def let_go() -> None:
        seen.extend(bytes(view) for view in held)
        held.clear()

    bodies = [bytes([number]) * 5000 for number in range(40)]

    def send() -> None:
        for body in bodies:
            theirs.sendall(struct.pack(">BBI", pdu.P_DATA, 0, len(body)) + body)

    with ours, theirs, turn:
        read = PduReader(Stream(ours, turn), 0.0, lambda: False, let_go)
        read.accepted()
        read.held = True
        threading.Thread(target=send, daemon=True).start()
        for _ in bodies:
            _, start, end = read.next()
            held.append(read.view[start:end])
    assert len(seen) > 20
    let_go()
    assert seen == bodies


def slow_reader(ours: socket.socket, turn: Turn, stopping: bool = False) -> PduReader:
    made = PduReader(Stream(ours, turn), 0.0, lambda: stopping, lambda: None)
    made.accepted()
    return made


@pytest.mark.parametrize("size", [1, 64])
def test_a_row_of_small_whole_pdus_is_slow_too(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(reader, "MESSAGE_GRACE_S", GRACE_S)
    ours, theirs = socket.socketpair()
    turn, ended = Turn(), threading.Event()

    def send() -> None:
        # Each comes before the reader has waited for a second.
        while not ended.wait(0.1):
            theirs.sendall(struct.pack(">BBI", pdu.P_DATA, 0, size) + bytes(size))

    sender = threading.Thread(target=send)
    with ours, theirs, turn:
        read = slow_reader(ours, turn)
        read.message_began()
        sender.start()
        began = time.monotonic()
        try:
            with pytest.raises(Cut, match="slow_sender"):
                while time.monotonic() - began < 40 * GRACE_S:
                    read.next()
            # Between two messages nobody has to hurry.
            read.message_ended()
            for _ in range(10):
                read.next()
        finally:
            ended.set()
            sender.join(10)


def test_a_peer_may_be_silent_between_two_messages_and_then_begin_with_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MESSAGE_GRACE_S", GRACE_S)
    monkeypatch.setattr(reader, "TICK_S", 0.1)
    ours, theirs = socket.socketpair()
    turn = Turn()
    message = struct.pack(">BBI", pdu.P_DATA, 0, len(BODY)) + BODY

    def send(*pieces: bytes) -> None:
        time.sleep(2 * GRACE_S)
        for piece in pieces:
            theirs.sendall(piece)
            time.sleep(GRACE_S / 5)

    with ours, theirs, turn:
        read = slow_reader(ours, turn)
        sender = threading.Thread(target=send, args=(message[:1], message[1:]))
        sender.start()
        kind, start, end = read.next()
        assert (kind, end - start) == (pdu.P_DATA, len(BODY))
        sender.join(10)
        # A byte that nothing follows is a PDU that does not go on.
        theirs.sendall(message[:1])
        with pytest.raises(Cut, match="slow_sender"):
            read.next()


def test_a_peer_that_never_pauses_is_stopped() -> None:
    ours, theirs = socket.socketpair()
    turn = Turn()
    with ours, theirs, turn:
        theirs.sendall(struct.pack(">BBI", pdu.P_DATA, 0, 8) + bytes(8))
        with pytest.raises(Cut, match="stopping"):
            slow_reader(ours, turn, stopping=True).next()
