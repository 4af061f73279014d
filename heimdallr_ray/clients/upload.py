"""Upload client: a ZIP, a folder or a DICOM file to /api/v1/upload, in requests of a bounded size.

An upload that breaks off goes on where it was: the server is asked first which objects it has, byte for byte and whole
on its disk, and the others are sent. Nothing is remembered here. All requests of one upload are one session of the
server's, which keeps its studies open until the last; the session's name follows from the objects, so that it is the
same one the next time.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import httpx

from heimdallr_ray.clients.files import MAX_NAMED, SkippedFile, some_named
from heimdallr_ray.clients.requests import Counted, refusal_of, zipped
from heimdallr_ray.clients.sources import NOT_DICOM, Item, LeftOut, Source, look_at, sources_of
from heimdallr_ray.errors import (
    BadArchive,
    Draining,
    EmptyInput,
    HeimdallrError,
    NotReady,
    Rejected,
    Retryable,
    StorageFull,
    TooLarge,
)

logger = logging.getLogger(__name__)

UPLOAD_PATH = "/api/v1/upload"
KNOWN_PATH = "/api/v1/instances/known"
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0
"""From the last byte to the answer: the server unpacks and commits in between."""
BATCH_BYTES = 64 << 20
BATCH_OBJECTS = 500
"""Of one request. What is lost when a connection breaks is at most one of them."""
ASK_OBJECTS = 2000
"""The most that the server answers at once."""
ATTEMPTS = 5
PAUSE_FIRST_S = 0.5
PAUSE_LAST_S = 8.0

Progress = Callable[[int, int], None]
Flight = Callable[[int], None]


@dataclass(frozen=True)
class UploadReport:
    """What the server says it has."""

    accepted: int
    rejected: int
    """Files that are no DICOM objects; they were not sent."""
    study_uids: tuple[str, ...]
    bytes_sent: int
    skipped: int = 0
    """Files that were left out: those that are no DICOM objects (`rejected`), and DICOMDIRs."""
    skipped_files: tuple[SkippedFile, ...] = ()
    """The first of them, each with its reason."""
    already_there: int = 0
    """Of `accepted`, those that the server had before."""
    requests: int = 0

    def as_json(self) -> dict[str, Any]:
        """The report for a program."""
        skipped = [asdict(item) for item in self.skipped_files]
        return {**asdict(self), "study_uids": list(self.study_uids), "skipped_files": skipped}


@dataclass(frozen=True)
class _Found:
    items: tuple[Item, ...]
    skipped: tuple[SkippedFile, ...]
    """The first of those that were left out."""
    n_skipped: int
    n_rejected: int


def upload_zip(
    path: Path,
    url: str,
    token: str | None = None,
    on_progress: Progress | None = None,
    on_stored: Progress | None = None,
    on_flight: Flight | None = None,
) -> UploadReport:
    """The server has stored every DICOM object of the ZIP, file or folder at `path`.

    One object that cannot be taken refuses them all, before the first is sent. What the server has already is not sent
    again.

    Args:
        path: a ZIP file, a DICOM file or a folder.
        url: the server, such as http://127.0.0.1:8001.
        token: bearer token, where the server wants one.
        on_progress: called with bytes that the server has or was sent, and bytes in all.
        on_stored: called with images that the server says it has, and images in all.
        on_flight: called with the images of a request before it is sent, and with 0 when it was answered.

    Raises:
        EmptyInput: nothing at `path` is a DICOM object.
        BadArchive, TooLarge: `path` is neither a ZIP nor DICOM, or a ZIP that is damaged or means harm; or the server
            does not take an object of this size.
        Unauthorized: the token is absent or wrong.
        NotReady, StorageFull: not now; what was stored until then is not sent again the next time.
        Rejected: any other refusal.
    """
    try:
        with sources_of(path) as sources:
            found = _look(sources)
            return _Upload(url, token, on_progress, on_stored, on_flight).send(found)
    except OSError as error:
        raise Rejected(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _look(sources: Sequence[Source]) -> _Found:
    """Each file is an object or is left out.

    Raises:
        EmptyInput: none is an object.
        Rejected: some are DICOM and cannot be taken; the class is that of the first one.
    """
    if not sources:
        raise EmptyInput("no DICOM object there: it holds no file")
    items: list[Item] = []
    left_out: list[SkippedFile] = []
    refused: list[SkippedFile] = []
    first: type[Rejected] = Rejected
    for source in sources:
        try:
            one = look_at(source)
        except BadArchive:
            raise
        except Rejected as error:
            first = first if refused else type(error)
            refused.append(SkippedFile(source.name, f"{error.detail} ({error.code})"))
            continue
        if isinstance(one, LeftOut):
            left_out.append(SkippedFile(source.name, one.reason))
        else:
            items.append(one)
    if refused:
        of = f"{len(refused)} of {len(refused) + len(items)} DICOM files cannot be taken"
        raise first(f"{of} ({some_named(refused, len(refused))}); nothing was sent")
    if not items:
        raise EmptyInput(f"no DICOM object there ({some_named(left_out, len(left_out))})")
    foreign = sum(item.reason == NOT_DICOM for item in left_out)
    return _Found(tuple(items), tuple(left_out[:MAX_NAMED]), len(left_out), foreign)


def session_of(items: Sequence[Item]) -> str:
    """The name of the upload of these objects: the same for the same objects, so that it goes on as itself."""
    lines = sorted(f"{sop_uid} {sha256}" for sop_uid, sha256 in {item.key for item in items})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Requests of at most BATCH_OBJECTS and BATCH_BYTES; a larger object is one of its own."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH_OBJECTS or size + item.source.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.source.size
    if batch:
        yield batch


def _to_send(items: Sequence[Item], known: Collection[tuple[str, str]]) -> list[Item]:
    """Those of `items` that the server needs: what it does not know, and what tells to which study that belongs.

    An image without Study Instance UID belongs to the study of those that come with it. So where one of them is new the
    known ones go before it.
    """
    named = [item for item in items if item.study_uid and item.key not in known]
    nameless = [item for item in items if not item.study_uid]
    if all(item.key in known for item in nameless):
        return named
    return named + sorted(nameless, key=lambda item: item.key not in known)


def _nobody_asks(_images: int) -> None:
    pass


class _Upload:
    """One upload to one server."""

    def __init__(
        self,
        url: str,
        token: str | None,
        on_progress: Progress | None,
        on_stored: Progress | None = None,
        on_flight: Flight | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._on_progress = on_progress
        self._on_stored = on_stored
        self._on_flight: Flight = on_flight or _nobody_asks
        self._there = self._images = 0
        self._done = self._total = self._sent = self._requests = 0
        self._accepted = self._already_there = 0
        self._study_uids: set[str] = set()

    def send(self, found: _Found) -> UploadReport:
        """The server has all objects.

        Raises:
            HeimdallrError: as `upload_zip`.
        """
        unique = list({item.key: item for item in found.items}.values())
        self._total = sum(item.source.size for item in found.items)
        self._headers["X-Upload-Session"] = session_of(unique)
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            # The environment's proxies are for the internet, not for a hospital's own server.
            with httpx.Client(timeout=timeout, trust_env=False) as client:
                known = self._known(client, unique)
                waiting = _to_send(unique, known)
                self._images = len(found.items)
                there = self._there = self._images - len(waiting)
                self._tell_stored()
                self._study_uids.update(item.study_uid for item in unique if item.key in known and item.study_uid)
                self._advance(self._total - sum(item.source.size for item in waiting))
                cut = list(batches(waiting))
                for number, batch in enumerate(cut, start=1):
                    self._send(client, batch, more=number < len(cut))
        except httpx.InvalidURL as error:
            raise Rejected(f"not a URL: {error}") from error
        return UploadReport(
            accepted=self._accepted + there,
            rejected=found.n_rejected,
            study_uids=tuple(sorted(self._study_uids)),
            bytes_sent=self._sent,
            skipped=found.n_skipped,
            skipped_files=found.skipped,
            already_there=self._already_there + there,
            requests=self._requests,
        )

    def _known(self, client: httpx.Client, items: Sequence[Item]) -> set[tuple[str, str]]:
        known: set[tuple[str, str]] = set()
        start = 0
        while start < len(items):
            asked = items[start : start + ASK_OBJECTS]
            body = {"instances": [{"sop_uid": item.sop_uid, "sha256": item.sha256} for item in asked]}
            answer = self._tried(
                lambda body=body: client.post(self._url + KNOWN_PATH, headers=self._headers, json=body)
            )
            try:
                known.update(asked[int(position)].key for position in answer["known"])
                looked_at = int(answer.get("looked_at", len(asked)))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise NotReady("the answer is not one of heimdallr") from error
            # The server reads what it calls known, and answers in part where that takes long.
            start += min(max(looked_at, 1), len(asked))
        return known

    def _send(self, client: httpx.Client, batch: Sequence[Item], *, more: bool) -> None:
        """The server has `batch`; cut in halves as often as it finds the request too large."""
        before = self._done
        headers = {**self._headers, **({"X-Upload-More": "true"} if more else {})}
        size = sum(item.source.size for item in batch)
        with zipped(batch) as stream:
            packed = stream.seek(0, 2)
            counted = cast("IO[bytes]", Counted(stream, lambda at: self._advance(before + size * at // packed)))

            def post() -> httpx.Response:
                stream.seek(0)
                files = {"file": ("study.zip", counted, "application/zip")}
                return client.post(self._url + UPLOAD_PATH, headers=headers, files=files)

            self._on_flight(len(batch))
            try:
                answer = self._tried(post)
            except TooLarge:
                self._on_flight(0)
                self._done = before
                if len(batch) == 1:
                    raise
                middle = len(batch) // 2
                self._send(client, batch[:middle], more=True)
                self._send(client, batch[middle:], more=more)
                return
        self._requests += 1
        self._sent += packed
        try:
            self._accepted += int(answer["accepted"])
            self._already_there += int(answer.get("already_there", 0))
            self._study_uids.update(str(uid) for uid in answer["study_uids"])
        except (KeyError, TypeError, ValueError) as error:
            raise NotReady("the answer is not one of heimdallr") from error
        self._done = before + size
        self._advance(self._done)
        self._tell_stored()
        self._on_flight(0)

    def _tried(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        """The answer of the server, asked again where it does not answer or has no place now.

        Raises:
            HeimdallrError: its refusal.
            NotReady: no answer, ATTEMPTS times.
        """
        pause_s = PAUSE_FIRST_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = ask()
                if response.status_code < 300:
                    return cast("dict[str, Any]", response.json())
                failure: HeimdallrError = refusal_of(response)
            except httpx.TransportError as error:
                failure = NotReady(f"{self._url} does not answer ({type(error).__name__})")
                failure.__cause__ = error
                if isinstance(error, httpx.ConnectError) and not self._requests:
                    # Nobody is there: waiting would only keep the person who mistyped the address.
                    raise failure from error
            except ValueError as error:
                raise NotReady("the answer is not one of heimdallr") from error
            if not isinstance(failure, Retryable) or isinstance(failure, StorageFull | Draining) or attempt == ATTEMPTS:
                raise self._told(failure)
            logger.warning("upload.again", extra={"code": failure.code, "attempt": attempt})
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_LAST_S)
        raise NotReady("no attempt was made")

    def _told(self, failure: HeimdallrError) -> HeimdallrError:
        """`failure`, with what has been stored before it."""
        if not self._accepted or not isinstance(failure, Retryable):
            return failure
        stored = "1 image is" if self._accepted == 1 else f"{self._accepted} images are"
        told = type(failure)(f"{failure.detail}; {stored} stored, the same command goes on from there")
        told.__cause__ = failure.__cause__
        return told

    def _tell_stored(self) -> None:
        if self._on_stored is not None:
            self._on_stored(self._there + self._accepted, self._images)

    def _advance(self, done: int) -> None:
        self._done = min(done, self._total)
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)
