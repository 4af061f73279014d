"""Storage commitment where images are missing or damaged on the disk: nothing is promised that is not there, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commitment import CT, MR, ask, flip_a_bit, report_peer, request_dataset
from tests.support.intake import Intake, storescu, wait_for, write_study

STUDY = "1.2.826.0.1.3680043.9.9.16"
TRANSACTION = "1.2.826.0.1.3680043.9.9.16.900"
ASKED, MISSING, DAMAGED = 100, (98, 99, 100), 50


@pytest.mark.peers("storescu")
def test_of_a_hundred_ninety_six_are_good_three_missing_and_one_damaged(tmp_path: Path) -> None:
    """Check 16 of the reliability list; and one of another SOP class than it was stored with, in its own request."""
    uids = {number: f"{STUDY}.7.{number}" for number in range(1, ASKED + 1)}
    stored = ASKED - len(MISSING)
    with report_peer() as peer:
        intake = Intake(tmp_path / "data", commitment_peers=[f"{peer.ae_title}=127.0.0.1:{peer.port}"])
        with intake.listening() as service:
            storescu(service.scp.port, write_study(tmp_path / "files", stored, STUDY, size=16), "+sd")
            wait_for(lambda: len(intake.instances()) == stored, 20, "all rows")
            flip_a_bit(intake, uids[DAMAGED])
            asked = request_dataset(TRANSACTION, [(CT, uid) for uid in uids.values()])
            assert ask(service.scp.port, asked) == 0x0000
            told = wait_for(lambda: peer.told, 40, "a report")[0]
            other = request_dataset(f"{TRANSACTION}.1", [(MR, uids[1]), (CT, uids[2])])
            assert ask(service.scp.port, other) == 0x0000
            second = wait_for(lambda: peer.told[1:], 20, "a second report")[0]
    assert told.event_type == 2 and len(told.committed) == 96
    assert told.failed == {uids[DAMAGED]: 0x0110, **{uids[number]: 0x0112 for number in MISSING}}
    assert len(told.failed) == 4
    assert set(told.committed) | set(told.failed) == set(uids.values())
    assert (second.event_type, second.committed, second.failed) == (2, [uids[2]], {uids[1]: 0x0119})
