"""Deflated bombs on the whole road: taken in by a door, closed by the watcher, refused by the worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from heimdallr_ray.api.app import create_app
from heimdallr_ray.catalog.tables import SeriesRow, StudyRow
from heimdallr_ray.config import load
from heimdallr_ray.listener import part10
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.pipelines.worker import StudyWorker
from heimdallr_ray.queue.lease import LeaseQueue
from heimdallr_ray.queue.owners import owner_name
from tests.support.analysis import CountingEngine
from tests.support.bombs import deflated_bomb_data_set, deflated_volume_data_set
from tests.support.cost import OwnCost, measured_cost
from tests.support.intake import Intake, sha256, wait_for
from tests.support.server import services_of
from tests.support.wirepeer import CT, DEFLATED, WirePeer

SOP = "1.2.826.0.1.3680043.9.9.20.1"
LEASE_S = 60.0
Door = Callable[[Intake, int, bytes], None]


def by_c_store(_intake: Intake, port: int, data_set: bytes) -> None:
    with WirePeer(port, (DEFLATED,)) as peer:
        assert peer.store(data_set, SOP, DEFLATED) == 0


def by_upload(intake: Intake, _port: int, data_set: bytes) -> None:
    client = TestClient(create_app(services_of(intake)), base_url="http://localhost", client=("127.0.0.1", 1))
    meta = part10.FileMeta(0, part10.DEFLATED_LITTLE, CT, SOP)
    answer = client.post("/api/v1/upload", files={"file": ("image", part10.encode_meta(meta) + data_set)})
    assert answer.status_code == 200, answer.text


def in_state(intake: Intake, *states: str) -> StudyRow | None:
    return next((study for study in intake.studies() if study.state in states), None)


def taken_in(intake: Intake, door: Door, data_set: bytes) -> None:
    """The data set is stored byte for byte, and its study waits for a worker."""
    with intake.listening() as service:
        door(intake, service.scp.port, data_set)
        wait_for(lambda: in_state(intake, "queued"), 60, "the watcher to close the study")
    assert list(intake.stored().values()) == [sha256(data_set)]


def worked_off(intake: Intake) -> tuple[StudyRow, OwnCost]:
    """The study, once a worker has ended its job, and what that cost this process."""
    queue, engine = LeaseQueue(intake.database, intake.clock, LEASE_S), CountingEngine()
    runner = StudyRunner(intake.database, intake.blobs, queue, engine, intake.clock, "test")
    settings = load({}, None, data_dir=intake.settings.data_dir, profile="demo", max_parallel_cases=1)
    worker = StudyWorker(intake.database, queue, runner.run, settings, owner_name())
    with measured_cost() as cost:
        worker.start()
        try:
            study = wait_for(lambda: in_state(intake, "failed", "not_applicable", "done"), 60, "the job to end")
        finally:
            worker.stop(30)
    (job,) = intake.jobs()
    assert (job.attempt, engine.runs) == (1, 0)
    return study, cost


@pytest.mark.parametrize("door", [by_c_store, by_upload])
def test_a_volume_that_is_a_deflated_bomb_is_a_study_that_failed_as_too_large(folder: Path, door: Door) -> None:
    """Check 18 of the reliability list: `failed: too_large`, at once, in under 0.5 s and 64 MiB."""
    intake = Intake(folder / "data")
    taken_in(intake, door, deflated_volume_data_set())
    study, cost = worked_off(intake)
    print(f"{door.__name__}: {study.state}, {study.reason_code}, {study.reason}, {cost}")
    assert (study.state, study.reason_code) == ("failed", "too_large")
    assert cost.cpu_s < 0.5
    assert cost.growth_mib < 64


@pytest.mark.parametrize("door", [by_c_store, by_upload])
def test_a_deflated_bomb_that_is_no_volume_is_refused_as_too_large_before_it_is_read(folder: Path, door: Door) -> None:
    """Check 18 of the reliability list where the header alone is enough: no series is left, the reason is the same."""
    intake = Intake(folder / "data")
    taken_in(intake, door, deflated_bomb_data_set())
    study, cost = worked_off(intake)
    print(f"{door.__name__}: {study.state}, {study.reason_code}, {study.reason}, {cost}")
    assert (study.state, study.reason_code) == ("not_applicable", "no_usable_series")
    assert (study.reason or "").startswith("too_large: ")
    with intake.database.read() as session:
        assert [row.reject_code for row in session.exec(select(SeriesRow)).all()] == ["too_large"]
    assert cost.cpu_s < 0.5
    assert cost.growth_mib < 64
