"""A study that kills its Segmenter replica is set aside after the second death; whoever stood beside it is not."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import EngineCallRow, EventRow, JobRow, StudyRow
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.ids import Uid
from tests.support import dicom as synthetic
from tests.support.stack import Stack

SLICES = 40
# The same without Ray is quick: tests/crash/deployments/test_engine_deaths.py.
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


class Site:
    """A running stack, and the folder in which studies are marked."""

    def __init__(self, stack: Stack, marked: Path) -> None:
        self.stack, self.marked = stack, marked

    def send(
        self, folder: Path, name: str, *, beside: str | None = None, kills: bool = False, stands: bool = False
    ) -> str:
        """A study of this name is acknowledged; its UID. One that `kills` waits for `beside` before its first kill.

        One that `stands` stays inside the engine, and kills nobody.
        """
        uid = self.uid(name)
        if kills or stands:
            (self.marked / uid).write_text("hold" if stands else beside or "")
        folder.mkdir(parents=True)
        made = synthetic.ct_study(SLICES, shape=(96, 96), seed=name, StudyInstanceUID=uid)
        for index, content in enumerate(made):
            (folder / f"{index:03}.dcm").write_bytes(content)
        report = send_folder(folder, host="127.0.0.1", port=self.stack.dicom_port, called_ae="HEIMDALLR")
        assert len(report.acknowledged) == SLICES
        return uid

    @staticmethod
    def uid(name: str) -> str:
        return str(Uid.derived("engine kill", name, str(RUN)))

    def began(self, uid: str) -> list[int]:
        """The engine process of each time that an engine began on the study."""
        file = self.marked / "began"
        lines = file.read_text().splitlines() if file.exists() else []
        return [int(pid) for one, _, pid in (line.partition(" ") for line in lines) if one == uid]

    def ended(self, uid: str) -> dict[str, Any]:
        return self.stack.finished(uid, timeout_s=240)["study"]

    @contextmanager
    def catalog(self) -> Generator[Session]:
        database = Database(f"sqlite:///{self.stack.data_dir / 'catalog.sqlite'}")
        try:
            with database.read() as session:
                yield session
        finally:
            database.close()

    def jobs(self, uid: str) -> list[JobRow]:
        with self.catalog() as session:
            statement = select(JobRow).join(StudyRow, col(StudyRow.id) == JobRow.study_id)
            return list(session.exec(statement.where(StudyRow.study_uid == uid).order_by(col(JobRow.id))).all())

    def calls(self, uid: str) -> list[str]:
        """States of what is left of the study's calls, oldest first."""
        with self.catalog() as session:
            ids = [job.id for job in self.jobs(uid)]
            rows = session.exec(select(EngineCallRow).where(col(EngineCallRow.job_id).in_(ids)))
            return [row.state for row in sorted(rows, key=lambda row: row.began_at)]

    def deaths(self, uid: str) -> list[int]:
        """The count in the history after each death."""
        with self.catalog() as session:
            study = session.exec(select(StudyRow).where(StudyRow.study_uid == uid)).one()
            rows = session.exec(select(EventRow).where(EventRow.study_id == study.id, EventRow.kind == "engine.died"))
            return [row.payload["deaths"] for row in sorted(rows, key=lambda row: row.id or 0)]


RUN = time.time_ns()


@pytest.fixture
def site(stack: Stack, marked: Path) -> Site:
    return Site(stack, marked)


def test_a_study_that_kills_its_replica_twice_is_set_aside_and_the_next_one_is_served(
    site: Site, tmp_path: Path
) -> None:
    killer = site.send(tmp_path / "killer", "killer", kills=True)
    site.stack.wait_for(lambda: site.began(killer), 90, "the killer to begin")
    following = site.send(tmp_path / "next", "next")
    ended = site.ended(killer)
    assert (ended["state"], ended["reason_code"]) == ("failed", "engine_killed"), ended
    assert site.ended(following)["state"] == "done"
    assert len(site.began(killer)) == len(set(site.began(killer))) == 2
    (job,) = site.jobs(killer)
    assert (job.state, job.error_code, job.attempt) == ("dead", "engine_killed", 1)
    assert site.deaths(killer) == [1, 2]
    assert site.calls(killer) == ["guilty", "guilty"]

    (site.marked / killer).unlink()
    answer = httpx.post(f"{site.stack.url}/api/v1/studies/{killer}/retry", timeout=30)
    assert answer.status_code < 300, answer.text
    assert site.ended(killer)["state"] == "done"


def test_who_shared_a_replica_with_a_killer_is_run_alone_and_done(site: Site, tmp_path: Path) -> None:
    innocent = site.uid("innocent")
    killer = site.send(tmp_path / "killer", "another killer", kills=True, beside=innocent)
    site.send(tmp_path / "innocent", "innocent")
    assert site.ended(killer)["reason_code"] == "engine_killed"
    assert site.ended(innocent)["state"] == "done"
    first, second = site.began(killer)
    assert site.began(innocent)[0] == first
    assert second not in site.began(innocent)[:1]
    assert site.deaths(killer) == [1, 2]
    assert site.deaths(innocent) == [1]
    assert site.calls(killer) == ["guilty", "guilty"]


def test_a_replica_killed_by_somebody_else_costs_a_study_nothing(site: Site, tmp_path: Path) -> None:
    study = site.send(tmp_path / "study", "unlucky", stands=True)
    pids = site.stack.wait_for(lambda: site.began(study), 90, "the study to begin")
    psutil.Process(pids[0]).kill()
    (site.marked / study).unlink()
    assert site.ended(study)["state"] == "done"
    assert site.deaths(study) == [1]
    (job,) = site.jobs(study)
    assert (job.attempt, job.lost) == (1, 0)


def test_a_stack_that_is_stopped_or_killed_counts_no_death(site: Site, tmp_path: Path) -> None:
    study = site.send(tmp_path / "study", "stopped", stands=True)
    site.stack.wait_for(lambda: site.began(study), 90, "the study to begin")
    site.stack.stop()
    assert (site.deaths(study), site.calls(study)) == ([], ["inside"])
    site.stack.start()
    site.stack.wait_for(lambda: len(site.began(study)) > 1, 90, "the study to begin again")
    site.stack.kill_everything()
    (site.marked / study).unlink()
    assert (site.deaths(study), site.calls(study)) == ([], ["inside"])
    site.stack.start()
    assert site.ended(study)["state"] == "done"
    assert (site.deaths(study), site.calls(study)) == ([], [])
