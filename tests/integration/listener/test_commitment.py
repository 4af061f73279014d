"""Storage commitment against pynetdicom as the peer: asked over one association, told over another."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.commitment import CT, ReportPeer, ask, report_peer, request_dataset, rows
from tests.support.intake import Intake, storescu, wait_for, write_study

STUDY = "1.2.826.0.1.3680043.9.9.16"
TRANSACTION = "1.2.826.0.1.3680043.9.9.16.900"


@pytest.fixture
def peer() -> Generator[ReportPeer]:
    with report_peer() as found:
        yield found


def intake_of(folder: Path, peer: ReportPeer, **changes: object) -> Intake:
    return Intake(folder / "data", commitment_peers=[f"{peer.ae_title}=127.0.0.1:{peer.port}"], **changes)


def references(count: int, sop_class: str = CT) -> list[tuple[str, str]]:
    return [(sop_class, f"{STUDY}.7.{index}") for index in range(1, count + 1)]


@pytest.mark.peers("storescu")
def test_what_was_stored_is_committed_on_an_association_of_our_own(tmp_path: Path, peer: ReportPeer) -> None:
    intake = intake_of(tmp_path, peer)
    with intake.listening() as service:
        storescu(service.scp.port, write_study(tmp_path / "files", 5, STUDY))
        assert ask(service.scp.port, request_dataset(TRANSACTION, references(5))) == 0x0000
        told = wait_for(lambda: peer.told, 20, "a report")[0]
        wait_for(lambda: rows(intake.database)[0].state == "told", 10, "the row says so")
    assert (told.event_type, told.transaction_uid, told.calling) == (1, TRANSACTION, "HEIMDALLR")
    assert sorted(told.committed) == sorted(uid for _, uid in references(5)) and told.failed == {}
    assert (rows(intake.database)[0].n_items, rows(intake.database)[0].n_failed) == (5, 0)
