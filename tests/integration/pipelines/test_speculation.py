"""Labels made while a study settles: taken where every input is equal, and otherwise as if they had never been made."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.catalog.ahead import KEPT_S, Wish
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.errors import Broken, EngineUnavailable, HeimdallrError, StaleLease
from heimdallr_ray.listener.quiet import SERIES_QUIET_S
from heimdallr_ray.queue.idle import MAX_CLAIMS
from heimdallr_ray.segmentation.planner import LeftOut, LeftOutCode
from tests.support.dicom import ct_study
from tests.support.speculation import AVERAGE, LEASE_S, SETTLES_S, SLICES, SOFT, STUDY, Site, average, bone

WHOLE = SLICES[:24]
REST_S = int(SERIES_QUIET_S) + 2


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def site(database: Database, folder: Path) -> Site:
    return Site(database, folder)


@pytest.fixture
def made(site: Site) -> Site:
    """The soft series is at rest while its study is open, and its labels are made."""
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    assert site.make_ahead()
    assert site.counts() == {"started": 1, "made": 1}
    return site


def plain(database: Database, folder: Path) -> Site:
    """The same study on a site that makes nothing ahead."""
    site = Site(database, folder / "plain", speculate=False)
    site.ahead = None  # pyright: ignore[reportAttributeAccessIssue]
    site.runner = site.make_runner()
    return site


def test_labels_made_while_the_study_settled_are_taken_and_the_result_says_so(made: Site) -> None:
    assert (made.study().state, made.thresholds.runs) == ("settling", 1)
    (row,) = made.rows()
    made.settle()
    document = made.work()
    assert made.thresholds.runs == 1
    assert document["labels_made_ahead"] == {
        "made_at": row.made_at.isoformat(),
        "job_id": row.job_id,
        "inputs_sha256": row.inputs_sha256,
        "seconds": 0.0,
        "forward_seconds": 2.0,
    }
    assert document["stage_seconds"]["forward"] == 0.0
    first, second = made.told()
    assert (first.new, first.reason) == (
        "made",
        "Labels of one series were made ahead, in 0.0 s, while the study settled.",
    )
    assert (second.old, second.new, second.payload["made_by"]) == ("made", "used", row.job_id)
    at = f"{row.made_at:%Y-%m-%d %H:%M:%S} UTC"
    assert second.reason == f"The labels are those of {at}, made ahead: every input is equal."
    (row,) = made.rows()
    assert row.used_at is not None and row.used_by not in (None, row.job_id)
    assert made.counts() == {"started": 1, "made": 1, "used": 1}


def test_a_result_with_labels_made_ahead_is_that_of_a_plain_run(made: Site, make_url: Any, folder: Path) -> None:
    made.settle()
    ours = made.work()
    other_database = Database(make_url())
    other = plain(other_database, folder)
    other.arrive(WHOLE)
    other.settle()
    theirs = other.work()
    assert theirs["labels_made_ahead"] is None
    apart = ("labels_made_ahead", "stage_seconds", "study")
    assert {key: value for key, value in ours.items() if key not in apart} == {
        key: value for key, value in theirs.items() if key not in apart
    }
    assert any(one["value"] is not None for one in ours["measurements"])
    # By digest: every voxel of every label map, every picture.
    files, plain_files = made.artifacts(), other.artifacts()
    assert set(files) == set(plain_files)
    assert {name for name in files if files[name].sha256 != plain_files[name].sha256} == {"id.json", "results.json"}
    other_database.close()


def test_it_is_off_by_default(database: Database, folder: Path) -> None:
    site = Site(database, folder, speculate=False)
    site.arrive(WHOLE)
    site.settle()
    assert site.jobs() == []
    assert not site.make_ahead()
    assert site.work()["labels_made_ahead"] is None
    assert (site.rows(), site.told(), site.counts()) == ([], [], {})


def test_a_late_image_of_the_series_makes_the_labels_useless(made: Site) -> None:
    made.arrive(SLICES[24:25])
    made.settle()
    assert len(made.jobs()) == 1  # a series that went on is not guessed at twice
    assert made.work()["labels_made_ahead"] is None
    assert made.thresholds.runs == 2
    assert [event.new for event in made.told()] == ["made"]


def test_an_image_that_came_after_the_wish_ends_it_before_anything_is_prepared(site: Site) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    site.arrive(SLICES[24:25])
    assert site.make_ahead()
    assert site.counts() == {"dropped": 1}
    assert (site.thresholds.runs, site.jobs()[0].state) == (0, "done")


def test_another_series_that_the_rules_prefer_makes_the_labels_useless(site: Site) -> None:
    site.arrive(average())
    site.scan_for(REST_S)
    assert site.make_ahead()
    assert [row.series_uid for row in site.rows()] == [AVERAGE]
    site.arrive(WHOLE)
    site.settle()
    document = site.work()
    assert (document["volume"]["series_uid"], document["labels_made_ahead"]) == (SOFT, None)
    assert site.thresholds.runs == 2


def test_labels_of_a_series_are_kept_while_others_that_the_rules_do_not_choose_still_come(site: Site) -> None:
    site.busy = {STUDY}
    site.arrive(WHOLE)
    scouts = ct_study(
        12, seed="scout", StudyInstanceUID=STUDY, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=1
    )
    for content in scouts:
        site.scan_for(1)
        site.arrive([content])
    assert [Wish.of(job.payload, job.epoch).series_uid for job in site.jobs()] == [SOFT]
    assert site.study().state == "receiving"
    assert site.make_ahead()
    site.busy = set()
    site.settle()
    assert site.work()["labels_made_ahead"] is not None
    assert site.thresholds.runs == 1


def test_a_series_that_the_rules_do_not_choose_is_never_prepared(site: Site) -> None:
    site.arrive([*WHOLE, *bone()])
    site.scan_for(REST_S)
    assert len(site.jobs()) == 2
    assert site.make_ahead() and site.make_ahead() and not site.make_ahead()
    assert [row.series_uid for row in site.rows()] == [SOFT]
    assert site.counts() == {"started": 1, "made": 1, "dropped": 1}
    assert site.thresholds.runs == 1


def test_series_that_only_the_phase_model_could_part_are_left_to_the_studys_run(site: Site) -> None:
    site.arrive([*WHOLE, *average(words="")])
    site.scan_for(REST_S)
    assert site.make_ahead() and site.make_ahead() and not site.make_ahead()
    assert (site.counts(), site.thresholds.runs) == ({"dropped": 2}, 0)


@pytest.mark.parametrize("what", ["weights", "build"])
def test_other_weights_or_another_build_makes_the_labels_useless(made: Site, what: str) -> None:
    made.settle()
    if what == "weights":
        made.engine = "weights 2"
    else:
        object.__setattr__(made.runner.preparing, "build", "another")
    assert made.work()["labels_made_ahead"] is None
    assert made.thresholds.runs == 2


def test_nothing_is_made_ahead_while_another_job_waits_or_runs(site: Site) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    site.other_work()
    assert not site.make_ahead()
    other = site.claim()
    assert not site.make_ahead()
    # Also while it waits for its next attempt.
    with site.database.write() as session:
        site.queue.fail(session, other, "x", "y", retry=True, delay_s=3600)
    assert not site.make_ahead()
    site.clock.advance(3600)
    site.finish(site.claim())
    assert site.counts() == {}
    assert site.idle.others() is False


def test_one_of_two_consumers_makes_them(site: Site) -> None:
    site.arrive([*WHOLE, *bone()])
    site.scan_for(REST_S)
    second = site.make_worker("host/2/b")
    seen: list[bool] = []
    site.thresholds.hook = lambda lost: seen.append(second.work_once())
    assert site.make_ahead()
    assert seen == [False]  # two jobs waited, and one ran


def wait_until_told(lost: threading.Event | None) -> None:
    """As the deployment's handle does: the call ends once the event is set."""
    assert lost is not None
    assert lost.wait(20), "nobody said that other work waits"
    raise StaleLease("the lease was lost while the study was segmented")


def test_work_that_comes_while_it_is_prepared_comes_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    path_of, ends = site.blobs.path, time.monotonic() + 20

    def slow(sha256: str) -> Path:
        if site.counts().get("started") and not site.idle.others():
            site.other_work()
        if site.idle.others():
            assert time.monotonic() < ends
            time.sleep(0.05)
        return path_of(sha256)

    monkeypatch.setattr(site.blobs, "path", slow)
    assert site.make_ahead()
    assert (site.thresholds.runs, site.rows()) == (0, [])
    (job,) = site.jobs()
    assert (job.state, job.attempt, job.owner) == ("queued", 0, None)
    assert site.counts() == {"started": 1, "gave_way": 1}
    assert not site.make_ahead()
    monkeypatch.undo()
    site.finish(site.claim())
    assert site.make_ahead()
    assert len(site.rows()) == 1


def test_work_that_comes_while_it_is_segmented_comes_first_and_it_is_given_up_in_the_end(site: Site) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)

    def interrupted(lost: threading.Event | None) -> None:
        site.other_work(f"other {site.thresholds.runs}")
        wait_until_told(lost)

    site.thresholds.hook = interrupted
    for number in range(1, MAX_CLAIMS + 1):
        assert site.make_ahead()
        assert site.thresholds.runs == number
        site.finish(site.claim())
    (job,) = site.jobs()
    assert (job.state, job.error_code) == ("dead", "made_way")
    assert not site.make_ahead()
    assert site.counts() == {"started": MAX_CLAIMS, "gave_way": MAX_CLAIMS}
    site.thresholds.hook = lambda lost: None
    site.settle()
    assert site.work()["labels_made_ahead"] is None


def test_the_studys_own_job_does_not_wait_for_labels_that_are_being_made(site: Site) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    done: list[dict[str, Any]] = []

    def closed_meanwhile(lost: threading.Event | None) -> None:
        site.thresholds.hook = lambda lost: None
        site.settle()
        wait_until_told(lost)

    site.thresholds.hook = closed_meanwhile
    assert site.make_ahead()
    done.append(site.work())
    assert done[0]["labels_made_ahead"] is None
    assert (site.rows(), site.thresholds.runs) == ([], 2)
    # Back in the queue, and of no use any more.
    assert site.make_ahead()
    assert site.counts() == {"started": 1, "gave_way": 1, "dropped": 1}


@pytest.mark.parametrize(
    ("error", "attempts", "code"),
    [(Broken("no"), 1, "broken"), (EngineUnavailable("no"), 2, "engine_unavailable"), (ValueError("no"), 1, "broken")],
)
def test_a_failure_leaves_the_study_as_it_was(site: Site, error: Exception, attempts: int, code: str) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)

    def fails(lost: threading.Event | None) -> None:
        raise error

    site.thresholds.hook = fails
    before = site.untouched()
    while site.make_ahead():
        site.clock.advance(10)
    assert site.untouched() == before
    (job,) = site.jobs()
    assert (job.state, job.attempt, job.error_code) == ("dead", attempts, code)
    assert site.counts() == {"started": attempts, "failed": attempts}
    site.thresholds.hook = lambda lost: None
    site.settle()
    assert site.work()["labels_made_ahead"] is None
    assert site.told() == []


@pytest.mark.parametrize("code", [LeftOutCode.FAILED, LeftOutCode.OUT_OF_TIME, LeftOutCode.MODEL_UNUSABLE])
def test_labels_that_another_run_might_make_better_are_not_kept(site: Site, code: LeftOutCode) -> None:
    site.thresholds.left_out = (LeftOut("lung_vessels", code, "this time"),)
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    assert site.make_ahead()
    assert (site.rows(), site.counts()) == ([], {"started": 1, "failed": 1})


def test_a_worker_that_vanishes_leaves_nothing_behind_and_is_not_replaced(site: Site) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    before = site.untouched()
    assert site.idle.claim("host/1/gone") is not None
    assert site.idle.claim("host/2/b") is None
    site.clock.advance(LEASE_S)
    assert site.idle.claim("host/2/b") is None
    (job,) = site.jobs()
    assert (job.state, job.lost, job.error_code) == ("dead", 1, "worker_lost")
    assert site.untouched() == before
    assert site.counts() == {"failed": 1}
    site.settle()
    assert site.work()["labels_made_ahead"] is None


def test_labels_made_under_a_lease_that_was_lost_are_thrown_away(site: Site) -> None:
    site.arrive(WHOLE)
    site.scan_for(REST_S)
    before = {path for path in site.blobs.root.rglob("*") if path.is_file()}

    def overtaken(lost: threading.Event | None) -> None:
        site.clock.advance(LEASE_S)
        assert site.idle.claim("host/2/b") is None  # buried

    site.thresholds.hook = overtaken
    assert site.make_ahead()
    assert site.rows() == []
    assert {path for path in site.blobs.root.rglob("*") if path.is_file()} == before
    assert site.counts() == {"started": 1, "failed": 1}


@pytest.mark.parametrize("damage", ["gone", "other", "short", "document"])
def test_labels_that_cannot_be_read_are_made_by_the_study_itself(made: Site, damage: str) -> None:
    (row,) = made.rows()
    path = made.blobs.path(row.document["label_maps"][0]["sha256"])
    if damage == "document":
        with made.database.write() as session:
            kept = session.get_one(type(row), row.id)
            kept.document = {**row.document, "form": 99}
            session.add(kept)
    else:
        content = path.read_bytes()
        path.unlink()
        if damage != "gone":
            path.write_bytes(b"x" * len(content) if damage == "other" else content[:-20])
    made.settle()
    assert made.work()["labels_made_ahead"] is None
    assert made.thresholds.runs == 2
    assert made.counts() == {"started": 1, "made": 1}


def test_labels_are_removed_at_their_age_and_those_of_the_result_stay(made: Site) -> None:
    made.settle()
    made.work()
    (row,) = made.rows()
    (kept,) = row.document["label_maps"]
    files = made.artifacts()
    assert made.blobs.exists(kept["sha256"])
    made.clock.advance(KEPT_S - SETTLES_S - 60)
    assert made.ahead.remove_outdated() == 0
    made.clock.advance(SETTLES_S + 60)
    assert made.ahead.remove_outdated() == 1
    assert (made.rows(), made.blobs.exists(kept["sha256"])) == ([], False)
    assert all(made.blobs.verify(one.sha256) for one in files.values())
    assert made.counts() == {"started": 1, "made": 1, "used": 1}


def test_labels_that_nobody_took_are_counted_when_they_are_removed(made: Site) -> None:
    made.clock.advance(KEPT_S)
    assert made.ahead.remove_outdated() == 1
    assert made.counts() == {"started": 1, "made": 1, "unused": 1}
    # Gone in between, as after a crash between blob and row.
    assert made.ahead.remove_outdated() == 0


def test_a_site_that_makes_none_any_more_keeps_none(made: Site) -> None:
    (row,) = made.rows()
    made.ahead.forget_all()
    assert (made.rows(), made.blobs.exists(row.document["label_maps"][0]["sha256"])) == ([], False)


def test_a_retry_of_the_study_takes_the_same_labels_and_counts_them_once(made: Site) -> None:
    made.settle()
    lease = made.claim()
    lost = threading.Event()
    lost.set()
    with pytest.raises(HeimdallrError):
        made.runner.run(lease, lost)
    made.clock.advance(LEASE_S)
    assert made.work()["labels_made_ahead"] is not None
    assert (made.thresholds.runs, made.counts()["used"]) == (1, 1)
