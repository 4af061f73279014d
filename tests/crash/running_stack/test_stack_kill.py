"""kill -9 of the listener, of the Segmenter replica and of the whole stack at random moments.

Nothing acknowledged is lost, each study has exactly one result. The seed of each moment is printed and can be
replayed.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import InstanceRow, JobRow, ResultRow, StudyRow
from heimdallr_ray.clients.send import Progress, SendReport, send_folder
from heimdallr_ray.ids import Uid
from heimdallr_ray.operations import ports
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.crash.running_stack.conftest import IDLE_S
from tests.support import dicom as synthetic
from tests.support.clock import EPOCH
from tests.support.kills import DuringSend
from tests.support.stack import Stack

SLICES = 60
SETTLING_S = 2.0
"""After the sender has released its association."""
RUNS = 5
"""Fresh studies that are tried until one is still running at its moment."""
KILLS = 4
"""More than the attempts that a study may fail (HEIMDALLR_MAX_ATTEMPTS: 3)."""
MOMENTS = [pytest.param(seed, id=f"seed-{seed}", marks=pytest.mark.slow) for seed in range(2, 11)]
FIRST = pytest.param(1, id="seed-1")
pytestmark = pytest.mark.timeout(900)


def dataset_bytes(part10: bytes) -> bytes:
    """What follows the file meta information (PS3.10 section 7.1), whose length is its first element."""
    assert part10[128:132] == b"DICM"
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


class Sender:
    """Sends a study in a thread of its own and keeps what was acknowledged."""

    def __init__(self, stack: Stack, folder: Path, seed: str, on_progress: Progress | None = None) -> None:
        self.study_uid = str(Uid.derived("kill", seed, str(time.time_ns())))
        folder.mkdir(parents=True)
        made = synthetic.ct_study(SLICES, shape=(96, 96), seed=self.study_uid, StudyInstanceUID=self.study_uid)
        for index, content in enumerate(made):
            (folder / f"{index:03}.dcm").write_bytes(content)
        self._stack, self._folder, self._on_progress = stack, folder, on_progress
        self.digests = {
            str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): hashlib.sha256(
                dataset_bytes(path.read_bytes())
            ).hexdigest()
            for path in folder.iterdir()
        }
        self.acknowledged: set[str] = set()
        self.associations = 0
        self._thread = threading.Thread(target=self._send)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()

    def _send(self) -> None:
        report: SendReport = send_folder(
            self._folder,
            host="127.0.0.1",
            port=self._stack.dicom_port,
            called_ae="HEIMDALLR",
            on_progress=self._on_progress,
            attempts=60,
        )
        self.acknowledged = set(report.acknowledged)
        self.associations = report.associations


def _sent(stack: Stack, folder: Path, seed: str) -> Sender:
    sender = Sender(stack, folder, seed)
    sender.start()
    sender.join()
    assert len(sender.acknowledged) == SLICES
    return sender


def _pid_of_listener(stack: Stack) -> int:
    def pid() -> int | None:
        return next((one.pid for one in ports.listeners({stack.dicom_port}) if one.pid), None)

    return int(stack.wait_for(pid, 60, "the listener to be back"))


def _pid_of_segmenter(stack: Stack) -> int:
    def pid() -> int | None:
        for member in stack.members():
            try:
                if "Segmenter" in " ".join(member.cmdline()):
                    return member.pid
            except psutil.Error:
                continue
        return None

    return int(stack.wait_for(pid, 60, "a Segmenter replica"))


@contextmanager
def _catalog(stack: Stack) -> Generator[Session]:
    database = Database(f"sqlite:///{stack.data_dir / 'catalog.sqlite'}")
    try:
        with database.read() as session:
            yield session
    finally:
        database.close()


def _state(stack: Stack, study_uid: str) -> str | None:
    """The study's state by the catalog itself: an answer over HTTP may be older than a kill."""
    with _catalog(stack) as session:
        return session.exec(select(StudyRow.state).where(StudyRow.study_uid == study_uid)).one_or_none()


def _job(stack: Stack, study_uid: str) -> JobRow:
    """The study's one job; a row without a claim where it has none yet."""
    with _catalog(stack) as session:
        statement = select(JobRow).join(StudyRow, col(StudyRow.id) == JobRow.study_id)
        row = session.exec(statement.where(StudyRow.study_uid == study_uid)).one_or_none()
    return row or JobRow(kind="", key="", fence=0, run_at=EPOCH, created_at=EPOCH)


def _wait_until_running(stack: Stack, study_uid: str) -> None:
    stack.wait_for(lambda: _state(stack, study_uid) in {"running", "done"}, 90, "the study to run")


def _longest_gap_s(instances: Sequence[InstanceRow]) -> float:
    times = sorted(row.received_at for row in instances)
    return max((b - a).total_seconds() for a, b in pairwise(times))


def _verify(stack: Stack, sender: Sender) -> dict[str, Any]:
    """Every acknowledged image is there with its bytes; one study, one closing, one job, one result."""
    detail = stack.finished(sender.study_uid, timeout_s=240)
    assert detail["study"]["state"] == "done", detail["study"]["reason"]
    blobs = LocalBlobStore(stack.data_dir / "blobs")
    with _catalog(stack) as session:
        study = session.exec(select(StudyRow).where(StudyRow.study_uid == sender.study_uid)).one()
        instances = session.exec(select(InstanceRow).where(InstanceRow.study_id == study.id)).all()
        results = session.exec(select(ResultRow).where(ResultRow.study_id == study.id)).all()
        jobs = session.exec(select(JobRow).where(JobRow.study_id == study.id)).all()
    stored = {row.sop_uid: row for row in instances}
    assert len(stored) == len(instances)
    assert sender.acknowledged <= stored.keys()
    for uid in sender.acknowledged:
        content = blobs.path(stored[uid].blob_sha256).read_bytes()
        assert hashlib.sha256(dataset_bytes(content)).hexdigest() == sender.digests[uid]
    gap_s = _longest_gap_s(instances)
    if gap_s >= IDLE_S:
        # The outage itself was longer than the idle time: what came before it was a study of its own right.
        print(f"the outage of {gap_s:.1f} s exceeded the idle time of {IDLE_S:.0f} s; epoch {study.epoch}")
        assert study.epoch <= 2
        assert len(jobs) == study.epoch
        assert [result.epoch for result in results if result.superseded_by is None] == [study.epoch]
        return detail
    assert (study.epoch, len(jobs), [(row.epoch, row.version) for row in results]) == (1, 1, [(1, 1)])
    return detail


@pytest.mark.parametrize("seed", [FIRST, *MOMENTS])
def test_listener_killed_during_a_send(stack: Stack, tmp_path: Path, seed: int) -> None:
    moment = DuringSend(f"listener-{seed}", SLICES)
    pid = _pid_of_listener(stack)
    listener = psutil.Process(pid)
    sender = Sender(stack, tmp_path / "study", f"listener-{seed}", moment.on_progress)

    def kill() -> None:
        listener.kill()
        listener.wait(10)

    sender.start()
    moment.kill(kill)
    sender.join()
    assert len(sender.acknowledged) == SLICES
    assert sender.associations > 1
    assert _pid_of_listener(stack) != pid
    _verify(stack, sender)


@pytest.mark.parametrize("seed", [FIRST, *MOMENTS])
def test_segmenter_killed_during_a_study(stack: Stack, tmp_path: Path, seed: int) -> None:
    chance = random.Random(f"segmenter-{seed}")
    for run in range(1, RUNS + 1):
        # A study that is done already says nothing: then an earlier moment in a fresh one.
        moment_s = chance.uniform(0.0, 2.0 / run)
        sender = _sent(stack, tmp_path / f"study-{run}", f"segmenter-{seed}-{run}")
        pid = _pid_of_segmenter(stack)
        _wait_until_running(stack, sender.study_uid)
        time.sleep(moment_s)
        replica = psutil.Process(pid)
        replica.kill()
        replica.wait(10)
        state = _state(stack, sender.study_uid)
        print(f"segmenter seed {seed}, run {run}: {moment_s:.3f} s after the study began to run it was {state}")
        _verify(stack, sender)
        assert _pid_of_segmenter(stack) != pid
        if state == "running":
            return
    raise AssertionError(f"none of {RUNS} studies was running when the replica was killed")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_whole_stack_killed_while_a_study_runs(stack: Stack, tmp_path: Path, seed: int) -> None:
    chance = random.Random(f"stack-{seed}")
    for run in range(1, RUNS + 1):
        moment_s = chance.uniform(0.0, 1.2 / run)
        sender = _sent(stack, tmp_path / f"study-{run}", f"stack-{seed}-{run}")
        _wait_until_running(stack, sender.study_uid)
        time.sleep(moment_s)
        assert stack.kill_everything() > 5
        state = _state(stack, sender.study_uid)
        print(f"stack seed {seed}, run {run}: {moment_s:.3f} s after the study began to run it was {state}")
        stack.start()
        _verify(stack, sender)
        if state == "running":
            return
    raise AssertionError(f"none of {RUNS} studies was running when the stack was killed")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_whole_stack_killed_before_a_study_runs(stack: Stack, tmp_path: Path, seed: int) -> None:
    moment_s = random.Random(f"settling-{seed}").uniform(0.0, SETTLING_S)
    sender = _sent(stack, tmp_path / "study", f"settling-{seed}")
    time.sleep(moment_s)
    assert stack.kill_everything() > 5
    state = _state(stack, sender.study_uid)
    print(f"stack seed {seed}: {moment_s:.3f} s after the last image was acknowledged the study was {state}")
    stack.start()
    _verify(stack, sender)


@pytest.mark.slow
def test_a_study_whose_stack_is_killed_more_often_than_it_may_fail_still_ends_done(
    stack: Stack, tmp_path: Path
) -> None:
    sender = _sent(stack, tmp_path / "study", "four kills")
    for kill in range(1, KILLS + 1):
        stack.wait_for(lambda claim=kill: _job(stack, sender.study_uid).fence == claim, 120, f"claim {kill}")
        stack.kill_everything()
        state = _state(stack, sender.study_uid)
        print(f"kill {kill}: the study was {state}")
        assert state == "running"
        stack.start()
    _verify(stack, sender)
    job = _job(stack, sender.study_uid)
    assert (job.fence, job.lost, job.attempt) == (KILLS + 1, KILLS, 1)
