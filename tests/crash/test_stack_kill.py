"""kill -9 of the listener, of the Segmenter replica and of the whole stack at random moments.

Nothing acknowledged is lost, each study has exactly one result. The seed of each moment is printed and can be
replayed."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import InstanceRow, JobRow, ResultRow, StudyRow
from heimdallr_ray.clients.send import SendReport, send_folder
from heimdallr_ray.ids import Uid
from heimdallr_ray.operations import ports
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.support import dicom as synthetic
from tests.support.stack import Stack

SLICES = 60
MOMENTS = [
    pytest.param(seed, marks=() if seed == 1 else (pytest.mark.slow,), id=f"seed-{seed}") for seed in range(1, 11)
]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(Path(tmp_path_factory.mktemp("crash")) / "data").start()
    yield running
    running.clean_up()


def dataset_bytes(part10: bytes) -> bytes:
    """What follows the file meta information (PS3.10 section 7.1), whose length is its first element."""
    assert part10[128:132] == b"DICM"
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


class Sender:
    """Sends a study in a thread of its own and keeps what was acknowledged."""

    def __init__(self, stack: Stack, folder: Path, seed: str) -> None:
        self.study_uid = str(Uid.derived("kill", seed, str(time.time_ns())))
        folder.mkdir(parents=True)
        made = synthetic.ct_study(SLICES, shape=(96, 96), seed=self.study_uid, StudyInstanceUID=self.study_uid)
        for index, content in enumerate(made):
            (folder / f"{index:03}.dcm").write_bytes(content)
        self._stack, self._folder = stack, folder
        self.digests = {
            str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): hashlib.sha256(
                dataset_bytes(path.read_bytes())
            ).hexdigest()
            for path in folder.iterdir()
        }
        self.acknowledged: set[str] = set()
        self._thread = threading.Thread(target=self._send)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()

    def _send(self) -> None:
        report: SendReport = send_folder(
            self._folder, host="127.0.0.1", port=self._stack.dicom_port, called_ae="HEIMDALLR", attempts=60
        )
        self.acknowledged = set(report.acknowledged)


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


def _verify(stack: Stack, sender: Sender) -> dict[str, Any]:
    """Every acknowledged image is there with its bytes; one study, one closing, one result."""
    detail = stack.finished(sender.study_uid, timeout_s=240)
    assert detail["study"]["state"] == "done", detail["study"]["reason"]
    database = Database(f"sqlite:///{stack.data_dir / 'catalog.sqlite'}")
    blobs = LocalBlobStore(stack.data_dir / "blobs")
    with database.read() as session:
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
    current = [result for result in results if result.superseded_by is None]
    assert len(current) == 1
    assert len(results) <= len(jobs) == study.epoch
    database.close()
    return detail


@pytest.mark.parametrize("seed", MOMENTS)
def test_listener_killed_during_a_send(stack: Stack, tmp_path: Path, seed: int) -> None:
    moment_s = random.Random(f"listener-{seed}").uniform(0.05, 1.5)
    print(f"listener seed {seed}: {moment_s:.3f} s after the first image was offered")
    pid = _pid_of_listener(stack)
    sender = Sender(stack, tmp_path / "study", f"listener-{seed}")
    sender.start()
    time.sleep(moment_s)
    psutil.Process(pid).kill()
    sender.join()
    assert len(sender.acknowledged) == SLICES
    assert _pid_of_listener(stack) != pid
    _verify(stack, sender)


@pytest.mark.parametrize("seed", MOMENTS)
def test_segmenter_killed_during_a_study(stack: Stack, tmp_path: Path, seed: int) -> None:
    moment_s = random.Random(f"segmenter-{seed}").uniform(0.0, 2.0)
    print(f"segmenter seed {seed}: {moment_s:.3f} s after the study began to run")
    sender = Sender(stack, tmp_path / "study", f"segmenter-{seed}")
    sender.start()
    sender.join()

    def running() -> bool:
        states = {study["study_uid"]: study["state"] for study in stack.studies()}
        return states.get(sender.study_uid) in {"running", "done"}

    pid = _pid_of_segmenter(stack)
    stack.wait_for(running, 60, "the study to run")
    time.sleep(moment_s)
    psutil.Process(pid).kill()
    _verify(stack, sender)
    assert _pid_of_segmenter(stack) != pid


@pytest.mark.parametrize("seed", MOMENTS)
def test_whole_stack_killed_during_a_study(stack: Stack, tmp_path: Path, seed: int) -> None:
    moment_s = random.Random(f"stack-{seed}").uniform(0.0, 9.0)
    print(f"stack seed {seed}: {moment_s:.3f} s after the last image was acknowledged")
    sender = Sender(stack, tmp_path / "study", f"stack-{seed}")
    sender.start()
    sender.join()
    assert len(sender.acknowledged) == SLICES
    time.sleep(moment_s)
    assert stack.kill_everything() > 5
    stack.start()
    _verify(stack, sender)
