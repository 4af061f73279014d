"""What a reader sees: the right study on top, numbers with their evidence, the truth about freshness and failure."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlmodel import select

from heimdallr_ray.api.app import create_app
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.studies import record_instances
from heimdallr_ray.catalog.tables import JobRow, SeriesRow, StudyRow
from heimdallr_ray.config import load
from heimdallr_ray.ids import new_id
from heimdallr_ray.listener.archive import ArchiveLimits, receive_zip
from tests.browser.conftest import Site
from tests.support.intake import write_study
from tests.support.seeded import (
    ABDOMEN_UID,
    FAILED_UID,
    HEAD_UID,
    NOT_APPLICABLE_UID,
    RECEIVING_UID,
    RUNNING_UID,
    add_result,
    add_study,
    services,
)
from tests.support.server import serving
from tests.support.studies import received

pytestmark = pytest.mark.peers("chromium")
TOKEN = "the-api-token-of-a-test"


def rows(page: Page) -> list[str]:
    return [str(row.get_attribute("data-study")) for row in page.locator("tbody tr").all()]


def test_the_worklist_shows_the_most_urgent_first_by_icon_and_word(page: Page, site: Site):
    page.goto(site.url)
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("!!")
    expect(first).to_contain_text("CRITICAL")
    assert rows(page)[:2] == [HEAD_UID, RUNNING_UID]
    expect(page.locator(f'[data-study="{RUNNING_UID}"]')).to_contain_text("running: segment")
    expect(page.locator(f'[data-study="{FAILED_UID}"]')).to_contain_text("3 of 104 slices are absent")
    expect(page.get_by_text("Decision support, not for diagnosis")).to_be_visible()
    expect(page.get_by_text("DEMO WEIGHTS")).to_be_visible()


def test_a_new_critical_study_appears_on_top_without_a_reload(page: Page, site: Site):
    page.goto(site.url)
    expect(page.locator('[data-link="live"]')).to_have_text("● LIVE")
    page.evaluate("window.notReloaded = true")
    uid = "1.2.826.0.1.3680043.10.1338.500"
    now = site.services.clock.now().replace(year=2020)  # waits longer than all others of its class
    with site.services.database.write() as session:
        add_study(session, uid, now, urgency="P0", urgency_reason="live insert", patient_name="Live^Insert")
    expect(page.locator("tbody tr").first).to_have_attribute("data-study", uid, timeout=30_000)
    assert page.evaluate("window.notReloaded") is True
    with site.services.database.write() as session:
        row = session.exec(select(StudyRow).where(StudyRow.study_uid == uid)).one()
        row.state = "cancelled"
        row.urgency = None
        session.add(row)
        record_event(session, "study.state", now=now, actor="test", study_id=row.id, old="queued", new="cancelled")
    expect(page.locator("tbody tr").first).not_to_have_attribute("data-study", uid, timeout=30_000)


def test_search_and_keyboard(page: Page, site: Site):
    page.goto(site.url)
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("demo-001jk")  # letters typed into a field move nothing
    expect(page.get_by_text("No study matches.")).to_be_visible()
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(ABDOMEN_UID))
    expect(page.get_by_role("heading", name="Demo, Alba")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("tbody tr").nth(3)).to_be_visible()
    page.keyboard.press("j")
    expect(page.locator("tr[aria-selected=true]")).to_have_attribute("data-study", RUNNING_UID)


def test_a_measured_study(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    liver = page.locator('[data-measurement="liver_volume"]')
    expect(liver).to_contain_text(re.compile(r"\d+ mL"))
    expect(liver).to_contain_text("measured")
    absent = page.locator('[data-measurement="intracranial_hemorrhage_volume"]')
    expect(absent).to_contain_text("not applicable")
    expect(absent.locator(".num")).to_have_text("—")
    liver.get_by_role("button").click()
    expect(liver).to_contain_text("demo/total")
    expect(liver).to_contain_text("unrounded")
    expect(absent).to_contain_text("brain 12 mL, needs 100 mL")
    attenuation = page.locator('[data-measurement="liver_attenuation"]')
    attenuation.get_by_role("button").click()
    expect(attenuation).to_contain_text(re.compile(r"unrounded-?[\d.]+ HU"))
    expect(page.locator(".identity")).to_contain_text("DEMO-001")
    expect(page.get_by_text("DEMO WEIGHTS", exact=False).first).to_be_visible()
    expect(page.get_by_text("thinnest axial series with a soft kernel")).to_be_visible()
    expect(page.get_by_text("ImageType says LOCALIZER")).to_be_visible()
    assert "Demo" not in page.title()
    assert "Alba" not in page.title()


def test_the_overlay_is_off_by_one_key(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    page.get_by_role("button", name="Liver", exact=True).click()
    image = page.locator(".stage img")
    expect(image).to_have_attribute("data-artifact", "liver_overlay.png")
    assert page.locator(".stage img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.keyboard.press("o")
    expect(image).to_have_attribute("data-artifact", "liver_key_image.png")
    expect(page.get_by_test_id("overlay")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("o")
    expect(image).to_have_attribute("data-artifact", "liver_overlay.png")


def coloured_part(page: Page) -> float:
    """The part of the viewer's pixels that are neither grey nor the crosshair's yellow."""
    from PIL import Image

    box = page.locator(".stage canvas").bounding_box()
    assert box is not None
    # Of the page, not of the element: software drawing keeps the element from ever being "stable" on a busy machine.
    png = page.screenshot(clip={**box}, timeout=60_000)
    picture = Image.open(io.BytesIO(png)).convert("RGB").resize((200, 150))
    pixels = cast("list[tuple[int, int, int]]", list(picture.get_flattened_data()))
    return sum(max(p) - min(p) > 40 and not (p[0] > 180 and p[1] > 150 and p[2] < 140) for p in pixels) / len(pixels)


def test_the_volume_with_its_labels(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    expect(page.locator(".stage img")).to_be_visible()
    assert not page.evaluate("performance.getEntriesByType('resource').some(e => e.name.includes('VolumeTab'))")
    page.get_by_role("tab", name="Volume").click()
    expect(page.locator('.stage[data-ready="true"]')).to_be_visible(timeout=120_000)
    page.wait_for_timeout(1500)
    with_labels = coloured_part(page)
    page.keyboard.press("o")
    page.wait_for_timeout(1500)
    without = coloured_part(page)
    assert with_labels > 0.05
    assert without < 0.01
    page.keyboard.press("o")
    box = page.locator(".stage canvas").bounding_box()
    assert box is not None
    found = ""
    for x, y in ((0.3, 0.2), (0.28, 0.25), (0.32, 0.3), (0.7, 0.25), (0.25, 0.2)):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_timeout(300)
        found = page.get_by_test_id("under-cursor").inner_text()
        if re.search(r"-?\d+ +\w+", found):
            break
    assert re.search(r"-?\d+ +\w+", found), f"no structure under the cursor: {found!r}"


def test_a_study_with_a_bleed_opens_with_the_bleed_in_the_brain_window(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{HEAD_UID}")
    expect(page.locator('[data-measurement="intracranial_hemorrhage_volume"]')).to_contain_text("mL")
    page.get_by_role("tab", name="Volume").click()
    expect(page.get_by_label("Window")).to_have_value("3")
    expect(page.get_by_label("Labels")).to_have_value("display-labels-cerebral_bleed.nii.gz")
    expect(page.locator('.stage[data-ready="true"]')).to_be_visible(timeout=120_000)
    page.get_by_label("Labels").select_option("display-labels-total.nii.gz")
    legend = page.get_by_test_id("legend")
    legend.locator("summary").click()
    expect(legend).to_contain_text("Brain")
    expect(legend).not_to_contain_text("Liver")
    legend.get_by_role("button").click()
    expect(legend).to_contain_text("Not found, or missed by the model:")
    expect(legend).to_contain_text("Liver")
    stage, words = page.locator("#stage").bounding_box(), page.locator(".beside").bounding_box()
    assert stage is not None and words is not None
    assert words["y"] + words["height"] <= stage["y"]  # no word lies on the picture


def test_nothing_is_said_of_images_that_are_not_synthetic(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{NOT_APPLICABLE_UID}")
    banner = page.get_by_test_id("demo")
    expect(banner).to_contain_text("AI results on this installation come from synthetic demo models")
    expect(banner).not_to_contain_text("images")
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    expect(banner).to_contain_text("Made with synthetic demo models or images.")


def test_a_study_without_an_urgency_is_not_called_routine_and_says_how_it_is_ordered(page: Page, site: Site):
    page.goto(site.url)
    pill = page.locator(f'[data-study="{FAILED_UID}"] .pill').first
    expect(pill).to_have_text("no AI urgency")
    expect(pill).to_have_attribute("title", re.compile("That is not ROUTINE.*keeps the place of its order"))


def test_while_images_come_in_it_says_when_analysis_starts(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{RECEIVING_UID}")
    wait_s = f"{site.services.settings.completion.site.after_release_s:g}"
    expect(page.get_by_test_id("state-words")).to_contain_text(f"Analysis starts {wait_s} s after the last image")


@pytest.mark.parametrize("width", [1280, 1300, 1920])
def test_the_worklist_fits_however_long_its_texts_are(chromium: Browser, tmp_path: Path, width: int):
    made = services(tmp_path / "data")
    now = made.clock.now()
    long = {
        "patient_name": f"{'Family' * 10}^With Some Middle Names^And More",
        "patient_id": "MRN" + "1234567890" * 6,
        "study_description": "CT_THORAX_ABDOMEN_PELVIS_WITH_CONTRAST_PORTAL_VENOUS_PHASE_1_MM",
        "modalities": "CT,PR,SR",
        "ordered_priority": "ROUTINE",
    }
    closing = {"close_code": "idle_after_abort", "close_reason": "why", "closes_at": now + timedelta(minutes=5)}
    urgent = {"urgency": "P0", "urgency_reason": "intracranial_hemorrhage " * 12, "reason_code": "oom", "reason": "odd"}
    with made.database.write() as session:
        add_study(session, ABDOMEN_UID, now, state="settling", n_instances=123_456, **long, **closing)
        failed = add_study(session, HEAD_UID, now - timedelta(days=3), **long)
        add_result(session, made, failed, head=True)
        for name, value in {"state": "failed", "epoch": 2, **urgent}.items():
            setattr(failed, name, value)
        session.add(failed)
    page = chromium.new_page(viewport={"width": width, "height": 800})
    with serving(create_app(made)) as url:
        page.goto(url)
        expect(page.locator(f'[data-study="{ABDOMEN_UID}"]')).to_contain_text("BROKEN OFF")
        expect(page.locator(f'[data-study="{HEAD_UID}"]')).to_contain_text("OLDER RESULT")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
        assert page.locator(".list").evaluate("list => list.scrollWidth - list.clientWidth") == 0
        cut = "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.innerText)"
        assert page.locator(".list th, .list td").evaluate_all(cut) == []
        reason = page.locator(f'[data-study="{HEAD_UID}"] td').last.bounding_box()
        assert reason is not None
        assert reason["width"] >= 220 and reason["x"] + reason["width"] <= width
        page.screenshot(path=tmp_path / "worklist.png")
    page.close()


def test_every_clock_of_a_page_bears_its_zone(chromium: Browser, site: Site):
    page = chromium.new_page(timezone_id="Asia/Kolkata")
    page.goto(site.url)
    expect(page.get_by_role("columnheader", name="Received")).to_have_text("Received GMT+5:30")
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    expect(page.locator(".facts")).to_contain_text("10:15 scanner time")
    page.get_by_text(re.compile(r"^History")).click()
    clocks = page.locator("details tbody tr td:first-child")
    expect(clocks).to_have_count(2)
    for clock in clocks.all():
        expect(clock).to_have_text(re.compile(r"^(\d{4}-\d\d-\d\d )?\d\d:\d\d GMT\+5:30$"))
    page.close()


def test_a_settling_study_says_when_it_closes_and_a_person_completes_it(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    now = made.clock.now()
    plan = {
        "closes_at": now + timedelta(minutes=5),
        "close_code": "idle_after_abort",
        "close_reason": "5 minutes without an image after the last association was broken off",
    }
    with made.database.write() as session:
        add_study(session, ABDOMEN_UID, now, n_instances=7, state="settling", **plan)
    page = chromium.new_page(timezone_id="Etc/UTC")
    with serving(create_app(made)) as url:
        page.goto(url)
        row = page.locator(f'[data-study="{ABDOMEN_UID}"]')
        expect(row).to_contain_text(re.compile(r"closes \d\d:\d\d:\d\d UTC"))
        expect(row).to_contain_text("BROKEN OFF")
        expect(row).not_to_contain_text("CUT OFF")
        row.get_by_role("link", name="complete now").click()
        words = page.get_by_test_id("state-words")
        expect(words).to_contain_text(
            re.compile(
                r"broken off.* If nothing more comes until \d\d:\d\d:\d\d UTC, it is analysed .*: 5 minutes without"
            )
        )
        expect(page.locator("body")).not_to_contain_text("was closed")
        expect(page.locator('[data-reason="idle_after_abort"]')).to_have_count(0)
        page.get_by_test_id("complete").click()
        page.get_by_label("Why").fill("the scanner was switched off")
        page.get_by_label("Your name").fill("Dr. Grey")
        page.get_by_role("button", name="It is complete: analyse it now").click()
        expect(page.get_by_test_id("closed")).to_contain_text(
            "with 7 images: Dr. Grey said that it is complete: the scanner was switched off."
        )
        expect(page.get_by_test_id("complete")).to_have_count(0)
    page.close()


def test_the_legend_of_a_key_image_hides_nothing_of_it(page: Page, site: Site):
    page.set_viewport_size({"width": 1400, "height": 860})
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    page.get_by_role("button", name="Liver", exact=True).click()
    legend = page.get_by_role("group", name="Structures")
    expect(legend).to_contain_text("Liver")
    below, stage = legend.bounding_box(), page.locator("#stage").bounding_box()
    assert below is not None and stage is not None
    assert below["y"] >= stage["y"] + stage["height"] - 1


def test_an_open_upload_and_a_broken_transfer_and_a_contested_uid_are_shown(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    now = made.clock.now()
    held = {"close_code": "upload_open", "close_reason": "its upload has not been ended", "closes_at": None}
    ended = {
        "close_code": "operator",
        "close_reason": "Dr. Grey said that it is complete: why (the last association was broken off)",
    }
    with made.database.write() as session:
        record_instances(session, [received(1, at=now), received(1, content="other", spool="b", at=now)], now)
        add_study(session, ABDOMEN_UID, now, state="receiving", **held)
        add_study(session, FAILED_UID, now, state="queued", closed_at=now, last_transfer="aborted", **ended)
    page = chromium.new_page(viewport={"width": 1400, "height": 800})
    with serving(create_app(made)) as url:
        page.goto(url)
        row = page.locator(f'[data-study="{ABDOMEN_UID}"]')
        expect(row).to_contain_text("upload open")
        expect(row.get_by_role("link", name="complete now")).to_be_visible()
        expect(page.locator(f'[data-study="{FAILED_UID}"]')).to_contain_text("CUT OFF")
        expect(page.locator('[data-study="1.2.1"]')).to_contain_text("UID CONFLICT")
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        expect(page.get_by_test_id("state-words")).to_contain_text("Now: its upload has not been ended.")
        page.goto(f"{url}/studies/{FAILED_UID}")
        expect(page.get_by_test_id("closed")).to_contain_text("(the last association was broken off)")
        expect(page.locator('[data-reason="transfer_incomplete"]')).to_be_visible()
        page.goto(f"{url}/studies/1.2.1")
        conflicts = page.get_by_test_id("uid-conflicts")
        expect(conflicts).to_contain_text("1 UID CONFLICT")
        conflicts.get_by_text("Images (2)").click()
        expect(conflicts.locator("tbody tr")).to_have_count(2)
    page.close()


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({"disk_warn_percent": 0.01, "disk_refuse_percent": 100.0}, "DISK NEARLY FULL"),
        ({"min_free_mib": 1 << 40}, "DISK FULL: NO IMAGE IS TAKEN IN"),
    ],
)
def test_a_full_disk_is_said_on_the_worklist_until_there_is_room(
    chromium: Browser, tmp_path: Path, marks: dict[str, float], words: str
):
    made = services(tmp_path / "data", None, **marks)
    page = chromium.new_page(viewport={"width": 1400, "height": 800})
    with serving(create_app(made)) as url:
        page.clock.install()
        page.goto(url)
        expect(page.get_by_test_id("disk")).to_contain_text(words)
        for name, value in {"min_free_mib": 0, "disk_warn_percent": 99.99, "disk_refuse_percent": 100.0}.items():
            object.__setattr__(made.settings, name, value)
        page.clock.run_for(31_000)
        expect(page.get_by_test_id("disk")).to_have_count(0)
    page.close()


def test_a_study_that_is_not_there_is_said_once_with_a_way_home(chromium: Browser, site: Site):
    page = chromium.new_page()  # the browser itself writes the 404 to its console
    page.goto(f"{site.url}/")
    page.evaluate("history.pushState(null, '', '/studies/1.2.3.4'); dispatchEvent(new PopStateEvent('popstate'))")
    expect(page.get_by_role("heading", name="There is no such study")).to_be_visible()
    expect(page.get_by_text("no such study")).to_have_count(1)
    page.get_by_role("main").get_by_role("link", name="Go to the worklist").click()
    expect(page.locator("tbody tr").first).to_be_visible()
    page.close()


def test_a_retry_that_changed_nothing_says_so(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    now = made.clock.now()
    ended = {"state": "not_applicable", "reason_code": "no_usable_series", "reason": "too_few_slices: 2 slices"}
    with made.database.write() as session:
        study = add_study(session, ABDOMEN_UID, now, n_instances=1, **ended)
        record_event(
            session, "study.retry", now=now, actor="api", study_id=study.id,
            old="not_applicable", new="queued", reason=ended["reason"],
        )  # fmt: skip
    with serving(create_app(made)) as url:
        page = chromium.new_page()
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        expect(page.get_by_test_id("retried")).to_have_text(
            re.compile(r"Retried at \d\d:\d\d [A-Z][\w+:-]*, same result\.")
        )
        # Another run on the same images cannot help.
        expect(page.get_by_test_id("retry")).to_have_count(0)
        expect(page.get_by_test_id("no-retry")).to_contain_text("Choose a series below")
        expect(page.locator(".identity")).to_contain_text("1 image")
        expect(page.locator(".identity")).not_to_contain_text("1 images")
        page.close()


@pytest.mark.parametrize(
    ("uid", "sentence"),
    [
        (FAILED_UID, "Analysis failed. No measurement was made"),
        (FAILED_UID, "missing_slices: 3 of 104 slices are absent"),
        (FAILED_UID, "The slices of the chosen series do not form an exact volume. Send the series again"),
        (NOT_APPLICABLE_UID, "This is not a negative finding."),
        (NOT_APPLICABLE_UID, "No model that reads this kind of image is installed here."),
        (RUNNING_UID, "Being analysed now (segment)."),
    ],
)
def test_a_study_without_a_result_says_so_in_words(page: Page, site: Site, uid: str, sentence: str):
    page.goto(f"{site.url}/studies/{uid}")
    expect(page.get_by_test_id("state-words")).to_contain_text(sentence)
    expect(page.get_by_role("tab", name="Volume")).to_be_disabled()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("failed", "the analysis failed."),
        ("not_applicable", "the analysis does not apply to this study."),
        ("cancelled", "the analysis was cancelled."),
    ],
)
def test_a_study_that_ended_without_a_result_promises_none_and_can_be_retried(
    chromium: Browser, tmp_path: Path, state: str, words: str
):
    made = services(tmp_path / "data")
    with made.database.write() as session:
        add_study(session, ABDOMEN_UID, made.clock.now(), state=state, reason_code="oom", reason="odd")
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 860})
        page.goto(url)
        reason = page.locator(f'[data-study="{ABDOMEN_UID}"] td:last-child')
        expect(reason).to_contain_text("odd")
        assert ("bad" in str(reason.get_attribute("class"))) is (state == "failed")
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        for what in ("key images", "finished step", "file", "measurement", "series"):
            expect(page.get_by_text(f"No {what}: {words}")).to_be_visible()
        expect(page.get_by_text(" yet.")).to_have_count(0)
        expect(page.get_by_test_id("overlay")).to_have_count(0)
        expect(page.get_by_test_id("state-words").locator("code")).to_have_text("oom")
        page.get_by_test_id("retry").click()
        expect(page.get_by_test_id("state-words")).to_have_text("Complete and waiting for a free worker.")
        expect(page.get_by_text("No key images yet.")).to_be_visible()
        expect(page.get_by_test_id("retry")).to_have_count(0)
        page.close()
    with made.database.read() as session:
        assert session.exec(select(StudyRow)).one().state == "queued"


def test_a_failed_study_leads_with_its_own_reason_and_claims_no_measurement(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    now = made.clock.now()
    reason = "engine_unavailable: no replica for 20 s (attempt 3 of 3)"
    with made.database.write() as session:
        study = add_study(session, ABDOMEN_UID, now, state="failed", reason_code="attempts_exhausted", reason=reason)
        cut = "the object ends inside its compressed pixels"
        other = add_study(session, HEAD_UID, now, state="failed", reason_code="truncated", reason=cut)
        session.add(SeriesRow(study_id=study.id, series_uid="1.2.3", modality="CT", n_instances=3, chosen=True))
        for row, code, attempt in ((study, "engine_unavailable", 3), (other, "truncated", 1)):
            job = JobRow(kind="study", key=row.id, study_id=row.id, state="dead", run_at=now, created_at=now)
            job.attempt, job.max_attempts, job.error_code = attempt, 3, code
            session.add(job)
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        words = page.get_by_test_id("state-words")
        first = words.locator(".why").first
        expect(first).to_contain_text(re.compile(r"^no replica for 20 s \(attempt 3 of 3\) engine_unavailable"))
        expect(words.locator('[data-reason="attempts_exhausted"]')).to_be_visible()
        expect(page.get_by_text("All 3 attempts failed.")).to_be_visible()
        expect(page.get_by_text("went wrong last")).to_have_count(0)
        expect(page.locator('[data-series="1.2.3"]')).to_contain_text("chosen by the rules")
        expect(page.locator('[data-series="1.2.3"]')).not_to_contain_text("measured")
        page.goto(f"{url}/studies/{HEAD_UID}")
        expect(words.locator(".why")).to_contain_text(re.compile(f"^{cut} truncated"))
        expect(words.locator(".why .hint")).to_contain_text("Send the study again.")
        expect(page.get_by_text("attempt")).to_have_count(0)
        page.close()


def test_a_retry_that_comes_too_late_is_explained(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    with made.database.write() as session:
        add_study(session, ABDOMEN_UID, made.clock.now(), state="failed", reason_code="oom")
    with serving(create_app(made)) as url:
        page = chromium.new_page()
        refused = {"error": {"code": "not_retryable", "detail": "the study is running"}}
        page.route("**/retry", lambda route: route.fulfill(status=409, json=refused))
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        page.get_by_test_id("retry").click()
        expect(page.get_by_role("alert")).to_have_text("It was not queued: the study is running")
        expect(page.get_by_test_id("retry")).to_be_enabled()
        page.close()


def test_reasons_are_sentences_with_their_code(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{ABDOMEN_UID}")
    absent = page.locator('[data-measurement="intracranial_hemorrhage_volume"]')
    expect(absent).to_contain_text("it is not in the image, or was missed.")
    expect(absent.locator("code")).to_have_text("anatomy_absent")
    scout = page.locator(f'[data-series="{ABDOMEN_UID}.2"]')
    expect(scout).to_contain_text("A planning image (localizer, scout), not a volume. localizer")
    chosen = page.locator(f'[data-series="{ABDOMEN_UID}.1"]')
    expect(chosen).to_contain_text("The gantry was tilted. Positions and volumes take the tilt into account. tilt:12.0")
    left_out = page.get_by_test_id("left-out")
    expect(left_out).to_contain_text("Cerebral bleed")
    expect(left_out).to_contain_text("brain 12 mL, needs 100 mL")
    expect(left_out).to_contain_text("Not run, because the model did not find enough of the part of the body")


def test_a_reason_that_many_measurements_share_is_said_in_full_once(page: Page, site: Site):
    page.goto(f"{site.url}/studies/{HEAD_UID}")
    said = "The model did not find the structure"
    expect(page.locator('[data-measurement="liver_volume"]')).to_contain_text(said)
    spleen = page.locator('[data-measurement="spleen_volume"]')
    expect(spleen).to_contain_text("structure not found as above label_absent")
    expect(spleen.locator(".why")).to_have_attribute("title", re.compile(said))


def test_a_study_whose_uid_was_made_here_says_so(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    with made.database.write() as session:
        add_study(session, ABDOMEN_UID, made.clock.now(), uid_generated=True)
        add_study(session, HEAD_UID, made.clock.now())
    with serving(create_app(made)) as url:
        page = chromium.new_page()
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        expect(page.get_by_test_id("uid-made")).to_contain_text("The images carry no StudyInstanceUID")
        page.goto(f"{url}/studies/{HEAD_UID}")
        expect(page.get_by_test_id("state-words")).to_be_visible()
        expect(page.get_by_test_id("uid-made")).to_have_count(0)
        page.close()


@pytest.mark.parametrize("path", ["/nosuch", "/a/b/c", "/studies/no-uid"])
def test_an_unknown_address_shows_a_page_with_a_way_home(chromium: Browser, site: Site, path: str):
    page = chromium.new_page()
    answer = page.goto(f"{site.url}{path}")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.get_by_role("link", name="Go to the worklist").click()
    expect(page.locator("tbody tr").first).to_be_visible()
    page.close()


def test_numbers_of_a_study_that_got_new_images_are_marked_as_older(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    paths = write_study(tmp_path / "dicom", 3)
    uid = "1.2.826.0.1.3680043.9.9.1"

    def receive(*chosen: Path) -> None:
        archive = tmp_path / f"{len(chosen)}.zip"
        with zipfile.ZipFile(archive, "w") as target:
            for path in chosen:
                target.write(path, path.name)
        receive_zip(archive, made.receiver, ArchiveLimits(100, 1 << 30), new_id())

    receive(*paths[:2])
    with made.database.write() as session:
        add_result(session, made, session.exec(select(StudyRow)).one())
    with serving(create_app(made)) as url:
        page = chromium.new_page(viewport={"width": 1440, "height": 860})
        page.goto(f"{url}/studies/{uid}")
        liver = page.locator('[data-measurement="liver_volume"]')
        expect(liver).to_contain_text(re.compile(r"\d+ mL"))
        expect(page.locator('[data-link="live"]')).to_be_visible()
        expect(page.get_by_text("Older result")).to_have_count(0)
        receive(paths[2])
        older = page.get_by_test_id("older-result")
        expect(older).to_contain_text("Older result: new images arrived. These numbers are from 2 of 3 images.")
        expect(page.get_by_text("OLDER RESULT", exact=True)).to_be_visible()
        expect(liver).to_contain_text(re.compile(r"\d+ mL"))
        with made.database.write() as session:
            study = session.exec(select(StudyRow)).one()
            study.state, study.reason = "failed", "missing_slices"
            session.add(study)
            record_event(
                session,
                "study.state",
                now=made.clock.now(),
                actor="test",
                study_id=study.id,
                old="running",
                new="failed",
            )
        expect(older).to_contain_text("new images arrived and the newer run failed")
        expect(page.get_by_test_id("state-words")).to_contain_text("of the study as it is now")
        page.keyboard.press("Escape")
        row = page.locator(f'[data-study="{uid}"]')
        expect(row).to_contain_text("OLDER RESULT")
        expect(row).to_contain_text("missing_slices")
        page.close()


def test_a_file_is_downloaded_under_its_own_name_and_bytes(page: Page, site: Site, tmp_path: Path):
    page.goto(f"{site.url}/studies/{HEAD_UID}")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="results.json").click()
    assert waiting.value.suggested_filename == "results.json"
    target = tmp_path / "results.json"
    waiting.value.save_as(target)
    artifacts = page.request.get(f"{site.url}/api/v1/studies/{HEAD_UID}").json()["artifacts"]
    digest = next(artifact["sha256"] for artifact in artifacts if artifact["name"] == "results.json")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == digest


def test_the_documentation_works_offline(page: Page, site: Site):
    page.goto(f"{site.url}/docs")
    expect(page.get_by_text("/api/v1/studies/{study_uid}/results")).to_be_visible()


def test_a_dropped_zip_becomes_a_study_and_a_bad_one_is_explained(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    archive = tmp_path / "case.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in write_study(tmp_path / "dicom", 2):
            target.write(path, path.name)
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    (tmp_path / "case.rar").write_bytes(b"Rar!")
    (tmp_path / "notes.txt").write_bytes(b"a note")
    with serving(create_app(made)) as url:
        page = chromium.new_page()
        page.goto(url)
        expect(page.get_by_text("No study yet.")).to_be_visible()
        choose = page.get_by_label("ZIP of a study")
        choose.set_input_files(tmp_path / "case.rar")
        expect(page.get_by_role("alert")).to_contain_text("Only .zip files are accepted.")
        choose.set_input_files(tmp_path / "notes.txt")
        expect(page.get_by_role("alert")).to_contain_text("notes.txt: Only .zip files are accepted.")
        choose.set_input_files(tmp_path / "broken.zip")
        expect(page.get_by_role("alert")).to_contain_text("This is not a ZIP that can be read.")
        choose.set_input_files(archive)
        expect(page.get_by_text("2 images stored")).to_be_visible()
        expect(page.locator("tbody tr")).to_have_count(1)
        choose.set_input_files(archive)
        expect(page.get_by_text("2 of them were already here")).to_be_visible()
        page.get_by_role("link", name="Open the study").click()
        expect(page).to_have_url(re.compile(r"/studies/1\.2\.826"))
        page.close()


DROP = """([selector, names]) => {
    const transfer = new DataTransfer();
    for (const name of names) transfer.items.add(new File(["a note"], name));
    const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
    const events = ["dragover", "drop"].map((type) => new DragEvent(type, options));
    return events.map((event) => document.querySelector(selector).dispatchEvent(event));
}"""


@pytest.mark.parametrize("selector", [".drop", "main", "footer"])
def test_a_dropped_file_that_is_no_zip_is_explained_wherever_it_falls(page: Page, site: Site, selector: str):
    page.goto(site.url)
    expect(page.locator("tbody tr").first).to_be_visible()
    # False: the browser does not open the file in place of the page.
    assert page.evaluate(DROP, [selector, ["notes.txt"]]) == [False, False]
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("notes.txt: Only .zip files are accepted.")
    page.evaluate(DROP, [selector, ["a.zip", "b.zip"]])
    expect(page.get_by_role("alert")).to_contain_text("One ZIP at a time")


def test_the_page_tells_when_it_has_lost_the_server_and_recovers(chromium: Browser, tmp_path: Path):
    made = services(tmp_path / "data")
    page = chromium.new_page()
    with serving(create_app(made)) as url:
        page.goto(url)
        expect(page.locator('[data-link="live"]')).to_be_visible()
        port = int(url.rsplit(":", 1)[1])
    expect(page.locator('[data-link="reconnecting"]')).to_have_text("○ RECONNECTING")
    with made.database.write() as session:
        add_study(session, ABDOMEN_UID, made.clock.now(), patient_name="Missed^Meanwhile")
    with serving(create_app(made), port):
        expect(page.locator('[data-link="live"]')).to_be_visible()
        expect(page.locator("tbody tr")).to_contain_text("Missed, Meanwhile")
        page.close()


def test_with_a_token_the_page_asks_for_it_and_keeps_it_for_the_tab(chromium: Browser, site: Site):
    settings = load({}, None, data_dir=site.services.settings.data_dir, profile="demo", min_free_mib=0, api_token=TOKEN)
    with serving(create_app(replace(site.services, settings=settings))) as url:
        page = chromium.new_page()
        page.goto(f"{url}/studies/{ABDOMEN_UID}")
        field = page.get_by_label("API token")
        field.fill("wrong-token-wrong-token")
        page.keyboard.press("Enter")
        expect(field).to_be_visible()
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".stage img")).to_be_visible()
        expect(page.locator('[data-link="live"]')).to_be_visible()
        page.reload()
        expect(page.locator(".stage img")).to_be_visible()
        assert page.evaluate("Object.keys(localStorage).length") == 0
        page.close()
