"""The study page explains the choice of series rule by rule and lets a person make another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlmodel import select as select_rows

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.results import record_selection
from heimdallr_ray.catalog.tables import SeriesRow
from heimdallr_ray.dicom.series import default_rules, group, select
from heimdallr_ray.pipelines import describe
from tests.support.dicom import ct_study, indexed
from tests.support.seeded import ABDOMEN_UID, add_study, services
from tests.support.server import serving

pytestmark = pytest.mark.peers("chromium")


def _study(made: ApiServices, state: str = "done") -> dict[str, str]:
    """A study whose series were really judged; returns the UID of each by its description."""
    shared: dict[str, Any] = {"StudyInstanceUID": ABDOMEN_UID}
    objects = [
        *ct_study(24, seed="soft", SeriesDescription="Soft", SeriesNumber=2, **shared),
        *ct_study(24, seed="bone", SeriesDescription="Bone", SeriesNumber=3, ConvolutionKernel="BONE", **shared),
        *ct_study(
            2, seed="scout", SeriesDescription="Scout", SeriesNumber=1,
            ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **shared,
        ),
    ]  # fmt: skip
    index, _ = indexed(objects)
    selection = select(group(index))
    with made.database.write() as session:
        study = add_study(session, ABDOMEN_UID, made.clock.now(), state=state)
        session.add_all(
            SeriesRow(
                study_id=study.id, series_uid=str(one.uid), modality="CT", series_number=one.header.series_number,
                series_description=one.header.series_description, n_instances=len(one.instances),
            )
            for one in selection.series
        )  # fmt: skip
        session.flush()
        record_selection(session, study.id, describe.series_choices(selection, None))
    return {one.header.series_description: str(one.uid) for one in selection.series}


def _open(page: Page, uid: str, name: str) -> None:
    page.locator(f'[data-series="{uid}"]').get_by_role("button", name=f"CT {name}").click()


def _ask(page: Page, button: str, why: str) -> None:
    """The button opens the form, and sends it once reason and name are there."""
    page.get_by_role("button", name=button).click()
    page.get_by_label("Why").fill(why)
    page.get_by_label("Your name").fill("Dr. Who")
    page.get_by_role("button", name=button).click()


def test_every_rule_is_shown_and_a_person_chooses_another_series(chromium: Browser, tmp_path: Path) -> None:
    made = services(tmp_path / "data")
    uids = _study(made)
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        soft, bone, scout = (page.locator(f'[data-rules="{uids[name]}"]') for name in ("Soft", "Bone", "Scout"))
        expect(page.locator(f'[data-series="{uids["Soft"]}"]')).to_contain_text("✓ measured")
        expect(soft).to_have_count(0)

        _open(page, uids["Soft"], "Soft")
        profile = default_rules().profiles("volume")[0]
        expect(soft).to_contain_text(f"Rules heimdallr-series, version {default_rules().file.version}")
        for rule in (*profile.refuse, *profile.order):
            expect(soft.locator(f'[data-rule="{rule}"]').first).to_be_visible()
        _open(page, uids["Scout"], "Scout")
        expect(scout.locator('[data-rule="localizer"]')).to_contain_text("refused")
        expect(scout).to_contain_text("It is no volume and cannot be chosen.")
        expect(scout.get_by_test_id("choose")).to_have_count(0)
        _open(page, uids["Bone"], "Bone")
        expect(bone.locator('[data-rule="sharp_kernel"]')).to_contain_text("BONE: sharp")

        bone.get_by_test_id("choose").click()
        measure = bone.get_by_role("button", name="Measure this series")
        expect(measure).to_be_disabled()
        bone.get_by_label("Why").fill("the soft one shows motion")
        expect(measure).to_be_disabled()
        bone.get_by_label("Your name").fill("Dr. Who")
        measure.click()
        expect(page.get_by_test_id("choice")).to_contain_text("A person chose No. 3 Bone: Dr. Who")
        expect(page.get_by_test_id("choice")).to_contain_text("the soft one shows motion")
        expect(page.get_by_test_id("choose")).to_have_count(0)
        expect(page.get_by_text("Another series can be chosen once the study has ended.").first).to_be_visible()
        page.get_by_text("History (").click()
        expect(page.get_by_text("study.series")).to_be_visible()
        page.close()


def test_a_tilt_is_taken_out_of_the_series_that_was_measured(chromium: Browser, tmp_path: Path) -> None:
    made = services(tmp_path / "data")
    uids = _study(made)
    with made.database.write() as session:
        row = session.exec(select_rows(SeriesRow).where(SeriesRow.series_uid == uids["Soft"])).one()
        row.geometry = {"shape": [24, 32, 24], "spacing_mm": [1.0, 1.0, 1.0], "flags": ["tilt:18.5"]}
        session.add(row)
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        _open(page, uids["Bone"], "Bone")
        expect(page.get_by_role("button", name="Take the tilt out")).to_have_count(0)
        _open(page, uids["Soft"], "Soft")
        _ask(page, "Take the tilt out", "the head lies askew")
        choice = page.get_by_test_id("choice")
        expect(choice).to_contain_text("A person asked for the tilt to be taken out: Dr. Who")
        expect(choice).to_contain_text("the head lies askew")
        page.close()


def test_the_tilt_of_a_refused_series_is_taken_out_in_one_run_and_a_chosen_series_keeps_its_person(
    chromium: Browser, tmp_path: Path
) -> None:
    made = services(tmp_path / "data")
    uids = _study(made)
    with made.database.write() as session:
        row = session.exec(select_rows(SeriesRow).where(SeriesRow.series_uid == uids["Bone"])).one()
        kept = json.loads(json.dumps(row.selection))
        (line,) = [one for one in kept["parts"][0]["lines"] if one["rule"] == "geometry"]
        line["value"] += ", tilt:18.5"
        row.selection = kept
        session.add(row)
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        _open(page, uids["Soft"], "Soft")
        expect(page.get_by_role("button", name="the tilt taken out")).to_have_count(0)
        _open(page, uids["Bone"], "Bone")
        _ask(page, "Measure this series, the tilt taken out", "all we have")
        choice = page.get_by_test_id("choice")
        expect(choice).to_contain_text("A person chose No. 3 Bone and asked for the tilt to be taken out: Dr. Who")
        page.close()


def test_a_choice_that_comes_too_late_is_explained(chromium: Browser, tmp_path: Path) -> None:
    made = services(tmp_path / "data")
    uids = _study(made)
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 1200})
        refused = {"error": {"code": "not_retryable", "detail": "the study is running"}}
        page.route("**/series", lambda route: route.fulfill(status=409, json=refused))
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        _open(page, uids["Bone"], "Bone")
        page.get_by_test_id("choose").last.click()
        page.get_by_label("Why").fill("x")
        page.get_by_label("Your name").fill("Dr. Who")
        page.get_by_role("button", name="Measure this series").last.click()
        expect(page.get_by_role("alert")).to_have_text("It was not queued: the study is running")
        page.close()
