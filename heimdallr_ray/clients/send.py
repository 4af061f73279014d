"""C-STORE client: a folder of DICOM files to any storage SCP, each data set sent with the bytes it has on disk.

Source: PS3.4 annex B (Storage SCU), PS3.7 section 9.1.1, PS3.8 annex D.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from ssl import SSLContext
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from heimdallr_ray.clients.dimse import ANSWER_TIMEOUT_S, Peer, Refusal, Tls, associate, break_off, end
from heimdallr_ray.clients.files import Outgoing, select
from heimdallr_ray.clients.sent import FileStatus, SendReport, reason_of
from heimdallr_ray.errors import BadSetting, HeimdallrError, NotReady
from heimdallr_ray.listener.reactor import at_rest

__all__ = ["FileStatus", "SendReport", "reason_of", "send_folder"]

logger = logging.getLogger(__name__)

MAX_CONTEXTS = 128
"""Presentation context ids are the odd numbers of one byte (PS3.8 9.3.2.2)."""
MAX_ASSOCIATIONS = 16
PAUSE_FIRST_S = 0.25
PAUSE_LAST_S = 2.0
DEFAULT_ATTEMPTS = 5
_NOT_SENT = 0x0122
"""SOP class not supported (PS3.7 C.5.6): our code for a file whose context the peer did not accept."""

Progress = Callable[[int, int], None]
Explain = Callable[[Refusal], str]
"""What is known here of a refusal besides the peer's words; empty where nothing is."""


class _Work:
    """The files of one send: who has been answered, what waits. Safe for several threads."""

    def __init__(self, outgoing: Sequence[Outgoing], on_progress: Progress | None, on_bytes: Progress | None) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Outgoing] = deque()
        self._on_progress = on_progress
        self._on_bytes = on_bytes
        self._files = len(outgoing)
        self._bytes = sum(item.size for item in outgoing)
        self._done_bytes = 0
        self._stopped = False
        self.answers: dict[Path, FileStatus] = {}
        self.associations = 0
        self.bytes_sent = 0

    def offer(self, batch: Sequence[Outgoing]) -> None:
        """`batch` waits to be sent."""
        with self._lock:
            self._waiting.extend(batch)

    def take(self) -> Outgoing | None:
        """The next file, or None where none waits."""
        with self._lock:
            return self._waiting.popleft() if self._waiting and not self._stopped else None

    def give_back(self, item: Outgoing) -> None:
        """`item` was not answered."""
        with self._lock:
            self._waiting.appendleft(item)

    def answered(self, item: Outgoing, status: FileStatus) -> None:
        """The peer said something about `item`."""
        with self._lock:
            self.answers[item.path] = status
            self._done_bytes += item.size
            if status.status == 0x0000:
                self.bytes_sent += item.size
            if self._on_progress is not None:
                self._on_progress(len(self.answers), self._files)
            if self._on_bytes is not None:
                self._on_bytes(self._done_bytes, self._bytes)

    def opened(self) -> None:
        """One more association."""
        with self._lock:
            self.associations += 1

    def stop(self) -> None:
        """No further file is sent."""
        with self._lock:
            self._stopped = True

    @property
    def stopped(self) -> bool:
        """True where files may be left that will not be sent."""
        with self._lock:
            return self._stopped

    @property
    def left(self) -> int:
        """Files that wait to be sent."""
        with self._lock:
            return 0 if self._stopped else len(self._waiting)


def send_folder(
    path: Path,
    host: str,
    port: int,
    called_ae: str,
    calling_ae: str = "HEIMDALLR_SCU",
    on_progress: Progress | None = None,
    attempts: int = DEFAULT_ATTEMPTS,
    *,
    associations: int = 1,
    tls: Tls | None = None,
    on_bytes: Progress | None = None,
    explain: Explain = lambda refusal: "",
) -> SendReport:
    """Every DICOM object at or below `path` has been offered to the peer.

    Data sets are sent as they lie on the disk, in the transfer syntax they have; nothing is re-encoded. An association
    that breaks is tried again, up to `attempts` times in a row without progress; what was answered is not sent twice.

    Args:
        path: a folder, searched recursively, or one file.
        host: the peer's address.
        port: the peer's port.
        called_ae: the peer's AE title.
        calling_ae: our AE title.
        on_progress: called with files done and files in all, by one thread at a time.
        attempts: associations in a row that may fail without one file being acknowledged.
        associations: how many at once, each sends the next file that waits. Where the peer allows fewer, these do it.
        tls: how the connection is secured; None: not at all.
        on_bytes: called with data set bytes done and in all.
        explain: adds to the words of a refusal.

    Raises:
        EmptyInput: nothing at `path` is a DICOM object.
        BadSetting: an AE title is not one, or the peer rejects the association for good.
        NotReady: the peer could not be reached, or went away, `attempts` times in a row.
    """
    if not 1 <= associations <= MAX_ASSOCIATIONS:
        raise BadSetting(f"associations must be 1 to {MAX_ASSOCIATIONS}")
    context = tls.context() if tls else None
    selection = select(path)
    outgoing = selection.outgoing
    started = time.monotonic()
    work = _Work(outgoing, on_progress, on_bytes)
    peer = Peer(host, port, called_ae, calling_ae, tls)
    sender = _Sender(peer, context, work, attempts, explain)
    for batch in _batches(outgoing):
        work.offer(batch)
        sender.send(sorted({item.context for item in batch}), min(associations, len(batch)))
    there = [item.study_uid for item in outgoing if work.answers[item.path].acknowledged]
    return SendReport(
        files=tuple(work.answers[item.path] for item in outgoing),
        skipped=selection.skipped,
        associations=work.associations,
        bytes_sent=work.bytes_sent,
        seconds=time.monotonic() - started,
        skipped_files=selection.named,
        study_uids=tuple(sorted({uid for uid in there if uid})),
        without_study_uid=there.count(""),
    )


def _batches(outgoing: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """The files in order, cut where one association would need more than MAX_CONTEXTS contexts."""
    batch: list[Outgoing] = []
    contexts: set[tuple[str, str]] = set()
    for item in outgoing:
        if item.context not in contexts and len(contexts) == MAX_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        contexts.add(item.context)
        batch.append(item)
    yield batch


class _Sender:
    """Empties the work over some associations at once."""

    def __init__(self, peer: Peer, tls: SSLContext | None, work: _Work, attempts: int, explain: Explain) -> None:
        self._peer = peer
        self._tls = tls
        self._work = work
        self._attempts = attempts
        self._explain = explain

    def send(self, contexts: Sequence[tuple[str, str]], workers: int) -> None:
        """Nothing waits any more.

        Raises:
            BadSetting, NotReady: something does; the first reason that a worker met.
        """
        if workers == 1:
            self._run(contexts)
            return
        with ThreadPoolExecutor(workers, "send") as pool:
            try:
                running = [pool.submit(self._run, contexts) for _ in range(workers)]
                errors = [error for one in running if (error := one.exception()) is not None]
            except BaseException:
                # Somebody pressed Ctrl-C: the pool waits for the files on their way, not for all of them.
                self._work.stop()
                raise
        # A worker that the peer did not let in matters only where the others could not do its work.
        if errors and (self._work.left or not all(isinstance(error, HeimdallrError) for error in errors)):
            raise errors[0]

    def _run(self, contexts: Sequence[tuple[str, str]]) -> None:
        failures, pause_s = 0, PAUSE_FIRST_S
        refusal = Refusal("no_answer", "does not take images", permanent=False)
        while self._work.left:
            association = associate(self._peer, contexts, self._tls)
            done = 0
            if isinstance(association, Refusal):
                refusal = association
                if refusal.permanent:
                    raise BadSetting(self._words(refusal))
            else:
                self._work.opened()
                try:
                    done = _send_over(association, self._work)
                except BaseException:
                    break_off(association)
                    raise
                # A release would say that this was all, and the peer would close the studies soon.
                (break_off if self._work.stopped else end)(association)
                refusal = Refusal("no_answer", "ends the association before it has answered", permanent=False)
            failures, pause_s = (0, PAUSE_FIRST_S) if done else (failures + 1, pause_s)
            left = self._work.left
            if not left:
                return
            if failures >= self._attempts:
                raise NotReady(f"{self._words(refusal)}; {left} {'image is' if left == 1 else 'images are'} left")
            logger.warning("send.again", extra={"left": left, "failures": failures, "reason": refusal.kind})
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_LAST_S)

    def _words(self, refusal: Refusal) -> str:
        more = self._explain(refusal)
        return f"{self._peer.host}:{self._peer.port} {refusal.words}" + (f" ({more})" if more else "")


def _send_over(association: Association, work: _Work) -> int:
    """Files are sent until none waits or the association breaks; returns how many were answered."""
    accepted = {
        (str(context.abstract_syntax), str(context.transfer_syntax[0])): int(cast(int, context.context_id))
        for context in association.accepted_contexts
    }
    done = 0
    while association.is_established and (item := work.take()) is not None:
        status: int | None = None
        try:
            context_id = accepted.get(item.context)
            if context_id is None:
                status, reason = _NOT_SENT, "the peer does not accept this SOP class in this transfer syntax"
            else:
                status, reason = _store(association, item, context_id, done + 1), ""
        finally:
            if status is None:
                work.give_back(item)
        if status is None:
            return done
        done += 1
        said = reason or reason_of(status)
        work.answered(item, FileStatus(str(item.path), item.sop_uid, status, said, item.sop_class_uid))
    return done


def _store(association: Association, item: Outgoing, context_id: int, number: int) -> int | None:
    """The peer's status, or None where no answer came. The data set is streamed from the file as it is."""
    content = item.path.read_bytes()
    request = C_STORE()
    request.MessageID = number % 65_535 + 1
    request.AffectedSOPClassUID = item.sop_class_uid
    request.AffectedSOPInstanceUID = item.sop_uid
    request.Priority = 0x02
    request.DataSet = BytesIO(content[item.dataset_offset :])
    # pynetdicom's own send_c_store decodes and encodes the data set again, so the message goes through its DIMSE
    # provider directly, in the way send_c_store does it.
    provider = cast(Any, association)
    with at_rest(association, ANSWER_TIMEOUT_S) as resting:
        if not resting:
            return None
        provider.dimse.send_msg(request, context_id)
        _, answer = provider.dimse.get_msg(block=True)
    if answer is None or not answer.is_valid_response:
        association.abort()
        return None
    return int(answer.Status)
