"""The spool on a real folder: what is durable, what is swept, what never stays."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import NotDicom, StorageFailed, StorageFull, TooLarge
from heimdallr_ray.listener.arrival import Arrival, parse_arrival
from heimdallr_ray.listener.spool import Spool

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
        written = writer.commit()
    assert files(spool) == [f"ready/{written.name}.dcm"]
    assert spool.entry(written.name) == written
    assert written.path.read_bytes()[written.dataset_offset :] == b"data set"
    assert parse_arrival(written.path.read_bytes())[1] == ARRIVAL


def test_names_are_made_here(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        name = writer.commit().name
    assert len(name) == 32
    assert int(name, 16) >= 0


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
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_refusing_disk_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
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
    assert files(spool) == []


def test_the_bytes_are_synced_before_the_name_and_the_name_before_success(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(fd: int) -> None:
        steps.append("sync folder" if Path(f"/proc/self/fd/{fd}").readlink().is_dir() else "sync file")
        real_sync(fd)

    def rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return real_rename(path, target)

    with spool.writer(ARRIVAL) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(Path, "rename", rename)
        writer.commit()
        steps.append("success")
    assert steps == ["sync file", "rename", "sync folder", "success"]


def test_sweeping_spares_living_writers(spool: Spool) -> None:
    (spool.incoming / "dead.part").write_bytes(b"half")
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"data")
        assert spool.sweep() == 1
        entry = writer.commit()
    assert files(spool) == [f"ready/{entry.name}.dcm"]


def test_the_free_minimum_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", min_free_bytes=1 << 60)
    with pytest.raises(StorageFull), spool.writer(ARRIVAL):
        pass
    assert files(spool) == []
    spool.close()


def test_foreign_and_damaged_files_are_told_apart(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        entry = writer.commit()
    content = entry.path.read_bytes()
    entry.path.write_bytes(content.replace(b'"v":1', b'"v":9'))
    with pytest.raises(NotDicom):
        spool.entry(entry.name)
    (spool.ready / "other.dcm").write_bytes(content)
    with pytest.raises(NotDicom):
        spool.entry("other")


def test_quarantine_keeps_the_bytes_and_the_reason(spool: Spool) -> None:
    with spool.writer(ARRIVAL) as writer:
        writer.write(b"data")
        entry = writer.commit()
    content = entry.path.read_bytes()
    spool.quarantine(entry.name, NotDicom("why"), ARRIVAL.received_at)
    assert (spool.quarantined / f"{entry.name}.dcm").read_bytes() == content
    assert "not_dicom" in (spool.quarantined / f"{entry.name}.json").read_text()
    assert spool.ready_files() == []
