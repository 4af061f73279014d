"""Connections served by a thread each, wherever they were accepted: the TLS handshake first, then the association."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from heimdallr_ray.listener.gate import ASSOCIATE_TIMEOUT_S
from heimdallr_ray.listener.transport import prompt, quote_nobody
from heimdallr_ray.listener.wire.association import WireAssociation
from heimdallr_ray.listener.wire.host import Host
from heimdallr_ray.listener.wire.turn import Turn, Untold

logger = logging.getLogger(__name__)

PART_S = 0.5
PART_BYTES = 256 << 10
"""How long, and how much, a peer may go on after our last word."""


class ConnectionServer:
    """The connections of one process."""

    def __init__(self, host: Host, tls: ssl.SSLContext | None, gone: Callable[[str], None]) -> None:
        """`gone` hears the address of each connection that has ended."""
        quote_nobody()
        self._host = host
        self._tls = tls
        self._gone = gone
        self._cutting = threading.Event()
        self._turn = Turn()
        self.untold = Untold()
        self._lock = threading.Lock()
        self._open = 0

    @property
    def open(self) -> int:
        """Connections that are served now."""
        with self._lock:
            return self._open

    def serve(self, connection: socket.socket, address: str) -> None:
        """The connection has a thread of its own, or is closed because there is none to be had."""
        thread = threading.Thread(target=self._run, args=(connection, address), name="dicom-association", daemon=True)
        with self._lock:
            self._open += 1
        try:
            thread.start()
        except RuntimeError:
            connection.close()
            self._host.refuse_connection("no_thread", address)
            self._ended(address)

    def stop(self, grace_s: float) -> None:
        """Open connections get `grace_s` to end by themselves, then they are cut off."""
        self._wait(grace_s)
        self._cutting.set()
        # A waiting read looks at the flag once a second.
        self._wait(2.0 + grace_s)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.open and time.monotonic() < deadline:
            time.sleep(0.02)

    def _ended(self, address: str) -> None:
        with self._lock:
            self._open -= 1
        self._gone(address)

    def _run(self, connection: socket.socket, address: str) -> None:
        try:
            prompt(connection)
            began = time.monotonic()
            secured = self._secure(connection, address)
            if secured is not None:
                connection, spent_s = secured, time.monotonic() - began
                with self._turn:
                    WireAssociation(
                        connection, address, self._host, spent_s, self._cutting.is_set, self._turn, self.untold
                    ).run()
        except Exception:
            # A process loop: one connection must not take the listener with it; its peer hears that it ended.
            logger.exception("connection.failed", extra={"address": address})
            self._host.count_refusal("cut.broken")
        finally:
            _part(connection)
            self._ended(address)

    def _secure(self, connection: socket.socket, address: str) -> socket.socket | None:
        """The connection after its TLS handshake; None where the peer failed it."""
        if self._tls is None:
            return connection
        connection.settimeout(ASSOCIATE_TIMEOUT_S)
        try:
            return self._tls.wrap_socket(connection, server_side=True)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            logger.warning("connection.tls_failed", extra={"reason": str(reason)[:64], "address": address})
            self._host.refuse_connection("tls", address)
            return None


def _part(connection: socket.socket) -> None:
    """The connection is closed, after the peer has had a moment to read our last word.

    Closing with bytes unread makes the kernel send a reset, which may take an A-ASSOCIATE-RJ or A-ABORT away from a
    peer that has not read it yet (RFC 1122 section 4.2.2.13).
    """
    with connection, suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(PART_S)
        deadline = time.monotonic() + PART_S
        left = PART_BYTES
        while left > 0 and time.monotonic() < deadline:
            unread = connection.recv(min(left, 1 << 16))
            if not unread:
                break
            left -= len(unread)
