"""The one road from a door to the catalog: durable first, acknowledged second, rows in groups third.

Crash points and what the next start finds:

    before the rename into ready/   a .part file nobody holds; swept; the sender never heard Success
    before the blob is adopted      a ready file; replayed
    before the rows are committed   a ready file whose blob exists; adopting again gives the same blob; replayed
    before the ready file is gone   a ready file whose spool name has a row; recording again changes nothing
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.studies import RecordOutcome, record_instances
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.errors import HeimdallrError, Retryable
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.listener.facts import Identity, identify_instance, to_received
from heimdallr_ray.listener.spool import Spool, SpoolEntry, Staging, storage_error
from heimdallr_ray.storage.blobs import BlobRef, BlobStore

logger = logging.getLogger(__name__)

GROUP_SIZE = 64
GROUP_WAIT_S = 0.1
UPLOAD_GROUP_SIZE = 1000
"""Objects after which the next study of an upload gets a transaction of its own: about a second of write lock."""
MAX_QUEUED = 2048
"""Accepted objects that wait in memory. More stay on the disk alone and are replayed once the queue is empty."""
MAX_COMMIT_ATTEMPTS = 3
RETRY_FIRST_S = 0.1
RETRY_LAST_S = 5.0
ACTOR = "listener"


@dataclass(frozen=True)
class Accepted:
    """One object that is durable and whose header has been read."""

    entry: SpoolEntry
    identity: Identity


@dataclass(frozen=True)
class ReceiverCounts:
    """What has happened since start; memory only, the truth is in the catalog."""

    committed: int = 0
    duplicates: int = 0
    quarantined: int = 0
    commit_failures: int = 0
    queued: int = 0


def whole_studies(items: Sequence[Accepted], size: int) -> list[list[Accepted]]:
    """Groups of about `size` objects, none of which shares a study with another; a larger study is one group."""
    by_study: dict[str, list[Accepted]] = {}
    for item in items:
        by_study.setdefault(str(item.identity.study_uid), []).append(item)
    groups: list[list[Accepted]] = []
    for study in by_study.values():
        if groups and len(groups[-1]) + len(study) <= size:
            groups[-1].extend(study)
        else:
            groups.append(study)
    return groups


class Receiver:
    """Store, then commit. Safe for several threads; several receivers may share a spool, also across processes."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        blobs: BlobStore,
        clock: Clock,
        *,
        group_size: int = GROUP_SIZE,
        group_wait_s: float = GROUP_WAIT_S,
    ) -> None:
        """Open the spool of `settings`. `commit` and `commit_upload` work without `start`.

        Raises:
            StorageFull, StorageFailed: the spool folder cannot be made.
        """
        self.spool = Spool(
            settings.spool_dir,
            min_free_bytes=settings.min_free_mib << 20,
            max_object_bytes=settings.max_instance_mib << 20,
        )
        self.clock = clock
        self._database = database
        self._blobs = blobs
        self._drain_mark = DrainMark(settings.run_dir)
        self._group_size = group_size
        self._group_wait_s = group_wait_s
        self._changed = threading.Condition()
        self._queue: deque[Accepted] = deque()
        self._in_hand: dict[str, Accepted] = {}
        self._attempts: dict[str, int] = {}
        self._overflowed = False
        self._urgent = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._committed = self._duplicates = self._quarantined = self._failures = 0

    # Doors -----------------------------------------------------------------------------------------------------------

    def accept(
        self,
        arrival: Arrival,
        chunks: Iterable[bytes | bytearray | memoryview],
        *,
        expected_size: int = 0,
        staging: Staging | None = None,
    ) -> Accepted:
        """The object of `chunks` (data set bytes) is durable and identified; its sender may hear Success.

        Raises:
            NotDicom, TruncatedObject, TooLarge: its header cannot be read; nothing is kept.
            StorageFull, StorageFailed: it could not be made durable; nothing is kept.
        """
        with self.spool.writer(arrival, expected_size, staging) as writer:
            for chunk in chunks:
                writer.write(chunk)
            try:
                header = read_header(writer.path)
            except OSError as error:
                raise storage_error(error) from error
            identity = identify_instance(header, arrival, writer.name, writer.dataset_sha256)
            return Accepted(writer.commit(), identity)

    def enqueue(self, accepted: Accepted) -> None:
        """The committer will turn the object into a row soon."""
        with self._changed:
            if len(self._in_hand) >= MAX_QUEUED:
                self._overflowed = True
                return
            self._in_hand[accepted.entry.name] = accepted
            self._queue.append(accepted)
            if len(self._queue) >= self._group_size or len(self._queue) == 1:
                self._changed.notify_all()

    def commit(self, group: Sequence[Accepted]) -> RecordOutcome:
        """The objects of `group` are blobs and rows, in one transaction; their spool files are gone.

        Raises:
            Retryable: not now (database or disk); the spool files are still there.
        """
        refs = [self._blobs.adopt(item.entry.path) for item in group]
        return self._record(group, refs)

    def commit_upload(self, items: Sequence[Accepted]) -> int:
        """All objects of one upload are rows; a study's objects become rows together or not at all.

        A death between two transactions leaves whole studies, so that no part of one is ever measured for all of it.

        Returns:
            How many of the objects the catalog had before.

        Raises:
            Draining: the stack is about to stop and may have counted its studies already; nothing was stored.
            Retryable: as `commit`; the upload was not answered and may be sent again.
        """
        with self._drain_mark.storing():
            refs = self._blobs.adopt_many([item.entry.path for item in items])
            blobs = dict(zip((item.entry.name for item in items), refs, strict=True))
            return sum(
                self._record(group, [blobs[item.entry.name] for item in group]).duplicates
                for group in whole_studies(items, UPLOAD_GROUP_SIZE)
            )

    def _record(self, group: Sequence[Accepted], refs: Sequence[BlobRef]) -> RecordOutcome:
        received = [to_received(item.entry, item.identity, ref.sha256) for item, ref in zip(group, refs, strict=True)]
        with self._database.write() as session:
            outcome = record_instances(session, received, self.clock.now())
        for item in group:
            self.spool.remove(item.entry)
        with self._changed:
            self._committed += outcome.stored
            self._duplicates += outcome.duplicates
        return outcome

    # Committer -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The committer runs."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="spool-committer", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """The committer has ended; True where it left nothing behind in memory."""
        flushed = self.flush(timeout_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return flushed

    @property
    def alive(self) -> bool:
        """True while the committer's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def flush(self, timeout_s: float) -> bool:
        """True once all that was enqueued is committed or set aside; False where that took longer than `timeout_s`."""
        deadline = self.clock.monotonic() + timeout_s
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            while self._in_hand or self._overflowed:
                left = deadline - self.clock.monotonic()
                if left <= 0 or not self.alive:
                    return False
                self._changed.wait(min(left, 0.5))
            self._urgent = False
        return True

    def pending_study_uids(self) -> frozenset[str]:
        """Studies of which an object is durable but not yet a row."""
        with self._changed:
            return frozenset(item.identity.study_uid for item in self._in_hand.values())

    def counts(self) -> ReceiverCounts:
        """What has happened since start."""
        with self._changed:
            return ReceiverCounts(
                self._committed, self._duplicates, self._quarantined, self._failures, len(self._in_hand)
            )

    def _run(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            group = self._take()
            if not group and self._stopping:
                return
            try:
                if group:
                    self._commit_or_set_aside(group)
                elif self._overflowed:
                    with self._changed:
                        self._overflowed = False
                    self._replay_ready(min_age_s=0.0)
                pause_s = RETRY_FIRST_S
            except Exception as error:
                # A process loop: whatever failed, the files are still durable, so the group is tried again.
                self._give_back(group)
                if not isinstance(error, HeimdallrError):
                    logger.exception("spool.commit_failed", extra={"instances": len(group)})
                else:
                    logger.warning("spool.commit_failed", extra={"instances": len(group), "code": error.code})
                with self._changed:
                    if not self._stopping:
                        self._changed.wait(pause_s)
                    elif pause_s > RETRY_FIRST_S:
                        return
                pause_s = min(2 * pause_s, RETRY_LAST_S)

    def _take(self) -> list[Accepted]:
        with self._changed:
            if not self._queue and not self._stopping and not self._overflowed:
                self._changed.wait(1.0)
            if self._queue and len(self._queue) < self._group_size and not (self._urgent or self._stopping):
                self._changed.wait(self._group_wait_s)
            return [self._queue.popleft() for _ in range(min(len(self._queue), self._group_size))]

    def _give_back(self, group: Sequence[Accepted]) -> None:
        with self._changed:
            self._failures += 1
            self._queue.extendleft(item for item in reversed(group) if item.entry.name in self._in_hand)
            if not group:
                self._overflowed = True

    def _done(self, group: Iterable[Accepted]) -> None:
        with self._changed:
            for item in group:
                self._in_hand.pop(item.entry.name, None)
                self._attempts.pop(item.entry.name, None)
            self._changed.notify_all()

    def _commit_or_set_aside(self, group: Sequence[Accepted]) -> None:
        """The group is committed, without those that another process has finished or that can never be committed.

        Raises:
            Retryable: not now.
        """
        alive = [item for item in group if item.entry.path.exists()]
        self._done(item for item in group if item not in alive)
        if not alive:
            return
        try:
            self.commit(alive)
        except Retryable:
            raise
        except Exception as error:
            if len(alive) > 1:
                logger.warning("spool.group_split", extra={"instances": len(alive), "error": type(error).__name__})
                for item in alive:
                    self._commit_or_set_aside([item])
                return
            self._count_failure(alive[0], error)
            return
        self._done(alive)

    def _count_failure(self, item: Accepted, error: Exception) -> None:
        """The object is tried again later, or quarantined after MAX_COMMIT_ATTEMPTS."""
        name = item.entry.name
        if not item.entry.path.exists():
            self._done([item])
            return
        attempts = self._attempts.get(name, 0) + 1
        self._attempts[name] = attempts
        logger.error(
            "spool.instance_failed",
            exc_info=error,
            extra={"spool_name": name, "attempt": attempts, "error": type(error).__name__},
        )
        if attempts < MAX_COMMIT_ATTEMPTS:
            with self._changed:
                self._queue.append(item)
            return
        typed = error if isinstance(error, HeimdallrError) else HeimdallrError(type(error).__name__)
        self._quarantine(name, typed)
        self._done([item])

    # Replay ----------------------------------------------------------------------------------------------------------

    def replay(self) -> int:
        """Dead writers' leftovers are swept and every ready file of the spool is committed or quarantined.

        Returns:
            How many ready files were found.

        Raises:
            Retryable: the database or the disk does not answer now; nothing is lost.
        """
        swept = self.spool.sweep()
        found = self._replay_ready(min_age_s=0.0)
        if swept or found:
            logger.info("spool.replayed", extra={"swept": swept, "ready": found})
        return found

    def adopt_orphans(self, min_age_s: float) -> int:
        """Ready files that no living receiver has in hand are committed; `min_age_s` leaves time to those that have.

        Raises:
            Retryable: not now.
        """
        return self._replay_ready(min_age_s)

    def _replay_ready(self, min_age_s: float) -> int:
        newest = self.clock.now().timestamp() - min_age_s
        names = [name for name, written_at in self.spool.ready_files() if min_age_s <= 0 or written_at <= newest]
        with self._changed:
            names = [name for name in names if name not in self._in_hand]
        for start in range(0, len(names), self._group_size):
            group: list[Accepted] = []
            for name in names[start : start + self._group_size]:
                accepted = self._read_back(name)
                if accepted is not None:
                    group.append(accepted)
            with self._changed:
                self._in_hand.update({item.entry.name: item for item in group})
            try:
                self._commit_or_set_aside(group)
            finally:
                # What failed stays on the disk and is found by the next replay, not kept in memory twice.
                with self._changed:
                    queued = {item.entry.name for item in self._queue}
                    for item in group:
                        if item.entry.name not in queued:
                            self._in_hand.pop(item.entry.name, None)
        return len(names)

    def _read_back(self, name: str) -> Accepted | None:
        try:
            entry = self.spool.entry(name)
            header = read_header(entry.path)
            return Accepted(entry, identify_instance(header, entry.arrival, entry.name, entry.dataset_sha256))
        except FileNotFoundError:
            return None
        except Retryable:
            raise
        except HeimdallrError as error:
            self._quarantine(name, error)
            return None
        except OSError as error:
            raise storage_error(error) from error

    def _quarantine(self, name: str, error: HeimdallrError) -> None:
        """The file is set aside, and an event says so; both keep the acknowledged bytes."""
        now = self.clock.now()
        try:
            self.spool.quarantine(name, error, now)
        except FileNotFoundError:
            return
        except OSError as failure:
            raise storage_error(failure) from failure
        with self._changed:
            self._quarantined += 1
        logger.error("intake.quarantined", extra={"spool_name": name, "code": error.code})
        with self._database.write() as session:
            record_event(
                session,
                "intake.quarantined",
                now=now,
                actor=ACTOR,
                reason=error.detail,
                payload={"spool_name": name, "code": error.code},
            )
