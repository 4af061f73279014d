"""The parts of a multipart/related body (RFC 2387, RFC 2046 5.1), one after the other, never more than a chunk held.

Pure: bytes come from an iterator, whoever fills it. A part's bytes are searched for the delimiter only, so pixel data
costs one `find`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from heimdallr_ray.errors import Rejected, TooLarge

MAX_BOUNDARY = 200
"""RFC 2046 5.1.1 allows 70; Orthanc writes 73."""
MAX_HEADER_BYTES = 16 * 1024
"""Of one part; real ones have under 200."""
MAX_BESIDE_BYTES = 64 * 1024
"""Before the first part and behind the last; nothing has to be there."""


@dataclass(frozen=True)
class Related:
    """What a Content-Type header says of a multipart/related body."""

    boundary: bytes
    root_type: str
    """Parameter `type`, lower case: the media type of its parts; empty where it is absent."""


def media_type(header: str | None) -> str:
    """The media type of a header without its parameters, lower case; `text/plain` where it is absent or malformed."""
    return _message(header).get_content_type()


def parse_content_type(header: str | None) -> Related | None:
    """What `header` says, or None where it is another media type than multipart/related.

    Raises:
        Rejected: no boundary, or one that cannot be one.
    """
    message = _message(header)
    if message.get_content_type() != "multipart/related":
        return None
    boundary, root = message.get_param("boundary"), message.get_param("type")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise Rejected("multipart/related without a usable boundary")
    if any(character in "\r\n" for character in boundary):
        raise Rejected("multipart/related without a usable boundary")
    return Related(boundary.encode("ascii"), root.strip().lower() if isinstance(root, str) else "")


def _message(header: str | None) -> Message:
    message = Message()
    message["content-type"] = (header or "").replace("\r", " ").replace("\n", " ")
    return message


@dataclass(frozen=True)
class RelatedPart:
    """One part. `body` has to be used up, or is passed over, before the next part is asked for."""

    content_type: str
    """Media type, lower case; empty where the part names none."""
    transfer_encoding: str
    """Content-Transfer-Encoding, lower case; empty where absent. HTTP knows `binary` only (RFC 9110, 8.4)."""
    body: Iterator[bytes]


class RelatedReader:
    """Reads parts from `chunks`."""

    def __init__(self, chunks: Iterator[bytes], boundary: bytes, max_parts: int) -> None:
        self._chunks = chunks
        self._delimiter = b"\r\n--" + boundary
        self._max_parts = max_parts
        # The first delimiter may stand at the very beginning, without the line break before it.
        self._buffer = bytearray(b"\r\n")

    def parts(self) -> Iterator[RelatedPart]:
        """Each part in turn.

        Raises:
            Rejected: malformed, or the body ends before its last delimiter.
            TooLarge: too many parts, or a part's header is too long.
        """
        self._pass_over(self._body(), MAX_BESIDE_BYTES)
        for _ in range(self._max_parts + 1):
            if self._closed():
                self._pass_over(self._rest(), MAX_BESIDE_BYTES)
                return
            content_type, encoding = self._header()
            body = self._body()
            yield RelatedPart(content_type, encoding, body)
            for _passed in body:
                pass
        raise TooLarge(f"more than {self._max_parts} parts")

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._buffer += chunk
        return True

    def _require(self, size: int) -> None:
        while len(self._buffer) < size:
            if not self._more():
                raise Rejected("the body ended before its last delimiter")

    def _body(self) -> Iterator[bytes]:
        """What stands before the next delimiter, which is taken off too."""
        buffer, keep = self._buffer, len(self._delimiter) - 1
        while (at := buffer.find(self._delimiter)) < 0:
            if len(buffer) > keep:
                piece = bytes(buffer[:-keep])
                del buffer[:-keep]
                yield piece
            if not self._more():
                raise Rejected("the body ended before its last delimiter")
        piece = bytes(buffer[:at])
        del buffer[: at + len(self._delimiter)]
        if piece:
            yield piece

    def _rest(self) -> Iterator[bytes]:
        while self._buffer or self._more():
            piece = bytes(self._buffer)
            self._buffer.clear()
            yield piece

    def _pass_over(self, pieces: Iterator[bytes], limit: int) -> None:
        passed = 0
        for piece in pieces:
            passed += len(piece)
            if passed > limit:
                raise Rejected("too much beside the parts of the body")

    def _closed(self) -> bool:
        """True behind the last delimiter; otherwise its line is taken off."""
        self._require(2)
        if self._buffer.startswith(b"--"):
            del self._buffer[:2]
            return True
        self._line_end()
        return False

    def _line_end(self) -> None:
        """RFC 2046 allows blanks between a delimiter and the end of its line."""
        for _ in range(MAX_HEADER_BYTES):
            self._require(2)
            if self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]
                return
            if not self._buffer.startswith((b" ", b"\t")):
                break
            del self._buffer[:1]
        raise Rejected("malformed multipart body")

    def _header(self) -> tuple[str, str]:
        """Content-Type and Content-Transfer-Encoding of the part whose header begins here."""
        # An empty header is one blank line, so the search begins with the end of the delimiter's line.
        self._buffer[:0] = b"\r\n"
        while (end := self._buffer.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES + 4)) < 0:
            if len(self._buffer) > MAX_HEADER_BYTES:
                raise TooLarge(f"the header of a part is longer than {MAX_HEADER_BYTES} bytes")
            if not self._more():
                raise Rejected("the body ended before its last delimiter")
        lines = bytes(self._buffer[2:end]).decode("latin-1").split("\r\n") if end else []
        del self._buffer[: end + 4]
        fields: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), value.strip())
        declared = fields.get("content-type")
        return media_type(declared) if declared else "", fields.get("content-transfer-encoding", "").lower()
