"""kill -9 of the listener while it is asked for commitment and tells it: what was taken on is told after a restart."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.support.commitment import CT, ask, report_peer, request_dataset, rows
from tests.support.freeport import free_port
from tests.support.intake import Intake, storescu, wait_for, write_study
from tests.support.listeners import prepared

STUDY = "1.2.826.0.1.3680043.9.9.18"
INSTANCES = 20
KILLS = 5


def states(root: Path) -> Counter[str]:
    """Requests by state."""
    return Counter(row.state for row in rows(Intake(root).database))


@pytest.mark.peers("storescu")
def test_every_request_that_was_taken_on_is_told_whatever_is_killed(tmp_path: Path) -> None:
    random, port, root = Random(16), free_port(), tmp_path / "data"
    pairs = [(CT, f"{STUDY}.7.{index}") for index in range(1, INSTANCES + 1)]
    taken_on: list[str] = []
    ended = threading.Event()

    def keep_asking() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            transaction = f"{STUDY}.900.{number}"
            try:
                if ask(port, request_dataset(transaction, pairs)) == 0x0000:
                    taken_on.append(transaction)
            except (ConnectionError, RuntimeError):
                # Nobody listens, or the answer was cut off with the listener.
                time.sleep(0.05)
            time.sleep(0.1)

    with report_peer() as peer:
        settings = {"commitment_peers": [f"{peer.ae_title}=127.0.0.1:{peer.port}"]}
        asker = threading.Thread(target=keep_asking)
        for kill in range(KILLS + 1):
            with prepared(root, port, 3600.0, **settings) as listener:
                listener.begin()
                if kill == 0:
                    storescu(port, write_study(tmp_path / "files", INSTANCES, STUDY))
                    asker.start()
                if kill < KILLS:
                    time.sleep(random.uniform(0.3, 2.5))
                    listener.kill()
                    continue
                ended.set()
                asker.join(60)
                wait_for(lambda: set(states(root)) == {"told"}, 120, "all are told")
        told = Counter(report.transaction_uid for report in peer.told)
    assert len(taken_on) >= 2 * KILLS and set(taken_on) <= set(told)
    assert {report.event_type for report in peer.told} == {1}
    assert {tuple(sorted(report.committed)) for report in peer.told} == {tuple(sorted(uid for _, uid in pairs))}
    assert max(told.values()) <= 1 + KILLS and sum(told.values()) - len(told) <= KILLS, "twice only around a kill"
    assert peer.most_at_once == 1
    print(f"{len(taken_on)} requests taken on, {len(told)} told, {sum(told.values()) - len(told)} of them twice")
