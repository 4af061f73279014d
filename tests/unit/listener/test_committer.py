"""What a flush waits for, what is told of what was dropped, and what happens once and only once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from sqlmodel import Session

from heimdallr_ray.catalog.received import SeriesFacts, StudyFacts
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import HeimdallrError, StorageFailed
from heimdallr_ray.ids import Sha256, Uid
from heimdallr_ray.listener import committer
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.committer import Committer, Note
from heimdallr_ray.listener.facts import Accepted, Identity
from heimdallr_ray.listener.writer import SpoolEntry

HANG_S = 20.0


def item(folder: Path, number: int) -> Accepted:
    study = f"1.2.3.{number % 7}"
    arrival = Arrival("a", Door.DICOM, datetime(2026, 1, 1, tzinfo=UTC), "1.2.840.10008.1.2.1")
    (folder / f"{number}.dcm").touch()
    entry = SpoolEntry(f"{number}", folder, f"{number}.dcm", arrival, Sha256("0" * 64), 1)
    identity = Identity(
        study_uid=Uid(study),
        study_uid_generated=False,
        series_uid=Uid(f"{study}.1"),
        sop_uid=Uid(f"{study}.1.{number}"),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        synthetic=False,
        study=StudyFacts(),
        series=SeriesFacts(),
    )
    return Accepted(entry, identity)


def write(what: object) -> Note:
    return lambda session: cast(list[Any], session).append(what)


class Work:
    """Remembers what it was asked for; as slow, and as often in trouble, as a test wants."""

    def __init__(self) -> None:
        self.committed: list[str] = []
        self.sizes: list[int] = []
        self.poison: frozenset[str] = frozenset()
        self.aside: list[str] = []
        self.refusing: set[str] = set()
        self.written: list[Any] = []
        self.takes_s = 0.0
        self.singly = False
        self.clearing: list[Exception] = []
        self.failing_singly: list[Exception] = []
        self.found: list[Callable[[], None]] = []
        self.replays = 0

    def commit_group(self, group: Sequence[Accepted], notes: Sequence[Note]) -> Mapping[str, HeimdallrError]:
        time.sleep(self.takes_s)
        self.sizes.append(len(group))
        if any(one.entry.name in self.poison for one in group):
            raise ValueError
        if self.failing_singly and self.singly and len(notes) == 1 and not group:
            raise self.failing_singly.pop(0)
        self.singly = not group and len(notes) == 1
        # A transaction: what a note does is done with all of it.
        writing: list[Any] = []
        for note in notes:
            note(cast(Session, writing))
        self.written.extend(writing)
        refused = {one.entry.name: StorageFailed("refused") for one in group if one.entry.name in self.refusing}
        self.committed.extend(one.entry.name for one in group if one.entry.name not in refused)
        return refused

    def replay_ready(self, min_age_s: float) -> int:
        assert min_age_s == 0.0
        self.replays += 1
        for find in self.found:
            find()
        return len(self.found)

    def clear(self, *, all_of_it: bool) -> None:
        if self.clearing:
            raise self.clearing.pop(0)

    def set_aside(self, item: Accepted, error: HeimdallrError) -> None:
        assert item.entry.name in self.poison, error
        self.aside.append(item.entry.name)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def made(work: Work) -> Generator[Committer]:
    made = Committer(work, SystemClock(), 16, 0.05)
    made.start()
    yield made
    work.takes_s = 0.0
    assert made.stop(HANG_S)
    assert not made.alive


@contextmanager
def never_pausing(made: Committer, folder: Path, *, notes: bool) -> Generator[None]:
    """Somebody enqueues faster than is committed, but for what the queue holds."""
    ended = threading.Event()

    def enqueue() -> None:
        number = 1000
        while not ended.wait(0.002):
            if notes:
                made.note(write(None))
            made.enqueue(item(folder, number))
            number += 1

    thread = threading.Thread(target=enqueue)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(HANG_S)


@pytest.mark.parametrize("notes", [False, True])
def test_a_flush_waits_for_what_was_there_and_not_for_what_comes(
    tmp_path: Path, work: Work, made: Committer, notes: bool
) -> None:
    work.takes_s = 0.05
    with never_pausing(made, tmp_path, notes=notes):
        time.sleep(0.5)
        for turn in range(5):
            names = [f"{turn}{n}" for n in range(3)]
            for name in names:
                made.enqueue(item(tmp_path, int(name)))
            made.note(write(f"note {turn}"))
            assert made.flush(HANG_S)
            assert set(map(str, map(int, names))) <= set(work.committed)
            assert f"note {turn}" in work.written
        assert made.waiting or made.study_uids() is not None


def test_files_of_which_nobody_tells_are_looked_for_while_others_come(
    tmp_path: Path, work: Work, made: Committer
) -> None:
    with never_pausing(made, tmp_path, notes=True):
        assert not made.blind
        made.look_again()
        assert made.flush(HANG_S)
        assert work.replays >= 1
        assert not made.blind


def test_a_study_whose_objects_stay_on_the_disk_alone_is_known(
    tmp_path: Path, work: Work, made: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "MAX_QUEUED", 1)
    work.takes_s = 0.3
    made.enqueue(item(tmp_path, 1))
    made.enqueue(item(tmp_path, 2))
    assert made.waiting == 1
    assert made.study_uids() == {"1.2.3.1", "1.2.3.2"}
    assert made.flush(HANG_S)
    assert work.replays == 1
    assert made.study_uids() == frozenset()


def test_a_flush_that_takes_too_long_leaves_no_haste_behind(tmp_path: Path, work: Work, made: Committer) -> None:
    work.takes_s = 0.5
    made.enqueue(item(tmp_path, 1))
    assert not made.flush(0.05)
    assert not made._hurried
    assert made.flush(HANG_S)


def waiting(made: Committer, folder: Path, count: int) -> None:
    """So many objects wait together: the transaction before them takes until all are enqueued."""
    began, goes_on = threading.Event(), threading.Event()

    def hold(_session: Session) -> None:
        began.set()
        goes_on.wait(HANG_S)

    made.note(hold)
    assert began.wait(HANG_S)
    for number in range(count):
        made.enqueue(item(folder, number))
    goes_on.set()


def test_objects_that_wait_share_transactions_of_a_bounded_size(tmp_path: Path, work: Work, made: Committer) -> None:
    waiting(made, tmp_path, 150)
    assert made.flush(HANG_S)
    assert work.committed == [str(number) for number in range(150)]
    assert work.sizes == [0, 64, 64, 22]


def test_one_object_that_can_never_be_a_row_costs_its_neighbours_a_few_transactions(
    tmp_path: Path, work: Work, made: Committer
) -> None:
    work.poison = frozenset({"37"})
    waiting(made, tmp_path, 64)
    assert made.flush(HANG_S)
    assert sorted(work.committed, key=int) == [str(number) for number in range(64) if number != 37]
    assert work.aside == ["37"]
    # Halved six times, then tried alone until it is given up.
    assert len(work.sizes) <= 2 + 2 * 6 + committer.MAX_COMMIT_ATTEMPTS


def test_what_the_store_refuses_waits_alone_and_is_tried_again(
    tmp_path: Path, work: Work, made: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "LATER_S", 0.1)
    work.refusing = {"3", "5"}
    written: list[Note] = [write("note")]
    made.note(written[0])
    for number in range(8):
        made.enqueue(item(tmp_path, number))
    assert made.flush(HANG_S)
    assert sorted(work.committed) == ["0", "1", "2", "4", "6", "7"]
    assert work.written == ["note"]
    assert made.study_uids() == {"1.2.3.3", "1.2.3.5"}
    assert made.trouble == "2 acknowledged objects cannot be stored (storage_failed)"
    work.refusing = set()
    deadline = time.monotonic() + HANG_S
    while made.trouble or made.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sorted(work.committed) == [str(number) for number in range(8)]


def test_a_catalog_that_does_not_answer_for_long_is_trouble(
    tmp_path: Path, work: Work, made: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "TROUBLE_S", 0.3)
    real = work.commit_group
    work.commit_group = lambda *_: (_ for _ in ()).throw(StorageFailed("away"))  # type: ignore[method-assign]
    made.enqueue(item(tmp_path, 1))
    deadline = time.monotonic() + HANG_S
    while not made.trouble:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert made.trouble.startswith("no acknowledged object could be stored for")
    work.commit_group = real  # type: ignore[method-assign]
    assert made.flush(HANG_S)
    assert made.trouble == ""


def test_a_note_is_carried_out_once_whatever_fails_afterwards(tmp_path: Path, work: Work, made: Committer) -> None:
    work.clearing = [StorageFailed("not now")] * 2
    for n in range(3):
        made.note(write(n))
    made.enqueue(item(tmp_path, 1))
    assert made.flush(HANG_S)
    made.look_again()
    assert made.flush(HANG_S)
    assert work.written == [0, 1, 2]

    def broken(_session: Session) -> None:
        raise ValueError

    # Together they cannot be; then each by itself, of which the second is not taken at once.
    work.takes_s = 0.05
    for note in (write(3), broken, write(4)):
        made.note(note)
    work.failing_singly = [StorageFailed("not now")]
    made.enqueue(item(tmp_path, 2))
    assert made.flush(HANG_S)
    assert work.failing_singly == []
    assert work.written == [0, 1, 2, 3, 4]
    assert work.committed == ["1", "2"]


def test_how_many_notes_were_dropped_is_told_each_time(
    tmp_path: Path, work: Work, made: Committer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(committer, "MAX_NOTES", 3)
    made.on_dropped = lambda count: write(f"dropped {count}")
    for outage in (1, 2):
        goes_on = threading.Event()
        began = threading.Event()

        def hold(_session: Any, began: threading.Event = began, goes_on: threading.Event = goes_on) -> None:
            began.set()
            goes_on.wait(HANG_S)

        made.note(hold)
        assert began.wait(HANG_S)
        for n in range(3 + outage):
            made.note(write(n))
        goes_on.set()
        assert made.flush(HANG_S)
        assert made.flush(HANG_S)
    assert work.written == [0, 1, 2, "dropped 1", 0, 1, 2, "dropped 2"]
    assert made.dropped_notes == 3
    assert [one.message for one in caplog.records].count("intake.notes_dropping") == 2
    assert [vars(one)["count"] for one in caplog.records if one.message == "intake.notes_dropped"] == [1, 2]
