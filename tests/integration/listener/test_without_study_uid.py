"""C-STORE of images without Study Instance UID, again and by other associations: Success, counted, stored once."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.catalog.conflicts import contested
from heimdallr_ray.catalog.studies import series_rows_of
from tests.support.intake import Intake, all_committed, ct_slice, dataset_bytes, file_bytes
from tests.support.wirepeer import WirePeer

N = 6


def bodies() -> list[tuple[str, bytes]]:
    """SOP Instance UID and data set of images that name neither study nor series."""
    made: list[tuple[str, bytes]] = []
    for index in range(N):
        dataset = ct_slice(index, "", "", size=8)
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.9.9.70.{index}"
        made.append((str(dataset.SOPInstanceUID), dataset_bytes(file_bytes(dataset))))
    return made


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("first", [3, N])
def test_a_sender_that_comes_again_makes_no_second_study(tmp_path: Path, processes: int, first: int) -> None:
    """`first` images, then the association is broken off; then all of them, by another one and another AE title."""
    intake = Intake(tmp_path / "data", listener_processes=processes, idle_seconds=60.0, settle_after_abort_seconds=60.0)
    images = bodies()
    with intake.listening() as service:
        peer = WirePeer(service.scp.port, calling="CT1")
        assert [peer.store(body, sop) for sop, body in images[:first]] == [0] * first
        peer.abort()
        peer.close()
        assert all_committed(service)
        with WirePeer(service.scp.port, calling="CT1_AGAIN") as again:
            assert [again.store(body, sop) for sop, body in images] == [0] * N
        assert all_committed(service)
        counts = service.status().counts
        assert (counts["committed"], counts["duplicates"]) == (N, first)
    (study,) = intake.studies()
    assert (study.n_instances, study.uid_generated, study.epoch) == (N, True, 1)
    assert sorted(row.sop_uid for row in intake.instances()) == sorted(sop for sop, _ in images)
    with intake.database.read() as session:
        assert contested(session, 10).images == 0
        assert [row.n_instances for row in series_rows_of(session, study.id)] == [N]
