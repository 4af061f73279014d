"""When a series is at rest although images may still come to its study."""

from __future__ import annotations

from dataclasses import replace

from heimdallr_ray.catalog.ahead import SeriesCount
from heimdallr_ray.catalog.closing import OpenStudy
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.listener.quiet import MAX_PER_EPOCH, SERIES_QUIET_S, SeriesWatch
from tests.support.clock import EPOCH

STUDY = OpenStudy("id", "1.2", StudyState.RECEIVING, 1, 0, None, EPOCH, EPOCH, None, None, "dicom", "CT")


class Looks:
    """A watch, and a study whose series grow."""

    def __init__(self) -> None:
        self.watch, self.at, self.study, self.reads = SeriesWatch(), 100.0, STUDY, 0
        self.series: dict[str, SeriesCount] = {}

    def grow(self, uid: str, by: int = 1, modality: str = "CT") -> None:
        before = self.series.get(uid, SeriesCount(uid, modality, 0))
        self.series[uid] = replace(before, n_images=before.n_images + by)
        self.study = replace(self.study, n_images=self.study.n_images + by)

    def look(self, after_s: float = 1.0, *, ended: bool = False) -> dict[str, int]:
        self.at += after_s
        wishes = self.watch.see(self.study, self._read, self.at, ended=ended)
        return {wish.series_uid: wish.n_images for wish in wishes}

    def _read(self) -> tuple[SeriesCount, ...]:
        self.reads += 1
        return tuple(self.series.values())

    def wish(self, uid: str) -> None:
        (wish,) = [one for one in self.watch.see(self.study, self._read, self.at, ended=True) if one.series_uid == uid]
        self.watch.wished(wish)


def test_a_series_rests_while_another_one_comes() -> None:
    looks = Looks()
    looks.grow("a", 20)
    assert looks.look() == {}
    found: list[dict[str, int]] = []
    for _ in range(int(SERIES_QUIET_S)):
        looks.grow("b")
        found.append(looks.look())
    assert found == [*[{}] * (len(found) - 1), {"a": 20}]
    looks.grow("a")
    assert looks.look() == {}
    looks.grow("b")
    assert looks.look(SERIES_QUIET_S) == {"a": 21}


def test_once_the_sender_has_ended_every_series_rests() -> None:
    looks = Looks()
    looks.grow("a", 3)
    looks.grow("b", 4)
    assert list(looks.look(ended=True).items()) == [("b", 4), ("a", 3)]


def test_a_wish_is_made_once_also_for_a_series_that_grows_later() -> None:
    looks = Looks()
    looks.grow("a")
    looks.grow("b")
    looks.look()
    looks.wish("a")
    assert looks.look(ended=True) == {"b": 1}
    looks.grow("a")
    assert looks.look(ended=True) == {"b": 1}


def test_what_no_model_reads_is_not_wished_for() -> None:
    looks = Looks()
    looks.grow("report", modality="SR")
    looks.grow("ultrasound", modality="US")
    looks.grow("mr", modality="MR")
    assert looks.look(ended=True) == {"mr": 1}


def test_the_catalog_is_asked_only_where_the_study_has_changed() -> None:
    looks = Looks()
    looks.grow("a")
    for _ in range(5):
        looks.look()
    assert looks.reads == 1
    looks.grow("a")
    looks.look()
    assert looks.reads == 2


def test_another_epoch_begins_anew_and_a_study_that_is_gone_is_forgotten() -> None:
    looks = Looks()
    looks.grow("a")
    looks.look()
    looks.wish("a")
    looks.study = replace(looks.study, epoch=2)
    assert looks.look() == {}
    assert looks.look(ended=True) == {"a": 1}
    looks.watch.end(())
    assert looks.look() == {}


def test_a_study_of_very_many_series_has_a_bounded_number_of_wishes() -> None:
    looks = Looks()
    for number in range(MAX_PER_EPOCH + 5):
        looks.grow(f"1.2.{number}", 100 - number)
    found = looks.look(ended=True)
    assert list(found) == [f"1.2.{number}" for number in range(MAX_PER_EPOCH)]
    for uid in found:
        looks.wish(uid)
    assert looks.look(ended=True) == {}
