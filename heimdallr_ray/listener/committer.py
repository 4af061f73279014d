"""The thread that turns accepted objects into rows, in groups; what fails stays on the disk and is tried again."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from sqlmodel import Session

from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError, Retryable, StorageFailed
from heimdallr_ray.listener.facts import Accepted

logger = logging.getLogger(__name__)

GROUP_SIZE = 512
GROUP_WAIT_S = 0.5
"""A group costs about 8 ms of CPU whatever its size, so it is worth a wait; who needs the rows asks for a flush."""
GROUPS_BEHIND = 4
"""So many groups together where they wait: each study of a transaction costs as much CPU as 90 of its images do.

A transaction of 2048 images of 20 studies holds SQLite's one writer for 0.2 s.
"""
MAX_QUEUED = 20_000
"""Accepted objects that wait in memory, about 3 kB each. More stay on the disk alone and are replayed.

Reading them back costs as much as making rows of them: who is behind for a moment should not fall behind for good.
"""
MAX_NOTES = 4096
"""Notes that wait for the database; more are dropped and counted, because nobody waits for them."""
NOTES_PER_COMMIT = 512
MAX_COMMIT_ATTEMPTS = 3
RETRY_FIRST_S = 0.1
RETRY_LAST_S = 5.0
LATER_S = 60.0
"""An object that cannot be stored, where others can, is tried again so often."""
MAX_LATER = 1000
"""Objects that wait for that; more than these are no single objects in trouble."""
TROUBLE_S = 60.0
"""Failing for longer is trouble; a database that is started again is not."""
IDLE_S = 0.5
REPLAY_EVERY_S = 1.0
"""While there is always something to commit, files that stay on the disk alone are looked for so often."""

Note = Callable[[Session], None]
"""Something else that belongs into the catalog: who came, who was refused, who went."""


class Work(Protocol):
    """What the committer asks of the receiver."""

    def commit_group(self, group: Sequence[Accepted], notes: Sequence[Note]) -> Mapping[str, HeimdallrError]:
        """All of it is in the catalog, in one transaction, but for those, by spool name, that cannot be stored now.

        Raises:
            Retryable: not now.
        """
        ...

    def replay_ready(self, min_age_s: float) -> int:
        """Ready files that nobody has in hand are committed."""
        ...

    def clear(self, *, all_of_it: bool) -> None:
        """Spool files of committed objects are gone, where there are many of them or `all_of_it` is asked for.

        Raises:
            Retryable: not now.
        """
        ...

    def set_aside(self, item: Accepted, error: HeimdallrError) -> None:
        """The object can never be committed."""
        ...


class Committer:
    """A queue of accepted objects and notes, and one thread that empties it."""

    def __init__(self, work: Work, clock: Clock, group_size: int, group_wait_s: float) -> None:
        self._work = work
        self._clock = clock
        self.group_size = group_size
        self._group_wait_s = group_wait_s
        self._changed = threading.Condition()
        self._queue: deque[Accepted] = deque()
        self._notes: deque[Note] = deque()
        self._noted = self._written = 0
        self._in_hand: dict[str, Accepted] = {}
        self._attempts: dict[str, int] = {}
        self._later: dict[str, tuple[float, Accepted]] = {}
        self._refusal = ""
        self._failing: tuple[float, str] | None = None
        self._overflows = self._replayed = 0
        self._replayed_at = clock.monotonic()
        self._overflowed_studies: dict[str, int] = {}
        self._blind = 0
        self._flushing = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._dropped_now = 0
        self.failures = 0
        self.dropped_notes = 0
        self.on_dropped: Callable[[int], Note] | None = None
        """Makes the note that so many were dropped, which is carried out once notes are taken again."""

    # From outside ----------------------------------------------------------------------------------------------------

    def enqueue(self, accepted: Accepted) -> None:
        """The object will be a row soon."""
        with self._changed:
            if len(self._in_hand) >= MAX_QUEUED:
                self._overflows += 1
                self._overflowed_studies[str(accepted.identity.study_uid)] = self._overflows
                return
            self._in_hand[accepted.entry.name] = accepted
            self._queue.append(accepted)
            if len(self._queue) >= self.group_size or len(self._queue) == 1:
                self._changed.notify_all()

    def note(self, note: Note) -> None:
        """The note will be in the catalog soon, not later than objects that are enqueued after it."""
        with self._changed:
            if len(self._notes) >= MAX_NOTES:
                self.dropped_notes += 1
                self._dropped_now += 1
                if self._dropped_now == 1:
                    logger.error("intake.notes_dropping", extra={"waiting": len(self._notes)})
                return
            self._notes.append(note)
            self._noted += 1
            self._changed.notify_all()

    def look_again(self) -> None:
        """Ready files that were not enqueued are replayed once the queue is empty; a flush waits for that."""
        with self._changed:
            self._overflows += 1
            self._blind = self._overflows
            self._changed.notify_all()

    def start(self) -> None:
        """The thread runs."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="spool-committer", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """The thread has ended; True where it left nothing behind in memory."""
        flushed = self.flush(timeout_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            return flushed and not self._in_hand and not self._notes

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def flush(self, timeout_s: float) -> bool:
        """True once all that was enqueued before is committed or set aside; False where that took too long.

        Objects that the store refuses are tried again for as long as it takes: nobody waits for them, and `study_uids`
        names their studies until then. What comes meanwhile is not waited for either: senders that never pause would
        keep everybody waiting.
        """
        deadline = self._clock.monotonic() + timeout_s
        with self._changed:
            before, noted, overflows = set(self._in_hand), self._noted, self._overflows
            self._flushing += 1
            self._changed.notify_all()
            try:
                before -= self._later.keys()
                while before or self._written < noted or self._replayed < overflows:
                    left = deadline - self._clock.monotonic()
                    if left <= 0 or not self.alive:
                        return False
                    self._changed.wait(min(left, 0.5))
                    before &= self._in_hand.keys() - self._later.keys()
            finally:
                self._flushing -= 1
        return True

    def study_uids(self) -> frozenset[str]:
        """Studies of which an object is durable and not yet committed, in memory or on the disk alone."""
        with self._changed:
            held = {str(item.identity.study_uid) for item in self._in_hand.values()}
            return frozenset(held.union(self._overflowed_studies))

    @property
    def trouble(self) -> str:
        """Why objects are no rows, in words; empty where nothing is wrong, or not for long."""
        with self._changed:
            waiting, failing = len(self._later), self._failing
        if waiting:
            return f"{waiting} acknowledged objects cannot be stored ({self._refusal})"
        if failing is not None and (for_s := self._clock.monotonic() - failing[0]) > TROUBLE_S:
            return f"no acknowledged object could be stored for {for_s:.0f} s ({failing[1]})"
        return ""

    @property
    def blind(self) -> bool:
        """True while there may be files on the disk of which nobody knows the study."""
        with self._changed:
            return self._blind > self._replayed

    def holds(self, name: str) -> bool:
        """True where the object of this spool name is in hand."""
        with self._changed:
            return name in self._in_hand

    @property
    def waiting(self) -> int:
        """How many objects are in hand."""
        with self._changed:
            return len(self._in_hand)

    def commit_now(self, group: Sequence[Accepted]) -> None:
        """The group, read back from the disk, is committed by the caller's thread.

        Raises:
            Retryable: not now. What failed stays on the disk and is found again, not kept in memory twice.
        """
        with self._changed:
            self._in_hand.update({item.entry.name: item for item in group})
        try:
            self._commit_or_set_aside(group)
        finally:
            with self._changed:
                queued = {item.entry.name for item in self._queue} | self._later.keys()
                for item in group:
                    if item.entry.name not in queued:
                        self._in_hand.pop(item.entry.name, None)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            group, notes = self._take()
            if not group and not notes and self._stopping:
                with suppress(Retryable):
                    self._work.clear(all_of_it=True)
                return
            idle = not (group or notes)
            try:
                if notes:
                    self._commit_notes(group, notes)
                elif group:
                    self._commit_or_set_aside(group)
                if self._replay_is_due(idle=idle):
                    self._replay()
                # Nothing came for a while, or much has: what was committed leaves the spool.
                self._work.clear(all_of_it=idle)
                pause_s = RETRY_FIRST_S
                self._failing = None
            except Exception as error:
                # A process loop: whatever failed, the files are still durable, so the group is tried again.
                self._give_back(group, notes)
                code = error.code if isinstance(error, HeimdallrError) else type(error).__name__
                self._failing = (self._failing or (self._clock.monotonic(), code))[0], code
                if isinstance(error, HeimdallrError):
                    logger.warning("spool.commit_failed", extra={"instances": len(group), "code": code})
                else:
                    logger.exception("spool.commit_failed", extra={"instances": len(group)})
                with self._changed:
                    if not self._stopping:
                        self._changed.wait(pause_s)
                    elif pause_s > RETRY_FIRST_S:
                        return
                pause_s = min(2 * pause_s, RETRY_LAST_S)
            finally:
                with self._changed:
                    self._changed.notify_all()

    def _take(self) -> tuple[list[Accepted], list[Note]]:
        with self._changed:
            if not (self._queue or self._notes or self._stopping or self._replayed < self._overflows):
                self._changed.wait(IDLE_S)
            if (self._queue or self._notes) and len(self._queue) < self.group_size and not self._hurried:
                self._changed.wait_for(lambda: len(self._queue) >= self.group_size or self._hurried, self._group_wait_s)
            now_s = self._clock.monotonic()
            for name in [name for name, (due_s, _) in self._later.items() if due_s <= now_s]:
                self._queue.append(self._later.pop(name)[1])
            size = min(len(self._queue), GROUPS_BEHIND * self.group_size)
            group = [self._queue.popleft() for _ in range(size)]
            notes = [self._notes.popleft() for _ in range(min(len(self._notes), NOTES_PER_COMMIT))]
            return group, notes

    @property
    def _hurried(self) -> bool:
        return self._flushing > 0 or self._stopping

    def _have_written(self, notes: list[Note], count: int) -> None:
        """The first `count` of `notes` are done with; where some had been dropped meanwhile, that is told now."""
        del notes[:count]
        with self._changed:
            self._written += count
            dropped, self._dropped_now = self._dropped_now, 0
            if not dropped:
                return
            if self.on_dropped is not None:
                self._notes.append(self.on_dropped(dropped))
                self._noted += 1
        logger.error("intake.notes_dropped", extra={"count": dropped})

    def _replay_is_due(self, *, idle: bool) -> bool:
        with self._changed:
            waits = self._replayed < self._overflows
        return waits and (idle or self._clock.monotonic() - self._replayed_at >= REPLAY_EVERY_S)

    def _replay(self) -> None:
        """What was on the disk alone before is committed.

        Raises:
            Retryable: not now.
        """
        with self._changed:
            before = self._overflows
        self._replayed_at = self._clock.monotonic()
        self._work.replay_ready(0.0)
        with self._changed:
            self._replayed = max(self._replayed, before)
            left = {uid: number for uid, number in self._overflowed_studies.items() if number > before}
            self._overflowed_studies = left

    def _give_back(self, group: Sequence[Accepted], notes: Sequence[Note]) -> None:
        with self._changed:
            self.failures += 1
            self._queue.extendleft(item for item in reversed(group) if item.entry.name in self._in_hand)
            self._notes.extendleft(reversed(notes))

    def _done(self, group: Iterable[Accepted]) -> None:
        with self._changed:
            for item in group:
                self._in_hand.pop(item.entry.name, None)
                self._attempts.pop(item.entry.name, None)
            self._changed.notify_all()

    def _commit_notes(self, group: Sequence[Accepted], notes: list[Note]) -> None:
        """Notes and group together; where that cannot be, each by itself, and a note that never can be is left out.

        Those that are done with are taken out of `notes`.

        Raises:
            Retryable: not now.
        """
        alive = self._still_there(group)
        try:
            refused = self._work.commit_group(alive, notes)
        except Retryable:
            raise
        except Exception:
            logger.exception("spool.notes_split", extra={"notes": len(notes), "instances": len(alive)})
            while notes:
                try:
                    self._work.commit_group((), (notes[0],))
                except Retryable:
                    raise
                except Exception:
                    logger.exception("intake.note_failed")
                self._have_written(notes, 1)
            self._commit_or_set_aside(alive)
            return
        self._have_written(notes, len(notes))
        self._done_but(alive, refused)

    def _still_there(self, group: Sequence[Accepted]) -> list[Accepted]:
        """The objects of `group` that no other process has finished meanwhile."""
        alive = [item for item in group if os.path.exists(item.entry.place)]  # noqa: PTH110
        if len(alive) != len(group):
            there = {item.entry.name for item in alive}
            self._done(item for item in group if item.entry.name not in there)
        return alive

    def _commit_or_set_aside(self, group: Sequence[Accepted]) -> None:
        """The group is committed, without those that another process has finished or that can never be committed.

        Raises:
            Retryable: not now.
        """
        alive = self._still_there(group)
        if not alive:
            return
        try:
            refused = self._work.commit_group(alive, ())
        except Retryable:
            raise
        except Exception as error:
            if len(alive) > 1:
                logger.warning("spool.group_split", extra={"instances": len(alive), "error": type(error).__name__})
                middle = len(alive) // 2
                self._commit_or_set_aside(alive[:middle])
                self._commit_or_set_aside(alive[middle:])
                return
            self._count_failure(alive[0], error)
            return
        self._done_but(alive, refused)

    def _done_but(self, group: Sequence[Accepted], refused: Mapping[str, HeimdallrError]) -> None:
        """The group is done with, but for those that the store refused: they wait, and nobody waits for them.

        Raises:
            Retryable: they are too many.
        """
        self._done(item for item in group if item.entry.name not in refused)
        if not refused:
            return
        with self._changed:
            self.failures += 1
            if len(self._later.keys() | refused.keys()) > MAX_LATER:
                raise StorageFailed("the store refuses nearly everything")
            due_s = self._clock.monotonic() + LATER_S
            for item in group:
                if item.entry.name in refused:
                    self._in_hand[item.entry.name] = item
                    self._later[item.entry.name] = due_s, item
            self._refusal = next(iter(refused.values())).code
            self._changed.notify_all()
        for name, error in refused.items():
            logger.error("spool.instance_waits", extra={"spool_name": name, "code": error.code, "reason": error.detail})

    def _count_failure(self, item: Accepted, error: Exception) -> None:
        """The object is tried again later, or set aside after MAX_COMMIT_ATTEMPTS."""
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
        self._work.set_aside(item, error if isinstance(error, HeimdallrError) else HeimdallrError(type(error).__name__))
        self._done([item])
