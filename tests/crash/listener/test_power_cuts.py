"""Power cuts on a model disk that forgets what was not fsynced, through the spool to the catalog.

What the catalog has committed is durable by SQLite's own word (synchronous=FULL), so each cut is recovered with a copy
of the database as it is at that moment and with the files that the model disk still has.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import EventRow
from heimdallr_ray.errors import BlobMissing
from heimdallr_ray.listener import boot as boot_module
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.listener.reception import Reception
from heimdallr_ray.listener.writer import UNSYNCED, SpoolWriter
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.support.clock import FakeClock
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256
from tests.support.model_disk import Kept, Recorder
from tests.support.wirepeer import CT, EXPLICIT

STUDIES = ("1.2.826.0.1.3680043.9.9.61", "1.2.826.0.1.3680043.9.9.62")
IMAGES = 16
"""Of each study; sent in turn on two associations."""
GROUP = 5


@dataclass(frozen=True)
class Answered:
    """An image of which the sender has heard Success, and nobody else anything yet."""

    index: int
    writer: SpoolWriter
    reception: Reception


class Installation:
    """A spool and a catalog in a folder, driven by one thread as committer and doors would drive them."""

    def __init__(self, root: Path, clock: FakeClock, durability: str) -> None:
        self.intake = Intake(root, durability=durability)
        self.clock = clock
        self.receiver = Receiver(
            self.intake.settings, self.intake.database, LocalBlobStore(self.intake.settings.blob_dir), clock
        )

    def answer(self, index: int, body: bytes) -> Answered:
        """The image is stored as an association of the wire stores it: its sender hears Success now."""
        study = STUDIES[index % 2]
        arrival = Arrival(f"a{index % 2}", Door.DICOM, self.clock.now(), EXPLICIT, CT, f"{study}.7.{index}", "SENDER")
        writer = self.receiver.spool.begin(arrival)
        writer.holds = True
        reception = Reception(writer, arrival)
        for chunk in (body[:300], body[300:]):
            reception.write(chunk)
        reception.identify()
        reception.store()
        return Answered(index, writer, reception)

    def accept(self, answered: Answered) -> Accepted:
        """The image that was answered has its digest."""
        accepted = answered.reception.accepted()
        self.receiver.spool.end(answered.writer)
        return accepted

    def harden(self) -> None:
        """The studies have been quiet for long enough to be closed."""
        self.clock.advance(60)
        ids = [study.id for study in self.intake.studies()]
        assert self.receiver.harden(ids) == frozenset(ids)

    def stored(self, cut: str) -> dict[str, str]:
        """SOP Instance UID to sha256 of the data set, of every row."""
        for row in self.intake.instances():
            try:
                self.intake.blobs.verify(row.blob_sha256)
            except BlobMissing as error:
                raise AssertionError(f"{cut}: what a row names is lost") from error
        return self.intake.stored()

    def quarantined(self) -> set[str]:
        """Spool names of images that lie in quarantine, of which the history says so."""
        with self.intake.database.read() as session:
            events = session.exec(select(EventRow).where(EventRow.kind == "intake.quarantined")).all()
        told = {str(event.payload["spool_name"]) for event in events}
        return {name for name in told if (self.receiver.spool.quarantined / f"{name}.dcm").exists()}

    def lost(self) -> int:
        """Images of which the history says that a power cut has taken them."""
        with self.intake.database.read() as session:
            events = session.exec(select(EventRow).where(EventRow.kind == "study.images_lost")).all()
        return sum(int(event.payload["lost"]) for event in events)


def bodies() -> list[bytes]:
    made: list[bytes] = []
    for index in range(2 * IMAGES):
        study = STUDIES[index % 2]
        made.append(dataset_bytes(file_bytes(ct_slice(index, study, f"{study}.7", size=4))))
    return made


class Cuts:
    """Recovers from the disk as it would be at chosen cuts."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, durability: str, chosen: set[int], at: Path) -> None:
        self.bodies = bodies()
        self.acknowledged: set[int] = set()
        self.hardened: set[int] = set()
        self.undigested: set[str] = set()
        """Spool names of images that were answered and have no digest yet."""
        self.recovered = self.lost = self.distrusted = 0
        self._durability, self._chosen, self._at, self._patch = durability, chosen, at, patch
        self._root = root
        self.recorder = Recorder(root, patch, self._may_cut)

    def _may_cut(self) -> None:
        if self.recorder.cuts in self._chosen:
            for kept in Kept:
                self._recover(self._at / f"{self.recorder.cuts}-{kept.value}", kept)
            self.recovered += 1

    def _recover(self, root: Path, kept: Kept) -> None:
        """The machine starts again with what is left; what must be there is there, and the rest can be sent again."""
        cut = f"cut {self.recorder.cuts}, kept: {kept.value}"
        for path, content in self.recorder.disk.survivors(self._root, kept).items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        root.mkdir(parents=True, exist_ok=True)
        unsynced = {path.name.partition(f".{UNSYNCED}")[0] for path in root.rglob(f"*.{UNSYNCED}*")}
        with (
            sqlite3.connect(self._root / "catalog.sqlite") as source,
            sqlite3.connect(root / "catalog.sqlite") as copy,
        ):
            source.backup(copy)
        source.close()
        copy.close()
        boot = root / "another_boot"
        boot.write_text(cut, encoding="ascii")
        self._patch.setattr(boot_module, "SOURCE", boot)
        again = Installation(root, FakeClock(), self._durability)
        again.clock.advance(3600)
        rows_before = len(again.intake.instances())
        again.receiver.replay()
        stored = again.stored(cut)
        safe = self.acknowledged if self._durability == "instance" else self.hardened
        wanted = {sha256(self.bodies[index]) for index in safe}
        assert wanted <= set(stored.values()), f"{cut}: an acknowledged image is lost"
        assert set(stored.values()) <= set(map(sha256, self.bodies)), f"{cut}: a row has bytes that nobody sent"
        # Nobody can tell which bytes of these the cut has taken: no row is made of them, and they are told.
        aside = again.quarantined()
        assert unsynced <= aside, f"{cut}: an image without digest is neither kept nor told"
        if self._durability == "instance":
            assert aside == set(), cut
        elif kept is not Kept.NOTHING:
            assert self.undigested <= aside, f"{cut}: an answered image went without a word"
        self.distrusted += len(unsynced)
        lost = again.lost()
        if self._durability == "instance":
            assert lost == 0, cut
        # A row that is gone was told; a row that stays has its bytes.
        assert len(stored) + lost >= rows_before, f"{cut}: a row went without a word"
        assert [study.n_instances for study in again.intake.studies()] == [
            sum(row.study_id == study.id for row in again.intake.instances()) for study in again.intake.studies()
        ], cut
        self.lost += lost
        self._send_again(again, cut)
        again.receiver.spool.close()
        again.intake.database.close()

    def _send_again(self, again: Installation, cut: str) -> None:
        indices = sorted(self.acknowledged)
        again.receiver.commit_group([again.accept(again.answer(index, self.bodies[index])) for index in indices])
        again.harden()
        assert set(again.stored(cut).values()) >= {sha256(self.bodies[index]) for index in indices}, (
            f"{cut}: an image that was sent again is not stored"
        )


def work(cuts: Cuts, installation: Installation) -> None:
    """Two studies come in on two associations, partly twice, and are committed in groups; the first is hardened."""
    receiver = installation.receiver
    waiting: list[Accepted] = []
    answered: list[Answered] = []

    def commit() -> None:
        receiver.commit_group(waiting)
        waiting.clear()

    def digest() -> None:
        for item in answered:
            waiting.append(installation.accept(item))
            cuts.undigested.discard(item.writer.name)
            cuts.recorder.cut()
        answered.clear()

    order = [*range(IMAGES), 3, 4, *range(IMAGES, 2 * IMAGES), 20]
    for turn, index in enumerate(order):
        item = installation.answer(index, cuts.bodies[index])
        # Success is on its way to the sender: here an association answers.
        cuts.acknowledged.add(index)
        cuts.undigested.add(item.writer.name)
        cuts.recorder.cut()
        answered.append(item)
        # An image may be answered on the other association before this one has its digest.
        if turn % 3:
            digest()
        if len(waiting) >= GROUP:
            commit()
        if turn == IMAGES + 4:
            commit()
            receiver.clear(all_of_it=True)
            committed = cuts.acknowledged - {item.index for item in answered}
            installation.harden()
            cuts.hardened |= committed
            cuts.recorder.cut()
    digest()
    commit()
    for intake_id in ("a0", "a1"):
        receiver.spool.end_intake(intake_id)
    receiver.clear(all_of_it=True)
    receiver.adopt_orphans(0.0)
    cuts.recorder.cut()
    installation.harden()
    cuts.hardened |= cuts.acknowledged
    cuts.recorder.cut()


def count_of_cuts(root: Path, durability: str) -> int:
    """How often the power may go during `work`."""
    with pytest.MonkeyPatch.context() as patch:
        cuts = Cuts(root, patch, durability, set(), root)
        work(cuts, Installation(root, FakeClock(), durability))
        return cuts.recorder.cuts


def power_cuts(folder: Path, durability: str, count: int, spoil: Callable[[pytest.MonkeyPatch], None]) -> Cuts:
    """`work` with recoveries from `count` random cuts."""
    folder = folder.resolve()
    total = count_of_cuts(folder / "counted", durability)
    # Names are drawn, so that another run may have a cut or two more or less.
    chosen = set(random.Random(3).sample(range(1, total - 5), count))
    root = folder / "data"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        cuts = Cuts(root, patch, durability, chosen, folder)
        spoil(patch)
        work(cuts, Installation(root, FakeClock(), durability))
    print(
        f"{durability}: {cuts.recovered} of {total} cuts recovered, {cuts.lost} images told lost, "
        f"{cuts.distrusted} without digest set aside, all sent again"
    )
    return cuts


def nothing(_: pytest.MonkeyPatch) -> None:
    """The disk is as it is."""


@pytest.mark.parametrize("durability", ["instance", "study"])
def test_12_power_cuts(folder: Path, durability: str) -> None:
    """Check 3 of the reliability list, 12 cuts: see `test_200_power_cuts`."""
    cuts = power_cuts(folder, durability, 12, nothing)
    assert cuts.recovered == 12
    assert (cuts.lost > 0, cuts.distrusted > 0) == (durability == "study", durability == "study")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["instance", "study"])
def test_200_power_cuts(folder: Path, durability: str) -> None:
    """Check 3 of the reliability list: 200 of 200 random cuts lose nothing that must survive.

    With durability `instance` that is every acknowledged image; with `study` every image of a study that was made
    durable before it is closed. Any other row that the cut took is told and taken back; an image that was answered and
    had no digest yet is set aside and told; and all can be sent again.
    """
    cuts = power_cuts(folder, durability, 200, nothing)
    assert cuts.recovered == 200
    assert (cuts.lost > 0, cuts.distrusted > 0) == (durability == "study", durability == "study")


@pytest.mark.parametrize("forgotten", ["bytes", "names"])
def test_the_model_disk_finds_a_missing_fsync(folder: Path, forgotten: str) -> None:
    """The tests above can fail: with either fsync left out they do."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        noted = os.fsync

        def forgetful(descriptor: int) -> None:
            if Path(f"/proc/self/fd/{descriptor}").is_dir() != (forgotten == "names"):
                noted(descriptor)

        patch.setattr(os, "fsync", forgetful)

    with pytest.raises(AssertionError, match="lost"):
        power_cuts(folder, "instance", 20, spoil)
