"""Twenty associations at once, three of them badly behaved: nothing acknowledged is lost, every study is one study."""

from __future__ import annotations

import contextlib
import random
import struct
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.fsyncs import fsyncs_beside, percentile
from tests.support.intake import Intake, sha256, wait_for
from tests.support.listeners import running
from tests.support.rawimages import image, sop_uid
from tests.support.wirepeer import Gone, NotAccepted, WirePeer, pdata

ROOT = "1.2.826.0.1.3680043.9.9.20"
HONEST, SHARED = 17, 4
IDLE_S = 3.0


class Storm:
    """What all senders have been answered."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.ends_at = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.sent: dict[str, str] = {}
        """SOP Instance UID to sha256 of what was offered, answered or not."""
        self.acknowledged: dict[str, set[str]] = defaultdict(set)
        """By Study Instance UID."""
        self.took_s: list[float] = []
        self.errors: list[str] = []
        self.sharers_go_on = True
        self.sharers = threading.Barrier(SHARED, self._decide)

    def _decide(self) -> None:
        self.sharers_go_on = self.going_on

    @property
    def going_on(self) -> bool:
        return time.monotonic() < self.ends_at

    def store(self, peer: WirePeer, study: str, number: int, size: int) -> None:
        body, sop = image(study, number, size, patient=study[-12:]), sop_uid(study, number)
        with self.lock:
            self.sent[sop] = sha256(body)
        began = time.monotonic()
        status = peer.store(body, sop)
        took = time.monotonic() - began
        with self.lock:
            self.took_s.append(took)
            if status == 0:
                self.acknowledged[study].add(sop)
            else:
                self.errors.append(f"{sop}: 0x{status:04X}")


def honest(storm: Storm, number: int) -> None:
    """Studies of 3 to 40 images, small and large, an association each; some are sent by several senders at once."""
    chance = random.Random(number)
    shared = number < SHARED
    for turn in range(10_000):
        if shared:
            # They send the same studies in step, each its own images.
            storm.sharers.wait(60)
        if not (storm.sharers_go_on if shared else storm.going_on):
            return
        study = f"{ROOT}.{'9' if shared else number + 10}.{turn}"
        first = 1000 * number if shared else 1
        size = chance.choice([64, 64, 256, 512])
        with WirePeer(storm.port, source=f"127.0.0.{20 + number}", calling=f"CT{number}") as peer:
            for image_number in range(first, first + chance.randint(3, 40)):
                storm.store(peer, study, image_number, size)


def aborting(storm: Storm) -> None:
    """Goes away in the middle of an image, now with an abort and now without a word."""
    for turn in range(10_000):
        if not storm.going_on:
            return
        study = f"{ROOT}.7.{turn}"
        peer = WirePeer(storm.port, source="127.0.0.17")
        for number in (1, 2, 3):
            storm.store(peer, study, number, 64)
        context = peer.begin_store(sop_uid(study, 4))
        peer.send(pdata(context, 0, image(study, 4, 256)[:60_000]))
        if turn % 2:
            peer.abort()
        else:
            peer.close()
        # An image that was whole and not yet answered may be there; this one was not whole.
        time.sleep(0.05)


def stalling(storm: Storm) -> None:
    """Stops in the middle of an image and waits to be thrown out."""
    for turn in range(10_000):
        if not storm.going_on:
            return
        study = f"{ROOT}.6.{turn}"
        peer = WirePeer(storm.port, source="127.0.0.16")
        storm.store(peer, study, 1, 64)
        context = peer.begin_store(sop_uid(study, 2))
        peer.send(pdata(context, 0, image(study, 2, 256)[:30_000]))
        peer.socket.settimeout(1.0)
        while storm.going_on:
            with contextlib.suppress(TimeoutError):
                peer.receive()
                break
        peer.close()


def lying(storm: Storm) -> None:
    """Lengths of PDUs and of presentation data values that are not true."""
    lies = (
        struct.pack(">BBI", 4, 0, 0xFFFFFFFF),
        struct.pack(">BBIIBB", 4, 0, 10, 0xFFFFFFF0, 3, 0) + bytes(4),
        struct.pack(">BBIIBB", 4, 0, 6, 1, 3, 0),
        struct.pack(">BBI", 4, 0, 3) + bytes(3),
        struct.pack(">BBI", 9, 0, 4) + bytes(4),
    )
    for turn in range(10_000):
        if not storm.going_on:
            return
        study = f"{ROOT}.5.{turn}"
        peer = WirePeer(storm.port, source="127.0.0.15")
        storm.store(peer, study, 1, 64)
        peer.begin_store(sop_uid(study, 2))
        peer.send(lies[turn % len(lies)])
        with contextlib.suppress(Gone):
            # The abort, then the end.
            peer.receive()
            peer.receive()
        peer.close()
        time.sleep(0.05)


def guarded(storm: Storm, sender: object, *arguments: object) -> None:
    """An error of a sender is a failure of the test."""
    try:
        assert callable(sender)
        sender(storm, *arguments)
    except (Gone, NotAccepted, OSError, AssertionError) as error:
        with storm.lock:
            storm.errors.append(f"{sender}: {error!r}")


def storm_for(folder: Path, seconds: float) -> None:
    with running(folder / "data", idle_s=IDLE_S) as listener:
        storm = Storm(listener.port, seconds)
        jobs = [(honest, number) for number in range(HONEST)] + [(aborting,), (stalling,), (lying,)]
        assert len(jobs) == 20
        senders = [threading.Thread(target=guarded, args=(storm, *job)) for job in jobs]
        with fsyncs_beside(folder) as fsyncs:
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join(seconds + 120)
        assert not any(sender.is_alive() for sender in senders)
        intake = Intake(folder / "data")
        ended = time.monotonic()
        wait_for(lambda: len(intake.jobs()) >= len(storm.acknowledged), 120, "all studies to be queued")
        queued_s = time.monotonic() - ended
        # Longer than the idle time: a second closing would show.
        time.sleep(IDLE_S + 1)
        wait_for(lambda: intake.spooled() == [], 60, "the spool to be empty")
        status = listener.status()
    count = sum(map(len, storm.acknowledged.values()))
    print(
        f"{count} images of {len(storm.acknowledged)} studies in {seconds:.0f} s on 20 associations; C-STORE p50 "
        f"{1000 * percentile(storm.took_s, 0.5):.0f} ms, p99 {1000 * percentile(storm.took_s, 0.99):.0f} ms; "
        f"write + fsync of 525 kB beside it p50 {1000 * percentile(fsyncs.took_s, 0.5):.0f} ms, "
        f"p99 {1000 * percentile(fsyncs.took_s, 0.99):.0f} ms; all queued {queued_s:.0f} s after the end"
    )
    assert storm.errors == []
    assert status["errors"] == {}
    assert status["quarantined"] == 0
    stored = intake.stored()
    lost = [sop for sops in storm.acknowledged.values() for sop in sops if stored.get(sop) != storm.sent[sop]]
    assert lost == []
    assert all(storm.sent.get(sop) == digest for sop, digest in stored.items())
    rows = {row.id: row for row in intake.studies()}
    # Not split: each study is one row, closed once, with all its images; not merged: and with no others.
    assert sorted(row.study_uid for row in rows.values()) == sorted(storm.acknowledged)
    assert {row.study_uid: row.n_instances for row in rows.values()} == {
        study: len(sops) for study, sops in storm.acknowledged.items()
    }
    found: dict[str, set[str]] = defaultdict(set)
    for row in intake.instances():
        found[rows[row.study_id].study_uid].add(row.sop_uid)
    assert found == storm.acknowledged
    # Those of one sender are closed once. One of several may come so late that its images are a second epoch.
    again = [row.study_uid for row in rows.values() if row.epoch != 1]
    print(f"{len(again)} studies of several senders had a second epoch")
    assert all(study.startswith(f"{ROOT}.9.") for study in again), again
    assert len({job.study_id for job in intake.jobs()}) == len(rows)


@pytest.mark.timeout(280)
def test_a_storm_of_5_s(on_disk: Path) -> None:
    storm_for(on_disk, 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_storm_of_60_s(on_disk: Path) -> None:
    """20 associations, mixed studies, one that aborts, one that stalls, one that lies: 0 lost, 0 split or merged."""
    storm_for(on_disk, 60)
