"""One archive of weights over HTTP, to a file beside the registry: resumed, counted, hashed while it comes, bounded.

Runs in the command line, never in a replica. What arrives is only a file with a digest here; `unpack` and `install`
judge it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import httpx

from heimdallr_ray.config import is_loopback
from heimdallr_ray.errors import BadArchive, DownloadFailed, LicenceRequired, StorageFull, TooLarge
from heimdallr_ray.segmentation.disk import fsync_folder, storage_error
from heimdallr_ray.segmentation.partial import Part

logger = logging.getLogger(__name__)

MAX_ARCHIVE_BYTES: Final = 4 << 30
"""The largest of TotalSegmentator's archives that is known has 0.8 GB."""
MIN_FREE_BYTES: Final = 256 << 20
"""Left free on the disk beside what a download needs."""
_ZIP_BEGINS: Final = b"PK\x03\x04"
_ASK_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_REDIRECTS: Final = 5
_MAX_ANSWER_BYTES: Final = 64 << 10
_MAX_DIGITS: Final = 19
PART_SUFFIX: Final = ".part"


@dataclass(frozen=True)
class Bounds:
    """How long and how often.

    Attributes:
        connect_s: for a connection.
        silence_s: without a byte.
        window_s: after which the rate is looked at.
        min_window_bytes: fewer in a window is a connection that has died slowly.
        idle_attempts: attempts in a row that bring nothing new.
        attempts: attempts in all.
        pause_s: before the second attempt; doubles with each that brings nothing.
        max_pause_s: longest pause.
        max_bytes: of the archive.
        total_s: for all attempts together.
    """

    connect_s: float = 15.0
    silence_s: float = 30.0
    window_s: float = 60.0
    min_window_bytes: int = 256 << 10
    idle_attempts: int = 5
    attempts: int = 40
    pause_s: float = 1.0
    max_pause_s: float = 30.0
    max_bytes: int = MAX_ARCHIVE_BYTES
    total_s: float = 6 * 3600.0


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        address: https, or http on this machine.
        licence_body: JSON that is sent to the licence server; None: a plain GET, which can be resumed.
    """

    address: str
    licence_body: dict[str, str] | None = None


@dataclass(frozen=True)
class Downloaded:
    """A whole archive on the disk."""

    path: Path
    sha256: str
    size_bytes: int


Progress = Callable[[int, int | None], None]
"""Bytes so far and in all; None where the server does not say."""


class _TryAgain(Exception):
    """This attempt failed, the next may not; what has arrived stays."""


def download(
    request: Request,
    target: Path,
    *,
    bounds: Bounds | None = None,
    progress: Progress = lambda _done, _total: None,
    say: Callable[[str], None] = lambda _line: None,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Downloaded:
    """`target` holds the whole archive, on the disk; a part that an earlier run left beside it was continued.

    `say` hears of every attempt, so that a person who waits knows what for.

    Raises:
        DownloadFailed: the server does not have it, or did not give it within the bounds; what arrived stays for the
            next run.
        LicenceRequired: the licence server does not accept the site's licence.
        BadArchive: the server sent something else than a ZIP.
        TooLarge: it is, or says that it is, larger than `bounds.max_bytes`.
        StorageFull, StorageFailed: the disk could not take it.
    """
    limits = bounds or Bounds()
    part = Part.found(target.with_name(target.name + PART_SUFFIX), request.address)
    if request.licence_body is not None:
        part.forget()
    idle, pause, reason = 0, limits.pause_s, ""
    deadline = monotonic() + limits.total_s
    timeout = httpx.Timeout(limits.silence_s, connect=limits.connect_s)
    with httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}) as client:
        for attempt in range(1, limits.attempts + 1):
            before = part.size
            say(
                f"connecting to {_host(request)}, attempt {idle + 1} of {limits.idle_attempts}, "
                f"{limits.connect_s:.0f} s at most"
            )
            try:
                digest = _attempt(client, request, part, limits, progress, monotonic, deadline)
            except (_TryAgain, httpx.TransportError) as error:
                idle = 0 if part.size > before else idle + 1
                pause = limits.pause_s if part.size > before else min(pause * 2, limits.max_pause_s)
                reason = str(error) or type(error).__name__
                logger.info("download.interrupted", extra={"attempt": attempt, "bytes": part.size, "why": reason})
                if idle >= limits.idle_attempts:
                    raise DownloadFailed(f"{_host(request)}: {reason}; tried {attempt} times, run it again") from error
                say(f"{_host(request)}: {reason}; again in {pause:.0f} s")
                sleep(pause)
            except (BadArchive, TooLarge, LicenceRequired):
                part.forget()
                raise
            except httpx.InvalidURL as error:
                raise DownloadFailed(f"not an address: {error}") from error
            except OSError as error:
                raise storage_error(error) from error
            else:
                return _finished(part, target, digest)
    raise DownloadFailed(
        f"{_host(request)}: {reason}; not whole after {limits.attempts} attempts, run it again to go on"
    )


def _host(request: Request) -> str:
    try:
        return httpx.URL(request.address).host
    except httpx.InvalidURL as error:
        raise DownloadFailed(f"not an address: {error}") from error


def _finished(part: Part, target: Path, digest: str) -> Downloaded:
    size = part.size
    part.path.replace(target)
    fsync_folder(target.parent)
    part.note.unlink(missing_ok=True)
    return Downloaded(target, digest, size)


def _attempt(
    client: httpx.Client,
    request: Request,
    part: Part,
    bounds: Bounds,
    progress: Progress,
    monotonic: Callable[[], float],
    deadline: float,
) -> str:
    headers: dict[str, str] = {}
    if part.size and part.validator:
        if part.size == part.total:
            return _digest_of(part.path).hexdigest()
        headers = {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    with _answer(client, request, headers) as response:
        continued = _judge(response, request, part, bounds)
        digest = _digest_of(part.path) if continued else hashlib.sha256()
        with part.path.open("ab" if continued else "wb") as stream:
            _receive(response, stream, digest, part, bounds, progress, monotonic, deadline)
            stream.flush()
            os.fsync(stream.fileno())
    if part.size < len(_ZIP_BEGINS) and part.size == (part.total or part.size):
        raise BadArchive("the server sent something else than a ZIP archive")
    if part.total is not None and part.size != part.total:
        raise _TryAgain(f"ended after {part.size} of {part.total} bytes")
    return digest.hexdigest()


@contextmanager
def _answer(client: httpx.Client, request: Request, headers: dict[str, str]) -> Generator[httpx.Response]:
    """The answer of the last server in the chain of redirections; every one of them is one that may be asked."""
    body = request.licence_body
    asked = client.build_request("GET" if body is None else "POST", request.address, headers=headers, json=body)
    for _ in range(_MAX_REDIRECTS + 1):
        _require_safe(asked.url)
        response = client.send(asked, stream=True, follow_redirects=False)
        # A licence number goes to the licence server and nowhere else.
        if response.next_request is None or body is not None:
            try:
                yield response
            finally:
                response.close()
            return
        asked = response.next_request
        response.close()
    raise DownloadFailed(f"{_host(request)}: more than {_MAX_REDIRECTS} redirections")


def _require_safe(url: httpx.URL) -> None:
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.host)):
        raise DownloadFailed(f"{url.host}: only https is used for weights")


def _judge(response: httpx.Response, request: Request, part: Part, bounds: Bounds) -> bool:
    """True where the answer continues what has arrived; else the part begins anew."""
    status = response.status_code
    if status == 416:
        part.forget()
        raise _TryAgain("the part is not one of what the server has now")
    if status in _ASK_AGAIN:
        raise _TryAgain(f"answers {status}")
    if status not in (200, 206):
        _refuse(response, request)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadFailed(f"{_host(request)}: sends the archive encoded, which was not asked for")
    validator = _validator(response)
    if status == 206:
        first, total = _content_range(response)
        if first == part.size and validator in ("", part.validator) and total in (part.total, None):
            return True
        part.forget()
        raise _TryAgain("continues something else than what was begun")
    total = _count(response.headers.get("Content-Length", ""))
    if total is not None and total > bounds.max_bytes:
        raise TooLarge(f"the archive has {total >> 20} MiB, more than {bounds.max_bytes >> 20} MiB")
    _require_room(part.path.parent, total or 0)
    # An answer to a POST cannot be asked for in parts.
    part.begin("" if request.licence_body is not None else validator, total)
    return False


def _refuse(response: httpx.Response, request: Request) -> None:
    if request.licence_body is None:
        raise DownloadFailed(f"{_host(request)}: answers {response.status_code} for {httpx.URL(request.address).path}")
    content = b""
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            break
    if b"invalid_license" in content or response.status_code in (401, 403):
        raise LicenceRequired("the licence server does not accept this site's TotalSegmentator licence")
    raise DownloadFailed(f"{_host(request)}: answers {response.status_code}")


def _validator(response: httpx.Response) -> str:
    """What names the bytes of an answer for If-Range: a strong ETag, else its date (RFC 9110, 13.1.5)."""
    tag = cast(str, response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else cast(str, response.headers.get("Last-Modified", ""))


def _content_range(response: httpx.Response) -> tuple[int, int | None]:
    unit, _, rest = cast(str, response.headers.get("Content-Range", "")).partition(" ")
    span, _, total = rest.partition("/")
    first = _count(span.partition("-")[0])
    return (-1, None) if unit != "bytes" or first is None else (first, _count(total))


def _count(text: str) -> int | None:
    """A number of bytes as a header writes it; no number of more digits than any file has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _require_room(folder: Path, size: int) -> None:
    lacking = size + MIN_FREE_BYTES - shutil.disk_usage(folder).free
    if lacking > 0:
        raise StorageFull(f"{lacking >> 20} MiB more are needed in {folder}")


def _digest_of(path: Path) -> Any:  # noqa: ANN401
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256")


def _receive(
    response: httpx.Response,
    stream: Any,  # noqa: ANN401
    digest: Any,  # noqa: ANN401
    part: Part,
    bounds: Bounds,
    progress: Progress,
    monotonic: Callable[[], float],
    deadline: float,
) -> None:
    window_began, window_bytes = monotonic(), 0
    # Pieces as they come: a chunk size would wait for a slow server to fill it, past the look at its rate.
    for chunk in response.iter_raw():
        if not chunk.startswith(_ZIP_BEGINS[part.size :][: len(chunk)]):
            raise BadArchive("the server sent something else than a ZIP archive")
        if part.size + len(chunk) > (bounds.max_bytes if part.total is None else part.total):
            raise TooLarge("the server sends more than it announced, or more than is allowed")
        stream.write(chunk)
        digest.update(chunk)
        part.size += len(chunk)
        window_bytes += len(chunk)
        progress(part.size, part.total)
        now = monotonic()
        if now > deadline:
            raise DownloadFailed(f"not whole after {bounds.total_s / 3600:.0f} h; run it again to go on")
        if now - window_began >= bounds.window_s:
            if window_bytes < bounds.min_window_bytes:
                raise _TryAgain(f"{window_bytes} bytes in {now - window_began:.0f} s")
            window_began, window_bytes = now, 0
