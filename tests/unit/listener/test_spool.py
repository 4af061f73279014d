"""The spool on a real folder: what is durable, what is swept, what never stays."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import BlobMissing, NotDicom, StorageFailed, StorageFull, TooLarge
from heimdallr_ray.listener import folders
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.folders import is_held, locked_folder, remove_unlocked
from heimdallr_ray.listener.records import RECORD_AGE_S
from heimdallr_ray.listener.room import Watermarks
from heimdallr_ray.listener.spool import Spool
from heimdallr_ray.listener.writer import MAX_CHUNKS, ROOM_BYTES, SpoolEntry

ARRIVAL = Arrival(
    intake_id="association-1",
    door=Door.DICOM,
    received_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="../../etc/passwd",
    calling_ae="CT1",
    address="192.0.2.7",
    synthetic=True,
)


@pytest.fixture
def spool(tmp_path: Path):
    made = Spool(tmp_path / "spool", max_object_bytes=1000)
    yield made
    made.close()


def files(spool: Spool) -> list[str]:
    return sorted(str(path.relative_to(spool.root)) for path in spool.root.rglob("*") if path.is_file())


def test_a_file_tells_everything_about_itself(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"data ")
        writer.write(memoryview(b"set"))
        writer.commit()
        written = writer.entry()
    content = written.path.read_bytes()
    assert files(spool) == ["intakes/association-1.json", f"ready/{written.name}.{written.sha256}.dcm"]
    assert hashlib.sha256(content).hexdigest() == written.sha256
    assert content.endswith(b"data set")
    (file,) = spool.ready_files()
    found = spool.entry(file)
    assert replace(found, arrival=ARRIVAL) == written
    # The time is that of the file, and a UID that is none is not kept.
    assert abs(found.arrival.received_at.timestamp() - written.path.stat().st_mtime) < 0.001
    assert replace(found.arrival, received_at=ARRIVAL.received_at) == replace(ARRIVAL, sop_instance_uid="")


def test_the_same_object_by_another_way_is_the_same_file(spool: Spool) -> None:
    other = replace(
        ARRIVAL, intake_id="upload-2", door=Door.UPLOAD, calling_ae=None, address="198.51.100.1", synthetic=False
    )
    entries: list[SpoolEntry] = []
    for arrival in (ARRIVAL, other, replace(ARRIVAL, transfer_syntax_uid="1.2.840.10008.1.2")):
        with spool.writer(arrival) as writer:
            writer.write(b"data set")
            writer.commit()
            entries.append(writer.entry())
    assert entries[0].sha256 == entries[1].sha256 != entries[2].sha256
    assert len({entry.name for entry in entries}) == 3


def test_names_are_made_here(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.commit()
        name = writer.name
    intake, _, own = name.partition(".")
    assert intake == ARRIVAL.intake_id
    assert int(own, 16) >= 0
    with pytest.raises(ValueError, match="made here"):
        spool.begin(replace(ARRIVAL, intake_id="../../etc/x"))


def test_without_commit_nothing_stays(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"half")
    with pytest.raises(ZeroDivisionError), spool.writer(ARRIVAL) as writer:
        writer.write(b"half")
        _ = 1 / 0
    with pytest.raises(TooLarge), spool.writer(ARRIVAL) as writer:
        writer.write(b"x" * 1001)
    assert files(spool) == []


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageFailed)]
)
@pytest.mark.parametrize("calls", [("write", "writev"), ("fsync",)])
def test_a_refusing_disk_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], calls: tuple[str, ...]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        for call in calls:
            patch.setattr(os, call, refuse)
        with pytest.raises(error), spool.writer(ARRIVAL) as writer:
            writer.write(b"data")
            writer.commit()
    assert files(spool) == []


def test_a_name_that_is_not_durable_is_taken_back(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def refuse_folders(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().is_dir():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse_folders)
        with pytest.raises(StorageFailed), spool.writer(ARRIVAL) as writer:
            writer.commit()
    assert [name for name in files(spool) if not name.startswith("intakes/")] == []


def test_the_bytes_are_synced_before_the_name_and_the_name_before_success(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(fd: int) -> None:
        steps.append("sync folder" if Path(f"/proc/self/fd/{fd}").readlink().is_dir() else "sync file")
        real_sync(fd)

    def rename(path: str, target: str) -> None:
        steps.append("rename")
        real_rename(path, target)

    with spool.writer(ARRIVAL) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "rename", rename)
        writer.commit()
        steps.append("success")
    # The record of the association is durable before the first name that needs it.
    assert steps == ["sync file", "sync file", "sync folder", "rename", "sync folder", "success"]


def test_the_record_of_an_association_is_written_once_and_goes_with_its_last_file(spool: Spool) -> None:
    entries: list[SpoolEntry] = []
    for _ in range(2):
        with spool.writer(ARRIVAL) as writer:
            writer.commit()
            entries.append(writer.entry())
    later = time.time() + RECORD_AGE_S + 1
    record = spool.intakes / "association-1.json"
    spool.end_intake("association-1")
    spool.remove(entries[0])
    assert spool.tidy(later) == 0
    spool.remove(entries[1])
    assert spool.tidy(time.time()) == 0
    assert record.exists()
    assert spool.tidy(later) == 1
    assert not record.exists()
    with spool.writer(ARRIVAL) as writer:
        writer.commit()
        spool.remove(writer.entry())
    # It is open again: another process leaves its record alone.
    assert spool.tidy(later) == 0


def test_a_file_without_its_record_is_not_lost(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.commit()
        entry = writer.entry()
    for damaged in (b"{", b'{"v":9}', None):
        if damaged is None:
            (spool.intakes / "association-1.json").unlink()
        else:
            (spool.intakes / "association-1.json").write_bytes(damaged)
        found = spool.entry(spool.ready_files()[0])
        assert found.sha256 == entry.sha256
        assert found.arrival.intake_id == "association-1"
        assert found.arrival.calling_ae is None


def test_sweeping_spares_living_writers(spool: Spool) -> None:
    (spool.incoming / "dead.part").write_bytes(b"half")
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"data")
        assert spool.sweep() == 1
        writer.commit()
        entry = writer.entry()
    assert files(spool) == ["intakes/association-1.json", f"ready/{entry.path.name}"]


def test_the_free_minimum_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", marks=Watermarks(min_free_bytes=1 << 60))
    with pytest.raises(StorageFull), spool.writer(ARRIVAL):
        pass
    assert files(spool) == []
    spool.close()


def test_the_free_minimum_is_kept_by_an_object_that_grows(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    chunk = bytes(ROOM_BYTES // 2)
    with spool.writer(ARRIVAL) as writer:
        for _ in range(2):
            writer.write(chunk)
        # Others fill the disk meanwhile.
        spool.marks = Watermarks(min_free_bytes=1 << 60)
        with pytest.raises(StorageFull):
            writer.write(chunk)
    assert files(spool) == []
    spool.close()


def test_foreign_and_damaged_files_are_told_apart(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.commit()
        entry = writer.entry()
    content = entry.path.read_bytes()
    entry.path.write_bytes(content[:-2] + b"xx")
    with pytest.raises(BlobMissing):
        spool.entry(spool.ready_files()[0])
    spool.remove(entry)
    (spool.ready / "other.dcm").write_bytes(b"x" * 200)
    (spool.ready / ".hidden").write_bytes(content)
    with pytest.raises(NotDicom):
        spool.entry(spool.ready_files()[0])
    assert [file.name for file in spool.ready_files()] == ["other"]


def test_quarantine_keeps_the_bytes_and_the_reason(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"data")
        writer.commit()
        entry = writer.entry()
    content = entry.path.read_bytes()
    spool.quarantine(spool.ready_files()[0], NotDicom("why"), ARRIVAL.received_at)
    assert (spool.quarantined / f"{entry.name}.dcm").read_bytes() == content
    assert "not_dicom" in (spool.quarantined / f"{entry.name}.json").read_text()
    assert spool.ready_files() == []


def test_without_waiting_for_the_disk_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool", durable=False)
    synced: list[int] = []
    with spool.writer(ARRIVAL) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced.append)
        writer.write(b"data")
        writer.commit()
    assert synced == []
    # What becomes an instance as a whole is acknowledged as a whole, and always durable.
    with spool.staging() as staging, spool.writer(ARRIVAL, staging=staging) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced.append)
        writer.commit()
    assert len(synced) == 1
    spool.close()


def test_empty_chunks_are_not_held(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.holds = True
        empty = bytearray()
        before = sys.getrefcount(empty)
        for _ in range(1000):
            writer.write(empty)
        assert sys.getrefcount(empty) == before
        writer.write(b"data")
        writer.commit()
        assert writer.entry().path.read_bytes().endswith(b"data")


def test_chunks_that_are_held_are_few_however_small(spool: Spool) -> None:
    content = bytes(range(256)) * 3
    with spool.writer(ARRIVAL) as writer:
        writer.holds = True
        held = 0
        for start in range(len(content)):
            for chunk in (content[start : start + 1], b""):
                writer.write(chunk)
            held += 1
            if writer.due:
                assert held <= MAX_CHUNKS
                writer.flush()
                held = 0
        writer.commit()
        entry = writer.entry()
    assert entry.path.read_bytes().endswith(content)
    assert hashlib.sha256(entry.path.read_bytes()).hexdigest() == entry.sha256
    assert held < len(content)


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, locks, real = tmp_path / "new", list[int](), fcntl.flock

    def sweeping(fd: int, how: int) -> None:
        locks.append(fd)
        if len(locks) == 1:
            folder.rmdir()
        if len(locks) == 2:
            raise BlockingIOError(errno.EWOULDBLOCK, "looked at")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", sweeping)
    before = len(list(Path("/proc/self/fd").iterdir()))
    made, fd = locked_folder(folder)
    assert len(locks) == 3
    assert os.path.samestat(os.fstat(fd), made.stat())
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    monkeypatch.undo()
    assert is_held(folder) and not remove_unlocked(folder)
    os.close(fd)
    assert not is_held(folder)


def test_a_folder_that_is_swept_again_and_again_is_a_failure_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    monkeypatch.setattr(folders, "AGAIN_S", 0.0)
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _how: folder.rmdir())
    with pytest.raises(StorageFailed):
        locked_folder(folder)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_receiving_process_starts_on_a_disk_that_gives_it_no_folder(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It refuses objects, and takes them as soon as the disk does."""
    Spool(tmp_path / "spool").close()
    with monkeypatch.context() as refusing:
        refusing.setattr(fcntl, "flock", lambda _fd, _how: (_ for _ in ()).throw(OSError(code, "no")))
        spool = Spool(tmp_path / "spool", receiving=True)
    assert "receiving_process.no_folder" in caplog.messages
    assert spool.outlived(0.0) == []
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"abc")
        writer.commit()
    assert spool.outlived(0.0) == [os.getpid()]
    spool.close()
    assert spool.outlived(0.0) == []


def test_who_cannot_be_looked_at_is_not_taken_for_gone(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Spool(spool.root, receiving=True)
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _how: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(StorageFailed):
        spool.outlived(0.0)
    held.close()
