"""The worker loop: claim a lease, run the study, renew meanwhile, say honestly how it ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import HeimdallrError, Retryable, StaleLease
from heimdallr_ray.pipelines.describe import failure_words
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.renewer import Renewer

log = logging.getLogger(__name__)

KINDS = ("study",)
IDLE_POLL_S = 0.25
RETRY_DELAY_S = 1.0
CLAIM_BACKOFF_S = 2.0
RELEASE_S = 2.0
"""How long giving a lease back may wait for the database; then it runs out by itself."""


class StudyWorker:
    """`settings.max_parallel_cases` threads that work the queue until they are stopped."""

    def __init__(
        self,
        database: Database,
        queue: LeaseQueue,
        run: Callable[[Lease, threading.Event], None],
        settings: Settings,
        owner: str,
    ) -> None:
        """`run(lease, lost)` does one study and commits it; it stops early once `lost` is set."""
        self._database = database
        self._queue = queue
        self._run = run
        self._settings = settings
        self._owner = owner
        self._stop = threading.Event()
        self._held: dict[str, Renewer] = {}
        self._held_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._loop, args=(f"{owner}/{index}",), name=f"study-worker-{index}", daemon=True)
            for index in range(settings.max_parallel_cases)
        ]

    def start(self) -> None:
        """The threads run."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> int:
        """No further study is claimed; running ones may end within `timeout_s`, the others are given back.

        A study that was given back waits as if it had not been claimed: the next start takes it at once. What its
        thread still does is thrown away. Returns how many were given back.
        """
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._held_lock:
            held = list(self._held.values())
        return sum(self._give_back(renewer.lease, renewer.lost) for renewer in held)

    @property
    def alive(self) -> bool:
        """True while every thread runs, or was told to end."""
        return self._stop.is_set() or all(thread.is_alive() for thread in self._threads)

    @property
    def working(self) -> bool:
        """True while every thread runs and may claim."""
        return not self._stop.is_set() and all(thread.is_alive() for thread in self._threads)

    def _loop(self, owner: str) -> None:
        while not self._stop.is_set():
            try:
                lease = self._queue.claim(owner, KINDS)
            except HeimdallrError as error:
                log.warning("job.claim_failed", extra={"code": error.code})
                self._stop.wait(CLAIM_BACKOFF_S)
                continue
            if lease is None:
                self._stop.wait(IDLE_POLL_S)
                continue
            if self._stop.is_set():
                self._give_back(lease, threading.Event())
                return
            self._work(lease)

    def _give_back(self, lease: Lease, lost: threading.Event) -> bool:
        try:
            with self._database.write(RELEASE_S) as session:
                self._queue.release(session, lease)
        except HeimdallrError as error:
            # It has just ended, or the database does not answer: then the lease runs out by itself.
            log.warning("lease.not_given_back", extra={"job": lease.job_id, "code": error.code})
            return False
        lost.set()
        return True

    def _work(self, lease: Lease) -> None:
        with Renewer(self._queue, lease, self._settings.renew_seconds) as renewer, self._holding(renewer):
            try:
                self._run(lease, renewer.lost)
            except StaleLease:
                log.warning("study.lease_lost", extra={"job": lease.job_id, "fence": lease.fence})
            except HeimdallrError as error:
                log.warning("study.failed", extra={"job": lease.job_id, "code": error.code, "detail": error.detail})
                self._fail(lease, error.code, failure_words(error), retry=isinstance(error, Retryable))
            except Exception as error:  # the process loop: recorded, retried a bounded number of times
                log.exception("study.broke", extra={"job": lease.job_id})
                self._fail(lease, "broken", type(error).__name__, retry=True)

    @contextmanager
    def _holding(self, renewer: Renewer) -> Generator[None]:
        with self._held_lock:
            self._held[renewer.lease.owner] = renewer
        try:
            yield
        finally:
            with self._held_lock:
                del self._held[renewer.lease.owner]

    def _fail(self, lease: Lease, code: str, detail: str, *, retry: bool) -> None:
        try:
            with self._database.write() as session:
                self._queue.fail(session, lease, code, detail, retry=retry, delay_s=RETRY_DELAY_S)
        except HeimdallrError as error:
            # The lease runs out by itself and the job is claimed anew.
            log.warning("job.failure_not_recorded", extra={"job": lease.job_id, "code": error.code})
