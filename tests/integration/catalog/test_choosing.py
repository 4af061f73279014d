"""A person's choice of a series queues the study, travels in its job, stands until another one, leaves its trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from heimdallr_ray.catalog.choosing import MAX_NAME, MAX_REASON, chosen_in, standing_choice
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import SeriesChoice, record_selection, results_of
from heimdallr_ray.catalog.retrying import choose_series
from heimdallr_ray.catalog.tables import JobRow
from heimdallr_ray.catalog.worklist import event_history
from heimdallr_ray.errors import BadIdentifier, NotAVolume, NotFound, NotRetryable
from tests.integration.catalog.test_retrying import UID, Site

SERIES = "1.2.1.1"


class Choosing(Site):
    """One study that can be queued with a series."""

    def choose(self, series_uid: str | None = SERIES, part: int | None = None, **changes: Any) -> JobRow:
        given: dict[str, Any] = {"reason": "the other one moved", "chosen_by": "Dr. Who", "actor": "api"} | changes
        uid = given.pop("uid", UID)
        with self.database.write() as session:
            return choose_series(session, uid, series_uid, part, now=self.clock.now(), max_attempts=3, **given)

    def selected(self, *parts: dict[str, Any]) -> None:
        with self.database.write() as session:
            choice = SeriesChoice(SERIES, chosen=False, selection={"rules": None, "parts": list(parts)})
            record_selection(session, self.study.id, [choice])


@pytest.fixture
def site(database: Database) -> Choosing:
    return Choosing(database)


@pytest.mark.parametrize("end", [Site.done, Site.fail, Site.not_applicable, Site.cancel])
def test_an_ended_study_is_queued_with_the_series_and_the_history_says_who_and_why(
    site: Choosing, end: Callable[[Site], None]
) -> None:
    end(site)
    before = site.study
    site.choose(part=2)
    study, job = site.study, site.jobs[-1]
    assert (study.state, study.epoch, study.manifest_sha256) == ("queued", before.epoch, before.manifest_sha256)
    choice = chosen_in(job.payload)
    assert choice is not None
    assert (choice.series_uid, choice.part, choice.chosen_by, choice.reason) == (
        *(SERIES, 2, "Dr. Who"),
        "the other one moved",
    )
    assert choice.chosen_at == site.clock.now().isoformat()
    with site.database.read() as session:
        (asked,) = [one for one in event_history(session, study.id) if one.kind == "study.series"]
    assert (asked.actor, asked.old, asked.new, asked.reason) == ("api", "rules", SERIES, "the other one moved")
    assert asked.payload["choice"]["chosen_by"] == "Dr. Who"


def test_the_new_result_replaces_the_old_one_visibly(site: Choosing) -> None:
    site.done()
    site.choose()
    with site.database.read() as session:
        assert len(results_of(session, site.study.id)) == 1
    site.done()
    with site.database.read() as session:
        newest, old = results_of(session, site.study.id)
    assert (newest.version, old.version, old.superseded_by) == (2, 1, newest.id)


def test_it_stands_for_retries_and_later_images_until_the_rules_choose_again(site: Choosing) -> None:
    site.done()
    site.choose()
    site.fail()
    site.retry()
    assert chosen_in(site.jobs[-1].payload) is not None
    site.done()
    site.images_arrive(2)
    site.close()
    assert (site.jobs[-1].epoch, chosen_in(site.jobs[-1].payload) is not None) == (2, True)
    site.done()
    site.choose(None)
    assert site.jobs[-1].payload == {"manifest_sha256": site.study.manifest_sha256}
    with site.database.read() as session:
        assert standing_choice(session, site.study.id) is None
        last = [one for one in event_history(session, site.study.id) if one.kind == "study.series"][-1]
    assert (last.old, last.new) == (SERIES, "rules")


def test_how_to_prepare_it_stands_with_or_without_a_series_and_the_history_says_so(site: Choosing) -> None:
    site.done()
    site.choose(None, deskew=True)
    choice = chosen_in(site.jobs[-1].payload)
    assert choice is not None
    assert (choice.series_uid, choice.part, choice.deskew) == (None, None, True)
    site.fail()
    site.retry()
    assert chosen_in(site.jobs[-1].payload) == choice
    site.done()
    site.choose(SERIES, deskew=False)
    choice = chosen_in(site.jobs[-1].payload)
    assert choice is not None
    assert (choice.series_uid, choice.deskew) == (SERIES, False)
    site.done()
    site.choose(None)
    assert chosen_in(site.jobs[-1].payload) is None
    with site.database.read() as session:
        found = [one for one in event_history(session, site.study.id) if one.kind == "study.series"]
    assert [(one.old, one.new) for one in found] == [
        ("rules", "rules, deskewed"),
        ("rules, deskewed", f"{SERIES}, not deskewed"),
        (f"{SERIES}, not deskewed", "rules"),
    ]


def test_a_choice_of_an_older_version_is_still_followed() -> None:
    kept = {"series_uid": SERIES, "part": None, "chosen_by": "x", "chosen_at": "2026-01-01T00:00:00", "reason": "y"}
    choice = chosen_in({"series": kept})
    assert choice is not None
    assert (choice.series_uid, choice.deskew) == (SERIES, None)


@pytest.mark.parametrize("state", ["queued", "running", "receiving"])
def test_a_study_that_is_alive_is_left_alone(site: Choosing, state: str) -> None:
    if state == "running":
        site.claim()
    elif state == "receiving":
        site.images_arrive(2)
    before = site.study.model_dump(), [job.model_dump() for job in site.jobs]
    with pytest.raises(NotRetryable, match=state):
        site.choose()
    assert (site.study.model_dump(), [job.model_dump() for job in site.jobs]) == before


def test_what_is_not_there_or_no_volume_is_refused_by_name(site: Choosing) -> None:
    site.done()
    with pytest.raises(NotFound, match="no such study"):
        site.choose(uid="9.9")
    with pytest.raises(NotFound, match="no such series"):
        site.choose("1.2.3.4")
    site.selected(
        {"part": 0, "code": "localizer", "reason": "planning image", "can_be_chosen": False},
        {"part": 1, "code": "sharp_kernel", "reason": "bone", "can_be_chosen": True},
    )
    with pytest.raises(NotFound, match="no such part"):
        site.choose(part=7)
    with pytest.raises(NotAVolume, match="localizer: planning image") as raised:
        site.choose(part=0)
    assert raised.value.reason == "localizer"
    assert site.study.state == "done"
    site.choose(part=1)


@pytest.mark.parametrize(
    "changes", [{"reason": "  "}, {"reason": "x" * (MAX_REASON + 1)}, {"chosen_by": "x" * (MAX_NAME + 1)}]
)
def test_a_reason_is_needed_and_bounded(site: Choosing, changes: dict[str, Any]) -> None:
    site.done()
    with pytest.raises(BadIdentifier):
        site.choose(**changes)


def test_who_gives_no_name_is_known_by_the_door(site: Choosing) -> None:
    site.done()
    site.choose(chosen_by=" ")
    choice = chosen_in(site.jobs[-1].payload)
    assert choice is not None
    assert choice.chosen_by == "api"
