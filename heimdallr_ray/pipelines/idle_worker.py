"""The worker of what nobody waits for: one thread that claims while nothing else is to do, and gives way at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from heimdallr_ray.errors import HeimdallrError, MadeWay, Retryable, StaleLease
from heimdallr_ray.queue.idle import LOOK_S, GivesWay, IdleQueue
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.renewer import Renewer

log = logging.getLogger(__name__)

IDLE_POLL_S = 0.5
BACKOFF_S = 2.0
RETRY_DELAY_S = 5.0
CHORES_EVERY_S = 600.0
_JOIN_S = 2.0


class IdleWorker:
    """One thread beside those that work on studies. Whatever happens in it is logged and counted, and ends there."""

    def __init__(
        self,
        idle: IdleQueue,
        queue: LeaseQueue,
        run: Callable[[Lease, threading.Event], object],
        owner: str,
        *,
        renew_s: float,
        chores: Callable[[], object],
    ) -> None:
        """A worker that does nothing yet.

        Args:
            idle: where jobs are claimed.
            queue: where their leases are renewed.
            run: does one job and commits it; ends early once the event is set.
            owner: name of the lease holder.
            renew_s: seconds between renewals.
            chores: called at the start and then every CHORES_EVERY_S.
        """
        self._idle = idle
        self._queue = queue
        self._run = run
        self._owner = f"{owner}/ahead"
        self._renew_s = renew_s
        self._chores = chores
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="idle-worker", daemon=True)
        self._chores_in_s = 0.0

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def stop(self, timeout_s: float = _JOIN_S) -> None:
        """Nothing more is claimed, and what runs is given back, within `timeout_s` where that can be done."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def work_once(self) -> bool:
        """One job is claimed and done, given back or failed; False where there is none to do now.

        Raises:
            HeimdallrError: the queue does not answer.
        """
        lease = self._idle.claim(self._owner)
        if lease is None:
            return False
        self._work(lease)
        return True

    def _loop(self) -> None:
        while not self._stop.is_set():
            pause_s = IDLE_POLL_S
            try:
                self._do_chores()
                if self.work_once():
                    continue
            except HeimdallrError as error:
                log.warning("ahead.waits", extra={"code": error.code})
                pause_s = BACKOFF_S
            except Exception:
                # A process loop: nothing that happens here may take the studies' worker along.
                log.exception("ahead.worker_broke")
                pause_s = BACKOFF_S
            self._chores_in_s -= pause_s
            self._stop.wait(pause_s)

    def _do_chores(self) -> None:
        if self._chores_in_s <= 0:
            self._chores_in_s = CHORES_EVERY_S
            self._chores()

    def _work(self, lease: Lease) -> None:
        with Renewer(self._queue, lease, self._renew_s) as renewer:
            try:
                with self._ending(renewer) as end:
                    self._run(lease, end)
            except (StaleLease, MadeWay) as error:
                self._give_way(lease, renewer, error)
            except HeimdallrError as error:
                self._fail(lease, error.code, error.detail, retry=isinstance(error, Retryable))
            except Exception as error:  # recorded, and not tried again
                log.exception("ahead.broke", extra={"job": lease.job_id})
                self._fail(lease, "broken", type(error).__name__, retry=False)

    @contextmanager
    def _ending(self, renewer: Renewer) -> Generator[threading.Event]:
        """An event that is set as soon as the job has to end: other work, a lost lease, or the end of the worker."""
        end, over = threading.Event(), threading.Event()
        gives_way = GivesWay(self._idle.others)

        def watch() -> None:
            while not over.is_set():
                if self._stop.is_set() or renewer.lost.is_set() or gives_way():
                    end.set()
                    return
                over.wait(LOOK_S)

        thread = threading.Thread(target=watch, name="gives-way", daemon=True)
        thread.start()
        try:
            yield end
        finally:
            over.set()
            thread.join(_JOIN_S)

    def _give_way(self, lease: Lease, renewer: Renewer, error: HeimdallrError) -> None:
        if renewer.lost.is_set():
            log.warning("ahead.lease_lost", extra={"job": lease.job_id, "fence": lease.fence})
            return
        try:
            state = self._idle.give_way(lease)
        except HeimdallrError as broken:
            log.warning("lease.not_given_back", extra={"job": lease.job_id, "code": broken.code})
            return
        log.info("ahead.gave_way", extra={"job": lease.job_id, "code": error.code, "state": state.value})

    def _fail(self, lease: Lease, code: str, detail: str, *, retry: bool) -> None:
        log.warning("ahead.failed", extra={"job": lease.job_id, "code": code, "detail": detail})
        try:
            self._idle.failed(lease, code, detail, retry=retry, delay_s=RETRY_DELAY_S)
        except HeimdallrError as error:
            log.warning("job.failure_not_recorded", extra={"job": lease.job_id, "code": error.code})
