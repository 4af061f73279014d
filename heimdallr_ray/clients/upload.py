"""Upload client: a ZIP, or a folder that is zipped on the way, to /api/v1/upload as a multipart stream."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import httpx

from heimdallr_ray.errors import (
    BadArchive,
    EmptyInput,
    HeimdallrError,
    NotReady,
    Rejected,
    StorageFull,
    TooLarge,
    Unauthorized,
)

UPLOAD_PATH = "/api/v1/upload"
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0
"""From the last byte to the answer: the server unpacks and commits in between."""
MAX_FILES = 1_000_000

Progress = Callable[[int, int], None]

_BY_STATUS: dict[int, type[HeimdallrError]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: TooLarge,
    429: NotReady,
    503: NotReady,
    507: StorageFull,
}
_BY_CODE: dict[str, type[HeimdallrError]] = {kind.code: kind for kind in (BadArchive, EmptyInput, TooLarge)}


@dataclass(frozen=True)
class UploadReport:
    """What the server says it did."""

    accepted: int
    rejected: int
    study_uids: tuple[str, ...]
    bytes_sent: int

    def as_json(self) -> dict[str, Any]:
        """The report for a program."""
        return {**asdict(self), "study_uids": list(self.study_uids)}


class _Counted:
    """A binary file that tells how far it has been read; httpx streams it."""

    def __init__(self, stream: IO[bytes], total: int, on_progress: Progress | None) -> None:
        self._stream = stream
        self._total = total
        self._on_progress = on_progress

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        if self._on_progress is not None:
            self._on_progress(self._stream.tell(), self._total)
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def fileno(self) -> int:
        return self._stream.fileno()


def upload_zip(path: Path, url: str, token: str | None = None, on_progress: Progress | None = None) -> UploadReport:
    """The server has stored every DICOM object of the ZIP or folder at `path`.

    Args:
        path: a ZIP file, or a folder that is zipped into a temporary file first.
        url: the server, such as http://127.0.0.1:8001.
        token: bearer token, where the server wants one.
        on_progress: called with bytes sent and bytes in all.

    Raises:
        EmptyInput: the folder holds no file, or nothing in the archive is DICOM.
        BadArchive, TooLarge: the server does not take this archive.
        Unauthorized: the token is absent or wrong.
        NotReady, StorageFull: not now.
        Rejected: any other refusal.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return _post(stream, path.name, url, token, on_progress)
    with tempfile.TemporaryFile(suffix=".zip") as stream:
        _zip_folder(path, stream)
        stream.seek(0)
        return _post(stream, f"{path.resolve().name or 'study'}.zip", url, token, on_progress)


def _zip_folder(folder: Path, stream: IO[bytes]) -> None:
    files = sorted(islice((item for item in folder.rglob("*") if item.is_file()), MAX_FILES))
    if not files:
        raise EmptyInput("the folder holds no file")
    # DICOM pixels barely shrink at level 1 and cost ten times more at level 6.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        for item in files:
            archive.write(item, str(item.relative_to(folder)))


def _post(stream: IO[bytes], name: str, url: str, token: str | None, on_progress: Progress | None) -> UploadReport:
    total = stream.seek(0, 2)
    stream.seek(0)
    counted = cast("IO[bytes]", _Counted(stream, total, on_progress))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        # The environment's proxies are for the internet, not for a hospital's own server.
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            response = client.post(
                url.rstrip("/") + UPLOAD_PATH, headers=headers, files={"file": (name, counted, "application/zip")}
            )
    except httpx.InvalidURL as error:
        raise Rejected(f"not a URL: {error}") from error
    except httpx.HTTPError as error:
        raise NotReady(f"the server does not answer: {type(error).__name__}") from error
    if response.status_code >= 300:
        raise _refusal(response)
    try:
        answer = cast("dict[str, Any]", response.json())
        return UploadReport(
            accepted=int(answer["accepted"]),
            rejected=int(answer["rejected"]),
            study_uids=tuple(str(uid) for uid in answer["study_uids"]),
            bytes_sent=total,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise NotReady("the answer is not one of heimdallr") from error


def _refusal(response: httpx.Response) -> HeimdallrError:
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
