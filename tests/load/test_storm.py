"""Twenty associations at once, three of them badly behaved: nothing acknowledged is lost, every study is one study."""

from __future__ import annotations

import contextlib
import random
import re
import struct
import threading
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from heimdallr_ray.catalog.states import StudyState
from tests.support.epochs import Image, Story, faults, stories, waits_s
from tests.support.fsyncs import fsyncs_beside, percentile
from tests.support.intake import Intake, sha256, wait_for
from tests.support.listeners import running
from tests.support.rawimages import image, sop_uid
from tests.support.wirepeer import Gone, NotAccepted, WirePeer, pdata

pytestmark = pytest.mark.alone

ROOT = "1.2.826.0.1.3680043.9.9.20"
HONEST, SHARED = 17, 4
IDLE_S = 3.0
LATEST_S = 8 * IDLE_S
"""After which no study may be open any more, once images no longer come faster than they become rows."""


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
        wait_for(lambda: all_queued(intake, len(storm.acknowledged)), 120, "all studies to be queued")
        queued_s = time.monotonic() - ended
        late = late_image(storm)
        wait_for(lambda: all_queued(intake, len(storm.acknowledged), late), 60, "the late image's epoch to be queued")
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
    # Not split: each study is one row with all its images; not merged: and with no others.
    assert sorted(row.study_uid for row in rows.values()) == sorted(storm.acknowledged)
    assert {row.study_uid: row.n_instances for row in rows.values()} == {
        study: len(sops) for study, sops in storm.acknowledged.items()
    }
    found: dict[str, set[str]] = defaultdict(set)
    for row in intake.instances():
        found[rows[row.study_id].study_uid].add(row.sop_uid)
    assert found == storm.acknowledged
    # Each epoch is closed once, after the quiet, with all that came before; a further one begins with an image that
    # really came after it. Who sends alone never pauses that long, but for the one that was told to.
    with intake.database.read() as session:
        told, ends = stories(session)
    assert [fault for story in told for fault in faults(story, ends, IDLE_S, max(storm.took_s))] == []
    waits = sorted(wait for story in told for wait in waits_s(story, ends))
    print(
        f"closed {percentile(waits, 0.5):.1f} s after a study was quiet, p99 {percentile(waits, 0.99):.1f} s, "
        f"the last {waits[-1]:.1f} s; {IDLE_S:g} s were asked for"
    )
    # Images may come faster than they become rows; what is left of that is worked off, and no study waits for ever.
    assert waits[-1] < LATEST_S + seconds
    again = {story.study_uid: story.epoch for story in told if story.epoch != 1}
    print(f"{len(again) - 1} studies of several senders had late images")
    assert again.pop(late) == 2
    assert all(study.startswith(f"{ROOT}.9.") for study in again), again


def all_queued(intake: Intake, number: int, late: str | None = None) -> bool:
    """Every study that was sent is there and closed, `late` for the second time."""
    rows = intake.studies()
    return (
        len(rows) >= number
        and all(row.state == StudyState.QUEUED.value for row in rows)
        and all(row.epoch == 2 for row in rows if row.study_uid == late)
    )


def late_image(storm: Storm) -> str:
    """One more image of a study that is closed; returns which."""
    study = f"{ROOT}.{HONEST - 1 + 10}.0"
    with WirePeer(storm.port, source=f"127.0.0.{20 + HONEST - 1}", calling=f"CT{HONEST - 1}") as peer:
        storm.store(peer, study, 999, 64)
    return study


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


RIGHT = Story("1.2", "queued", 1, (Image(1, at(0), "a"), Image(1, at(1), "b")), ((1, at(7)),), (1,), True)
LATE = replace(
    RIGHT, epoch=2, images=(*RIGHT.images, Image(2, at(7.5), "c")), closings=((1, at(7)), (2, at(12))), jobs=(1, 2)
)
ENDS = {"a": at(4), "b": at(2), "c": at(8)}


@pytest.mark.parametrize(
    ("story", "ends", "fault"),
    [
        (RIGHT, ENDS, None),
        (LATE, ENDS, None),
        (replace(RIGHT, closings=((1, at(6.9)),)), ENDS, "closed 2.900 s after it was quiet"),
        (RIGHT, {**ENDS, "b": at(5)}, "closed 2.000 s after it was quiet"),
        (RIGHT, {**ENDS, "b": None}, "an association that sent to it has no end"),
        (
            replace(RIGHT, closings=((1, at(7)), (1, at(8)))),
            ENDS,
            r"was closed for the epochs \[1, 1\] instead of \[1\]",
        ),
        (replace(RIGHT, jobs=(1, 1)), ENDS, r"has jobs for the epochs \[1, 1\]"),
        (replace(RIGHT, state="receiving"), ENDS, "is receiving"),
        (replace(RIGHT, manifest_is_whole=False), ENDS, "closed without some of its images"),
        (replace(LATE, images=(*RIGHT.images, Image(2, at(6.5), "c"))), ENDS, "split, the next image came 2.500 s"),
        (replace(LATE, images=RIGHT.images), ENDS, "an epoch without an image"),
    ],
)
def test_what_is_wrong_with_a_closing_is_found(
    story: Story, ends: dict[str, datetime | None], fault: str | None
) -> None:
    found = faults(story, ends, wait_s=3.0, store_s=0.1)
    assert (found == []) if fault is None else any(re.search(fault, one) for one in found)


def test_how_late_a_closing_came_is_counted_from_the_last_that_was_heard() -> None:
    assert waits_s(RIGHT, ENDS) == [3.0]
    assert waits_s(LATE, ENDS) == [3.0, 4.0]


@pytest.mark.timeout(280)
def test_a_storm_of_5_s(on_disk: Path) -> None:
    storm_for(on_disk, 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_storm_of_60_s(on_disk: Path) -> None:
    """20 associations, mixed studies, one that aborts, one that stalls, one that lies: 0 lost, 0 split or merged."""
    storm_for(on_disk, 60)
