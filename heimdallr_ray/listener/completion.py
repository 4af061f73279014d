"""The watcher that closes studies: what waits is committed, then what is complete by the rules of its sender is closed.

What has been received, who sent it and how that ended is in the database and survives a restart. What is open now
(associations, objects not yet committed) is asked anew on every scan; time passes by the monotonic clock.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from sqlmodel import Session

from heimdallr_ray.catalog.ahead import series_counts, wish_for
from heimdallr_ray.catalog.aliases import standing_uids
from heimdallr_ray.catalog.associations import mark_lost
from heimdallr_ray.catalog.closing import (
    MAX_PER_CALL,
    MAX_WATCHED,
    Change,
    OpenStudy,
    Sender,
    Version,
    apply_changes,
    epoch_opened_at,
    open_studies,
    sender_of,
    series_seen,
)
from heimdallr_ray.catalog.completeness import QUIET_S, CloseCode, Observed, held_open, judge
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.quiet import SeriesWatch
from heimdallr_ray.listener.receive import ACTOR, Receiver
from heimdallr_ray.listener.watch import Durations, StudyWatch
from heimdallr_ray.sources import CompletionPolicy, CompletionRules

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 30.0
APPLY_S = 2.0
"""One scan goes on closing studies for so long; what it decided holds, because an image that comes later is late."""
ORPHAN_SCAN_S = 30.0
ORPHAN_AGE_S = 60.0
"""A ready file this old is in no living receiver's hand: groups are committed at once or retried from memory."""
LOST_SCAN_S = 30.0
MAX_WISHES = 50
"""Series of which labels are wished for in one scan; the others wait for the next."""
ASK_AGAIN_S = 5.0
"""How long the word about a study's last sender is believed: `lost` may have given way to another end."""


@dataclass(frozen=True)
class _Known:
    """What was read of a study's sender, and until when it need not be read again."""

    version: Version
    """Known images that come again change it too: who sent them may be the last to end."""
    sender: Sender
    opened_at: datetime
    good_until: float


class CompletionWatcher:
    """Scans every `scan_s` seconds. `scan` can be called directly; a failed scan is logged and tried again.

    A scan looks at `page` studies and the next one goes on behind them: one sender that holds thousands of studies open
    keeps no other study from being looked at.
    """

    def __init__(
        self,
        receiver: Receiver,
        busy_study_uids: Callable[[], frozenset[str]],
        database: Database,
        clock: Clock,
        *,
        policy: CompletionPolicy,
        scan_s: float,
        max_attempts: int,
        grace_s: float | None = None,
        open_association_ids: Callable[[], Collection[str]] | None = None,
        before_closing: Callable[[Collection[str]], Collection[str]] | None = None,
        on_closed: Callable[[Session, str, datetime], None] | None = None,
        page: int = MAX_WATCHED,
    ) -> None:
        """`policy` says when a study is complete.

        Args:
            receiver: what it has in hand is committed first.
            busy_study_uids: studies to which an association has sent that is open.
            database: of the catalog.
            clock: both its sides are used.
            policy: as the settings give it.
            scan_s: pause between two scans.
            max_attempts: of the jobs.
            grace_s: for so long after the start nothing is closed for being quiet: senders that a restart cut off come
                back, and the wall clock that dates what was before may be wrong. None: the wait after a release.
            open_association_ids: every DICOM association that any process of this listener has open; what the catalog
                has open beside them is lost. None: not known here.
            before_closing: is told the ids of studies that are about to be closed and gives those that may be, for
                example because their images have reached the disk. None: all may.
            on_closed: is told of each study that is closed, in the transaction that closes it, with its id and time.
            page: studies that one scan looks at.
        """
        self._receiver = receiver
        self._busy_study_uids = busy_study_uids
        self._database = database
        self._clock = clock
        self._policy = policy
        self._draining = False
        self._scan_s = scan_s
        self._max_attempts = max_attempts
        self._open_association_ids = open_association_ids
        self._before_closing = before_closing
        self._on_closed = on_closed
        self._watch = StudyWatch(clock)
        self._series = SeriesWatch()
        self._settling: list[tuple[OpenStudy, bool]] = []
        self._page = page
        self._behind = ""
        self._found: set[str] = set()
        self._known: dict[str, _Known] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._orphans_at = clock.monotonic()
        self._lost_at: float | None = None
        self._quiet_counts_from = clock.monotonic() + (policy.site.after_release_s if grace_s is None else grace_s)

    def hurry(self) -> None:
        """Every door is closed: nothing that was cut off can come back, so only the wait after a release is kept."""
        self._draining = True

    def scan(self) -> list[str]:
        """Studies that are complete are closed, each with its queue row; returns their ids.

        Of those that are open it looks at one page, and closes what it can within APPLY_S, MAX_PER_CALL in a
        transaction; the next scan goes on from there.

        Raises:
            Retryable: the database does not answer now.
        """
        # Busy is asked before the flush: an association that ends in between has all its objects committed by it.
        busy = self._busy_study_uids() | self._receiver.pending_study_uids()
        if not self._receiver.flush(FLUSH_TIMEOUT_S) or self._receiver.blind:
            logger.warning("completion.waits_for_spool")
            return []
        busy |= self._busy_study_uids() | self._receiver.pending_study_uids()
        self._mark_lost()
        studies, changes = self._decided(busy)
        now = self._clock.now()
        changes = [change for change in changes if change.is_needed(now)]
        if self._before_closing is not None and any(change.close for change in changes):
            ready = frozenset(self._before_closing([one.study.id for one in changes if one.close]))
            changes = [change for change in changes if not change.close or change.study.id in ready]
        # The due ones first, else in their order.
        changes.sort(key=lambda change: not change.close)
        closed, tried = self._apply_all(changes)
        self._go_on(studies, [change.study for change in changes if change.close], tried)
        self._wish()
        return closed

    def _apply_all(self, changes: list[Change]) -> tuple[list[str], int]:
        """The studies that were closed, and how many changes were tried: those that fit into APPLY_S."""
        closed: list[str] = []
        until, tried = self._clock.monotonic() + APPLY_S, 0
        while tried < len(changes) and (not tried or self._clock.monotonic() < until):
            part = changes[tried : tried + MAX_PER_CALL]
            closed.extend(self._apply(part, self._clock.now()))
            tried += len(part)
        return closed, tried

    def _apply(self, changes: list[Change], now: datetime) -> list[str]:
        with self._database.write() as session:
            closed = apply_changes(session, changes, now=now, max_attempts=self._max_attempts, actor=ACTOR)
            if self._on_closed is not None:
                for study_id in closed:
                    self._on_closed(session, study_id, now)
        why = {change.study.id: change.verdict.code.value for change in changes}
        for study_id in closed:
            logger.info("study.closed", extra={"study_id": study_id, "code": why[study_id]})
        return closed

    def start(self) -> None:
        """Scans run in their own thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="completion", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """No scan runs any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """True while scans run."""
        return self._thread is not None and self._thread.is_alive()

    # What is decided -------------------------------------------------------------------------------------------------

    def _decided(self, busy: frozenset[str]) -> tuple[list[OpenStudy], list[Change]]:
        self._watch.begin(anew=not self._behind)
        self._settling = []
        with self._database.read() as session:
            busy |= standing_uids(session, busy)
            studies = open_studies(session, self._behind, self._page)
            changes = [self._change(session, study, held=study.study_uid in busy) for study in studies]
        return studies, changes

    def _go_on(self, studies: Sequence[OpenStudy], due: Sequence[OpenStudy], tried: int) -> None:
        """Of all open studies the next scan looks at those behind `studies`, or of `due` that had to wait."""
        self._found.update(study.id for study in studies)
        if len(due) > tried:
            self._behind = due[tried - 1].id
            return
        if len(studies) >= self._page:
            self._behind = studies[-1].id
            return
        self._behind = ""
        self._watch.end(self._found)
        self._series.end(self._found)
        self._known = {id_: known for id_, known in self._known.items() if id_ in self._found}
        self._found = set()

    def _change(self, session: Session, study: OpenStudy, *, held: bool) -> Change:
        known = self._sender(session, study, held=held)
        sender = known.sender
        rules = self._policy.of(sender.calling_ae, sender.address, sender.door)
        if self._draining:
            rules = rules.hurried()
        held = held or (sender.open and sender.door == Door.DICOM.value)
        durations = self._watch.see(study, sender.ended_at, known.opened_at, sending=held)
        # An upload in several requests may be given up without a word: it holds the study for as long as an abort.
        given_up = sender.open and durations.quiet_s >= rules.after_abort_s
        sending = held or (sender.open and not given_up)
        ended = How.LOST if given_up and not held else sender.ended
        seen = self._observed(session, study, durations, rules, sender.door, sending=sending, ended=ended)
        verdict = judge(seen, rules)
        if verdict.code is not CloseCode.HARD_MAXIMUM:
            grace_s = self._quiet_counts_from - self._clock.monotonic()
            verdict = replace(verdict, in_s=max(verdict.in_s, grace_s))
        due = verdict.in_s <= 0
        quiet = not sending and durations.quiet_s >= min(QUIET_S, rules.after_release_s)
        if rules.speculate and not due and not self._draining:
            self._settling.append((study, quiet))
        return Change(
            study,
            verdict if due or not sending else held_open(seen, rules),
            known.opened_at,
            close=due,
            fail=due and verdict.code is CloseCode.HARD_MAXIMUM and rules.at_max_open == "fail",
            settling=quiet,
        )

    def _observed(
        self,
        session: Session,
        study: OpenStudy,
        durations: Durations,
        rules: CompletionRules,
        door: str | None,
        *,
        sending: bool,
        ended: How | None,
    ) -> Observed:
        wanted = bool(rules.required_series) and study.epoch == 1 and not sending
        return Observed(
            epoch=study.epoch,
            n_images=study.n_images,
            n_expected=study.n_expected,
            series=series_seen(session, study.id) if wanted else (),
            sending=sending,
            door=door,
            ended=ended,
            quiet_s=durations.quiet_s,
            open_s=durations.open_s,
        )

    def _sender(self, session: Session, study: OpenStudy, *, held: bool) -> _Known:
        at = self._clock.monotonic()
        known = self._known.get(study.id)
        same_epoch = known is not None and known.version[0] == study.epoch
        if known is not None and same_epoch and held:
            # Who holds it open is known, and when it began; the rest is asked once it has ended.
            return known
        if known is not None and known.version == study.version and at < known.good_until:
            return known
        opened_at = study.epoch_opened_at or epoch_opened_at(session, study)
        if known is not None and same_epoch:
            opened_at = known.opened_at
        sender = sender_of(session, study)
        # What has not ended is asked again on the next scan; an end that the peer or we saw is final.
        final = sender.door == Door.DICOM.value and sender.ended in (How.RELEASED, How.ABORTED)
        good_until = at if held or sender.open else math.inf if final else at + ASK_AGAIN_S
        self._known[study.id] = known = _Known(study.version, sender, opened_at, good_until)
        return known

    # What may be made ahead ------------------------------------------------------------------------------------------

    def _wish(self) -> None:
        """Labels are wished for of series that have come to rest; a wish that cannot be written delays nothing."""
        if not self._settling:
            return
        try:
            at = self._clock.monotonic()
            with self._database.read() as session:
                wishes = [
                    wish
                    for study, ended in self._settling
                    for wish in self._series.see(study, partial(series_counts, session, study.id), at, ended=ended)
                ][:MAX_WISHES]
            if not wishes:
                return
            now = self._clock.now()
            with self._database.write() as session:
                new = sum(wish_for(session, wish, now=now) for wish in wishes)
        except HeimdallrError as error:
            logger.warning("completion.no_wish", extra={"code": error.code, "reason": error.detail})
            return
        for wish in wishes:
            self._series.wished(wish)
        if new:
            logger.info("completion.wished", extra={"count": new})

    # What is lost ----------------------------------------------------------------------------------------------------

    def _mark_lost(self) -> None:
        """Associations that nobody has open any more have an end; asked at the first scan and then now and again."""
        at = self._clock.monotonic()
        if self._lost_at is not None and at - self._lost_at < LOST_SCAN_S:
            return
        now = self._clock.now()
        alive = None if self._open_association_ids is None else frozenset(self._open_association_ids())
        given_up = now - timedelta(seconds=self._policy.site.max_open_s)
        with self._database.write() as session:
            lost = 0
            if alive is not None and self._open_association_ids is not None:
                # Asked again under the lock: one that was opened meanwhile may have its row already.
                alive |= frozenset(self._open_association_ids())
                lost = mark_lost(session, alive, now)
            lost += mark_lost(session, (), now, doors=(Door.UPLOAD, Door.STOW), opened_before=given_up)
        self._lost_at = at
        if lost:
            logger.warning("associations.lost", extra={"count": lost})

    def _run(self) -> None:
        while not self._stopping.wait(self._scan_s):
            try:
                self._adopt_orphans()
                self.scan()
            except HeimdallrError as error:
                logger.warning("completion.scan_failed", extra={"code": error.code, "reason": error.detail})
            except Exception:
                # A process loop: the next scan starts from the database again.
                logger.exception("completion.scan_failed")

    def _adopt_orphans(self) -> None:
        now = self._clock.monotonic()
        if now - self._orphans_at >= ORPHAN_SCAN_S:
            self._orphans_at = now
            self._receiver.adopt_orphans(ORPHAN_AGE_S)
