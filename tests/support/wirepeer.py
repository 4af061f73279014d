"""A storage SCU of bare sockets: says what it is told to, also what no DICOM library would (PS3.7 9.3.1, PS3.8 9.3)."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
FRAGMENT_BYTES = 65_536
ANSWER_S = 120.0
"""Longest wait for an answer; a test that wants less measures it."""


class NotAccepted(Exception):
    """The peer answered the request with A-ASSOCIATE-RJ: result, source, reason (PS3.8 table 9-21)."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"result {result}, source {source}, reason {reason}")
        self.result, self.source, self.reason = result, source, reason


class Gone(Exception):
    """The peer aborted or closed the connection."""


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(
    contexts: Mapping[int, tuple[str, tuple[str, ...]]], calling: str = "WIREPEER", called: str = "HEIMDALLR"
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 section 9.3.2) with these presentation contexts by id."""
    proposed = b"".join(
        _item(
            0x20,
            struct.pack(">BBBB", number, 0, 0, 0)
            + _item(0x30, abstract.encode())
            + b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes),
        )
        for number, (abstract, syntaxes) in contexts.items()
    )
    user = _item(0x50, _item(0x51, struct.pack(">I", 131_072)) + _item(0x52, b"1.2.826.0.1.3680043.9.9.99"))
    body = struct.pack(">HH16s16s32x", 1, 0, called.encode().ljust(16), calling.encode().ljust(16))
    body += _item(0x10, b"1.2.840.10008.3.1.1.1") + proposed + user
    return struct.pack(">BBI", 0x01, 0, len(body)) + body


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _uid(text: str | bytes) -> bytes:
    value = text.encode() if isinstance(text, str) else text
    return value + b"\0" * (len(value) % 2)


def command_set(
    field: int, message_id: int, *, sop_class: str = "", sop_instance: str | bytes = b"", data_set: bool = False
) -> bytes:
    """A command set in implicit VR little endian with its group length (PS3.7 section 6.3.1)."""
    body = b"".join(
        (
            _element(0x0002, _uid(sop_class)),
            _element(0x0100, struct.pack("<H", field)),
            _element(0x0110, struct.pack("<H", message_id)),
            _element(0x0700, struct.pack("<H", 0)) if field == 0x0001 else b"",
            _element(0x0800, struct.pack("<H", 0x0001 if data_set else 0x0101)),
            _element(0x1000, _uid(sop_instance)) if field == 0x0001 else b"",
        )
    )
    return _element(0x0000, struct.pack("<I", len(body))) + body


def pdata(context: int, control: int, fragment: bytes | memoryview) -> bytes:
    """One P-DATA-TF PDU of one presentation data value; control: 1 command, 2 last fragment (PS3.8 annex E)."""
    size = len(fragment)
    return b"".join((struct.pack(">BBIIBB", 0x04, 0, size + 6, size + 2, context, control), fragment))


def fragments(content: bytes | Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """`content` in pieces of at most FRAGMENT_BYTES, each with whether it is the last."""
    held: bytes | None = None
    pieces = [content] if isinstance(content, bytes) else content
    for piece in pieces:
        for start in range(0, max(len(piece), 1), FRAGMENT_BYTES):
            if held is not None:
                yield held, False
            held = piece[start : start + FRAGMENT_BYTES]
    yield held or b"", True


def status_of(answer: bytes) -> int:
    """The status of a response's command set (PS3.7 annex C)."""
    at = 0
    while at + 8 <= len(answer):
        _, element, length = struct.unpack_from("<HHI", answer, at)
        if element == 0x0900:
            return int(struct.unpack_from("<H", answer, at + 8)[0])
        at += 8 + length
    raise AssertionError("a response without a status")


class WirePeer:
    """One association. As a context manager it is released at the end, or aborted where an error passes."""

    def __init__(
        self,
        port: int,
        syntaxes: tuple[str, ...] = (EXPLICIT,),
        *,
        calling: str = "WIREPEER",
        called: str = "HEIMDALLR",
        source: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """One context of CT images per transfer syntax and one for C-ECHO are proposed from the address `source`.

        Raises:
            NotAccepted: the association was rejected.
            Gone: the connection was closed instead.
            OSError, ssl.SSLError: there is no connection, or the handshake failed.
        """
        self.contexts = {2 * n + 3: (CT, (syntax,)) for n, syntax in enumerate(syntaxes)}
        self.accepted: dict[int, str] = {}
        self.message_id = 0
        raw = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S, source_address=(source, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket: socket.socket = raw
        try:
            if tls is not None:
                self.socket = tls.wrap_socket(raw, server_hostname="localhost")
            self.socket.sendall(
                associate_rq({1: (VERIFICATION, (IMPLICIT,)), **self.contexts}, calling=calling, called=called)
            )
            self._read_answer(*self.receive())
        except BaseException:
            self.socket.close()
            raise

    def _read_answer(self, kind: int, body: bytes) -> None:
        if kind == 0x03:
            raise NotAccepted(*body[1:4])
        if kind != 0x02:
            raise Gone(f"PDU {kind}")
        at = 68
        while at + 4 <= len(body):
            kind, _, length = struct.unpack_from(">BBH", body, at)
            if kind == 0x21 and body[at + 6] == 0:
                number = body[at + 4]
                sub = struct.unpack_from(">BBH", body, at + 8)
                self.accepted[number] = body[at + 12 : at + 12 + sub[2]].decode()
            at += 4 + length

    def receive(self) -> tuple[int, bytes]:
        """Type and body of the next PDU.

        Raises:
            Gone: the connection was closed.
        """
        head = self._exactly(6)
        kind, _, length = struct.unpack(">BBI", head)
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            try:
                chunk = self.socket.recv(size - len(content))
            except ConnectionError as error:
                raise Gone(str(error)) from error
            if not chunk:
                raise Gone("closed")
            content += chunk
        return content

    def send(self, content: bytes) -> None:
        """Raw bytes.

        Raises:
            Gone: the connection was closed.
        """
        try:
            self.socket.sendall(content)
        except ConnectionError as error:
            raise Gone(str(error)) from error

    def context_of(self, syntax: str) -> int:
        """The accepted context of this transfer syntax."""
        return next(
            number for number, (_, syntaxes) in self.contexts.items() if number in self.accepted and syntax in syntaxes
        )

    def begin_store(self, sop_instance: str | bytes = "1.2.3", syntax: str = EXPLICIT, sop_class: str = CT) -> int:
        """The C-STORE request is sent, its data set is not; returns the context."""
        self.message_id = self.message_id % 0xFFFF + 1
        context = self.context_of(syntax)
        command = command_set(0x0001, self.message_id, sop_class=sop_class, sop_instance=sop_instance, data_set=True)
        self.send(pdata(context, 3, command))
        return context

    def store(
        self, content: bytes | Iterable[bytes], sop_instance: str | bytes = "1.2.3", syntax: str = EXPLICIT
    ) -> int:
        """The status of a C-STORE of these data set bytes.

        Raises:
            Gone: the peer ended the association instead.
        """
        context = self.begin_store(sop_instance, syntax)
        for fragment, last in fragments(content):
            self.send(pdata(context, 2 if last else 0, fragment))
        return self.answer()

    def answer(self) -> int:
        """The status of the next response.

        Raises:
            Gone: the peer ended the association instead.
        """
        kind, body = self.receive()
        if kind != 0x04:
            raise Gone(f"PDU {kind}")
        return status_of(body[6:])

    def echo(self) -> int:
        """The status of a C-ECHO."""
        self.message_id += 1
        self.send(pdata(1, 3, command_set(0x0030, self.message_id, sop_class=VERIFICATION)))
        return self.answer()

    def release(self) -> None:
        """The association has ended as it should."""
        self.send(struct.pack(">BBII", 0x05, 0, 4, 0))
        kind, _ = self.receive()
        assert kind == 0x06, f"PDU {kind} instead of A-RELEASE-RP"
        self.close()

    def abort(self) -> None:
        """A-ABORT by the service user, and the connection is closed."""
        self.send(struct.pack(">BBIBBBB", 0x07, 0, 4, 0, 0, 0, 0))
        self.close()

    def close(self) -> None:
        """The connection is closed without a word."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.socket.fileno() >= 0:
            self.release()
        self.close()


def echoes(port: int, *, calling: str = "WIREPEER", source: str = "127.0.0.1") -> bool:
    """True where an association with a C-ECHO succeeds."""
    try:
        with WirePeer(port, calling=calling, source=source) as peer:
            return peer.echo() == 0
    except (NotAccepted, Gone):
        return False
