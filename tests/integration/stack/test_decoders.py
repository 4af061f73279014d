"""Compressed images in the real consumer, a Ray worker: its decoders are there ahead, and may be killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import psutil
import pytest
from pydicom.uid import JPEG2000Lossless

from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.dicom.limits import MAX_DECODER_PROCESSES
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_datasets, to_bytes
from tests.support.stack import Stack

SLICES = 24
SHAPE = (384, 384)
STARTED_S = 0.5
"""CPU seconds after which a new decoder has begun to decode."""
WAIT_S = 120.0
USUAL = min(len(os.sched_getaffinity(0)), 4)
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


def command(process: psutil.Process) -> str:
    """Its words; none where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def consumer(stack: Stack) -> psutil.Process:
    (found,) = [one for one in stack.members() if "ServeReplica:heimdallr:StudyConsumer" in command(one)]
    return found


def decoders(replica: psutil.Process) -> dict[int, psutil.Process]:
    """The consumer's children that decode, by process id."""
    return {one.pid: one for one in replica.children() if "heimdallr_ray.dicom.decoder" in command(one)}


def sent(stack: Stack, folder: Path, name: str, *, compressed: bool) -> str:
    """A study of the same slices, whatever its name, is acknowledged; its UID."""
    uid = str(Uid.derived("decoders", name, str(time.time_ns())))
    folder.mkdir()
    for index, dataset in enumerate(ct_datasets(SLICES, SHAPE, seed="decoders", StudyInstanceUID=uid)):
        if compressed:
            to_bytes(dataset)
            dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        (folder / f"{index:03}.dcm").write_bytes(to_bytes(dataset))
    report = send_folder(folder, host="127.0.0.1", port=stack.dicom_port, called_ae="HEIMDALLR")
    assert len(report.acknowledged) == SLICES, report
    return uid


def image(stack: Stack, uid: str) -> bytes:
    """The display volume of the study, which must be done."""
    study = stack.finished(uid)["study"]
    assert study["state"] == "done", study["reason"]
    return httpx.get(f"{stack.url}/api/v1/studies/{uid}/artifacts/display.nii.gz", timeout=30).content


def worked_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


@pytest.fixture(scope="module")
def plain(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the slices are when nothing had to be decoded."""
    uid = sent(stack, Path(tmp_path_factory.mktemp("plain")) / "study", "plain", compressed=False)
    return image(stack, uid)


def test_the_decoders_that_wait_in_the_consumer_decode_a_study(stack: Stack, tmp_path: Path, plain: bytes) -> None:
    replica = consumer(stack)
    ahead = {pid: worked_s(process) for pid, process in decoders(replica).items()}
    assert len(ahead) == min(USUAL, MAX_DECODER_PROCESSES)
    uid = sent(stack, tmp_path / "study", "compressed", compressed=True)
    assert image(stack, uid) == plain
    after = {pid: worked_s(process) for pid, process in decoders(replica).items()}
    assert after.keys() == ahead.keys()
    assert sum(after.values()) > sum(ahead.values())


def test_decoders_that_are_killed_cost_nothing(stack: Stack, tmp_path: Path, plain: bytes) -> None:
    replica = consumer(stack)
    before = decoders(replica)
    idle, *others = before.values()
    idle.kill()
    uid = sent(stack, tmp_path / "study", "killed", compressed=True)
    worked = {one.pid: worked_s(one) for one in others}

    def busy() -> psutil.Process | None:
        """One that works on the study: more than a new one needs to start, where it is new."""
        for pid, process in decoders(replica).items():
            if worked_s(process) > (worked[pid] + 0.02 if pid in worked else STARTED_S):
                return process
        return None

    deadline = time.monotonic() + WAIT_S
    found = busy()
    while found is None and time.monotonic() < deadline:
        time.sleep(0.01)
        found = busy()
    assert found is not None, "no decoder worked on the study"
    found.kill()
    assert image(stack, uid) == plain
    assert consumer(stack).pid == replica.pid
    left = decoders(replica)
    assert not {idle.pid, found.pid} & left.keys()
    assert 1 <= len(left) <= len(before)
