"""Answers requests for commitment: looks at catalog and disk, then tells the peer, as often as it takes.

All state is in the database: a worker that dies at any point leaves a request that another one takes up when its lease
ends. A report may so be sent twice, never by two workers at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final, cast

from sqlmodel import Session

from heimdallr_ray.catalog import commitment_leases as leases
from heimdallr_ray.catalog.commitment_leases import CommitmentLease
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Peer
from heimdallr_ray.errors import HeimdallrError, StaleLease, StorageFailed, StorageFull
from heimdallr_ray.listener.commitment_check import MISSING_GRACE_S, Flush, InstanceCheck, NotYet
from heimdallr_ray.listener.commitment_report import (
    LONGEST_S,
    Delivery,
    Report,
    SendReport,
)
from heimdallr_ray.queue.owners import is_dead_here, owner_name
from heimdallr_ray.queue.statements import DATABASE_TIME
from heimdallr_ray.security.audit import Action, Actor, AuditLog, Fact, Outcome
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

SCAN_S: Final = 1.0
LEASE_S: Final = 2 * LONGEST_S
MISSING_PAUSE_S: Final = 2.0
RECHECK_S: Final = 900.0
"""What was found is told for this long; a later attempt looks at the disk again."""
MAX_REFUSALS: Final = 10
"""Failures that a peer may answer to one report; with the waits between them this is an hour and a half."""
MAX_PER_SCAN: Final = 1000


class CommitmentWorker:
    """Scans for requests that are due and answers them one by one. `step` can be called directly."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        clock: Clock,
        peers: Mapping[str, Peer],
        send: SendReport,
        flush: Flush,
        look_for_losses: Callable[[], None],
        *,
        max_age_s: float,
        audit: AuditLog | None = None,
        lease_s: float = LEASE_S,
        missing_grace_s: float = MISSING_GRACE_S,
        scan_s: float = SCAN_S,
    ) -> None:
        """A worker over a migrated `database`.

        Args:
            database: Where requests are kept.
            blobs: Where the bytes of instances lie.
            clock: Wall clock for what is kept, monotonic clock for how long work takes.
            peers: Where reports go, by AE title.
            send: Tells a peer.
            flush: The receiver's.
            look_for_losses: The receiver's. Called before a request is taken up: the rows that are looked at name no
                bytes that a power cut took, and none of them is called durable before that was found out.
            max_age_s: A request that was last asked for longer ago is given up.
            audit: Told of each answer in its transaction.
            lease_s: How long a request belongs to a worker without renewal; more than a report may take.
            missing_grace_s: How long an instance that is not a row is waited for.
            scan_s: How often the database is asked.
        """
        self._database = database
        self._clock = clock
        self._peers = peers
        self._send = send
        self._max_age_s = max_age_s
        self._audit = audit
        self._look_for_losses = look_for_losses
        self._lease_s = lease_s
        self._scan_s = scan_s
        self._check = InstanceCheck(database, blobs, clock, flush, missing_grace_s)
        self._owner = owner_name()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Requests are answered in a thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """No request is begun any more; one that is being told may take longer than `timeout_s` and is then left."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """True while requests are answered."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        """A request has come: the database is asked sooner than the scan would."""
        self._wake.set()

    def _run(self) -> None:
        freed = False
        while not self._stopping.is_set():
            try:
                if not freed:
                    self.free_dead()
                    freed = True
                for _ in range(MAX_PER_SCAN):
                    if self._stopping.is_set() or not self.step():
                        break
            except HeimdallrError as error:
                logger.warning("commitment.scan_failed", extra={"code": error.code, "reason": error.detail})
            except Exception:
                # A process loop: the request stays leased, and is taken up again when the lease ends.
                logger.exception("commitment.scan_failed")
            self._wake.wait(self._scan_s)
            self._wake.clear()

    # Work ------------------------------------------------------------------------------------------------------------

    def free_dead(self) -> int:
        """Requests that a killed process of this host held are due again; returns how many."""
        with self._database.write() as session:
            freed = leases.free_dead_owners(session, is_dead_here)
        if freed:
            logger.info("commitment.taken_over", extra={"requests": freed})
        return freed

    def step(self) -> bool:
        """One request that was due has been worked on; False where none was.

        Raises:
            Retryable: the database or the disk does not answer now.
        """
        with self._database.read() as session:
            if not leases.anything_due(session, self._now(session)):
                return False
        # Before the claim: reading all that a power cut may have harmed can take longer than a lease.
        self._look_for_losses()
        with self._database.write() as session:
            lease = leases.claim(session, self._owner, self._now(session), self._lease_s)
        if lease is None:
            return False
        try:
            self._answer(lease)
        except StaleLease:
            logger.warning("commitment.lease_lost", extra={"commitment": lease.id})
        return True

    def _answer(self, lease: CommitmentLease) -> None:
        with self._database.read() as session:
            now = self._now(session)
        if (now - lease.asked_at).total_seconds() > self._max_age_s:
            self._give_up(lease, "too_old", "no report got through in the time of the setting commitment_days")
            return
        peer = self._peers.get(lease.calling_ae)
        if peer is None:
            detail = "the AE title is not in the setting commitment_peers any more"
            self._failed(lease, Delivery.UNREACHABLE.value, detail, of_peer=True)
            return
        failures, looked = lease.failures, False
        checked_at = lease.checked_at
        if checked_at is None or not 0 <= (now - checked_at).total_seconds() <= RECHECK_S:
            try:
                failures, looked = self._check(lease, now, partial(self._renew, lease)), True
            except (StorageFull, StorageFailed) as error:
                self._failed(lease, error.code, error.detail, of_peer=False)
                return
            except NotYet:
                with self._database.write() as session:
                    leases.postpone(session, lease, self._now(session), MISSING_PAUSE_S)
                return
        with self._database.write() as session:
            if looked:
                leases.record_check(session, lease, failures, self._now(session))
            leases.renew(session, lease, self._now(session), self._lease_s)
        outcome = self._send(peer, Report(lease.transaction_uid, lease.references, failures))
        if outcome.delivery is Delivery.TOLD:
            with self._database.write() as session:
                now = self._now(session)
                leases.record_told(session, lease, now, len(failures), outcome.detail or None)
                self._tell_audit(session, lease, now, Outcome.SUCCESS, {"failed": len(failures)})
            logger.info(
                "commitment.told",
                extra={
                    "commitment": lease.id,
                    "peer": lease.calling_ae,
                    "references": len(lease.references),
                    "failed": len(failures),
                },
            )
        elif outcome.delivery is Delivery.REFUSED and lease.refusals + 1 >= MAX_REFUSALS:
            self._give_up(lease, outcome.delivery.value, f"{outcome.detail}, for the {MAX_REFUSALS}th time")
        else:
            of_peer = outcome.delivery is not Delivery.REFUSED
            self._failed(lease, outcome.delivery.value, outcome.detail, of_peer=of_peer)

    def _failed(self, lease: CommitmentLease, code: str, detail: str, *, of_peer: bool) -> None:
        """The request waits for its next attempt; `of_peer`: the others of its peer would have failed too."""
        with self._database.write() as session:
            now = self._now(session)
            refused = code == Delivery.REFUSED.value
            run_at = leases.record_failure(session, lease, now, code, detail, refused=refused, of_peer=of_peer)
        logger.warning(
            "commitment.not_told",
            extra={
                "commitment": lease.id,
                "peer": lease.calling_ae,
                "code": code,
                "reason": detail,
                "attempt": lease.attempt + 1,
                "again_in_s": round((run_at - now).total_seconds()),
            },
        )

    def _give_up(self, lease: CommitmentLease, code: str, detail: str) -> None:
        with self._database.write() as session:
            now = self._now(session)
            leases.give_up(session, lease, now, code, detail)
            self._tell_audit(session, lease, now, Outcome.FAILED, {"reason": code})
        logger.error(
            "commitment.given_up",
            extra={"commitment": lease.id, "peer": lease.calling_ae, "code": code, "reason": detail},
        )

    def _tell_audit(
        self, session: Session, lease: CommitmentLease, now: datetime, outcome: Outcome, facts: Mapping[str, Fact]
    ) -> None:
        if self._audit is None:
            return
        told = {"commitment": lease.id, "peer": lease.calling_ae, "references": len(lease.references), **facts}
        actor = Actor.system("commitment")
        self._audit.append(session, Action.COMMITMENT_ANSWERED, actor, now=now, outcome=outcome, detail=told)

    def _renew(self, lease: CommitmentLease) -> None:
        with self._database.write() as session:
            leases.renew(session, lease, self._now(session), self._lease_s)

    def _now(self, session: Session) -> datetime:
        """The server's time on PostgreSQL, where several hosts share the requests; the host's on SQLite."""
        if self._database.dialect != "postgresql":
            return self._clock.now()
        return cast(datetime, session.connection().execute(DATABASE_TIME).scalar_one())
