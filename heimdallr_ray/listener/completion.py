"""The watcher that closes studies: what waits is committed, then the catalog closes what has been idle long enough.

All state is in the database. The wall clock decides, because it survives a restart; what is still open (associations,
objects not yet committed) is asked anew on every scan.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.studies import close_idle_studies
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.receive import ACTOR, Receiver

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 30.0
ORPHAN_SCAN_S = 30.0
ORPHAN_AGE_S = 60.0
"""A ready file this old is in no living receiver's hand: groups are committed at once or retried from memory."""


class CompletionWatcher:
    """Scans every `scan_s` seconds. `scan` can be called directly; a failed scan is logged and tried again."""

    def __init__(
        self,
        receiver: Receiver,
        busy_study_uids: Callable[[], frozenset[str]],
        database: Database,
        clock: Clock,
        *,
        idle_s: float,
        scan_s: float,
        max_attempts: int,
    ) -> None:
        self._receiver = receiver
        self._busy_study_uids = busy_study_uids
        self._database = database
        self._clock = clock
        self._idle_s = idle_s
        self._scan_s = scan_s
        self._max_attempts = max_attempts
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._orphans_at = clock.monotonic()

    def scan(self) -> list[str]:
        """Studies that have been idle are closed, each with its queue row; returns their ids.

        Raises:
            Retryable: the database does not answer now.
        """
        # Busy is asked before the flush: an association that ends in between has all its objects committed by it.
        busy = self._busy_study_uids() | self._receiver.pending_study_uids()
        if not self._receiver.flush(FLUSH_TIMEOUT_S):
            logger.warning("completion.waits_for_spool")
            return []
        busy |= self._busy_study_uids() | self._receiver.pending_study_uids()
        with self._database.write() as session:
            closed = close_idle_studies(
                session,
                self._clock.now(),
                idle_s=self._idle_s,
                busy_study_uids=busy,
                max_attempts=self._max_attempts,
                actor=ACTOR,
            )
        for study_id in closed:
            logger.info("study.closed", extra={"study_id": study_id})
        return list(closed)

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
