"""The Segmenter deployment seen from a consumer thread: volumes by reference, deaths retried, errors typed."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from heimdallr_ray.errors import EngineUnavailable, HeimdallrError
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun

CALL_TIMEOUT_S = 1800.0
"""Longest a study may take on the device, queueing at the replica included."""
REPLICA_DEATHS = 2
"""A study that takes its replica down this often is given back to the queue, where attempts are counted."""
PAUSE_S = 1.0


class RemoteSegmenter:
    """Calls the Segmenter deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """`handle` of the Segmenter."""
        self._handle = handle

    def run(self, request: SegmentationRequest) -> SegmentationRun:
        """The segmentations of one study.

        Raises:
            EngineUnavailable: no replica answered within the bound, or it died repeatedly under this study.
            HeimdallrError: whatever the engine raised.
        """
        reference = ray.put(request)
        deadline = time.monotonic() + CALL_TIMEOUT_S
        deaths = 0
        while True:
            try:
                return self._handle.run.remote(reference).result(timeout_s=max(1.0, deadline - time.monotonic()))
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, HeimdallrError):
                    raise cause from error
                raise
            except TimeoutError as error:
                raise EngineUnavailable(f"no answer within {CALL_TIMEOUT_S:.0f} s") from error
            except (BackPressureError, DeploymentUnavailableError) as error:
                if time.monotonic() > deadline:
                    raise EngineUnavailable(type(error).__name__) from error
            except (RayError, RayServeException) as error:
                deaths += 1
                if deaths >= REPLICA_DEATHS or time.monotonic() > deadline:
                    raise EngineUnavailable(f"the replica died {deaths} times under this study") from error
            time.sleep(PAUSE_S)
