"""A person chooses a series over HTTP: it is queued, shown, and refused by name where it is no volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.jobs import cancel_jobs
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.studies import study_by_uid, transition
from heimdallr_ray.catalog.tables import SeriesRow
from heimdallr_ray.config import load
from tests.integration.api.conftest import TOKEN, bearer, client_of
from tests.support.seeded import FAILED_UID, QUEUED_UID, add_study

SERIES, SCOUT = f"{FAILED_UID}.1", f"{FAILED_UID}.2"
PATH = f"/api/v1/studies/{FAILED_UID}/series"
LINE = {"rule": "sharp_kernel", "value": "B70f: sharp", "effect": "refused", "score": None}


def part(code: str, *, can_be_chosen: bool) -> dict[str, Any]:
    return {
        "part": 0,
        "code": code,
        "reason": f"because {code}",
        "instances": 20,
        "accepted": False,
        "chosen_by": None,
        "can_be_chosen": can_be_chosen,
        "header_phase": None,
        "score": {},
        "lines": [LINE],
    }


@pytest.fixture
def writable(empty: ApiServices) -> TestClient:
    rules = {"rules_id": "heimdallr-series", "version": 1, "sha256": "a" * 64, "purpose": "volume"}
    with empty.database.write() as session:
        now = empty.clock.now()
        study = add_study(session, FAILED_UID, now, state="not_applicable", reason_code="no_usable_series")
        add_study(session, QUEUED_UID, now)
        for uid, code, able in ((SERIES, "sharp_kernel", True), (SCOUT, "localizer", False)):
            kept = {"rules": rules, "parts": [part(code, can_be_chosen=able)]}
            session.add(SeriesRow(study_id=study.id, series_uid=uid, chosen=False, reject_code=code, selection=kept))
    return client_of(create_app(empty))


def test_the_page_has_every_line(writable: TestClient) -> None:
    study = writable.get(f"/api/v1/studies/{FAILED_UID}").json()
    shown = next(one for one in study["series"] if one["series_uid"] == SERIES)["selection"]
    assert (shown["rules"]["rules_id"], shown["parts"][0]["lines"]) == ("heimdallr-series", [LINE])
    assert study["choice"] is None


def test_the_choice_is_queued_and_shown_with_who_when_and_why(writable: TestClient) -> None:
    answer = writable.post(PATH, json={"series_uid": SERIES, "reason": "bone is all we have", "chosen_by": "Dr. Who"})
    told = answer.json()
    assert (answer.status_code, told["choice"]["chosen_by"], told["before"]) == (202, "Dr. Who", None)
    assert {key: told[key] for key in ("study_uid", "state", "series_uid", "part", "deskew")} == {
        **{"study_uid": FAILED_UID, "state": "queued", "series_uid": SERIES},
        **{"part": None, "deskew": None},
    }
    study = writable.get(f"/api/v1/studies/{FAILED_UID}").json()
    assert study["study"]["state"] == "queued"
    choice = study["choice"]
    assert (choice["series_uid"], choice["chosen_by"], choice["reason"]) == (SERIES, "Dr. Who", "bone is all we have")
    assert choice["chosen_at"]
    asked = next(one for one in study["history"] if one["kind"] == "study.series")
    assert (asked["actor"], asked["old"], asked["new"], asked["reason"]) == (
        *("api:Dr. Who", "rules"),
        *(SERIES, "bone is all we have"),
    )


def test_the_rules_may_choose_again(writable: TestClient) -> None:
    answer = writable.post(PATH, json={"series_uid": None, "reason": "as before", "chosen_by": "Dr. Who"})
    assert answer.status_code == 202
    assert writable.get(f"/api/v1/studies/{FAILED_UID}").json()["choice"] is None


def test_a_tilt_is_taken_out_on_request_whichever_series_the_rules_choose(writable: TestClient) -> None:
    answer = writable.post(PATH, json={"series_uid": None, "deskew": True, "reason": "tilted", "chosen_by": "Dr. Who"})
    assert (answer.status_code, answer.json()["deskew"]) == (202, True)
    choice = writable.get(f"/api/v1/studies/{FAILED_UID}").json()["choice"]
    assert (choice["series_uid"], choice["deskew"], choice["reason"]) == (None, True, "tilted")


def test_the_tilt_is_taken_out_of_the_series_that_a_person_chose_earlier(
    writable: TestClient, empty: ApiServices
) -> None:
    writable.post(PATH, json={"series_uid": SERIES, "reason": "all we have", "chosen_by": "Dr. Who"})
    with empty.database.write() as session:
        study = study_by_uid(session, FAILED_UID)
        assert study is not None
        cancel_jobs(session, study.id, now=empty.clock.now(), actor="test", reason="test")
        transition(session, study.id, StudyState.CANCELLED, now=empty.clock.now(), actor="test")
    wanted = {"series_uid": None, "deskew": True, "reason": "tilted", "chosen_by": "Dr. Where"}
    told = writable.post(PATH, json=wanted).json()
    assert (told["series_uid"], told["deskew"]) == (SERIES, True)
    assert (told["choice"]["chosen_by"], told["choice"]["deskew_by"]) == ("Dr. Who", "Dr. Where")
    assert (told["before"]["series_uid"], told["before"]["deskew"]) == (SERIES, None)
    assert writable.get(f"/api/v1/studies/{FAILED_UID}").json()["choice"] == told["choice"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (PATH, {"series_uid": SCOUT, "reason": "x", "chosen_by": "me"}, 400, "not_a_volume"),
        (PATH, {"series_uid": "1.2.3", "reason": "x", "chosen_by": "me"}, 404, "not_found"),
        (PATH, {"series_uid": "1.2.x", "reason": "x", "chosen_by": "me"}, 400, "bad_identifier"),
        (PATH, {"series_uid": SERIES, "part": 3, "reason": "x", "chosen_by": "me"}, 404, "not_found"),
        (PATH, {"series_uid": SERIES, "part": -1, "reason": "x", "chosen_by": "me"}, 422, "invalid_request"),
        (PATH, {"series_uid": SERIES, "reason": "", "chosen_by": "me"}, 422, "invalid_request"),
        (PATH, {"series_uid": SERIES, "reason": "  ", "chosen_by": "me"}, 400, "bad_identifier"),
        (PATH, {"series_uid": SERIES, "reason": "nobody says so"}, 422, "invalid_request"),
        (PATH, {"series_uid": SERIES, "reason": "x", "chosen_by": " "}, 400, "bad_identifier"),
        (PATH, {"series_uid": SERIES, "reason": "x" * 501, "chosen_by": "me"}, 422, "invalid_request"),
        (PATH, {"series_uid": SERIES, "reason": "x", "chosen_by": "me", "more": 1}, 422, "invalid_request"),
        (PATH, {"reason": "x", "chosen_by": "me"}, 422, "invalid_request"),
        (PATH, {"series_uid": None, "deskew": "perhaps", "reason": "x", "chosen_by": "me"}, 422, "invalid_request"),
        (
            f"/api/v1/studies/{QUEUED_UID}/series",
            {"series_uid": SERIES, "reason": "x", "chosen_by": "me"},
            409,
            "not_retryable",
        ),
        ("/api/v1/studies/1.2.3/series", {"series_uid": SERIES, "reason": "x", "chosen_by": "me"}, 404, "not_found"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    writable: TestClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = writable.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert writable.get(f"/api/v1/studies/{FAILED_UID}").json()["study"]["state"] == "not_applicable"


def test_a_series_that_is_no_volume_is_refused_by_its_rule(writable: TestClient) -> None:
    answer = writable.post(PATH, json={"series_uid": SCOUT, "reason": "x", "chosen_by": "me"})
    assert answer.json()["error"]["detail"] == "localizer: because localizer"


def test_it_needs_the_token_and_no_foreign_page_may_ask(writable: TestClient, empty: ApiServices) -> None:
    body = {"series_uid": SERIES, "reason": "x", "chosen_by": "me"}
    foreign = writable.post(PATH, json=body, headers={"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"})
    assert foreign.status_code == 403
    settings = load({}, None, data_dir=empty.settings.data_dir, profile="demo", min_free_mib=0, api_token=TOKEN)
    guarded = client_of(create_app(replace(empty, settings=settings)))
    assert guarded.post(PATH, json=body).status_code == 401
    assert guarded.post(PATH, json=body, headers=bearer(TOKEN)).status_code == 202
