"""The C-STORE client against our own listener and dcmtk's storescp."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from heimdallr_ray.clients import send
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.errors import BadSetting, EmptyInput, NotReady
from tests.support.intake import Intake, all_committed, ct_slice, dataset_bytes, file_bytes, sha256, write_study


def test_a_folder_with_other_files(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    paths = write_study(tmp_path / "study" / "deep" / "folder", 5)
    (tmp_path / "study" / "notes.txt").write_text("no DICOM")
    (tmp_path / "study" / "bare").write_bytes(dataset_bytes(paths[0].read_bytes()))
    told: list[tuple[int, int]] = []
    with intake.listening() as service:
        report = send_folder(
            tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR", on_progress=lambda *now: told.append(now)
        )
        assert all_committed(service)
    assert (report.sent, report.failed, report.skipped, report.associations) == (6, 0, 1, 1)
    assert [(item.path, item.reason) for item in report.skipped_files] == [
        ("notes.txt", "neither a Part 10 file nor a data set")
    ]
    assert (report.study_uids, report.without_study_uid) == (("1.2.826.0.1.3680043.9.9.1",), 0)
    assert told == [(done, 6) for done in range(1, 7)]
    assert intake.stored() == {
        str(dcmread(path).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes())) for path in paths
    }
    assert set(report.acknowledged) == set(intake.stored())


def test_more_contexts_than_one_association_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "MAX_CONTEXTS", 2)
    intake = Intake(tmp_path / "data")
    for index in range(1, 6):
        dataset = dcmread(write_study(tmp_path / "one", 1)[0])
        dataset.SOPClassUID = f"1.2.826.0.1.3680043.9.55.{index}"
        dataset.SOPInstanceUID = f"1.2.3.{index}"
        (tmp_path / "study").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "study" / f"{index}.dcm", enforce_file_format=True)
    with intake.listening() as service:
        report = send_folder(tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR")
    assert (report.sent, report.associations) == (5, 3)


def test_objects_without_a_study_uid_are_counted(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    (tmp_path / "study").mkdir()
    for index in range(3):
        (tmp_path / "study" / str(index)).write_bytes(file_bytes(ct_slice(index, "", "1.2.3.7")))
    with intake.listening() as service:
        report = send_folder(tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR")
    assert (report.sent, report.study_uids, report.without_study_uid) == (3, (), 3)


def test_refusals_are_typed(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    write_study(tmp_path / "study", 1)
    (tmp_path / "empty").mkdir()
    with intake.listening() as service:
        port = service.scp.port
        with pytest.raises(BadSetting, match="called AE"):
            send_folder(tmp_path / "study", "127.0.0.1", port, "WRONG")
        with pytest.raises(EmptyInput):
            send_folder(tmp_path / "empty", "127.0.0.1", port, "HEIMDALLR")
    with pytest.raises(NotReady):
        send_folder(tmp_path / "study", "127.0.0.1", port, "HEIMDALLR", attempts=2)


@pytest.mark.peers("storescp")
def test_dcmtk_receives_what_lies_on_the_disk(tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 3)
    received = tmp_path / "received"
    received.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    # +B: write the data set exactly as it was received.
    peer = subprocess.Popen(
        ["/usr/bin/storescp", "+B", "-od", str(received), str(port)], env={**os.environ, "TCP_NODELAY": "1"}
    )
    try:
        time.sleep(0.3)
        assert send_folder(tmp_path / "study", "127.0.0.1", port, "ANY", attempts=20).sent == 3
    finally:
        peer.terminate()
        peer.wait(10)
    assert sorted(sha256(dataset_bytes(path.read_bytes())) for path in received.iterdir()) == sorted(
        sha256(dataset_bytes(path.read_bytes())) for path in paths
    )
