"""Several senders send the same study at the same time, again and again: it is there once, and so is its result."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlmodel import select

from heimdallr_ray.catalog.tables import ResultRow
from tests.support.analysis import CountingEngine, work_off
from tests.support.dicom import ct_study
from tests.support.intake import Intake, dataset_bytes, sha256, wait_for
from tests.support.listeners import running
from tests.support.wirepeer import WirePeer

pytestmark = pytest.mark.alone

SENDERS, TIMES, IMAGES = 4, 5, 50
IDLE_S = 3.0


class Sender(threading.Thread):
    """Sends the whole study several times, an association each, and starts each time with the others."""

    def __init__(self, port: int, bodies: Sequence[tuple[str, bytes]], start: threading.Barrier) -> None:
        super().__init__()
        self.answers: list[int] = []
        self.error: BaseException | None = None
        self._port, self._bodies, self._start = port, bodies, start

    def run(self) -> None:
        try:
            for _ in range(TIMES):
                self._start.wait(60)
                with WirePeer(self._port) as peer:
                    for sop, body in self._bodies:
                        self.answers.append(peer.store(body, sop))
        except BaseException as error:
            self.error = error
            self._start.abort()


@pytest.mark.parametrize("processes", [1, 2])
def test_four_senders_of_one_study_five_times_each_make_one_study(folder: Path, processes: int) -> None:
    """Check 7 of the reliability list: 1 study, 50 instances, 1 job, 1 result, all answers 0x0000."""
    contents = ct_study(IMAGES)
    headers = [dcmread(io.BytesIO(content), stop_before_pixels=True) for content in contents]
    bodies = {
        str(header.SOPInstanceUID): dataset_bytes(content) for header, content in zip(headers, contents, strict=True)
    }
    order = list(bodies.items())
    start = threading.Barrier(SENDERS)
    # So quiet for so long only once all have sent.
    with running(folder / "data", idle_s=IDLE_S, listener_processes=processes) as listener:
        assert len(listener.receiving()) == processes
        # Two send from the first image on, two from the last: images are new and known at the same time.
        senders = [Sender(listener.port, order[:: 1 - 2 * (n % 2)], start) for n in range(SENDERS)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(120)
        assert [sender.error for sender in senders] == [None] * SENDERS
        intake = Intake(folder / "data")
        wait_for(intake.jobs, 60, "the study to be queued")
        wait_for(lambda: intake.spooled() == [], 60, "the spool to be empty")
        engine = CountingEngine()
        assert work_off(intake.database, intake.blobs, engine) == 1
        # What was sent again may not make it settle again: longer than the idle time a second closing would show.
        assert not threading.Event().wait(IDLE_S + 1)
        assert work_off(intake.database, intake.blobs, engine) == 0
        status = listener.status()
    answers = [answer for sender in senders for answer in sender.answers]
    assert (len(answers), set(answers)) == (SENDERS * TIMES * IMAGES, {0})
    assert intake.stored() == {sop: sha256(body) for sop, body in bodies.items()}
    assert len(intake.instances()) == IMAGES
    assert [(study.n_instances, study.epoch, study.state) for study in intake.studies()] == [(IMAGES, 1, "done")]
    assert [job.state for job in intake.jobs()] == ["done"]
    assert engine.runs == 1
    assert not any(row.sop_uid_conflict for row in intake.instances())
    with intake.database.read() as session:
        (result,) = session.exec(select(ResultRow)).all()
    assert (result.study_id, result.epoch) == (intake.studies()[0].id, 1)
    assert status["counts"]["duplicates"] == (SENDERS * TIMES - 1) * IMAGES
    assert (status["errors"], status["quarantined"], status["healthy"]) == ({}, 0, True)
