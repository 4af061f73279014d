"""A real PACS routes real studies to us with its own job engine; then one of the two is killed in the middle."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlmodel import col, select

from heimdallr_ray.catalog.tables import AssociationRow
from tests.support.freeport import free_port
from tests.support.intake import Intake, dataset_bytes, sha256, wait_for
from tests.support.listeners import ListenerProcess, prepared
from tests.support.orthanc import Orthanc, orthanc

pytestmark = [pytest.mark.peers("Orthanc"), pytest.mark.data, pytest.mark.timeout(600), pytest.mark.alone]

STUDIES = ("dcm_qa_ct/GE", "dcm_qa_ct/Philips_S21570", "dcm_qa_nih/GE_mr_0004")
IDLE_S = 8.0
JOBS_REGISTRY = 5
"""Orthanc's number of the global property in which it keeps its jobs."""
SAVED_FIRST_S = 0.1
"""When it does so after one was submitted."""
SAVED_EVERY_S = 10.0
"""Afterwards."""


def objects(folder: Path) -> list[Path]:
    """The images below a folder, without its DICOMDIR files and words about them."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "DIRFILE"]
    found = [path for path in found if path.suffix != ".txt"]
    assert len(found) > 20, f"{folder.name}: {len(found)} files"
    return found


class Route:
    """Studies in Orthanc, and the job that sends them to our listener."""

    def __init__(self, server: Orthanc, data: Path) -> None:
        self.server = server
        self.ids: list[str] = []
        self.sent: dict[str, str] = {}
        """SOP Instance UID to sha256 of the data set as Orthanc holds it."""
        for study in STUDIES:
            for path in objects(data / study):
                self.ids.append(server.post("/instances", path.read_bytes())["ID"])
        for resource in self.ids:
            content = server.client.get(f"/instances/{resource}/file").content
            self.sent[str(dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)] = sha256(
                dataset_bytes(content)
            )
        self.job = ""

    def start(self) -> None:
        """Orthanc's own job sends them and asks for storage commitment."""
        request = {"Resources": self.ids, "StorageCommitment": True, "Synchronous": False, "Permissive": False}
        self.job = self.server.post("/modalities/heimdallr/store", request)["ID"]

    def state(self) -> dict[str, Any]:
        return self.server.get(f"/jobs/{self.job}")

    def drive(self, timeout_s: float) -> dict[str, Any]:
        """The job has succeeded; where it fails, because nobody answered, it is submitted again as a person would."""

        def ended() -> dict[str, Any] | None:
            found = self.state()
            if found["State"] == "Failure":
                self.server.post(f"/jobs/{self.job}/resubmit", {})
            return found if found["State"] == "Success" else None

        return wait_for(ended, timeout_s, "Orthanc's job to succeed")

    def goes_on(self, timeout_s: float) -> dict[str, Any]:
        """The job has succeeded, and nobody has helped it."""

        def ended() -> dict[str, Any] | None:
            found = self.state()
            assert found["State"] != "Failure", found
            return found if found["State"] == "Success" else None

        assert self.job in self.server.get("/jobs"), "Orthanc has forgotten it"
        return wait_for(ended, timeout_s, "Orthanc's job to succeed")

    def asked_anew(self) -> str:
        """The transaction in which Orthanc asks for all of it once more; a killed Orthanc forgets those it had."""
        return self.server.post("/modalities/heimdallr/storage-commitment", {"Resources": self.ids})["ID"]

    def committed(self, transaction: str) -> dict[str, Any]:
        """The report that Orthanc was given in this transaction."""

        def answered() -> dict[str, Any] | None:
            found = self.server.get(f"/storage-commitment/{transaction}")
            return None if found["Status"] == "Pending" else found

        return wait_for(answered, 90, "the commitment report")


def transaction_of(job: dict[str, Any]) -> str:
    """In which the job has asked for commitment."""
    return job["Content"]["StorageCommitmentTransactionUID"]


@contextmanager
def route(
    tmp_path: Path, data: Path, *, timeout_s: int = 10, **more: object
) -> Generator[tuple[Route, int, dict[str, object]]]:
    """Orthanc with the studies; our port, and the settings of a listener that grants it commitment.

    Args:
        tmp_path: for its files.
        data: where the studies are.
        timeout_s: how long it waits for an answer.
        more: keys of its configuration.
    """
    port = free_port()
    modality = {
        "AET": "HEIMDALLR",
        "Host": "127.0.0.1",
        "Port": port,
        "AllowStorageCommitment": True,
        "Timeout": timeout_s,
    }
    with orthanc(tmp_path / "orthanc", {"heimdallr": modality}, more=more) as server:
        settings: dict[str, object] = {"commitment_peers": [f"{server.aet}=127.0.0.1:{server.dicom_port}"]}
        yield Route(server, data), port, settings


def everything_is_there_once(intake: Intake, sent: dict[str, str]) -> None:
    """All images, byte for byte as Orthanc holds them; each study once, closed once."""
    wait_for(lambda: len(intake.jobs()) >= len(STUDIES), 120, "all studies to be queued")
    wait_for(lambda: intake.spooled() == [], 60, "the spool to be empty")
    assert intake.stored() == sent
    assert len(intake.instances()) == len(sent)
    studies = intake.studies()
    assert len({study.study_uid for study in studies}) == len(studies) == len(intake.jobs())
    assert sum(study.n_instances for study in studies) == len(sent)


def associations(intake: Intake) -> int:
    with intake.database.read() as session:
        return len(session.exec(select(AssociationRow).where(col(AssociationRow.calling_ae) == "ORTHANC")).all())


def sent_last(intake: Intake) -> int:
    """How many images Orthanc's last association with images has brought."""
    with intake.database.read() as session:
        statement = select(AssociationRow).where(
            col(AssociationRow.calling_ae) == "ORTHANC", col(AssociationRow.stored) > 0
        )
        rows = session.exec(statement.order_by(col(AssociationRow.opened_at).desc())).all()
    return rows[0].stored


def saved_position(way: Route) -> int:
    """How many images of the job are done, as Orthanc has saved it: what it will know when it is killed."""
    with closing(sqlite3.connect(f"file:{way.server.index}?mode=ro", uri=True, timeout=10)) as database:
        found = database.execute("SELECT value FROM GlobalProperties WHERE property = ?", (JOBS_REGISTRY,)).fetchone()
    return int(json.loads(found[0])["Jobs"][way.job]["Job"]["Position"])


def signalled(listener: ListenerProcess, what: signal.Signals) -> None:
    """The listener and its receiving processes stand still, or go on."""
    for pid in (listener.pid, *listener.receiving()):
        os.kill(pid, what)


def once_some_came(intake: Intake, count: int, act: Callable[[], None]) -> threading.Thread:
    """`act` runs as soon as `count` images are there."""

    def wait_and_act() -> None:
        wait_for(lambda: len(intake.instances()) >= count, 120, f"{count} images")
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.slow
def test_orthanc_routes_real_studies_and_is_told_that_they_are_safe(tmp_path: Path, data_folder: Path) -> None:
    with (
        route(tmp_path, data_folder) as (way, port, settings),
        prepared(tmp_path / "data", port, IDLE_S, **settings) as listener,
    ):
        listener.begin()
        way.start()
        report = way.committed(transaction_of(way.drive(180)))
        assert (report["Status"], len(report["Success"]), report["Failures"]) == ("Success", len(way.sent), [])
        everything_is_there_once(Intake(tmp_path / "data"), way.sent)
        assert listener.status()["errors"] == {}


@pytest.mark.slow
def test_our_listener_is_killed_while_orthanc_sends(tmp_path: Path, data_folder: Path) -> None:
    with route(tmp_path, data_folder) as (way, port, settings):
        first_of = prepared(tmp_path / "data", port, IDLE_S, **settings)
        second_of = prepared(tmp_path / "data", port, IDLE_S, **settings)
        with first_of as first, second_of as second:
            first.begin()
            intake = Intake(tmp_path / "data")
            killer = once_some_came(intake, 40, lambda: replace(first, second))
            way.start()
            killer.join(120)
            assert not killer.is_alive()
            cut = len(intake.instances())
            job = way.drive(240)
            report = way.committed(transaction_of(job))
            assert (report["Status"], len(report["Success"])) == ("Success", len(way.sent))
            everything_is_there_once(intake, way.sent)
            print(f"killed with about {cut} of {len(way.sent)} images; {associations(intake)} associations in all")
            assert associations(intake) > 1
            assert second.status()["errors"] == {}


def replace(first: ListenerProcess, second: ListenerProcess) -> None:
    first.kill()
    second.begin()


def cut_short(way: Route, intake: Intake, listener: ListenerProcess, count: int = 20) -> int:
    """Orthanc is killed once about `count` images have come; returns how many had.

    It saves a job within 0.1 s after it was submitted, and nobody answers it before: none of the images is done then.
    """
    killer = once_some_came(intake, count, way.server.kill)
    signalled(listener, signal.SIGSTOP)
    way.start()
    time.sleep(SAVED_FIRST_S + 1)
    signalled(listener, signal.SIGCONT)
    killer.join(120)
    assert not killer.is_alive()
    came = len(intake.instances())
    assert came < len(way.sent), "it was killed too late"
    return came


def test_orthanc_is_killed_while_it_sends_and_its_job_goes_on(tmp_path: Path, data_folder: Path) -> None:
    """It has saved that it has a job: it sends all of it again, and its own question for commitment is answered."""
    with (
        route(tmp_path, data_folder) as (way, port, settings),
        prepared(tmp_path / "data", port, IDLE_S, **settings) as listener,
    ):
        listener.begin()
        intake = Intake(tmp_path / "data")
        came = cut_short(way, intake, listener)
        assert saved_position(way) == 0
        way.server.start()
        report = way.committed(transaction_of(way.goes_on(240)))
        assert (report["Status"], len(report["Success"]), report["Failures"]) == ("Success", len(way.sent), [])
        everything_is_there_once(intake, way.sent)
        print(f"Orthanc killed with {came} of {len(way.sent)} images sent; {associations(intake)} associations in all")
        assert listener.status()["errors"] == {}


@pytest.mark.slow
def test_orthanc_is_killed_late_and_its_job_goes_on_where_it_was(tmp_path: Path, data_folder: Path) -> None:
    """It has saved how far the job was, and sends the rest only."""
    with (
        route(tmp_path, data_folder, timeout_s=60) as (way, port, settings),
        prepared(tmp_path / "data", port, IDLE_S, **settings) as listener,
    ):
        listener.begin()
        intake = Intake(tmp_path / "data")
        stopper = once_some_came(intake, 40, lambda: signalled(listener, signal.SIGSTOP))
        way.start()
        stopper.join(120)
        assert not stopper.is_alive()
        # Orthanc waits for an answer, and nobody else can read its database while it lives.
        time.sleep(SAVED_EVERY_S + 2)
        way.server.kill()
        signalled(listener, signal.SIGCONT)
        position = saved_position(way)
        assert 0 < position < len(way.sent)
        way.server.start()
        way.goes_on(240)
        # A job that goes on asks for no commitment: Orthanc 1.10 does where it has sent all in one life only.
        report = way.committed(way.asked_anew())
        assert (report["Status"], len(report["Success"]), report["Failures"]) == ("Success", len(way.sent), [])
        everything_is_there_once(intake, way.sent)
        print(f"Orthanc killed with {position} of {len(way.sent)} images done")
        assert sent_last(intake) == len(way.sent) - position
        assert listener.status()["errors"] == {}


@pytest.mark.slow
def test_orthanc_is_killed_and_forgets_its_job_and_a_person_sends_again(tmp_path: Path, data_folder: Path) -> None:
    with (
        route(tmp_path, data_folder, SaveJobs=False) as (way, port, settings),
        prepared(tmp_path / "data", port, IDLE_S, **settings) as listener,
    ):
        listener.begin()
        intake = Intake(tmp_path / "data")
        cut_short(way, intake, listener)
        way.server.start()
        assert way.server.get("/jobs") == []
        way.start()
        report = way.committed(transaction_of(way.goes_on(240)))
        assert (report["Status"], len(report["Success"]), report["Failures"]) == ("Success", len(way.sent), [])
        everything_is_there_once(intake, way.sent)
        assert listener.status()["errors"] == {}
