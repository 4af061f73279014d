"""The intake at a glance: over the API, at the command line, and in the words of Prometheus."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Generator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from heimdallr_ray import cli_intake
from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.api.intake import IntakeView
from heimdallr_ray.catalog.api_tokens import create_token
from heimdallr_ray.catalog.associations import AssociationClosed, AssociationOpened, record_closed, record_opened
from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.catalog.studies import record_instances
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.cli import app as command
from heimdallr_ray.cli_intake import age
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.listener.figures import IntakeFigures, OpenNow
from heimdallr_ray.listener.snapshots import LISTENER, FiguresPublisher, ProcessState
from heimdallr_ray.security.audit import Action, Actor
from heimdallr_ray.security.tokens import Scope, digest, mint
from tests.integration.api.conftest import TOKEN, UPLOAD_TOKEN, bearer, client_of
from tests.integration.api.test_uploads import zipped
from tests.support.intake import write_study
from tests.support.related import TYPE, related
from tests.support.seeded import services
from tests.support.studies import received

CT, MR = ("CT_1", "192.0.2.7"), ("MR_1", "192.0.2.8")


@pytest.fixture
def busy(empty: ApiServices) -> Generator[ApiServices]:
    """A listener that tells of itself, a sender that is there and one that went, a study, a spool that waits."""
    clock, now = SystemClock(), SystemClock().now()
    with empty.database.write() as session:
        for number, (calling, address) in enumerate((CT, MR)):
            opened = now - timedelta(minutes=10 - number)
            record_opened(session, [AssociationOpened(f"a{number}", Door.DICOM, calling, "H", address, opened)])
        record_closed(session, [AssociationClosed("a1", now, How.ABORTED, stored=3, refused=1, n_bytes=900)])
        for state, uid in (("receiving", "1.2.3"), ("settling", "1.2.4")):
            row = StudyRow(
                study_uid=uid,
                state=state,
                first_received_at=now,
                last_received_at=now,
                n_instances=3,
                calling_ae="CT_1",
                closes_at=now + timedelta(seconds=60) if state == "settling" else None,
                close_reason="quiet for 60 s after a release" if state == "settling" else None,
            )
            session.add(row)
        empty.audit.append(session, Action.ASSOCIATION_ACCEPTED, Actor.ae(*CT), now=now)
    spool = empty.settings.spool_dir
    for name, age_s in (("ready/a0.1.dcm", 90), ("ready/a0.2.dcm", 5), ("quarantine/a0.3.dcm", 0)):
        (spool / name).write_bytes(b"DICM")
        written_at = now.timestamp() - age_s
        os.utime(spool / name, (written_at, written_at))
    figures = IntakeFigures(clock)
    figures.stored(Door.DICOM, 525_000, 0.012)
    figures.stored(Door.DICOM, 525_000, 0.7)
    figures.synced(0.004)
    for _ in range(3):
        figures.refused("rejected.calling_ae")
    figures.refused("cut.slow_sender")
    state = ProcessState(port=11112, open=(OpenNow("a0", *CT, now, stored=2),), committed=2, duplicates=1)
    publisher = FiguresPublisher(empty.settings.run_dir, LISTENER, figures, clock, lambda: state)
    publisher.publish()
    yield empty
    publisher.stop()


def scraped(body: str) -> dict[str, float]:
    """Every sample with its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_the_api_tells_who_is_there_who_was_and_what_waits(busy: ApiServices) -> None:
    answer = client_of(create_app(busy)).get("/api/v1/intake")
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    assert [(one["name"], one["port"], one["open_associations"]) for one in told["processes"]] == [
        ("listener-0", 11112, 1)
    ]
    assert [(one["calling_ae"], one["address"], one["stored"]) for one in told["associations"]] == [(*CT, 2)]
    assert [(one["calling_ae"], one["open"], one["unclean"], one["stored"]) for one in told["senders"]] == [
        ("MR_1", 0, 1, 3),
        ("CT_1", 1, 0, 0),
    ]
    assert (told["receiving"], told["settling"]) == (1, 1)
    assert {one["study_uid"] for one in told["studies"]} == {"1.2.3", "1.2.4"}
    closing = {one["study_uid"]: (one["closes_at"] is None, one["close_reason"]) for one in told["studies"]}
    assert closing == {"1.2.3": (True, None), "1.2.4": (False, "quiet for 60 s after a release")}
    assert (told["spool"]["depth"], told["spool"]["quarantined"]) == (2, 1)
    assert 90 <= told["spool"]["oldest_s"] < 150
    assert told["refused_last_hour"] == {"rejected.calling_ae": 3, "cut.slow_sender": 1}
    assert told["disk"]["level"] in ("well", "warn", "refuse")
    assert told["commitment"] == {"waiting": 0, "oldest_asked_at": None, "failing": 0, "given_up": 0}
    assert told["audit_entries"] == 2


def test_a_contested_uid_is_told_to_reader_and_operator(empty: ApiServices) -> None:
    now = empty.clock.now()
    with empty.database.write() as session:
        images = [received(1, at=now), received(2, at=now)]
        record_instances(session, [*images, received(2, content="other", spool="b", at=now, ae="CT_2")], now)
    client = client_of(create_app(empty))
    (row,) = client.get("/api/v1/studies").json()["studies"]
    page = client.get("/api/v1/studies/1.2.1").json()
    assert (row["uid_conflicts"], page["study"]["uid_conflicts"]) == (1, 1)
    assert {(one["calling_ae"], one["study_uid"]) for one in page["uid_conflicts"]} == {
        ("SCANNER", "1.2.1"),
        ("CT_2", "1.2.1"),
    }
    assert client.get("/api/v1/intake").json()["uid_conflicts"] == {
        "uids": 1,
        "images": 2,
        "n_studies": 1,
        "studies": [{"study_uid": "1.2.1", "uids": 1}],
    }
    said = CliRunner().invoke(command, ["intake", "status", "--data-dir", str(empty.settings.data_dir)]).output
    assert "UID conflicts 1 SOP Instance UID with images of different bytes, 2 images under it in all" in said
    assert "  1 such UID in study 1.2.1\n" in said
    assert client.get("/api/v1/status").json()["disk"]["level"] in ("well", "warn", "refuse")


def test_each_http_door_counts_what_it_took_what_it_had_and_what_it_did_not_take(
    empty: ApiServices, tmp_path: Path
) -> None:
    client = client_of(create_app(empty))
    files = [path.read_bytes() for path in write_study(tmp_path / "study", 3)]
    packed = zipped({**{f"{n}.dcm": content for n, content in enumerate(files)}, "readme.txt": b"no image"})
    for _ in range(2):
        assert client.post("/api/v1/upload", files={"file": ("study.zip", packed)}).status_code == 200
    body = related([*files[:2], b"this is no DICOM" * 10])
    assert client.post("/dicomweb/studies", content=body, headers={"Content-Type": TYPE}).status_code == 202
    told = {one["door"]: one for one in client.get("/api/v1/intake").json()["senders"]}
    figures = ("associations", "stored", "duplicates", "refused")
    assert {door: tuple(one[name] for name in figures) for door, one in told.items()} == {
        "upload": (2, 6, 3, 2),
        "stow": (1, 2, 2, 1),
    }
    said = CliRunner().invoke(command, ["intake", "status", "--data-dir", str(empty.settings.data_dir)]).output
    for row in (r"-  +upload .* 6 +3 +2 +2 +0", r"-  +stow .* 2 +2 +1 +1 +0"):
        assert re.search(f"^{row}$", said, re.MULTILINE), said


def test_prometheus_reads_the_same_and_no_name_of_anybody(busy: ApiServices) -> None:
    answer = client_of(create_app(busy)).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    told = scraped(answer.text)
    process = "process=listener-0"
    assert told[f"heimdallr_intake_instances_total{{door=dicom,{process}}}"] == 2
    assert told[f"heimdallr_intake_bytes_total{{door=dicom,{process}}}"] == 1_050_000
    assert told[f"heimdallr_intake_refused_total{{door=dicom,{process},reason=calling_ae,what=rejected}}"] == 3
    assert told[f"heimdallr_intake_store_seconds_bucket{{door=dicom,le=0.01,{process}}}"] == 0
    assert told[f"heimdallr_intake_store_seconds_bucket{{door=dicom,le=0.025,{process}}}"] == 1
    assert told[f"heimdallr_intake_store_seconds_bucket{{door=dicom,le=+Inf,{process}}}"] == 2
    assert told[f"heimdallr_intake_store_seconds_sum{{door=dicom,{process}}}"] == pytest.approx(0.712)
    assert told[f"heimdallr_intake_fsync_seconds_count{{{process}}}"] == 1
    assert told[f"heimdallr_intake_associations_open{{{process}}}"] == 1
    assert told[f"heimdallr_intake_process_up{{{process}}}"] == 1
    assert told[f"heimdallr_intake_committed_total{{{process}}}"] == 2
    assert told["heimdallr_intake_studies{state=settling}"] == 1
    assert told["heimdallr_intake_spool_depth"] == 2
    assert told["heimdallr_intake_spool_oldest_seconds"] >= 90
    assert told["heimdallr_intake_quarantine_depth"] == 1
    assert 0 < told["heimdallr_intake_disk_used_ratio"] < 1
    assert told["heimdallr_intake_commitment_depth"] == 0
    assert told["heimdallr_intake_audit_entries"] == 2
    for name in (*CT, *MR, "1.2.3"):
        assert name not in answer.text


def test_a_scraper_that_knows_openmetrics_gets_it(busy: ApiServices) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    answer = client_of(create_app(busy)).get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_without_a_database_the_rest_is_told(busy: ApiServices) -> None:
    path = busy.settings.data_dir / "catalog.sqlite"
    busy.database.close()
    path.rename(path.with_suffix(".away"))
    told = scraped(client_of(create_app(busy)).get("/metrics").text)
    assert told["heimdallr_intake_spool_depth"] == 2
    assert "heimdallr_intake_audit_entries" not in told
    path.with_suffix(".away").rename(path)


def test_figures_are_for_who_holds_a_token_of_that_scope(tmp_path: Path) -> None:
    guarded = services(tmp_path / "data", api_token=TOKEN)
    client = client_of(create_app(guarded))
    assert client.get("/metrics").status_code == 401
    assert client.get("/api/v1/intake").status_code == 401
    assert client.get("/metrics", headers=bearer(TOKEN)).status_code == 200
    stranger = client_of(create_app(services(tmp_path / "open")), peer=("192.0.2.9", 4000))
    assert stranger.get("/metrics").status_code == 401
    # Neither of the other kinds of token closes it to this machine; a server that listens elsewhere is.
    other = services(tmp_path / "other", upload_token=UPLOAD_TOKEN)
    with other.database.write() as session:
        create_token(
            session, "monitor", digest(mint()), Scope.METRICS, now=SystemClock().now(), created_by="x", expires_at=None
        )
    assert client_of(create_app(other)).get("/metrics").status_code == 200
    wide = replace(other, settings=other.settings.model_copy(update={"server_host": "192.0.2.1"}))
    assert client_of(create_app(wide)).get("/metrics").status_code == 401


def invoke(folder: Path, *words: str) -> tuple[int, str]:
    environment = {"HEIMDALLR_PROFILE": "demo", "HEIMDALLR_DATA_DIR": ""}
    done = CliRunner().invoke(command, ["intake", "status", "--data-dir", str(folder), *words], env=environment)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(hours=1), "(last hour)"),
        (timedelta(minutes=59), "(since the start at 2026-01-02 02:01:00 UTC; what was before is in the log"),
        (None, "nothing (of running processes, of which there is none"),
    ],
)
def test_refusals_are_told_with_the_time_that_they_cover(busy: ApiServices, age: timedelta | None, words: str) -> None:
    view = IntakeView.model_validate(client_of(create_app(busy)).get("/api/v1/intake").json())
    view.at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    view.refused_last_hour = {} if age is None else {"rejected.called_ae": 2}
    view.processes = [] if age is None else view.processes[:1]
    for one in view.processes:
        one.started_at = view.at - age if age else view.at
    (line,) = [line for line in cli_intake.lines(view) if line.startswith("refused")]
    assert words in line


def test_the_command_tells_a_person(busy: ApiServices) -> None:
    status, said = invoke(busy.settings.data_dir)
    assert "listener-0    port 11112, well, 1 open" in said
    assert "2 acknowledged and not yet in the catalog, the oldest 90 s old" in said
    assert "rejected.calling_ae 3, cut.slow_sender 1 (since the start at 2" in said
    assert "1 receiving, 1 settling" in said
    assert "  quiet for 60 s after a release" in said
    assert "CT_1" in said and "MR_1" in said and "192.0.2.8" in said
    document = json.loads(invoke(busy.settings.data_dir, "--json")[1])
    assert status == (1 if document["disk"]["level"] == "refuse" else 0)
    assert document["senders"][0]["calling_ae"] == "MR_1"


def test_times_are_utc_and_say_so_wherever_the_machine_stands(
    busy: ApiServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = re.compile(r"\d\d:\d\d:\d\d(?: UTC)?")
    told: list[str] = []
    for zone in ("UTC0", "XST-09:30"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            told.append(invoke(busy.settings.data_dir)[1])
        finally:
            monkeypatch.undo()
            time.tzset()
    here, far = (clock.findall(one) for one in told)
    assert here == far and len(here) >= 5
    assert [one for one in here if not one.endswith(" UTC")] == []


def test_the_command_answers_without_a_stack_too(empty: ApiServices) -> None:
    status, said = invoke(empty.settings.data_dir)
    assert status == 3
    assert "no listener runs on this data folder" in said
    assert "no sender was seen" in said and "no study is being received" in said
    status, said = invoke(empty.settings.data_dir / "nowhere")
    assert status == 1
    assert "database_unusable" in said


def test_what_a_sender_wrote_stays_on_its_line(empty: ApiServices) -> None:
    with empty.database.write() as session:
        now = SystemClock().now()
        record_opened(session, [AssociationOpened("a", Door.DICOM, "[red]\x1b[2J\r\n", "H", "192.0.2.7", now)])
    _, said = invoke(empty.settings.data_dir)
    assert "\x1b" not in said and "[red]?[2J??" in said


def test_ages_are_as_coarse_as_they_are_long() -> None:
    assert [age(seconds) for seconds in (-1, 0, 119, 120, 7199, 7200)] == [
        "0 s",
        "0 s",
        "119 s",
        "2 min",
        "119 min",
        "2 h",
    ]
