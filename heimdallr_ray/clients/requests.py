"""What a request of the upload client is made of, and what a refusal of the server means."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO, Any, cast

import httpx

from heimdallr_ray.clients.sources import Item
from heimdallr_ray.errors import (
    BadArchive,
    Draining,
    EmptyInput,
    HeimdallrError,
    NotFound,
    NotReady,
    Rejected,
    StorageFull,
    TooLarge,
    Unauthorized,
)

_BY_STATUS: dict[int, type[HeimdallrError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    413: TooLarge,
    429: NotReady,
    503: NotReady,
    507: StorageFull,
}
_BY_CODE: dict[str, type[HeimdallrError]] = {kind.code: kind for kind in (BadArchive, Draining, EmptyInput, TooLarge)}


class Counted:
    """A binary file that tells how far it has been read; httpx streams it."""

    def __init__(self, stream: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_read = on_read

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        chunk = self._stream.read(size)
        self._on_read(self._stream.tell())
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As a file's."""
        return self._stream.tell()

    def fileno(self) -> int:
        """As a file's; httpx asks it for the size."""
        return self._stream.fileno()


def zipped(batch: Sequence[Item]) -> IO[bytes]:
    """A temporary ZIP of the objects, gone when it is closed."""
    with ExitStack() as unless_complete:
        stream = unless_complete.enter_context(tempfile.TemporaryFile(suffix=".zip"))
        # DICOM pixels barely shrink at level 1 and cost ten times more at level 6.
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number, item in enumerate(batch):
                # Names of ours: an upload tells the server no name of a folder or a person.
                with archive.open(f"{number:06d}.dcm", "w", force_zip64=True) as entry:
                    for chunk in item.source.chunks():
                        entry.write(chunk)
        unless_complete.pop_all()
        return stream


def refusal_of(response: httpx.Response) -> HeimdallrError:
    """The typed error for an answer that is not a success; the server's code wins over the HTTP status."""
    try:
        body = cast("dict[str, Any]", response.json())
        error = body.get("error", body)
        fields = cast("dict[str, Any]", error) if isinstance(error, dict) else body
    except ValueError:
        fields = {}
    code, detail = str(fields.get("code", "")), str(fields.get("detail", fields.get("message", "")))[:500]
    kind = _BY_CODE.get(code) or _BY_STATUS.get(response.status_code)
    if kind is None:
        kind = NotReady if response.status_code >= 500 else Rejected
    return kind(detail or f"the server answers {response.status_code}")
