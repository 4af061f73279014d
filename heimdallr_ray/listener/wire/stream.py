"""Bytes of one connection, plain or TLS: taken at once where they are there, and waited for outside one's turn."""

from __future__ import annotations

import select
import socket
import ssl
import time

from heimdallr_ray.listener.wire.turn import Turn

SEND_S = 5.0
"""An answer is a hundred bytes; a peer that does not take it in so long does not read."""


class Stream:
    """One connection, used by one thread that holds `turn`."""

    def __init__(self, connection: socket.socket, turn: Turn) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._turn = turn
        self._poll = select.poll()
        self.waited_s = 0.0
        """For the peer, all in all; what our own disk, or whose turn it is, takes is not the peer's time."""
        self._fd = connection.fileno()

    def receive_into(self, view: memoryview, wait_s: float) -> int:
        """Bytes that came, at least one; 0 where the peer has closed.

        Raises:
            TimeoutError: none came within `wait_s`.
            OSError: the connection is broken.
        """
        self._turn.share()
        try:
            return self._connection.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            events = select.POLLIN
        except ssl.SSLWantWriteError:
            events = select.POLLOUT
        if not self._wait(events, wait_s):
            raise TimeoutError
        try:
            return self._connection.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            # Of a TLS record a part alone has come.
            raise TimeoutError from error

    def send(self, content: bytes) -> None:
        """All of it is on its way.

        Raises:
            TimeoutError: the peer does not read.
            OSError: the connection is broken.
        """
        left = memoryview(content)
        deadline = 0.0
        while left:
            try:
                left = left[self._connection.send(left) :]
                continue
            except (BlockingIOError, ssl.SSLWantWriteError):
                events = select.POLLOUT
            except ssl.SSLWantReadError:
                events = select.POLLIN
            deadline = deadline or time.monotonic() + SEND_S
            if not self._wait(events, deadline - time.monotonic()):
                raise TimeoutError

    def _wait(self, events: int, wait_s: float) -> bool:
        self._poll.register(self._fd, events)
        with self._turn.waiting():
            began = time.monotonic()
            ready = wait_s > 0 and bool(self._poll.poll(wait_s * 1000))
            self.waited_s += time.monotonic() - began
        return ready
