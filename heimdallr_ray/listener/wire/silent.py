"""Connections whose peers have asked for nothing yet: where there is no room, one of them makes it."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from heimdallr_ray.listener.gate import ASSOCIATE_TIMEOUT_S

LEAST_REQUEST_BYTES = 74
"""Header and fixed fields of an A-ASSOCIATE-RQ (PS3.8 table 9-11). Who has sent less has asked for nothing."""
PATIENCE_S = 0.5
"""An honest peer's request follows its connection at once; nobody is sent away sooner but one of a crowd."""
CROWD = 4
"""Silent connections from one address at once: more than honest devices open in the same moment."""
KEPT_S = ASSOCIATE_TIMEOUT_S + 1.0
"""By then it has asked or was cut."""
_ESTABLISHED = 1
_INFO_BYTES = 136
# struct tcp_info of linux/tcp.h: the state comes first, tcpi_bytes_received at 128.
_STATE = struct.Struct("=B127xQ")


@dataclass(frozen=True)
class _Peer:
    connection: socket.socket
    address: str
    since_s: float


class SilentPeers:
    """Knows each connection that was admitted until its peer has asked for something, or it has ended.

    Holds a descriptor of its own for each, for the connection itself may have gone to another process. Used by the one
    thread that accepts.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Knows nobody. `now_s`: a clock that never goes back."""
        self._now_s = now_s
        self._peers: list[_Peer] = []

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, connection: socket.socket, address: str) -> None:
        """The connection was admitted. Without a descriptor to spare it is not one of those that can make room."""
        with suppress(OSError):
            self._peers.append(_Peer(connection.dup(), address, self._now_s()))

    def forget(self) -> None:
        """Those that have asked, or ended, are let go; a connection that was closed elsewhere ends with that."""
        left: list[_Peer] = []
        for peer in self._peers:
            if self._now_s() - peer.since_s < KEPT_S and _is_silent(peer.connection):
                left.append(peer)
            else:
                peer.connection.close()
        self._peers = left

    def make_room(self) -> str:
        """The address of a peer whose connection was ended; "" where every one has asked, or came just now.

        One of those from where most are silent, and of these the one that has been longest.
        """
        self.forget()
        until_s = self._now_s() - PATIENCE_S
        crowds = Counter(peer.address for peer in self._peers)
        silent = [peer for peer in self._peers if peer.since_s <= until_s or crowds[peer.address] > CROWD]
        if not silent:
            return ""
        # They are in the order in which they came, and max takes the first of several.
        gone = max(silent, key=lambda peer: crowds[peer.address])
        self._peers.remove(gone)
        with gone.connection, suppress(OSError):
            gone.connection.shutdown(socket.SHUT_RDWR)
        return gone.address

    def close(self) -> None:
        """Nobody is known any more."""
        peers, self._peers = self._peers, []
        for peer in peers:
            peer.connection.close()


def _is_silent(connection: socket.socket) -> bool:
    try:
        state, received = _STATE.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES))
    except (OSError, struct.error):
        return False
    return state == _ESTABLISHED and received < LEAST_REQUEST_BYTES
