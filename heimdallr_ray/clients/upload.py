"""Upload client: a ZIP, or DICOM files that are zipped on the way, to /api/v1/upload as a multipart stream."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import httpx

from heimdallr_ray.clients.files import INDEX_REASON, MAX_NAMED, SkippedFile, candidates
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
from heimdallr_ray.listener import part10

UPLOAD_PATH = "/api/v1/upload"
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0
"""From the last byte to the answer: the server unpacks and commits in between."""
_NOT_DICOM = "not DICOM"

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
    skipped: int = 0
    """Files of the archive that were left out: those that are no DICOM objects (`rejected`), and DICOMDIRs."""
    skipped_files: tuple[SkippedFile, ...] = ()
    """The first of them, each with its reason."""
    already_there: int = 0
    """Of `accepted`, those that the server had before; 0 where it does not say."""

    def as_json(self) -> dict[str, Any]:
        """The report for a program."""
        skipped = [asdict(item) for item in self.skipped_files]
        return {**asdict(self), "study_uids": list(self.study_uids), "skipped_files": skipped}


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
    """The server has stored every DICOM object of the ZIP, file or folder at `path`.

    Args:
        path: a ZIP file, or a DICOM file or a folder, which is zipped into a temporary file first.
        url: the server, such as http://127.0.0.1:8001.
        token: bearer token, where the server wants one.
        on_progress: called with bytes sent and bytes in all.

    Raises:
        EmptyInput: the folder holds no file, or nothing in the archive is DICOM.
        BadArchive, TooLarge: the server does not take this archive; or `path` is neither a ZIP nor DICOM.
        Unauthorized: the token is absent or wrong.
        NotReady, StorageFull: not now.
        Rejected: any other refusal.
    """
    whole = path.resolve()
    name = f"{(whole.stem if whole.is_file() else whole.name) or 'study'}.zip"
    try:
        with path.open("rb") if path.is_file() and _is_archive(path) else _zipped(path) as stream:
            return _named(stream, _post(stream, name, url, token, on_progress))
    except OSError as error:
        raise Rejected(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _is_archive(path: Path) -> bool:
    """True for a file that is sent as it is, False for a DICOM file.

    Raises:
        BadArchive: neither.
    """
    # What calls itself a ZIP is judged by the server, whose code says what is wrong with it.
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as stream:
        head = stream.read(part10.HEAD_BYTES)
    if part10.has_prefix(head) or _reason_to_leave_out(head) != _NOT_DICOM:
        return False
    if zipfile.is_zipfile(path):
        return True
    raise BadArchive(f"{path.name} is neither a ZIP archive nor a DICOM file")


def _zipped(path: Path) -> IO[bytes]:
    """A temporary ZIP of the file or folder, gone when it is closed."""
    files = candidates(path)
    if not files:
        raise EmptyInput("the folder holds no file")
    with contextlib.ExitStack() as unless_complete:
        stream = unless_complete.enter_context(tempfile.TemporaryFile(suffix=".zip"))
        # DICOM pixels barely shrink at level 1 and cost ten times more at level 6.
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            for item in files:
                archive.write(item, item.name if item == path else str(item.relative_to(path)))
        unless_complete.pop_all()
        return stream


def _reason_to_leave_out(head: bytes) -> str:
    """Why the server takes no object from a file that begins with `head`; empty where it takes one."""
    try:
        meta = part10.identify(head)
    except Rejected:
        return "" if part10.has_prefix(head) else _NOT_DICOM
    return INDEX_REASON if meta.sop_class_uid == part10.DICOMDIR_CLASS else ""


def _named(stream: IO[bytes], report: UploadReport) -> UploadReport:
    """`report` with the names of what was left out: the server counts them, the archive here knows their names."""
    named: list[SkippedFile] = []
    with zipfile.ZipFile(stream) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        skipped = max(0, len(members) - report.accepted)
        for member in members:
            if len(named) >= min(skipped, MAX_NAMED):
                break
            with archive.open(member) as entry:
                reason = _reason_to_leave_out(entry.read(part10.HEAD_BYTES))
            if reason:
                named.append(SkippedFile(member.filename, reason))
    return replace(report, skipped=skipped, skipped_files=tuple(named))


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
        raise NotReady(f"{url} does not answer ({type(error).__name__})") from error
    if response.status_code >= 300:
        raise _refusal(response)
    try:
        answer = cast("dict[str, Any]", response.json())
        return UploadReport(
            accepted=int(answer["accepted"]),
            rejected=int(answer["rejected"]),
            study_uids=tuple(str(uid) for uid in answer["study_uids"]),
            bytes_sent=total,
            already_there=int(answer.get("already_there", 0)),
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
