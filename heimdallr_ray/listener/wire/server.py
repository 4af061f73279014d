"""The listening socket of the wire backend: connections are admitted here, and served in this or in other processes."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Protocol

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.gate import TOO_MANY_CONNECTIONS, Connections
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.wire.local import LocalHost
from heimdallr_ray.listener.wire.serving import ConnectionServer
from heimdallr_ray.listener.wire.silent import SilentPeers

logger = logging.getLogger(__name__)

BIND_RETRY_S = 0.5
ACCEPT_TICK_S = 0.25
TURN_S = 20.0
"""A loop that has not accepted, or waited in vain, for so long is stuck; handing a connection on takes 5 s at most."""
ROOM_S = 0.5
"""Until the end of a connection that makes room is known; it takes a few milliseconds."""
PAUSE_S = 0.1
"""After an accept that failed for want of descriptors or memory."""
BACKLOG = 128


class Serving(Protocol):
    """Who serves connections that were admitted."""

    @property
    def alive(self) -> bool:
        """True while connections can be served."""
        ...

    @property
    def trouble(self) -> str:
        """What is wrong, in words, also where it may pass by itself; empty where nothing is."""
        ...

    def start(self) -> None:
        """Connections can be served.

        Raises:
            BadSetting: what TLS needs cannot be read.
            NotReady: a process does not start.
        """
        ...

    def serve(self, connection: socket.socket, address: str) -> None:
        """The connection is served; whoever does it closes it."""
        ...

    def sync(self, timeout_s: float) -> bool:
        """True once the registry knows all that was acknowledged before."""
        ...

    def stop(self, grace_s: float) -> None:
        """Open connections got `grace_s` to end by themselves, then they were cut off."""
        ...


class ThisProcess:
    """Serves connections in threads of this process."""

    def __init__(
        self,
        registry: Registry,
        desk: CommitmentDesk | None,
        tls: Callable[[], ssl.SSLContext] | None,
        gone: Callable[[str], None],
    ) -> None:
        self._host = LocalHost(registry, desk)
        self._tls = tls
        self._gone = gone
        self._server: ConnectionServer | None = None

    @property
    def alive(self) -> bool:
        """True while connections can be served."""
        return self._server is not None

    @property
    def trouble(self) -> str:
        """Empty while connections can be served."""
        return "" if self.alive else "nothing serves connections"

    def start(self) -> None:
        """Connections can be served.

        Raises:
            BadSetting: what TLS needs cannot be read.
        """
        self._server = ConnectionServer(self._host, self._tls() if self._tls else None, self._gone)

    def serve(self, connection: socket.socket, address: str) -> None:
        """The connection has a thread."""
        assert self._server is not None  # noqa: S101
        self._server.serve(connection, address)

    def sync(self, timeout_s: float) -> bool:
        """True once the registry knows all that was acknowledged before."""
        server = self._server
        return server is None or server.untold.wait(timeout_s)

    def stop(self, grace_s: float) -> None:
        """Open connections got `grace_s` to end by themselves, then they were cut off."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(grace_s)


class WireScp:
    """Accepts connections. What counts is on the disk; who is open is in the registry."""

    def __init__(self, registry: Registry, make_serving: Callable[[Callable[[str], None]], Serving]) -> None:
        """A closed port.

        Args:
            registry: who is open, and what is decided about peers.
            make_serving: makes who serves connections, given whom to tell of the address of each that has ended.
        """
        self.registry = registry
        self._clock = registry.clock
        self._connections = Connections(registry.rules)
        self._silent = SilentPeers()
        self._serving = make_serving(self._connections.gone)
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._port = 0
        self._turned_s = 0.0

    def start(self, host: str, port: int, bind_timeout_s: float = 30.0) -> None:
        """The port answers.

        A socket of a killed predecessor may linger a moment, so a used address is tried again.

        Raises:
            BadSetting: the address cannot be bound, or is still in use after `bind_timeout_s`; or what TLS needs
                cannot be read.
            NotReady: a receiving process does not start.
        """
        self._serving.start()
        deadline = self._clock.monotonic() + bind_timeout_s
        while True:
            try:
                listening = _bind(host, port)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or self._clock.monotonic() > deadline:
                    self._serving.stop(0.0)
                    raise BadSetting(f"cannot listen on dicom_host and dicom_port: {error.strerror}") from error
                time.sleep(BIND_RETRY_S)
        self._listening = listening
        self._port = int(listening.getsockname()[1])
        self._closing.clear()
        self._turned_s = time.monotonic()
        self._thread = threading.Thread(target=self._accept_all, args=(listening,), name="dicom-accept", daemon=True)
        self._thread.start()
        logger.info("listener.open", extra={"host": host, "port": self._port, "ae_title": self.registry.rules.ae_title})

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while closed."""
        return self._port if self._listening is not None else 0

    @property
    def alive(self) -> bool:
        """True while connections are accepted and served."""
        return not self._deaf() and self._serving.alive

    @property
    def trouble(self) -> str:
        """What is wrong, in words, also where it may pass by itself; empty where nothing is."""
        return self._deaf() or self._serving.trouble

    def _deaf(self) -> str:
        if self._thread is None or not self._thread.is_alive():
            return "the thread that accepts connections has ended"
        silent_s = time.monotonic() - self._turned_s
        return f"no connection could be accepted for {silent_s:.0f} s" if silent_s > TURN_S else ""

    def sync(self, timeout_s: float) -> bool:
        """True once the registry knows all that was acknowledged before; False where that took longer."""
        return self._serving.sync(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """No new connection is accepted; open associations get `grace_s` to end, then they are cut off."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join(ACCEPT_TICK_S + grace_s)
        listening.close()
        self._silent.close()
        self._serving.stop(grace_s)
        logger.info("listener.closed")

    def _accept_all(self, listening: socket.socket) -> None:
        while not self._closing.is_set():
            self._silent.forget()
            try:
                connection, peer = listening.accept()
            except TimeoutError:
                self._turned_s = time.monotonic()
                continue
            except OSError as error:
                if self._closing.is_set():
                    return
                # Out of descriptors or memory: the peer may try again, and the listener goes on.
                logger.warning("connection.not_accepted", extra={"error": errno.errorcode.get(error.errno or 0, "")})
                time.sleep(PAUSE_S)
                continue
            self._turned_s = time.monotonic()
            address = str(peer[0])
            reason = self._admit(address)
            if reason:
                connection.close()
                self.registry.refuse_connection(reason, address)
            else:
                self._silent.add(connection, address)
                self._serving.serve(connection, address)

    def _admit(self, address: str) -> str:
        """As `Connections.admit`; where there is no room, a peer that has only connected makes it."""
        reason = self._connections.admit(address)
        if reason != TOO_MANY_CONNECTIONS:
            return reason
        silent = self._silent.make_room()
        if not silent:
            return reason
        self.registry.cut("made_room", silent, None)
        self._connections.wait_for_fewer(self._connections.most, ROOM_S)
        return self._connections.admit(address)


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.settimeout(ACCEPT_TICK_S)
    except BaseException:
        listening.close()
        raise
    return listening
