"""The listening socket of the wire backend: connections are admitted here and served by a thread each."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.gate import ASSOCIATE_TIMEOUT_S, Connections
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.transport import prompt
from heimdallr_ray.listener.wire.association import WireAssociation

logger = logging.getLogger(__name__)

BIND_RETRY_S = 0.5
ACCEPT_TICK_S = 0.25
PAUSE_S = 0.1
"""After an accept that failed for want of descriptors or memory."""
BACKLOG = 128


class WireScp:
    """Accepts connections. What counts is on the disk; who is open is in the registry."""

    def __init__(
        self,
        registry: Registry,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        share_port: bool = False,
        desk: CommitmentDesk | None = None,
        elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        """A closed port.

        Args:
            registry: who is open, and what is decided about peers.
            tls: makes the TLS context; None: plain TCP.
            share_port: other processes listen on the same port.
            desk: where storage commitment is asked for; None: it is not offered.
            elsewhere: how many connections those other processes have open.
        """
        self.registry = registry
        self._clock = registry.clock
        self._tls = tls
        self._share_port = share_port
        self._desk = desk
        self._elsewhere = elsewhere
        self._connections = Connections(registry.rules)
        self._context: ssl.SSLContext | None = None
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._cutting = threading.Event()
        self._port = 0

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self, host: str, port: int, bind_timeout_s: float = 30.0) -> None:
        """The port answers.

        A socket of a killed predecessor may linger a moment, so a used address is tried again.

        Raises:
            BadSetting: the address cannot be bound, or is still in use after `bind_timeout_s`; or what TLS needs
                cannot be read.
        """
        self._context = self._tls() if self._tls else None
        deadline = self._clock.monotonic() + bind_timeout_s
        while True:
            try:
                self._listening = self._bind(host, port)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or self._clock.monotonic() > deadline:
                    raise BadSetting(f"cannot listen on dicom_host and dicom_port: {error.strerror}") from error
                time.sleep(BIND_RETRY_S)
        self._port = int(self._listening.getsockname()[1])
        self._closing.clear()
        self._cutting.clear()
        self._thread = threading.Thread(
            target=self._accept_all, args=(self._listening,), name="dicom-accept", daemon=True
        )
        self._thread.start()
        logger.info(
            "listener.open",
            extra={
                "host": host,
                "port": self._port,
                "ae_title": self.registry.rules.ae_title,
                "tls": self._context is not None,
            },
        )

    def _bind(self, host: str, port: int) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._share_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            listening.settimeout(ACCEPT_TICK_S)
        except BaseException:
            listening.close()
            raise
        return listening

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while closed."""
        return self._port if self._listening is not None else 0

    @property
    def alive(self) -> bool:
        """True while connections are accepted."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def connections(self) -> int:
        """Connections that are open, with or without an association."""
        return self._connections.total

    def stop(self, grace_s: float = 5.0) -> None:
        """No new connection is accepted; open associations get `grace_s` to end, then they are cut off."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join(ACCEPT_TICK_S + grace_s)
        listening.close()
        self._wait_until_quiet(grace_s)
        self._cutting.set()
        # A waiting read looks at the flag once a second.
        self._wait_until_quiet(2.0 + grace_s)
        logger.info("listener.closed")

    def _wait_until_quiet(self, timeout_s: float) -> None:
        deadline = self._clock.monotonic() + timeout_s
        while self._connections.total and self._clock.monotonic() < deadline:
            time.sleep(0.02)

    # Connections -----------------------------------------------------------------------------------------------------

    def _accept_all(self, listening: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                connection, peer = listening.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if self._closing.is_set():
                    return
                # Out of descriptors or memory: the peer may try again, and the listener goes on.
                logger.warning("connection.not_accepted", extra={"error": errno.errorcode.get(error.errno or 0, "")})
                time.sleep(PAUSE_S)
                continue
            self._admit(connection, str(peer[0]))

    def _admit(self, connection: socket.socket, address: str) -> None:
        reason = self._connections.admit(address, self._elsewhere())
        if reason:
            connection.close()
            self.registry.refuse_connection(reason, address)
            return
        opened_s = self._clock.monotonic()
        thread = threading.Thread(
            target=self._serve, args=(connection, address, opened_s), name="dicom-association", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # No thread to be had: as with descriptors.
            self._connections.gone(address)
            connection.close()
            self.registry.refuse_connection("no_thread", address)

    def _serve(self, connection: socket.socket, address: str, opened_s: float) -> None:
        try:
            prompt(connection)
            secured = self._secure(connection, address)
            if secured is not None:
                connection = secured
                WireAssociation(connection, address, self.registry, opened_s, self._cutting.is_set, self._desk).run()
        except Exception:
            # A process loop: one connection must not take the listener with it; its peer hears that it ended.
            logger.exception("connection.failed", extra={"address": address})
            self.registry.count_refusal("cut.broken")
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            self._connections.gone(address)

    def _secure(self, connection: socket.socket, address: str) -> socket.socket | None:
        """The connection after its TLS handshake, in this thread; None where the peer failed it."""
        if self._context is None:
            return connection
        connection.settimeout(ASSOCIATE_TIMEOUT_S)
        try:
            return self._context.wrap_socket(connection, server_side=True)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self.registry.refuse_connection("tls", address)
            logger.warning("connection.tls_failed", extra={"reason": str(reason)[:64], "address": address})
            return None
