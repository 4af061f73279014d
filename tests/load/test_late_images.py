"""Images that come by C-STORE after their study was closed: the next epoch and a result that supersedes the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlmodel import select

from heimdallr_ray.catalog.results import current_result, results_of
from heimdallr_ray.catalog.tables import EventRow, ResultRow, StudyRow
from heimdallr_ray.errors import StaleLease
from tests.support.analysis import CountingEngine, work_off
from tests.support.dicom import ct_study
from tests.support.intake import Intake, dataset_bytes, sha256, storescu, wait_for
from tests.support.listeners import running

pytestmark = pytest.mark.alone

FIRST, LATE = 24, 10
QUIET_S = 2.0


def as_files(folder: Path, contents: Sequence[bytes], start: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:04d}.dcm" for number in range(start, start + len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def send(port: int, paths: Sequence[Path]) -> None:
    """By dcmtk's storescu, one association; every image is answered Success."""
    said = storescu(port, paths)
    assert said.count("(Success)") == len(paths), said


def results(intake: Intake) -> list[ResultRow]:
    """The newest first."""
    (study,) = intake.studies()
    with intake.database.read() as session:
        return results_of(session, study.id)


def queued(intake: Intake, epoch: int) -> StudyRow | None:
    (study,) = intake.studies() or (None,)
    return study if study is not None and (study.state, study.epoch) == ("queued", epoch) else None


@pytest.fixture
def images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The first ones and the late ones, all of one series."""
    slices = ct_study(FIRST + LATE)
    files = folder / "files"
    return as_files(files, slices[:FIRST], 1), as_files(files, slices[FIRST:], FIRST + 1)


def require_whole(intake: Intake, sent: Sequence[Path], jobs: Sequence[tuple[int, str]]) -> None:
    """One study in its second epoch with every image as it was sent, closed twice by the listener."""
    (study,) = intake.studies()
    assert (study.state, study.epoch, study.n_instances) == ("done", 2, FIRST + LATE)
    assert sorted(row.epoch for row in intake.instances()) == [1] * FIRST + [2] * LATE
    assert sorted((job.epoch, job.state) for job in intake.jobs()) == list(jobs)
    with intake.database.read() as session:
        closings = session.exec(
            select(EventRow).where(EventRow.kind == "study.state", EventRow.new == "queued").order_by("id")
        ).all()
    assert [(event.payload["epoch"], event.actor) for event in closings] == [(1, "listener"), (2, "listener")]
    assert intake.stored() == {
        str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes()))
        for path in sent
    }


@pytest.mark.peers("storescu")
def test_ten_images_after_the_result_make_an_epoch_and_a_result_that_supersedes_it(
    folder: Path, images: tuple[list[Path], list[Path]]
) -> None:
    """Check 8 of the reliability list, by C-STORE and the watcher of a real listener: never one result over both."""
    first, late = images
    intake, engine = Intake(folder / "data"), CountingEngine()
    with running(folder / "data", idle_s=QUIET_S, settle_after_release_seconds=QUIET_S) as listener:
        send(listener.port, first)
        wait_for(lambda: queued(intake, 1), 60, "the watcher to close the first epoch")
        assert work_off(intake.database, intake.blobs, engine) == 1
        (only,) = results(intake)
        assert (only.version, only.epoch, only.superseded_by) == (1, 1, None)
        assert intake.studies()[0].state == "done"
        send(listener.port, late)
        wait_for(lambda: queued(intake, 2), 60, "the watcher to close the second epoch")
        assert work_off(intake.database, intake.blobs, engine) == 1
        status = listener.status()
    assert engine.runs == 2
    new, old = results(intake)
    assert (old.version, old.epoch, old.superseded_by) == (1, 1, new.id)
    assert (new.version, new.epoch, new.superseded_by) == (2, 2, None)
    # Each is over the images of its epoch and of those before, and of no other.
    assert [one.document["volume"]["shape"][2] for one in (old, new)] == [FIRST, FIRST + LATE]
    assert new.inputs_sha256 != old.inputs_sha256
    with intake.database.read() as session:
        current = current_result(session, new.study_id)
    assert current is not None and current.id == new.id
    require_whole(intake, [*first, *late], [(1, "done"), (2, "done")])
    assert (status["errors"], status["healthy"]) == ({}, True)


@pytest.mark.peers("storescu")
def test_ten_images_during_the_analysis_stop_it_and_the_only_result_is_over_all(
    folder: Path, images: tuple[list[Path], list[Path]]
) -> None:
    """Check 8 of the reliability list: what has begun over the first epoch may not end as a result of both."""
    first, late = images
    intake = Intake(folder / "data")
    with running(folder / "data", idle_s=QUIET_S, settle_after_release_seconds=QUIET_S) as listener:

        def send_late(run: int) -> None:
            if run == 1:
                send(listener.port, late)
                wait_for(lambda: len(intake.instances()) == FIRST + LATE, 30, "the late images to be rows")

        engine = CountingEngine(send_late)
        send(listener.port, first)
        wait_for(lambda: queued(intake, 1), 60, "the watcher to close the first epoch")
        with pytest.raises(StaleLease):
            work_off(intake.database, intake.blobs, engine)
        assert results(intake) == []
        wait_for(lambda: queued(intake, 2), 60, "the watcher to close the second epoch")
        assert work_off(intake.database, intake.blobs, engine) == 1
        status = listener.status()
    assert engine.runs == 2
    (only,) = results(intake)
    assert (only.version, only.epoch, only.superseded_by) == (1, 2, None)
    assert only.document["volume"]["shape"][2] == FIRST + LATE
    require_whole(intake, [*first, *late], [(1, "cancelled"), (2, "done")])
    assert (status["errors"], status["healthy"]) == ({}, True)
