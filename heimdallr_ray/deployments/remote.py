"""The Segmenter deployment seen from a consumer thread: volumes by reference, deaths retried, errors typed."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from heimdallr_ray.errors import EngineUnavailable, HeimdallrError, StaleLease
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun

CALL_TIMEOUT_S = 1800.0
"""Longest a study may take on the device, queueing at the replica included."""
REPLICA_DEATHS = 2
"""A study that takes its replica down this often is given back to the queue, where attempts are counted."""
PAUSE_S = 1.0
POLL_S = 1.0
"""A lost lease is noticed within this time."""


class RemoteSegmenter:
    """Calls the Segmenter deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """`handle` of the Segmenter."""
        self._handle = handle

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        """The segmentations of one study.

        Args:
            request: The volume travels by reference.
            lost: Set when the study's lease is lost: the wait ends, and the request is cancelled if it still queues.

        Raises:
            StaleLease: `lost` was set.
            EngineUnavailable: no replica answered within the bound, or it died repeatedly under this study, or the
                volume did not fit into the object store.
            HeimdallrError: whatever the engine raised.
        """
        lost = lost or threading.Event()
        deadline = time.monotonic() + CALL_TIMEOUT_S
        try:
            reference = ray.put(request)
        except RayError as error:
            raise EngineUnavailable(f"the volume could not be handed over: {type(error).__name__}") from error
        deaths = 0
        while True:
            try:
                return self._answer(reference, deadline, lost)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, HeimdallrError):
                    raise cause from error
                raise
            except (BackPressureError, DeploymentUnavailableError) as error:
                if time.monotonic() > deadline:
                    raise EngineUnavailable(type(error).__name__) from error
            except (RayError, RayServeException) as error:
                deaths += 1
                if deaths >= REPLICA_DEATHS or time.monotonic() > deadline:
                    raise EngineUnavailable(f"the replica died {deaths} times under this study") from error
            if lost.wait(PAUSE_S):
                raise _lost()

    def _answer(self, reference: Any, deadline: float, lost: threading.Event) -> SegmentationRun:  # noqa: ANN401
        """The answer of one call.

        Raises:
            StaleLease: `lost` was set.
            EngineUnavailable: no answer until `deadline`, by the monotonic clock.
        """
        response = self._handle.run.remote(reference)
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


def _lost() -> StaleLease:
    return StaleLease("the lease was lost while the study was segmented")
