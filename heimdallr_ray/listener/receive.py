"""The one road from a door to the catalog: durable first, acknowledged second, rows in groups third.

Crash points and what the next start finds:

    before the rename into ready/   a .part file nobody holds; swept; the sender never heard Success
    before the blob is linked       a ready file; replayed
    before the rows are committed   a ready file whose blob exists; linking again changes nothing; replayed
    before the ready file is gone   a ready file whose spool name has a row; linked again, recorded again: no change
                                    (a duplicate has no row, so one that is replayed is counted nowhere)

A ready file goes only after the blob's name is durable too. That is done for many files at once, some time later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlmodel import Session

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.durability import undurable
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.received import ReceivedInstance
from heimdallr_ray.catalog.studies import RecordOutcome, record_instances, study_by_uid
from heimdallr_ray.catalog.transitions import lock_study_uid
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.errors import HeimdallrError, Retryable, StorageFailed
from heimdallr_ray.listener import hardening
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.committer import GROUP_SIZE, GROUP_WAIT_S, Committer, Note
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.listener.facts import Accepted, identify_instance, to_received
from heimdallr_ray.listener.reception import Reception
from heimdallr_ray.listener.room import Watermarks, storage_error
from heimdallr_ray.listener.spool import ReadyFile, Spool, Staging
from heimdallr_ray.listener.wrapping import DataSets, Uncompared
from heimdallr_ray.listener.writer import SpoolEntry
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

UPLOAD_GROUP_SIZE = 1000
"""Objects after which the next study of an upload gets a transaction of its own: about a second of write lock."""
CLEAR_SIZE = 1024
"""Spool files that are done with and wait to be taken away together, at the price of one fsync for each folder."""
MAX_HARDENINGS = 3
"""Before a study is closed by a person while images of it still come."""
ACTOR = "listener"
T = TypeVar("T")


NotesOf = Callable[[Sequence[Accepted]], Sequence[Note]]
"""What belongs into the catalog with these objects."""


@dataclass(frozen=True)
class ReceiverCounts:
    """What has happened since start; memory only, the truth is in the catalog."""

    committed: int = 0
    duplicates: int = 0
    quarantined: int = 0
    commit_failures: int = 0
    queued: int = 0
    conflicts: int = 0
    dropped_notes: int = 0


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
        """Open the spool of `settings`. `commit_group` and `commit_upload` work without `start`.

        Raises:
            StorageFull, StorageFailed: the spool folder cannot be made.
        """
        self.spool = Spool(
            settings.spool_dir,
            marks=Watermarks(settings.min_free_mib << 20, settings.disk_warn_percent, settings.disk_refuse_percent),
            max_object_bytes=settings.max_instance_mib << 20,
            durable=settings.durability == "instance",
        )
        self.clock = clock
        self._database = database
        self._blobs = blobs
        self._drain_mark = DrainMark(settings.run_dir)
        self._committer = Committer(self, clock, group_size, group_wait_s)
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._looked = False
        self._finished: list[SpoolEntry] = []
        self._committed = self._duplicates = self._quarantined = self._conflicts = 0

    # Doors -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def receiving(
        self, arrival: Arrival, expected_size: int = 0, staging: Staging | None = None
    ) -> Generator[Reception]:
        """One object on its way in; nothing of it is left where `finish` was not reached.

        Raises:
            StorageFull: no room left, or less than the watermarks ask for.
            StorageFailed: the operating system refused.
        """
        with self.spool.writer(arrival, expected_size, staging) as writer:
            yield Reception(writer, arrival)

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
            As `receiving` and `Reception.finish`.
        """
        with self.receiving(arrival, expected_size, staging) as reception:
            for chunk in chunks:
                reception.write(chunk)
            return reception.finish()

    def enqueue(self, accepted: Accepted) -> None:
        """The committer will turn the object into a row soon."""
        self._committer.enqueue(accepted)

    def note(self, note: Note) -> None:
        """The committer will carry out `note` in a write transaction soon, before rows that are enqueued after it."""
        self._committer.note(note)

    def commit_group(self, group: Sequence[Accepted], notes: Sequence[Note] = ()) -> Mapping[str, StorageFailed]:
        """The objects of `group` are blobs and rows, in one transaction; `clear` may take their spool files.

        Returns:
            By spool name, those whose bytes the blob store refuses; they are no rows.

        Raises:
            Retryable: not now, for all of them (database, or no room).
        """
        refused = self._refused(group)
        stored = [item for item in group if item.entry.name not in refused]
        if stored or notes:
            self._record(stored, notes)
        return refused

    def _refused(self, group: Sequence[Accepted]) -> dict[str, StorageFailed]:
        """The objects of `group` are blobs but for these: one file that cannot be replaced stands in nobody's way."""
        try:
            self._blobs.keep([(item.entry.place, item.entry.sha256) for item in group])
        except StorageFailed:
            refused: dict[str, StorageFailed] = {}
            for item in group:
                try:
                    self._blobs.keep([(item.entry.place, item.entry.sha256)])
                except StorageFailed as error:
                    refused[item.entry.name] = error
            return refused
        return {}

    def clear(self, *, all_of_it: bool) -> None:
        """Spool files of committed objects are gone, where there are many of them or `all_of_it` is asked for.

        Raises:
            Retryable: not now; they stay.
        """
        with self._lock:
            if not self._finished or (len(self._finished) < CLEAR_SIZE and not all_of_it):
                return
            finished, self._finished = self._finished, []
        try:
            if self.spool.durable:
                self._blobs.settle(item.sha256 for item in finished)
        except BaseException:
            with self._lock:
                self._finished = finished + self._finished
            raise
        for entry in finished:
            self.spool.remove(entry)

    def commit_upload(self, items: Sequence[Accepted], notes: Sequence[Note] = ()) -> int:
        """All objects of one upload are rows; a study's objects become rows together or not at all.

        A death between two transactions leaves whole studies, so that no part of one is ever measured for all of it.

        Args:
            items: at least one.
            notes: carried out in the last transaction: an upload of which they tell is there as a whole.

        Returns:
            How many of the objects the catalog had before.

        Raises:
            Draining: the stack is about to stop and may have counted its studies already; nothing was stored.
            Retryable: as `commit_group`; the upload was not answered and may be sent again.
        """
        with self._drain_mark.storing():
            self._blobs.keep([(item.entry.place, item.entry.sha256) for item in items])
            self._blobs.settle(item.entry.sha256 for item in items)
            *others, last = whole_studies(items, UPLOAD_GROUP_SIZE)
            known = sum(self._record(group, (), staged=True).duplicates for group in others)
            return known + self._record(last, notes, staged=True).duplicates

    def _record(self, group: Sequence[Accepted], notes: Sequence[Note], *, staged: bool = False) -> RecordOutcome:
        received = [
            to_received(item.entry, item.identity, durable=item.durable, replayed=item.replayed) for item in group
        ]
        data_sets = DataSets(self._blobs)
        while True:
            try:
                outcome = self._write(received, notes, data_sets)
                break
            except Uncompared:
                data_sets.compare()
        with self._lock:
            if not staged:
                self._finished.extend(item.entry for item in group)
            self._committed += outcome.stored
            self._duplicates += outcome.duplicates
            self._conflicts += outcome.conflicts
        return outcome

    def _write(self, received: Sequence[ReceivedInstance], notes: Sequence[Note], data_sets: DataSets) -> RecordOutcome:
        """One transaction.

        Raises:
            Uncompared: images have to be compared first; nothing was written.
            Retryable: not now.
        """
        with self._database.write() as session:
            for note in notes:
                note(session)
            outcome = record_instances(session, received, self.clock.now(), data_sets.same)
            data_sets.require_compared()
        return outcome

    # Committer -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The committer runs."""
        self._committer.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """The committer has ended; True where it left nothing behind in memory."""
        return self._committer.stop(timeout_s)

    @property
    def alive(self) -> bool:
        """True while the committer's thread runs."""
        return self._committer.alive

    def flush(self, timeout_s: float) -> bool:
        """True once all that was enqueued before is committed or set aside; False where that took too long."""
        return self._committer.flush(timeout_s)

    def pending_study_uids(self) -> frozenset[str]:
        """Studies of which an object is durable but not yet a row."""
        return self._committer.study_uids()

    @property
    def trouble(self) -> str:
        """Why acknowledged images are no rows, in words; empty where nothing is wrong, or not for long."""
        return self._committer.trouble

    @property
    def blind(self) -> bool:
        """True while there may be acknowledged files on the disk of which nobody knows the study."""
        return self._committer.blind

    def tell_of_dropped_notes(self, make: Callable[[int], Note]) -> None:
        """`make` makes the note that so many were dropped while the database did not answer."""
        self._committer.on_dropped = make

    def counts(self) -> ReceiverCounts:
        """What has happened since start."""
        with self._lock:
            return ReceiverCounts(
                self._committed,
                self._duplicates,
                self._quarantined,
                self._committer.failures,
                self._committer.waiting,
                self._conflicts,
                self._committer.dropped_notes,
            )

    # Durability of studies -------------------------------------------------------------------------------------------

    def harden(self, study_ids: Collection[str]) -> frozenset[str]:
        """Those of these studies whose bytes are all on the disk now; only they may be closed.

        With durability = instance they always were, and nothing waits for the disk here.

        Raises:
            Retryable: not now.
        """
        self.look_for_losses()
        return hardening.harden(self._database, self._blobs, study_ids, self.clock.now(), ACTOR)

    def close_hard(self, study_uid: str, close: Callable[[Session], T]) -> T:
        """What `close` returns, called in a write transaction in which every image of the study is on the disk.

        Raises:
            StorageFailed: images come faster than the disk takes them.
            Retryable: not now.
        """
        for _ in range(MAX_HARDENINGS):
            with self._database.read() as session:
                known = study_by_uid(session, study_uid)
            if known is not None:
                self.harden([known.id])
            with self._database.write() as session:
                lock_study_uid(session, study_uid if known is None else known.study_uid)
                if known is None or not undurable(session, [known.id], 1):
                    return close(session)
        raise StorageFailed("the disk refuses images of the study, or they come faster than it takes them")

    def settled(self, timeout_s: float) -> bool:
        """True once all that was accepted is a row, and no row names bytes that a power cut took; else not now."""
        try:
            self.look_for_losses()
        except Retryable as error:
            logger.warning("intake.losses_not_looked_for", extra={"code": error.code})
            return False
        return self.flush(timeout_s)

    def look_again(self) -> None:
        """Files are ready of which nobody will tell: the committer looks for them itself."""
        self._committer.look_again()

    def look_for_losses(self) -> None:
        """What the last power cut took of rows has been looked for, once since the machine was started.

        Raises:
            Retryable: not now.
        """
        with self._looking:
            if self._looked:
                return
            spool = self.spool
            if hardening.is_new_boot(spool.root):
                hardening.take_back_lost(self._database, self._blobs, spool.quarantined, self.clock.now(), ACTOR)
                hardening.remember_boot(spool.root)
            self._looked = True

    # Replay ----------------------------------------------------------------------------------------------------------

    def replay(self) -> int:
        """Dead writers' leftovers are swept and every ready file of the spool is committed or quarantined.

        Returns:
            How many ready files were found.

        Raises:
            Retryable: the database or the disk does not answer now; nothing is lost.
        """
        swept = self.spool.sweep()
        self.look_for_losses()
        found = self.replay_ready(min_age_s=0.0)
        if swept or found:
            logger.info("spool.replayed", extra={"swept": swept, "ready": found})
        return found

    def adopt_orphans(self, min_age_s: float) -> int:
        """Ready files that no living receiver has in hand are committed; `min_age_s` leaves time to those that have.

        Raises:
            Retryable: not now.
        """
        self.look_for_losses()
        self.spool.tidy(self.clock.now().timestamp())
        return self.replay_ready(min_age_s)

    def replay_ready(self, min_age_s: float) -> int:
        """Ready files of at least this age that are not in hand are committed or quarantined; returns how many.

        Raises:
            Retryable: not now.
        """
        newest = self.clock.now().timestamp() - min_age_s
        files = [file for file in self.spool.ready_files() if min_age_s <= 0 or file.written_at <= newest]
        with self._lock:
            done = {entry.name for entry in self._finished}
        files = [file for file in files if file.name not in done and not self._committer.holds(file.name)]
        size = self._committer.group_size
        for start in range(0, len(files), size):
            group = [self._read_back(file) for file in files[start : start + size]]
            self._committer.commit_now([item for item in group if item is not None])
        self.clear(all_of_it=True)
        return len(files)

    def _read_back(self, file: ReadyFile) -> Accepted | None:
        try:
            entry = self.spool.entry(file)
            header = read_header(entry.path)
            return Accepted(entry, identify_instance(header, entry.arrival, entry.sha256), replayed=True)
        except FileNotFoundError:
            return None
        except Retryable:
            raise
        except HeimdallrError as error:
            self._quarantine(file, error)
            return None
        except OSError as error:
            raise storage_error(error) from error

    def set_aside(self, item: Accepted, error: HeimdallrError) -> None:
        """The object can never be committed: it is quarantined.

        Raises:
            Retryable: not now.
        """
        self._quarantine(_file_of(item.entry), error)

    def _quarantine(self, file: ReadyFile, error: HeimdallrError) -> None:
        """The file is set aside, and an event says so; both keep the acknowledged bytes."""
        now = self.clock.now()
        try:
            self.spool.quarantine(file, error, now)
        except FileNotFoundError:
            return
        except OSError as failure:
            raise storage_error(failure) from failure
        with self._lock:
            self._quarantined += 1
        logger.error("intake.quarantined", extra={"spool_name": file.name, "code": error.code})
        with self._database.write() as session:
            record_event(
                session,
                "intake.quarantined",
                now=now,
                actor=ACTOR,
                reason=error.detail,
                payload={"spool_name": file.name, "code": error.code},
            )


def _file_of(entry: SpoolEntry) -> ReadyFile:
    return ReadyFile(entry.name, entry.file_name, entry.arrival.received_at.timestamp())
