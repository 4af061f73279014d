"""One file out of a multipart/form-data body (RFC 7578), straight into a folder of ours, bounded on the way.

Starlette's own form parser spools to the system's temporary folder and has no bound for a file; an upload of several
gigabytes needs both. Disk writes happen in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.requests import ClientDisconnect

from heimdallr_ray.errors import BadArchive, EmptyInput, Rejected, TooLarge
from heimdallr_ray.listener.room import Watermarks, require_room, storage_error

WRITE_BYTES = 1 << 20
"""Bytes gathered before a write, so that a thread is not started for every network packet."""
OVERHEAD_BYTES = 64 * 1024
"""What a body may hold besides the file: boundaries, part headers, small fields."""
MAX_PARTS = 16
MAX_FILENAME = 255


@dataclass(frozen=True)
class UploadedFile:
    """A file that came in whole.

    Attributes:
        path: where its bytes are; a name of ours.
        client_name: what the client calls it; text to show, never a path.
        size: bytes.
    """

    path: Path
    client_name: str
    size: int


def boundary_of(content_type: str | None) -> bytes:
    """The boundary parameter of a multipart/form-data content type.

    Raises:
        Rejected: another type, or no boundary.
    """
    message = Message()
    message["content-type"] = content_type or ""
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise Rejected("send the file as multipart/form-data")
    return boundary.encode("latin-1", "replace")


class _OneFile:
    """Collects the bytes of the first file part named `field`; what it holds is drained by `take`."""

    def __init__(self, field: str, suffix: str) -> None:
        self._field = field
        self._suffix = suffix
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = ""
        self._parts = 0
        self._inside = False
        self._pending = bytearray()
        self.client_name: str | None = None
        self.complete = False

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_text,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
        }

    def take(self) -> bytes:
        taken = bytes(self._pending)
        self._pending.clear()
        return taken

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Rejected("too many parts in the body")
        self._disposition = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_text(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value).decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        message = Message()
        message["content-disposition"] = self._disposition.replace("\r", " ").replace("\n", " ")
        name = message.get_param("name", header="content-disposition")
        filename = message.get_param("filename", header="content-disposition")
        if self.client_name is None and name == self._field and isinstance(filename, str):
            self.client_name = "".join(c for c in filename if c.isprintable())[:MAX_FILENAME]
            if not self.client_name.lower().endswith(self._suffix):
                raise BadArchive(
                    f"only {self._suffix} files are accepted here: name the file so, or send it to /api/v1/upload"
                )
            self._inside = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._pending += data[start:end]

    def _part_end(self) -> None:
        self.complete = self.complete or self._inside
        self._inside = False


async def receive_file(
    body: AsyncIterator[bytes],
    content_type: str | None,
    field: str,
    suffix: str,
    target: Path,
    max_bytes: int,
    marks: Watermarks | int = 0,
) -> UploadedFile:
    """The file part `field` of `body`, called `*suffix` by the client, is written to `target`, which must not exist.

    The caller removes `target` in every case. `marks` (a number: bytes) say how much stays free on
    its device, asked before every write.

    Raises:
        Rejected: not multipart/form-data, malformed, ended early, or with too many parts.
        BadArchive: the client's name for it does not end in `suffix`.
        EmptyInput: no file part of that name, or an empty one.
        TooLarge: the body holds more than `max_bytes`.
        StorageFull: no room, or less than `marks` ask for.
        StorageFailed: the operating system refused.
        FileExistsError: `target` exists.
    """
    collector = _OneFile(field, suffix)
    parser = MultipartParser(boundary_of(content_type), collector.callbacks())  # pyright: ignore[reportArgumentType]
    try:
        return await _received(body, collector, parser, field, target, max_bytes, marks)
    except FileExistsError:
        raise
    except OSError as error:
        raise storage_error(error) from error


async def _received(
    body: AsyncIterator[bytes],
    collector: _OneFile,
    parser: MultipartParser,
    field: str,
    target: Path,
    max_bytes: int,
    marks: Watermarks | int,
) -> UploadedFile:
    def write(data: bytes) -> int:
        require_room(target.parent, marks, len(data))
        return file.write(data)

    await asyncio.to_thread(require_room, target.parent, marks)
    file: BinaryIO = await asyncio.to_thread(target.open, "xb")
    received = size = 0
    try:
        async for chunk in body:
            received += len(chunk)
            if received > max_bytes + OVERHEAD_BYTES:
                raise TooLarge(f"larger than {max_bytes >> 20} MiB")
            parser.write(chunk)
            if collector.waiting >= WRITE_BYTES:
                size += await asyncio.to_thread(write, collector.take())
        parser.finalize()
        size += await asyncio.to_thread(write, collector.take())
    except FormParserError as error:
        raise Rejected("malformed multipart body") from error
    except ClientDisconnect as error:
        raise Rejected("the client went away") from error
    finally:
        await asyncio.to_thread(file.close)
    if size > max_bytes:
        raise TooLarge(f"larger than {max_bytes >> 20} MiB")
    if collector.client_name is None:
        raise EmptyInput(f"no file in the field {field!r}")
    if not collector.complete:
        raise Rejected("the body ended inside the file")
    if size == 0:
        raise EmptyInput("the file is empty")
    return UploadedFile(target, collector.client_name, size)
