"""Several senders send the same study at the same time, again and again: it is there once."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, wait_for
from tests.support.listeners import running
from tests.support.wirepeer import WirePeer

STUDY = "1.2.826.0.1.3680043.9.9.7"
SENDERS, TIMES, IMAGES = 4, 5, 50


def test_four_senders_of_one_study_five_times_each_make_one_study(folder: Path) -> None:
    """Check 7 of the reliability list: 1 study, 50 instances, 1 job, all answers 0x0000."""
    bodies = {
        f"{STUDY}.7.{n}": dataset_bytes(file_bytes(ct_slice(n, STUDY, f"{STUDY}.7"))) for n in range(1, IMAGES + 1)
    }
    answers: list[int] = []
    ready = threading.Barrier(SENDERS)

    def send(port: int) -> None:
        ready.wait(60)
        for _ in range(TIMES):
            with WirePeer(port) as peer:
                # One list for all: append is atomic.
                for sop, body in bodies.items():
                    answers.append(peer.store(body, sop))

    # So quiet for so long only once all have sent.
    with running(folder / "data", idle_s=3) as listener:
        senders = [threading.Thread(target=send, args=(listener.port,)) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(120)
        intake = Intake(folder / "data")
        wait_for(intake.jobs, 60, "the study to be queued")
        wait_for(lambda: intake.spooled() == [], 60, "the spool to be empty")
        counts = listener.status()
    assert (len(answers), set(answers)) == (SENDERS * TIMES * IMAGES, {0})
    assert intake.stored() == {sop: sha256(body) for sop, body in bodies.items()}
    assert len(intake.instances()) == IMAGES
    assert [(study.n_instances, study.epoch, study.state) for study in intake.studies()] == [(IMAGES, 1, "queued")]
    assert len(intake.jobs()) == 1
    assert counts["counts"]["duplicates"] == (SENDERS * TIMES - 1) * IMAGES
    assert counts["errors"] == {}
