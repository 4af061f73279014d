"""The whole road of one study on this machine: memory of the idle stack, time from the last image to the result."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

NAME = "road"

IDLE_S = 20.0
"""Settling time of the stack before its memory is read."""
REPEATS = 2
REPEATS_FULL = 5


def _known(stages: Mapping[str, float | None], name: str) -> float:
    """Seconds of a stage.

    Raises:
        ValueError: the stack did not write them down; a figure of it would be made up.
    """
    value = stages[name]
    if value is None:
        raise ValueError(f"the seconds of {name} are not known")
    return value


def last_image_to_done_s(stages: Mapping[str, float | None], idle_seconds: float) -> float:
    """Seconds from the last image to the committed result, less the idle wait that the settings ask for.

    Whatever the closing took beyond that wait is the road's own.

    Raises:
        ValueError: as `_known`.
    """
    return _known(stages, "settle") + _known(stages, "after_close") - idle_seconds


def run(full: bool) -> Iterator[dict[str, object]]:
    """Yield memory before and after the studies, and the chest-abdomen study of the demo several times; medians."""
    from heimdallr_ray.clients.send import send_folder
    from heimdallr_ray.clock import SystemClock
    from heimdallr_ray.ids import new_id
    from heimdallr_ray.operations.demo import Follower, demo_settings, stages_of
    from heimdallr_ray.operations.demo_studies import write_demo_study
    from heimdallr_ray.operations.supervisor import Supervisor, stack_memory_mib

    clock = SystemClock()
    stages: list[dict[str, float | None]] = []
    with tempfile.TemporaryDirectory(prefix="road-", ignore_cleanup_errors=True) as name:
        supervisor = Supervisor(demo_settings(Path(name) / "data"), clock)
        try:
            began = time.monotonic()
            supervisor.start()
            started_s = time.monotonic() - began
            time.sleep(IDLE_S)
            idle_gib = stack_memory_mib(os.getpid()) / 1024
            follower = Follower(supervisor.url, lambda _: None)
            for repeat in range(REPEATS_FULL if full else REPEATS):
                study = write_demo_study("chest-abdomen", Path(name) / str(repeat), clock.now(), new_id())
                port = supervisor.settings.dicom_port
                send_folder(study.folder, host="127.0.0.1", port=port, called_ae=supervisor.settings.ae_title)
                (detail,) = follower.follow(study)
                stages.append(stages_of(detail, follower.results(study)))
            worked_gib = stack_memory_mib(os.getpid()) / 1024
        finally:
            began = time.monotonic()
            supervisor.stop()
            stopped_s = time.monotonic() - began
    idle_seconds = supervisor.settings.idle_seconds
    done_s = statistics.median(last_image_to_done_s(one, idle_seconds) for one in stages)
    outside_s = statistics.median(last_image_to_done_s(one, idle_seconds) - _known(one, "forward") for one in stages)
    yield {"figure": "road.start_s", "value": round(started_s, 1), "unit": "s", "bar": "<=120"}
    yield {"figure": "road.stop_s", "value": round(stopped_s, 1), "unit": "s", "bar": "<=15"}
    yield {"figure": "road.idle_pss_gib", "value": round(idle_gib, 3), "unit": "GiB", "bar": "<=4"}
    yield {"figure": "road.after_studies_pss_gib", "value": round(worked_gib, 3), "unit": "GiB"}
    yield {"figure": "road.last_image_to_done_s", "value": round(done_s, 2), "unit": "s", "bar": "<=90"}
    yield {"figure": "road.outside_forward_s", "value": round(outside_s, 2), "unit": "s", "bar": "<=8"}
    for step in ("wait", "select", "prepare", "segment", "forward", "measure", "render", "commit"):
        value = statistics.median(_known(one, step) for one in stages)
        yield {"figure": f"road.{step}_s", "value": round(value, 3), "unit": "s"}
