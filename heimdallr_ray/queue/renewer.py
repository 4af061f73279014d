"""Keeps a lease alive from a thread of its own while its holder works, and says at once when it is lost."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from heimdallr_ray.clock import Clock, SystemClock
from heimdallr_ray.errors import Retryable, StaleLease
from heimdallr_ray.queue.lease import Lease, LeaseQueue

_log = logging.getLogger(__name__)
_JOIN_S = 10.0


class Renewer:
    """Renews `lease` every `every_s` while the block runs.

    `lost` is set when somebody else has the job, or when the lease could not be renewed before it ran out. Its deadline
    is kept by the monotonic clock: a step of the wall clock, a stopped process and a database that does not answer all
    end in `lost`, never in work that goes on without a lease.
    """

    def __init__(self, queue: LeaseQueue, lease: Lease, every_s: float, clock: Clock | None = None) -> None:
        """Nothing runs before the block is entered. Enter it right after the claim.

        Args:
            queue: Where the lease was claimed.
            lease: As claimed.
            every_s: Seconds between renewals; at most half the lease leaves room for one failure.
            clock: Only its monotonic side is used.
        """
        self.lost = threading.Event()
        self._queue = queue
        self._lease = lease
        self._every_s = every_s
        self._clock = clock or SystemClock()
        self._stop = threading.Event()
        self._deadline = self._clock.monotonic() + queue.lease_s
        self._threads = (
            threading.Thread(target=self._renew_until_stopped, name=f"renew-{lease.job_id}", daemon=True),
            threading.Thread(target=self._watch_deadline, name=f"lease-{lease.job_id}", daemon=True),
        )

    @property
    def lease(self) -> Lease:
        """The lease as last renewed."""
        return self._lease

    def check(self) -> None:
        """Nothing happens while the lease is held.

        Raises:
            StaleLease: it is lost; throw the work away.
        """
        if self.lost.is_set() or self._clock.monotonic() >= self._deadline:
            self.lost.set()
            raise StaleLease(f"job {self._lease.job_id}: the lease was lost")

    def __enter__(self) -> Self:
        """The threads run."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The threads have ended, or, where the database does not answer, will end with its bound."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._every_s) and not self.lost.is_set():
            started = self._clock.monotonic()
            try:
                self._lease = self._queue.renew(self._lease, timeout_s=max(0.1, self._deadline - started))
            except StaleLease:
                # The holder's own finish makes the lease stale too; by then nobody looks at `lost`.
                self.lost.set()
                return
            except Retryable as error:
                _log.warning("lease.not_renewed", extra={"job": self._lease.job_id, "code": error.code})
                continue
            except Exception:
                _log.exception("lease.renewal_broke", extra={"job": self._lease.job_id})
                self.lost.set()
                raise
            self._deadline = started + self._queue.lease_s

    def _watch_deadline(self) -> None:
        while not self.lost.is_set():
            left_s = self._deadline - self._clock.monotonic()
            if left_s <= 0:
                self.lost.set()
                return
            if self._stop.wait(min(left_s, self._every_s)):
                return
