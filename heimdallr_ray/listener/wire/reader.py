"""PDUs from a socket into one buffer: bounded lengths, bounded times, as few system calls as the peer allows."""

from __future__ import annotations

from collections.abc import Callable

from heimdallr_ray.listener.gate import (
    ASSOCIATE_TIMEOUT_S,
    MAX_PDU_BYTES,
    MESSAGE_GRACE_S,
    MIN_BYTES_PER_S,
    NETWORK_TIMEOUT_S,
    PRE_ACCEPT_PDU_BYTES,
)
from heimdallr_ray.listener.wire import pdu
from heimdallr_ray.listener.wire.stream import Stream

TICK_S = 1.0
"""How often a waiting read looks at the clock and at whether the listener stops."""
BUFFER_BYTES = 1 << 20
"""A CT image and more, so that nearly every object stays in memory until it was answered."""
_FIRST_BYTES = 16 << 10


class Cut(Exception):
    """The connection ends: the peer broke a bound, or we stop. `reason` goes into the log.

    A signal inside the wire backend; `code` is the reason of the A-ABORT (PS3.8 table 9-26).
    """

    def __init__(self, reason: str, code: int = pdu.NOT_SPECIFIED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Closed(Exception):
    """The peer has closed the connection, or it broke."""


class PduReader:
    """One connection. `buffer[start:end]` holds bytes that were received and not yet used."""

    def __init__(
        self,
        stream: Stream,
        spent_s: float,
        stopping: Callable[[], bool],
        recycle: Callable[[], None],
    ) -> None:
        """Nothing has been read.

        Args:
            stream: the connection.
            spent_s: of the time that the peer has for its request.
            stopping: whether it shall end.
            recycle: runs while `held`, before bytes that were handed out are overwritten.
        """
        self._stream = stream
        self._stopping = stopping
        self._spent_s = spent_s
        self._recycle = recycle
        self.held = False
        """Bytes that were handed out are still needed, though the next PDU is asked for."""
        self.buffer = bytearray(_FIRST_BYTES)
        self.view = memoryview(self.buffer)
        self._start = self._end = 0
        self._accepted = False
        self._message_since: float | None = None
        self._message_bytes = 0

    def accepted(self) -> None:
        """The association is established: other bounds hold from now on."""
        self._accepted = True
        self._grow(BUFFER_BYTES)

    def message_began(self) -> None:
        """A message is on its way: from now on its bytes must keep coming."""
        if self._message_since is None:
            self._message_since, self._message_bytes = self._stream.waited_s, 0

    def message_ended(self) -> None:
        """The peer may be silent again."""
        self._message_since = None

    def next(self) -> tuple[int, int, int]:
        """Type of the next PDU, and where its body lies in `buffer`; valid until the next call, or longer while `held`.

        Raises:
            Cut: it breaks a bound, comes too slowly, or the listener stops.
            Closed: the peer has gone.
        """
        if self._stopping():
            raise Cut("stopping")
        if self._start == self._end and not self.held:
            self._start = self._end = 0
        self._fill(pdu.HEADER_BYTES)
        kind, length = pdu.parse_header(self.buffer, self._start)
        self._check(kind, length)
        self._fill(pdu.HEADER_BYTES + length)
        body = self._start + pdu.HEADER_BYTES
        self._start = body + length
        return kind, body, self._start

    def _check(self, kind: int, length: int) -> None:
        if not self._accepted:
            if kind != pdu.ASSOCIATE_RQ:
                raise Cut("unexpected_pdu", pdu.UNEXPECTED_PDU if 1 <= kind <= 7 else pdu.UNRECOGNIZED_PDU)
            if length > PRE_ACCEPT_PDU_BYTES:
                raise Cut("pdu_too_long", pdu.INVALID_PARAMETER)
            return
        if kind not in (pdu.P_DATA, pdu.RELEASE_RQ, pdu.ABORT):
            raise Cut("unexpected_pdu", pdu.UNEXPECTED_PDU if 1 <= kind <= 7 else pdu.UNRECOGNIZED_PDU)
        if length > (MAX_PDU_BYTES if kind == pdu.P_DATA else 4):
            raise Cut("pdu_too_long", pdu.INVALID_PARAMETER)

    def _fill(self, wanted: int) -> None:
        """At least `wanted` bytes from `start` on are there; the buffer grows only as bytes really come."""
        if self._end - self._start >= wanted:
            return
        began = self._stream.waited_s
        if self._start + wanted > len(self.buffer) and self._start:
            if self.held:
                self._recycle()
            left = self._end - self._start
            self.view[:left] = bytes(self.view[self._start : self._end])
            self._start, self._end = 0, left
        while self._end - self._start < wanted:
            if self._end == len(self.buffer):
                self._grow(2 * len(self.buffer))
            try:
                count = self._stream.receive_into(self.view[self._end :], TICK_S)
            except TimeoutError:
                self._require_pace(began)
                continue
            except OSError as error:
                raise Closed from error
            if not count:
                raise Closed
            if self._start == self._end:
                # Between two messages a peer may be silent; a PDU that has begun must go on.
                began = self._stream.waited_s
            self._end += count
            self._message_bytes += count
            if self._end - self._start < wanted or self._message_since is not None:
                # Also of a PDU that is whole: a row of small ones is slow too.
                self._require_pace(began)

    def _require_pace(self, began: float) -> None:
        """Nothing happens while the peer is quick enough. Only the time that it lets us wait counts.

        Raises:
            Cut: it is not, or the listener stops.
        """
        if self._stopping():
            raise Cut("stopping")
        if not self._accepted:
            if self._spent_s + self._stream.waited_s > ASSOCIATE_TIMEOUT_S:
                raise Cut("slow_sender")
            return
        waited, since = self._stream.waited_s, self._message_since
        if since is not None:
            if waited - since > MESSAGE_GRACE_S + self._message_bytes / MIN_BYTES_PER_S:
                raise Cut("slow_sender")
        elif self._end > self._start:
            if waited - began > MESSAGE_GRACE_S:
                raise Cut("slow_sender")
        elif waited - began > NETWORK_TIMEOUT_S:
            raise Cut("idle")

    def _grow(self, size: int) -> None:
        if size <= len(self.buffer):
            return
        larger = bytearray(size)
        larger[: self._end] = self.view[: self._end]
        self.view.release()
        self.buffer = larger
        self.view = memoryview(self.buffer)
