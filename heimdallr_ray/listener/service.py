"""The listener as one object: spool, receiver, DICOM door and completion watcher. Knows nothing of Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import NotReady, Retryable
from heimdallr_ray.listener.auditing import IntakeAudit
from heimdallr_ray.listener.backend import IntakeBackend
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.commitment_report import ReportSender
from heimdallr_ray.listener.commitment_worker import CommitmentWorker
from heimdallr_ray.listener.completion import CompletionWatcher
from heimdallr_ray.listener.diskwatch import DiskWatch
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.listener.figures import IntakeFigures, OpenNow
from heimdallr_ray.listener.gate import GateRules
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.scp import StoreScp
from heimdallr_ray.listener.snapshots import LISTENER, ProcessState
from heimdallr_ray.listener.telling import Telling
from heimdallr_ray.listener.wire.pool import ReceivingProcesses
from heimdallr_ray.listener.wire.server import ThisProcess, WireScp
from heimdallr_ray.listener.wire.tls import server_context
from heimdallr_ray.security.audit import AuditLog
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

SYNC_S = 5.0
"""How long a scan for complete studies waits for a receiving process to tell what it has accepted."""
PREDECESSOR_S = 10.0
"""How long a start waits for the receiving processes of a listener that was killed. They end within milliseconds."""


@dataclass(frozen=True)
class ListenerStatus:
    """What the listener is doing now. Counts are of this process only."""

    port: int
    healthy: bool
    """False: a part of it has ended or is stuck, and a new process may help."""
    open_associations: int
    spool_depth: int
    quarantined: int
    counts: dict[str, int]
    uptime_s: float
    draining: bool = False
    """The port is closed on purpose; what came in before is still committed and closed."""
    trouble: str = ""
    """What is wrong, in words, also where it may pass by itself; empty where nothing is."""


def backend_of(
    settings: Settings, registry: Registry, desk: CommitmentDesk, synced: Callable[[float], None]
) -> IntakeBackend:
    """The backend that `settings` ask for; `synced` hears how long the disk took for an object."""
    if settings.dicom_backend == "pynetdicom":
        return StoreScp(registry, desk=desk)
    certificate, key, authorities = settings.dicom_tls_certificate, settings.dicom_tls_key, settings.dicom_tls_ca
    files = None
    if settings.dicom_tls == "on" and certificate is not None and key is not None and authorities is not None:
        files = certificate, key, authorities
    if settings.listener_processes == 0:
        tls = partial(server_context, *files) if files else None
        return WireScp(registry, lambda gone: ThisProcess(registry, desk, tls, gone))
    names = (str(files[0]), str(files[1]), str(files[2])) if files else None
    return WireScp(
        registry,
        lambda gone: ReceivingProcesses(
            registry, desk, gone, count=settings.listener_processes, tls=names, synced=synced
        ),
    )


class ListenerService:
    """Starts in the order replay, committer, port, watcher; stops in the reverse order."""

    def __init__(self, settings: Settings, database: Database, blobs: BlobStore, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._started = clock.monotonic()
        self._draining = False
        self.receiver = Receiver(settings, database, blobs, clock)
        self._disk = DiskWatch(self.receiver.spool)
        audit = AuditLog.of(settings)
        self.commitments = CommitmentWorker(
            database,
            blobs,
            clock,
            settings.peers,
            ReportSender.of(settings),
            self.receiver.settled,
            self.receiver.look_for_losses,
            max_age_s=settings.commitment_days * 86400,
            audit=audit,
        )
        desk = CommitmentDesk(database, clock, settings.peers, self.commitments.wake, audit)
        figures, intake_audit = IntakeFigures(clock), IntakeAudit(audit, clock)
        self.receiver.spool.on_durable = figures.synced
        self.receiver.tell_of_dropped_notes(intake_audit.dropped)
        self.registry = Registry(
            GateRules.of(settings), self.receiver, clock, figures=figures, audit=intake_audit.association
        )
        self.telling = Telling(
            LISTENER,
            settings.data_dir,
            settings.run_dir,
            database,
            clock,
            figures,
            intake_audit,
            self.receiver.note,
            self._state,
        )
        self.scp: IntakeBackend = backend_of(settings, self.registry, desk, figures.synced)
        self.watcher = CompletionWatcher(
            self.receiver,
            self._busy_study_uids,
            database,
            clock,
            policy=settings.completion,
            scan_s=settings.scan_seconds,
            max_attempts=settings.max_attempts,
            open_association_ids=lambda: frozenset(one.id for one in self.registry.open_associations()),
            before_closing=self.receiver.harden,
            on_closed=intake_audit.study_received,
        )

    def _busy_study_uids(self) -> frozenset[str]:
        """Studies to which an open association has sent.

        Raises:
            NotReady: a receiving process does not answer, so nothing is known.
        """
        if not self.scp.sync(SYNC_S):
            raise NotReady("a receiving process does not answer")
        return self.registry.busy_study_uids()

    def start(self, bind_timeout_s: float = 30.0) -> None:
        """What a predecessor left is committed and the port answers; while the stack drains the port stays closed.

        Raises:
            BadSetting: the port cannot be bound within `bind_timeout_s`.
        """
        try:
            if left := self.receiver.spool.outlived(PREDECESSOR_S):
                logger.warning("receiving_process.outlives_listener", extra={"pids": left, "waited_s": PREDECESSOR_S})
            self.receiver.replay()
        except Retryable as error:
            # The files stay where they are and the watcher tries again; senders need not wait for the database.
            logger.warning("spool.replay_postponed", extra={"code": error.code, "reason": error.detail})
        self.receiver.start()
        # A predecessor that died while the stack drained had closed the port for good.
        self._draining = DrainMark(self._settings.run_dir).is_set()
        if self._draining:
            self.watcher.hurry()
            logger.info("listener.draining", extra={"spool_depth": self.receiver.spool.depth()})
        else:
            self._open(bind_timeout_s)
        self.watcher.start()
        self.commitments.start()
        self.telling.start()

    def _open(self, bind_timeout_s: float) -> None:
        try:
            self.scp.start(self._settings.dicom_host, self._settings.dicom_port, bind_timeout_s)
        except BaseException:
            self.receiver.stop(timeout_s=1.0)
            raise

    def drain(self, grace_s: float = 5.0) -> None:
        """The port is free and nothing new comes in; studies that came in still settle and close until `stop`.

        Open associations get `grace_s` to end by themselves, then they are aborted. Doing it again changes nothing.
        """
        self._draining = True
        self.scp.stop(grace_s)
        self.watcher.hurry()
        logger.info("listener.draining", extra={"spool_depth": self.receiver.spool.depth()})

    def stop(self, grace_s: float = 5.0) -> None:
        """The port is free, associations have ended, and what was acknowledged is committed or safe in the spool."""
        self.telling.stop()
        self.watcher.stop()
        self.scp.stop(grace_s)
        self.commitments.stop()
        self.receiver.stop()
        self.receiver.spool.close()

    @property
    def healthy(self) -> bool:
        """True while every part works, and the port answers unless it is closed on purpose."""
        return (
            (self._draining or self.scp.alive) and self.receiver.alive and self.watcher.alive and self.commitments.alive
        )

    @property
    def trouble(self) -> str:
        """What is wrong, in words, also where it may pass by itself; empty where nothing is."""
        if not self.receiver.alive:
            return "the thread that writes the catalog has ended"
        if not self.watcher.alive:
            return "the thread that closes studies has ended"
        if not self.commitments.alive:
            return "the thread of storage commitment has ended"
        return self.receiver.trouble or ("" if self._draining else self.scp.trouble)

    def _state(self) -> ProcessState:
        self._disk.look()
        counts = self.receiver.counts()
        return ProcessState(
            port=self.scp.port,
            healthy=self.healthy,
            trouble=self.trouble,
            draining=self._draining,
            open=tuple(
                OpenNow(one.id, one.calling_ae, one.address, one.opened_at, one.stored, one.refused)
                for one in self.registry.open_associations()
            ),
            waiting=counts.queued,
            committed=counts.committed,
            duplicates=counts.duplicates,
            conflicts=counts.conflicts,
            commit_failures=counts.commit_failures,
            notes_dropped=counts.dropped_notes,
        )

    def status(self) -> ListenerStatus:
        """What the listener is doing now."""
        counts = self.receiver.counts()
        return ListenerStatus(
            port=self.scp.port,
            healthy=self.healthy,
            open_associations=len(self.registry.open_associations()),
            spool_depth=self.receiver.spool.depth(),
            quarantined=self.receiver.spool.quarantine_depth(),
            counts={
                **self.registry.tally.snapshot(),
                "committed": counts.committed,
                "duplicates": counts.duplicates,
                "commit_failures": counts.commit_failures,
                "queued": counts.queued,
                "dropped_notes": counts.dropped_notes,
            },
            uptime_s=round(self._clock.monotonic() - self._started, 1),
            draining=self._draining,
            trouble=self.trouble,
        )
