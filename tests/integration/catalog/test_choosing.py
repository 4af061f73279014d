"""A person's choice of a series queues the study, travels in its job, stands until another one, leaves its trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from heimdallr_ray.catalog.choosing import MAX_NAME, MAX_REASON, SeriesChosen, choice_lines, chosen_in, standing_choice
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import SeriesChoice, record_selection, results_of
from heimdallr_ray.catalog.retrying import choose_series
from heimdallr_ray.catalog.tables import JobRow, SeriesRow
from heimdallr_ray.catalog.worklist import event_history
from heimdallr_ray.errors import BadIdentifier, NotAVolume, NotFound, NoTilt, NotRetryable
from tests.integration.catalog.test_retrying import UID, Site

SERIES = "1.2.1.1"


class Choosing(Site):
    """One study that can be queued with a series."""

    def choose(self, series_uid: str | None = SERIES, part: int | None = None, **changes: Any) -> JobRow:
        given: dict[str, Any] = {"reason": "the other one moved", "chosen_by": "Dr. Who", "actor": "api"} | changes
        uid = given.pop("uid", UID)
        with self.database.write() as session:
            return choose_series(session, uid, series_uid, part, now=self.clock.now(), max_attempts=3, **given).job

    def selected(self, *parts: dict[str, Any]) -> None:
        with self.database.write() as session:
            choice = SeriesChoice(SERIES, chosen=False, selection={"rules": None, "parts": list(parts)})
            record_selection(session, self.study.id, [choice])


def standing(site: Choosing) -> SeriesChosen:
    choice = chosen_in(site.jobs[-1].payload)
    assert choice is not None
    return choice


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
    "changes",
    [{"reason": "  "}, {"reason": "x" * (MAX_REASON + 1)}, {"chosen_by": " "}, {"chosen_by": "x" * (MAX_NAME + 1)}],
)
def test_a_reason_and_a_name_are_needed_and_bounded(site: Choosing, changes: dict[str, Any]) -> None:
    site.done()
    with pytest.raises(BadIdentifier):
        site.choose(**changes)


def test_a_wish_about_the_tilt_keeps_the_series_and_who_chose_it(site: Choosing) -> None:
    site.done()
    site.choose(part=2)
    first = standing(site)
    site.done()
    site.choose(None, deskew=True, reason="askew", chosen_by="Dr. Where")
    kept = standing(site)
    assert replace(kept, deskew=None, deskew_by=None, deskew_at=None, deskew_reason=None) == first
    assert (kept.deskew, kept.of_tilt[0], kept.of_tilt[2]) == (True, "Dr. Where", "askew")
    site.done()
    site.choose(None, deskew=False, reason="as scanned", chosen_by="Dr. When")
    kept = standing(site)
    assert (kept.series_uid, kept.part, kept.chosen_by) == (SERIES, 2, "Dr. Who")
    assert (kept.deskew, kept.of_tilt[0], kept.of_tilt[2]) == (False, "Dr. When", "as scanned")
    site.done()
    site.choose(None, deskew=True, keep_series=False, chosen_by="Dr. Why")
    assert (standing(site).series_uid, standing(site).of_tilt[0]) == (None, "Dr. Why")


def test_another_series_with_the_tilt_as_before_keeps_who_asked_for_that(site: Choosing) -> None:
    site.done()
    site.choose(None, deskew=True, chosen_by="Dr. Where", reason="askew")
    site.done()
    site.choose(SERIES, deskew=True)
    kept = standing(site)
    assert (kept.chosen_by, kept.of_tilt[0], kept.of_tilt[2]) == ("Dr. Who", "Dr. Where", "askew")


def test_what_is_chosen_now_and_what_it_was_is_told_in_two_lines(site: Choosing) -> None:
    chosen = SeriesChosen(SERIES, None, "Dr. Who", "2026-01-01", "motion")
    tilted = replace(chosen, deskew=True, deskew_by="root", deskew_at="2026-01-02", deskew_reason="askew")
    rows = [SeriesRow(study_id="x", series_uid=SERIES, series_number=2, series_description="Head std")]
    named = f"No. 2 Head std ({SERIES}), chosen by Dr. Who, 2026-01-01: motion"
    assert list(choice_lines(rows, chosen, tilted)) == [
        f"series: {named} (unchanged)",
        "tilt: taken out, asked for by root, 2026-01-02: askew (before: as the site's setting says)",
    ]
    assert list(choice_lines(rows, chosen, None)) == [
        f"series: as the rules choose (before: {named})",
        "tilt: as the site's setting says (unchanged)",
    ]


def geometry(words: str, number: int = 0, **more: Any) -> dict[str, Any]:
    line = {"rule": "geometry", "value": words, "effect": "passed", "score": None}
    return {"part": number, "code": "x", "reason": "x", "can_be_chosen": True, "lines": [line], **more}


@pytest.mark.parametrize("deskew", [True, False])
def test_a_tilt_that_is_not_there_is_refused_by_name(site: Choosing, deskew: bool) -> None:
    site.done()
    site.selected(geometry("24 slices of 1 mm over 24 mm", accepted=True, chosen_by="rules"))
    for series_uid in (SERIES, None):
        with pytest.raises(NoTilt, match=f"{SERIES}.* has no tilt"):
            site.choose(series_uid, deskew=deskew)
    assert site.study.state == "done"


@pytest.mark.parametrize(
    "part",
    [
        geometry("24 slices of 1 mm over 24 mm, tilt:18.5", accepted=True, chosen_by="rules"),
        geometry("24 slices of 1 mm over 24 mm", lines=[], accepted=True, chosen_by="rules"),
    ],
    ids=["tilted", "not known"],
)
def test_a_tilt_that_is_or_may_be_there_is_taken_out(site: Choosing, part: dict[str, Any]) -> None:
    site.done()
    site.selected(part)
    site.choose(None, deskew=True)
    assert standing(site).deskew is True


def test_one_tilted_part_is_enough_unless_another_is_named(site: Choosing) -> None:
    site.done()
    site.selected(geometry("24 slices"), geometry("24 slices, tilt:18.5", 1))
    with pytest.raises(NoTilt):
        site.choose(part=0, deskew=True)
    site.choose(deskew=True)
