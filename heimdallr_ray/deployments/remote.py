"""The Segmenter deployment seen from a consumer thread: volumes by reference, deaths counted, errors typed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from heimdallr_ray.catalog.ahead import AHEAD_JOB
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.errors import EngineUnavailable, HeimdallrError, StaleLease
from heimdallr_ray.ids import new_id
from heimdallr_ray.queue.engine_calls import MAX_DEATHS, EngineCalls, EngineId, Ticket, require_innocent
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.owners import is_dead_here
from heimdallr_ray.segmentation.deadline import CALL_S
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun

_log = logging.getLogger(__name__)

CALL_TIMEOUT_S = CALL_S
"""Longest a study may take on the device, queueing at the replica included."""
FAILURES = 2
"""Calls that fail for no reason we know until the study is given back to the queue, where attempts are counted."""
PAUSE_S = 1.0
POLL_S = 1.0
"""A lost lease is noticed within this time."""
GRACE_S = 2.0
"""A replica that dies together with this process or with its machine is no death of a study: that shows within this."""


@dataclass(frozen=True)
class Ledger:
    """Where the calls of a job are written down."""

    database: Database
    queue: LeaseQueue
    calls: EngineCalls


class RemoteSegmenter:
    """Calls the Segmenter deployment, for one job where `for_job` made it."""

    def __init__(self, handle: DeploymentHandle[Any], ledger: Ledger | None = None, lease: Lease | None = None) -> None:
        """`handle` of the Segmenter. Without a ledger and a lease no death is counted."""
        self._handle = handle
        self._ledger = ledger
        self._lease = lease

    def for_job(self, lease: Lease) -> RemoteSegmenter:
        """The same for the calls of one job."""
        return RemoteSegmenter(self._handle, self._ledger, lease)

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        """The segmentations of one study.

        A replica that dies while the study only waits for it costs the study nothing but time. One that dies while the
        study is inside is a death under the study; it is tried again once, alone.

        Args:
            request: The volume travels by reference.
            lost: Set when the study's lease is lost: the wait ends, and the request is cancelled if it still queues.

        Raises:
            StaleLease: `lost` was set.
            EngineKilled: replicas died under this study so often, over all attempts, that it is set aside.
            EngineUnavailable: no replica answered within the bound, or calls failed for no known reason, or the volume
                did not fit into the object store.
            HeimdallrError: whatever the engine raised.
        """
        lost = lost or threading.Event()
        deadline = time.monotonic() + CALL_TIMEOUT_S
        try:
            reference = ray.put(request)
        except RayError as error:
            raise EngineUnavailable(f"the volume could not be handed over: {type(error).__name__}") from error
        failures = 0
        while True:
            ticket = self._ticket()
            try:
                return self._answer(reference, ticket, deadline, lost)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, HeimdallrError):
                    raise cause from error
                raise
            except (BackPressureError, DeploymentUnavailableError) as error:
                if time.monotonic() > deadline:
                    raise EngineUnavailable(type(error).__name__) from error
            except (RayError, RayServeException) as error:
                if not self._counted(ticket, error, lost):
                    failures += 0 if isinstance(error, ActorDiedError) and ticket is not None else 1
                if failures >= FAILURES or time.monotonic() > deadline:
                    raise EngineUnavailable(f"no answer of the replica: {type(error).__name__}") from error
            if lost.wait(PAUSE_S):
                raise _lost()

    def _ticket(self) -> Ticket | None:
        if self._ledger is None or self._lease is None:
            return None
        manifest = str(self._lease.payload.get("manifest_sha256", ""))
        ahead = self._lease.kind == AHEAD_JOB
        return Ticket(new_id(), self._lease.job_id, self._lease.fence, manifest, ahead)

    def _answer(
        self,
        reference: Any,  # noqa: ANN401
        ticket: Ticket | None,
        deadline: float,
        lost: threading.Event,
    ) -> SegmentationRun:
        """The answer of one call.

        Raises:
            StaleLease: `lost` was set.
            EngineUnavailable: no answer until `deadline`, by the monotonic clock.
        """
        # A moment that the replica's machine can read too; where the clocks of both differ, it is off by as much.
        until = time.time() + deadline - time.monotonic()
        response = self._handle.run.remote(reference, ticket, until)
        while True:
            try:
                return response.result(timeout_s=POLL_S)
            except RayTaskError:
                # Also where the engine itself raised TimeoutError: Ray's error is then an instance of both.
                raise
            except TimeoutError as error:
                if lost.is_set():
                    response.cancel()
                    raise _lost() from error
                if time.monotonic() > deadline:
                    response.cancel()
                    raise EngineUnavailable(f"no answer within {CALL_TIMEOUT_S:.0f} s") from error

    def _counted(self, ticket: Ticket | None, error: Exception, lost: threading.Event) -> bool:
        """True where the replica died while the study was inside, which is recorded; False where nothing is known.

        Raises:
            StaleLease: the lease was lost.
            EngineKilled: it was one death too many.
        """
        if self._ledger is None or self._lease is None or ticket is None:
            return False
        inside = self._ledger.calls.inside(ticket)
        if inside is None:
            return False
        if lost.wait(GRACE_S):
            raise _lost()
        if not _died_alone(inside, error):
            return False
        with self._ledger.database.write() as session:
            self._ledger.queue.hold(session, self._lease)
            limit = 1 if ticket.ahead else MAX_DEATHS
            deaths = self._ledger.calls.record_death(session, self._lease, ticket, inside.replica, limit=limit)
        _log.error("engine.died", extra={"job": ticket.job_id, "deaths": deaths, "engine": inside.replica})
        require_innocent(deaths, limit)
        return True


def _died_alone(engine: EngineId, error: Exception) -> bool:
    """True where the engine's process is gone for certain and its machine is not."""
    if not (is_dead_here(engine.replica) or isinstance(error, ActorDiedError)):
        return False
    nodes = cast("list[Mapping[str, Any]]", cast(Any, ray).nodes())
    return any(node["NodeID"] == engine.node and node["Alive"] for node in nodes)


def _lost() -> StaleLease:
    return StaleLease("the lease was lost while the study was segmented")
