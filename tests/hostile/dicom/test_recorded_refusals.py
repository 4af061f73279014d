"""Studies that are no volume, from the queue through the real engine to what the page shows: a state and its reason."""

from __future__ import annotations

import copy
import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from heimdallr_ray.api.app import create_app
from heimdallr_ray.catalog.studies import record_instances
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.pipelines.worker import StudyWorker
from heimdallr_ray.queue.lease import LeaseQueue
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.integration.api.conftest import client_of
from tests.support.clock import FakeClock
from tests.support.closing import close_idle_studies
from tests.support.dicom import ct_datasets, ct_study, new_uid, set_pixels, to_bytes
from tests.support.seeded import services
from tests.support.studies import received

WAIT_S = 120.0


class Here:
    """The real engine, in this process."""

    def __init__(self, engine: ResidentEngine) -> None:
        self._engine = engine

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        return self._engine.run_plan(request.volume, request.wanted, request.earlier)


@pytest.fixture(scope="module")
def engine() -> ResidentEngine:
    return ResidentEngine(weights_dir(), threads=1)


def ended(folder: Path, contents: Sequence[bytes], engine: ResidentEngine) -> dict[str, Any]:
    """What the API tells of the study once it has left the queue."""
    clock = FakeClock()
    site = services(folder, clock)
    batch = [_stored(site.blobs.put(content).sha256, number, content) for number, content in enumerate(contents, 1)]
    with site.database.write() as session:
        record_instances(session, batch, clock.now())
    with site.database.write() as session:
        close_idle_studies(session, clock.advance(31), 30, (), 3, "test")
    queue = LeaseQueue(site.database, clock, 600.0, database_time=False)
    runner = StudyRunner(site.database, LocalBlobStore(site.settings.blob_dir), queue, Here(engine), clock, "test")
    worker = StudyWorker(site.database, queue, runner.run, site.settings, "test")
    client = client_of(create_app(site))
    worker.start()
    deadline = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < deadline:
            told: dict[str, Any] = client.get(f"/api/v1/studies/{batch[0].study_uid}").json()
            if told["study"]["state"] not in ("queued", "running"):
                return told
            time.sleep(0.05)
    finally:
        worker.stop(WAIT_S)
    raise AssertionError("the study did not leave the queue")


def _stored(sha256: Any, number: int, content: bytes) -> Any:
    header = dcmread(io.BytesIO(content), stop_before_pixels=True)
    return replace(
        received(number),
        blob_sha256=sha256,
        study_uid=Uid(header.StudyInstanceUID),
        series_uid=Uid(header.SeriesInstanceUID),
        sop_uid=Uid(header.SOPInstanceUID),
    )


def zeros() -> list[bytes]:
    return [to_bytes(set_pixels(dataset, np.zeros((64, 64), np.uint16))) for dataset in ct_datasets(16)]


def conflicting() -> list[bytes]:
    """Two objects for one place whose pixels differ, which no header tells."""
    made = ct_datasets(16)
    other = new_uid(copy.deepcopy(made[7]), "again")
    other.PixelData = made[2].PixelData
    return [to_bytes(dataset) for dataset in (*made, other)]


@pytest.mark.parametrize(
    ("contents", "state", "code", "word"),
    [
        (zeros, "failed", "empty_image", "same value"),
        (lambda: ct_study(2, (2, 2)), "not_applicable", "no_usable_series", "too_few_slices"),
        (lambda: ct_study(16, (2, 2)), "failed", "not_a_volume", "too_small: The image has too few pixels"),
        (conflicting, "failed", "not_a_volume", "conflicting_duplicates: Two different images claim the same place."),
    ],
    ids=["all zero", "2 x 2 x 2", "2 x 2 x 16", "two images for one place"],
)
def test_the_refusal_of_the_engine_is_the_reason_on_the_page(
    tmp_path: Path, engine: ResidentEngine, contents: Callable[[], list[bytes]], state: str, code: str, word: str
) -> None:
    told = ended(tmp_path / "data", contents(), engine)
    study = told["study"]
    assert (study["state"], study["reason_code"]) == (state, code)
    assert word in study["reason"]
    assert told["result"] is None
    assert study["urgency"] is None
    assert engine.info().models == (), "a model was loaded for it"
