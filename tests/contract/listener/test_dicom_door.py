"""The DICOM door with dcmtk's own clients: what they send is what is stored."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from heimdallr_ray.clients.files import Outgoing
from heimdallr_ray.clients.send import send_folder
from tests.contract.listener.conftest import LONG, MakeIntake
from tests.support.intake import (
    Intake,
    all_committed,
    ct_slice,
    dataset_bytes,
    dcmtk,
    file_bytes,
    sha256,
    storescu,
    wait_for,
    write_study,
)

pytestmark = pytest.mark.peers("storescu", "dcmsend", "echoscu")

SUCCESS = "Received Store Response (Success)"


def test_echo(intake: Intake) -> None:
    with intake.listening() as service:
        done = dcmtk("echoscu", "-aec", "HEIMDALLR", "127.0.0.1", str(service.scp.port))
        assert done.returncode == 0, done.stderr


def test_a_sent_study_is_stored_byte_for_byte_and_closed_once(intake: Intake, tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 12)
    with intake.listening() as service:
        said = storescu(service.scp.port, paths)
        assert said.count(SUCCESS) == 12, said
        jobs = wait_for(intake.jobs, 60, "the study to be queued")
        sent = {str(dcmread(path).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes())) for path in paths}
        assert intake.stored() == sent
        assert len(jobs) == 1
        assert [study.state for study in intake.studies()] == ["queued"]
        assert intake.studies()[0].n_instances == 12
        assert {row.calling_ae for row in intake.instances()} == {"STORESCU"}
        wait_for(lambda: not intake.spooled(), 30, "the spool to be empty")


def test_an_object_of_any_size_has_the_digest_of_its_own_bytes(intake: Intake, tmp_path: Path) -> None:
    # In one association, on both sides of what a receiver holds in memory.
    paths: list[Path] = []
    for index, size in enumerate((4, 512, 723, 724, 725, 64, 1100, 1600, 1, 600, 600)):
        paths.append(tmp_path / f"{index}.dcm")
        paths[-1].write_bytes(file_bytes(ct_slice(index, "1.2.3", "1.2.3.4", size=size)))
    sent = {str(dcmread(path).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes())) for path in paths}
    with intake.listening() as service:
        assert storescu(service.scp.port, paths).count(SUCCESS) == len(paths)
        wait_for(intake.jobs, 60, "the study to be queued")
    assert intake.stored() == sent
    for row in intake.instances():
        intake.blobs.verify(row.blob_sha256)


@pytest.mark.data
def test_a_real_study_by_dcmsend(intake: Intake, data_folder: Path) -> None:
    folder = data_folder / "dcm_qa_ct" / "Philips_S21570"
    sent: dict[str, str] = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "DIRFILE":
            sent[str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = sha256(dataset_bytes(path.read_bytes()))
    assert len(sent) > 28
    with intake.listening() as service:
        done = dcmtk(
            "dcmsend", "-v", "-aec", "HEIMDALLR", "127.0.0.1", str(service.scp.port),
            "--scan-directories", "--recurse", "--no-halt", str(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(intake.jobs, 30, "the study to be queued")
    assert intake.stored() == sent
    assert len(intake.studies()) == 1


ENCODINGS = (
    "JPEG2000.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "image_dfl.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "rtplan.dcm",
    "test-SR.dcm",
    "CT_small.dcm",
)


def test_every_encoding_is_kept_byte_for_byte(intake: Intake, tmp_path: Path) -> None:
    files = [Path(str(get_testdata_file(name))).read_bytes() for name in ENCODINGS]
    for index, content in enumerate(files):
        (tmp_path / f"{index}.dcm").write_bytes(content)
    sent = [dcmread(io.BytesIO(content), stop_before_pixels=True) for content in files]
    with intake.listening() as service:
        report = send_folder(tmp_path, "127.0.0.1", service.scp.port, "HEIMDALLR")
        assert (report.sent, report.failed) == (len(ENCODINGS), 0), report.as_json()
        assert all_committed(service)
    assert intake.stored() == {
        str(dataset.SOPInstanceUID): sha256(dataset_bytes(content))
        for dataset, content in zip(sent, files, strict=True)
    }
    syntaxes = {row.sop_uid: row.transfer_syntax_uid for row in intake.instances()}
    assert syntaxes == {str(item.SOPInstanceUID): str(item.file_meta.TransferSyntaxUID) for item in sent}
    for row in intake.instances():
        assert intake.blobs.path(row.blob_sha256).read_bytes()[:128] == b"\0" * 128


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_RLE.dcm", "image_dfl.dcm"])
def test_compressed_objects_from_dcmsend_are_not_touched(intake: Intake, name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    with intake.listening() as service:
        done = dcmtk(
            "dcmsend", "-v", "-aec", "HEIMDALLR", "--decompress-never", "127.0.0.1", str(service.scp.port), str(path)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = wait_for(intake.instances, 30, "the row")
    original = dcmread(path)
    assert rows[0].transfer_syntax_uid == str(original.file_meta.TransferSyntaxUID)
    assert dcmread(intake.blobs.path(rows[0].blob_sha256)).PixelData == original.PixelData


@LONG
def test_two_associations_at_once(intake: Intake, tmp_path: Path) -> None:
    first = write_study(tmp_path / "a", 20, "1.2.826.0.1.3680043.9.9.10")
    second = write_study(tmp_path / "b", 20, "1.2.826.0.1.3680043.9.9.20")
    said: list[str] = []
    with intake.listening() as service:
        port = service.scp.port
        senders = [threading.Thread(target=lambda p=p: said.append(storescu(port, p))) for p in (first, second)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        assert [text.count(SUCCESS) for text in said] == [20, 20]
        wait_for(lambda: len(intake.jobs()) == 2, 60, "both studies to be queued")
    assert sorted(study.n_instances for study in intake.studies()) == [20, 20]
    assert len({row.association_id for row in intake.instances()}) == 2


@LONG
def test_a_study_is_not_closed_while_its_association_is_open(intake: Intake, tmp_path: Path) -> None:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.sop_class import CTImageStorage  # pyright: ignore[reportAttributeAccessIssue]

    paths = write_study(tmp_path / "study", 2)
    entity = ApplicationEntity("SLOW")
    entity.add_requested_context(CTImageStorage)
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert association.send_c_store(str(paths[0])).Status == 0
        time.sleep(3 * intake.settings.idle_seconds)
        assert intake.jobs() == []
        assert association.send_c_store(str(paths[1])).Status == 0
        association.release()
        wait_for(intake.jobs, 60, "the study to be queued after the release")
    assert [study.n_instances for study in intake.studies()] == [2]
    assert [study.epoch for study in intake.studies()] == [1]


@pytest.mark.parametrize(
    ("settings", "called", "reason"),
    [
        ({}, "WRONG", "called_ae"),
        ({"allowed_calling_aes": ("CT1",)}, "HEIMDALLR", "calling_ae"),
        ({"allowed_addresses": ("10.1.0.0/16",)}, "HEIMDALLR", "address"),
    ],
)
def test_strangers_are_refused(
    tmp_path: Path,
    make_intake: MakeIntake,
    settings: dict[str, object],
    called: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake = make_intake(tmp_path / "data", **settings)

    def logged() -> list[str]:
        return [str(vars(record)["reason"]) for record in caplog.records if "reason" in vars(record)]

    with intake.listening() as service:
        done = dcmtk("echoscu", "-aec", called, "127.0.0.1", str(service.scp.port))
        assert done.returncode != 0
        # The stranger's program may have ended before the line is written.
        wait_for(lambda: reason in logged(), 30, f"the log line that says {reason}")
        # The rules refuse the stranger, not everybody.
        if called == "WRONG":
            assert dcmtk("echoscu", "-aec", "HEIMDALLR", "127.0.0.1", str(service.scp.port)).returncode == 0
        if "allowed_calling_aes" in settings:
            done = dcmtk("echoscu", "-aet", "CT1", "-aec", "HEIMDALLR", "127.0.0.1", str(service.scp.port))
            assert done.returncode == 0


def test_more_associations_than_allowed_are_rejected_transiently(tmp_path: Path, make_intake: MakeIntake) -> None:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.sop_class import Verification  # pyright: ignore[reportAttributeAccessIssue]

    intake = make_intake(tmp_path / "data", max_associations=2)
    entity = ApplicationEntity("PEER")
    entity.add_requested_context(Verification)
    with intake.listening() as service:
        held = [entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR") for _ in range(2)]
        assert all(item.is_established for item in held)
        third = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert third.is_rejected
        rejection = third.acceptor.primitive
        assert rejection is not None
        assert rejection.result == 0x02
        held[0].release()
        wait_for(lambda: len(service.registry.open_associations()) == 1, 30, "the released association to be forgotten")
        fourth = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert fourth.is_established
        fourth.release()
        held[1].release()


def test_a_connection_cut_midway_leaves_no_file_and_no_row(intake: Intake, tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    path.write_bytes(file_bytes(ct_slice(1, "1.2.3.4", "1.2.3.4.5", size=1024)))
    with intake.listening() as service:
        with socket.create_server(("127.0.0.1", 0)) as front:
            relay = threading.Thread(target=_relay_until, args=(front, service.scp.port, 200_000))
            relay.start()
            said = storescu(front.getsockname()[1], [path])
            relay.join(30)
        assert SUCCESS not in said
        wait_for(lambda: not service.registry.open_associations(), 30, "the association to be gone")
        assert intake.instances() == []
        assert intake.spooled() == []
        assert storescu(service.scp.port, [path]).count(SUCCESS) == 1


def _relay_until(front: socket.socket, port: int, limit: int) -> None:
    """Pass bytes both ways; cut both sides once `limit` bytes went to the listener."""
    client, _ = front.accept()
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        client.settimeout(0.01)
        server.settimeout(0.01)
        passed = 0
        while passed < limit:
            for source, target in ((client, server), (server, client)):
                try:
                    chunk = source.recv(8192)
                except TimeoutError:
                    continue
                if not chunk:
                    return
                target.sendall(chunk)
                passed += len(chunk) if source is client else 0


def test_a_full_disk_answers_a700_and_the_association_goes_on(
    near_intake: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails_on(monkeypatch, near_intake, "write", errno.ENOSPC, which=3)
    said, stored = _send_six(near_intake, tmp_path)
    assert said.count(SUCCESS) == 5, said
    assert "Refused: OutOfResources" in said
    assert len(stored) == 5
    assert near_intake.spooled() == []


def test_a_failing_fsync_answers_a701_and_loses_only_that_image(
    near_intake: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails_on(monkeypatch, near_intake, "fsync", errno.EIO, which=4)
    said, stored = _send_six(near_intake, tmp_path)
    assert said.count(SUCCESS) == 5, said
    assert len(stored) == 5
    assert near_intake.spooled() == []


def _send_six(intake: Intake, tmp_path: Path) -> tuple[str, dict[str, str]]:
    with intake.listening() as service:
        said = storescu(service.scp.port, write_study(tmp_path / "study", 6), "--no-halt")
        assert all_committed(service)
    return said, intake.stored()


def _fails_on(monkeypatch: pytest.MonkeyPatch, intake: Intake, call: str, code: int, which: int) -> None:
    """The operating system refuses `call` for the `which`th spooled object, as it would on a full or broken disk."""
    seen: set[str] = set()

    def failing(real: Callable[..., object], fd: int, *arguments: object) -> object:
        target = str(Path(f"/proc/self/fd/{fd}").readlink())
        if target.startswith(str(intake.settings.spool_dir)) and target.endswith(".part"):
            seen.add(target)
            if len(seen) == which:
                raise OSError(code, os.strerror(code))
        return real(fd, *arguments)

    for name in [call, "writev"] if call == "write" else [call]:
        monkeypatch.setattr(os, name, partial(failing, getattr(os, name)))


def test_below_the_free_minimum_the_association_is_rejected(tmp_path: Path, make_intake: MakeIntake) -> None:
    intake = make_intake(tmp_path / "data", min_free_mib=1 << 40)
    with intake.listening() as service:
        assert dcmtk("echoscu", "-aec", "HEIMDALLR", "127.0.0.1", str(service.scp.port)).returncode != 0


def test_an_object_whose_header_cannot_be_read_is_refused_before_success(intake: Intake, tmp_path: Path) -> None:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.sop_class import CTImageStorage  # pyright: ignore[reportAttributeAccessIssue]

    from heimdallr_ray.clients import send

    good = write_study(tmp_path / "study", 1)[0].read_bytes()
    broken = tmp_path / "broken.dcm"
    body = dataset_bytes(good)
    broken.write_bytes(good[: len(good) - len(body)] + b"\x08\x00\x05\x00CS\xff\xff" + body[:100])
    entity = ApplicationEntity("PEER")
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        # Our client would not send such a file, so the request is put together by hand.
        item = Outgoing(broken, CTImageStorage, "1.2.3", "", "1.2.840.10008.1.2.1", len(good) - len(body))
        assert send._store(association, item, 1, 1) == 0xC000
        association.release()
    assert intake.instances() == []
    assert intake.spooled() == []


@LONG
def test_the_same_study_again_adds_nothing_and_is_not_run_again(intake: Intake, tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 5)
    with intake.listening() as service:
        for _ in range(3):
            assert storescu(service.scp.port, paths).count(SUCCESS) == 5
            wait_for(lambda: len(intake.jobs()) == 1, 60, "one job")
        assert all_committed(service)
        time.sleep(2 * intake.settings.idle_seconds)
    assert len(intake.instances()) == 5
    assert len(intake.jobs()) == 1


def test_a_restart_commits_what_a_dead_listener_left(intake: Intake, tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 4)
    with intake.listening() as service:
        # The committer is dead before anything is sent: what is acknowledged exists in the spool alone.
        service.watcher.stop()
        service.receiver.stop(timeout_s=1)
        assert storescu(service.scp.port, paths).count(SUCCESS) == 4
        assert intake.instances() == []
        assert len(intake.spooled()) == 4
        (intake.settings.spool_dir / "incoming" / "dead.part").write_bytes(b"half")
    with intake.listening():
        assert len(intake.stored()) == 4
        assert intake.spooled() == []
