"""One data set by several doors, named otherwise by each: Success, counted, one row. Other bytes are another image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.catalog.received import ReceivedInstance
from heimdallr_ray.catalog.recording import RecordOutcome
from heimdallr_ray.listener.archive import ArchiveLimits, receive_upload
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.listener.wrapping import DataSets
from tests.support.intake import Intake, all_committed, ct_slice, dataset_bytes, file_bytes
from tests.support.wirepeer import WirePeer

LIMITS = ArchiveLimits(max_entries=10, max_unpacked_bytes=1 << 30)
STUDY = "1.2.826.0.1.3680043.9.9.55"
UID = f"{STUDY}.7.1"
IMAGE = dataset_bytes(file_bytes(ct_slice(1, STUDY, f"{STUDY}.7")))
CHANGED = IMAGE[:-2] + b"\1\2"


def rows(intake: Intake) -> list[tuple[str, bool]]:
    return [(row.sop_uid, row.sop_uid_conflict) for row in intake.instances()]


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("together", [False, True])
def test_the_affected_uids_of_a_request_make_no_second_image(tmp_path: Path, processes: int, together: bool) -> None:
    """`together`: both objects wait for one transaction."""
    intake = Intake(tmp_path / "data", listener_processes=processes, idle_seconds=60.0)
    with intake.listening() as service:
        for named in (UID, "", "1.2.3"):
            with WirePeer(service.scp.port) as peer:
                assert peer.store(IMAGE, named) == 0
            if not together:
                assert all_committed(service)
        assert all_committed(service)
        assert rows(intake) == [(UID, False)]
        counts = service.receiver.counts()
        assert (counts.committed, counts.duplicates, counts.conflicts) == (1, 2, 0)
        # Other bytes are an image of their own, once, and both are flagged.
        for named in (UID, ""):
            with WirePeer(service.scp.port) as peer:
                assert peer.store(CHANGED, named) == 0
        assert all_committed(service)
        assert rows(intake) == [(UID, True)] * 2
        counts = service.receiver.counts()
        assert (counts.committed, counts.duplicates, counts.conflicts) == (2, 3, 1)
        assert len({row.blob_sha256 for row in intake.instances()}) == 2
    assert [study.n_instances for study in intake.studies()] == [2]
    assert intake.spooled() == []


def test_an_upload_of_the_bare_data_set_is_known(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", idle_seconds=60.0)
    with intake.listening() as service:
        with WirePeer(service.scp.port) as peer:
            assert peer.store(IMAGE, "1.2.3") == 0
        assert all_committed(service)
    door = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    for number, content in enumerate((IMAGE, CHANGED)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        assert receive_upload(path, door, LIMITS, f"u{number}").accepted == 1
        counts = door.counts()
        assert (counts.committed, counts.duplicates, counts.conflicts) == (number, 1, number)
        assert rows(intake) == [(UID, bool(number))] * (number + 1)


def test_images_are_compared_when_nobody_waits_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at all where no UID is contested, which a resend is not."""
    intake = Intake(tmp_path / "data", listener_processes=0, idle_seconds=60.0)
    compared: list[int] = []
    compare = DataSets.compare

    def with_a_free_database(self: DataSets) -> None:
        with intake.database.write(timeout_s=1.0):
            compared.append(len(self._asked))
        compare(self)

    monkeypatch.setattr(DataSets, "compare", with_a_free_database)
    writes: list[int] = []
    write = Receiver._write

    def counted(self: Receiver, received: Sequence[ReceivedInstance], *rest: Any) -> RecordOutcome:
        writes.append(len(received))
        return write(self, received, *rest)

    monkeypatch.setattr(Receiver, "_write", counted)
    with intake.listening() as service:
        for named in (UID, UID, ""):
            assert all_committed(service)
            assert compared == []
            with WirePeer(service.scp.port) as peer:
                assert peer.store(IMAGE, named) == 0
        assert all_committed(service)
        assert rows(intake) == [(UID, False)]
        assert compared == [1]
        assert sum(writes) == 4
