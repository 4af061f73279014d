"""The ZIP door: what an archive holds becomes instances, bytes unchanged, as a whole or not at all."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID
from sqlmodel import select

from heimdallr_ray.catalog.studies import study_by_uid
from heimdallr_ray.catalog.tables import SeriesRow
from heimdallr_ray.errors import Draining, HeimdallrError, NotDicom, StorageFull, TooLarge, TruncatedObject
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener import receive
from heimdallr_ray.listener.archive import ArchiveLimits, receive_zip
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.listener.receive import Accepted, Receiver
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, write_study

LIMITS = ArchiveLimits(max_entries=1000, max_unpacked_bytes=1 << 30)


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data")


@pytest.fixture
def receiver(intake: Intake) -> Receiver:
    return Receiver(intake.settings, intake.database, intake.blobs, intake.clock)


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as output:
        for name, content in members.items():
            output.writestr(name, content)
    return path


def test_a_study_with_other_files_beside_it(tmp_path: Path, intake: Intake, receiver: Receiver) -> None:
    paths = write_study(tmp_path / "study", 5)
    members = {f"folder/{path.name}": path.read_bytes() for path in paths}
    members["folder/readme.txt"] = b"hello"
    members["DICOMDIR"] = file_bytes_of_dicomdir()
    members["empty"] = b""
    outcome = receive_zip(zipped(tmp_path / "a.zip", members), receiver, LIMITS, "u1")
    assert (outcome.accepted, outcome.rejected, outcome.skipped) == (5, 2, 1)
    assert {code for _, code in outcome.rejections} == {"not_dicom"}
    assert outcome.study_uids == ("1.2.826.0.1.3680043.9.9.1",)
    assert intake.stored() == {
        str(dcmread(path).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes())) for path in paths
    }
    assert intake.spooled() == []
    assert {row.door for row in intake.instances()} == {"upload"}


def test_an_upload_that_is_still_unpacked_when_the_drain_begins_is_refused_whole(
    tmp_path: Path, intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = DrainMark(intake.settings.run_dir)
    accept, unpacked = receiver.accept, list[str]()

    def accept_then_drain(*arguments: Any, **named: Any) -> Accepted:
        if unpacked:
            mark.set()
            assert mark.quiet()
        accepted = accept(*arguments, **named)
        unpacked.append(accepted.entry.name)
        return accepted

    monkeypatch.setattr(receiver, "accept", accept_then_drain)
    paths = write_study(tmp_path / "study", 3)
    archive = zipped(tmp_path / "a.zip", {path.name: path.read_bytes() for path in paths})
    with pytest.raises(Draining):
        receive_zip(archive, receiver, LIMITS, "u1")
    assert len(unpacked) == 3
    assert (intake.instances(), intake.spooled()) == ([], [])
    mark.clear()
    monkeypatch.undo()
    assert receive_zip(archive, receiver, LIMITS, "u2").accepted == 3


def test_a_drain_waits_for_an_upload_that_is_being_stored(
    tmp_path: Path, intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = DrainMark(intake.settings.run_dir)
    keep, seen = intake.blobs.keep, list[bool]()

    def keep_while_it_drains(files: Sequence[tuple[Path, Sha256]]) -> None:
        mark.set()
        seen.append(mark.quiet())
        keep(files)

    monkeypatch.setattr(intake.blobs, "keep", keep_while_it_drains)
    paths = write_study(tmp_path / "study", 3)
    archive = zipped(tmp_path / "a.zip", {path.name: path.read_bytes() for path in paths})
    assert receive_zip(archive, receiver, LIMITS, "u1").accepted == 3
    assert seen == [False]
    assert mark.quiet()
    assert [study.n_instances for study in intake.studies()] == [3]


def file_bytes_of_dicomdir() -> bytes:
    dataset = ct_slice(1, "1.2.3", "1.2.3.4")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.1.3.10")
    return file_bytes(dataset)


def test_bare_data_sets_and_deflated_objects_keep_their_bytes(
    tmp_path: Path, intake: Intake, receiver: Receiver
) -> None:
    complete = file_bytes(ct_slice(1, "1.2.3", "1.2.3.4"))
    bare = dataset_bytes(complete)
    deflated = Path(str(get_testdata_file("image_dfl.dcm"))).read_bytes()
    outcome = receive_zip(zipped(tmp_path / "a.zip", {"bare": bare, "deflated": deflated}), receiver, LIMITS, "u1")
    assert (outcome.accepted, outcome.rejected) == (2, 0)
    assert set(intake.stored().values()) == {sha256(bare), sha256(dataset_bytes(deflated))}
    bare_row = next(row for row in intake.instances() if row.sop_uid == "1.2.3.4.1")
    assert dcmread(intake.blobs.path(bare_row.blob_sha256)).PatientID == "P1"


def blank(index: int, patient_id: str = "P1") -> bytes:
    """As some exporters write: the study, series and instance identifiers are in the file meta or nowhere."""
    dataset = ct_slice(index, "", "", patient_id=patient_id)
    dataset.SOPInstanceUID = ""
    return file_bytes(dataset)


def test_blank_identifiers_in_one_upload_are_one_study_and_one_series(
    tmp_path: Path, intake: Intake, receiver: Receiver
) -> None:
    archive = zipped(tmp_path / "a.zip", {f"{index}": blank(index) for index in range(1, 6)})
    outcome = receive_zip(archive, receiver, LIMITS, "u1")
    assert outcome.accepted == 5
    assert len(outcome.study_uids) == 1
    assert [(study.n_instances, study.uid_generated) for study in intake.studies()] == [(5, True)]
    with intake.database.read() as session:
        assert [row.n_instances for row in session.exec(select(SeriesRow)).all()] == [5]
    assert {row.sop_uid for row in intake.instances()} == {f"2.25.1.{index}" for index in range(1, 6)}
    # The same again is the same study, by whichever upload; who asks by the UID that this one was told finds it.
    again = receive_zip(archive, receiver, LIMITS, "u2")
    assert (again.accepted, again.already_there, len(intake.studies()), len(intake.instances())) == (5, 5, 1, 5)
    assert again.study_uids != outcome.study_uids
    with intake.database.read() as session:
        found = [study_by_uid(session, uid) for uid in (*outcome.study_uids, *again.study_uids)]
    assert [study.study_uid for study in found if study is not None] == [outcome.study_uids[0]] * 2
    # Other images are another study; another patient in one upload is never the same study.
    others = zipped(tmp_path / "b.zip", {f"{index}": blank(index) for index in range(6, 8)})
    receive_zip(others, receiver, LIMITS, "u3")
    assert sorted(study.n_instances for study in intake.studies()) == [2, 5]
    mixed = zipped(tmp_path / "c.zip", {"a": blank(1), "b": blank(2, patient_id="P2")})
    assert len(receive_zip(mixed, receiver, LIMITS, "u4").study_uids) == 2
    assert sorted(study.n_instances for study in intake.studies()) == [1, 2, 5]


@pytest.mark.data
def test_real_objects_with_blank_identifiers_are_one_study(
    tmp_path: Path, intake: Intake, receiver: Receiver, data_folder: Path
) -> None:
    folder = data_folder / "totalsegmentator" / "example_ct_dicom"
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    assert len(files) == 20
    outcome = receive_zip(zipped(tmp_path / "a.zip", files), receiver, LIMITS, "u1")
    assert (outcome.accepted, outcome.rejected, len(outcome.study_uids)) == (20, 0, 1)
    assert [study.n_instances for study in intake.studies()] == [20]
    assert sorted(intake.stored().values()) == sorted(sha256(dataset_bytes(content)) for content in files.values())


def test_the_same_upload_again_adds_nothing(tmp_path: Path, intake: Intake, receiver: Receiver) -> None:
    members = {path.name: path.read_bytes() for path in write_study(tmp_path / "study", 3)}
    for upload in ("u1", "u2"):
        assert receive_zip(zipped(tmp_path / "a.zip", members), receiver, LIMITS, upload).accepted == 3
    assert len(intake.instances()) == 3


def test_a_disk_that_fills_up_midway_keeps_nothing(
    tmp_path: Path, intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {path.name: path.read_bytes() for path in write_study(tmp_path / "study", 4)}
    archive = zipped(tmp_path / "a.zip", members)
    real, calls = os.fsync, 0

    def full(fd: int) -> None:
        nonlocal calls
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".part":
            calls += 1
            if calls == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        receive_zip(archive, receiver, LIMITS, "u1")
    assert intake.instances() == []
    assert intake.spooled() == []
    monkeypatch.setattr(os, "fsync", real)
    assert receive_zip(archive, receiver, LIMITS, "u2").accepted == 4


def test_what_a_dead_uploader_left_is_swept(intake: Intake, receiver: Receiver) -> None:
    folder = intake.settings.spool_dir / "incoming" / "dead.staging"
    folder.mkdir()
    (folder / "one.dcm").write_bytes(b"x")
    with receiver.spool.staging() as alive:
        assert receiver.replay() == 0
        assert not folder.exists()
        assert alive.folder.is_dir()


GOOD = {f"{index}.dcm": file_bytes(ct_slice(index, "1.2.3", "1.2.3.4")) for index in range(1, 4)}
ONE = GOOD["1.dcm"]
CUT = ONE[: len(ONE) - 64 * 64 * 2 - 60]
"""Ends inside its header. One that ends inside its pixels is kept as it came, and its study says so."""


@pytest.mark.parametrize(
    ("bad", "error", "codes"),
    [
        ({"cut": CUT}, TruncatedObject, "1 of 4 .*truncated 1"),
        ({"cut": CUT, "again": CUT[:-100]}, TruncatedObject, "2 of 5 .*truncated 2"),
        ({"bare, cut": dataset_bytes(CUT)}, TruncatedObject, "1 of 4 .*truncated 1"),
        ({"meta cut": ONE[:150]}, NotDicom, "1 of 4 .*not_dicom 1"),
        ({"only meta": ONE[: len(ONE) - len(dataset_bytes(ONE))]}, HeimdallrError, "1 of 4 "),
        ({"large": file_bytes(ct_slice(9, "1.2.3", "1.2.3.4", size=800))}, TooLarge, "1 of 4 .*too_large 1"),
    ],
)
def test_an_upload_with_an_image_that_cannot_be_kept_is_refused_whole_so_that_its_sender_keeps_it(
    tmp_path: Path, bad: dict[str, bytes], error: type[HeimdallrError], codes: str
) -> None:
    intake = Intake(tmp_path / "data", max_instance_mib=1)
    receiver = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    members = {**bad, **GOOD, "readme.txt": b"hello"}
    with pytest.raises(error, match=codes):
        receive_zip(zipped(tmp_path / "a.zip", members), receiver, LIMITS, "u1")
    assert (intake.instances(), intake.studies(), intake.spooled()) == ([], [], [])


def test_a_death_between_two_transactions_of_an_upload_leaves_no_part_of_a_study(
    tmp_path: Path, intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {
        f"{study}-{index}.dcm": file_bytes(ct_slice(index, study, f"{study}.1"))
        for index in range(1, 6)
        for study in ("1.2.1", "1.2.2", "1.2.3")
    }
    archive = zipped(tmp_path / "a.zip", members)
    real, calls = receive.record_instances, 0

    def dies_at_the_second(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(receive, "UPLOAD_GROUP_SIZE", 2)
    with monkeypatch.context() as patch:
        patch.setattr(receive, "record_instances", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            receive_zip(archive, receiver, LIMITS, "u1")
    assert [study.n_instances for study in intake.studies()] == [5]
    # The sender heard nothing and sends it again.
    assert receive_zip(archive, receiver, LIMITS, "u2").accepted == 15
    assert sorted((study.study_uid, study.n_instances) for study in intake.studies()) == [
        ("1.2.1", 5), ("1.2.2", 5), ("1.2.3", 5),
    ]  # fmt: skip
    assert len(intake.instances()) == 15
    assert intake.spooled() == []
