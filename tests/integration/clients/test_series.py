"""`heimdallr series`: the choice explained line by line, of a folder and of a study in the catalog; another choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import MediaStorageDirectoryStorage
from typer.testing import CliRunner

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.jobs import cancel_jobs
from heimdallr_ray.catalog.results import record_selection
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.studies import study_by_uid, transition
from heimdallr_ray.catalog.worklist import event_history, jobs_of
from heimdallr_ray.cli import app
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load
from heimdallr_ray.dicom.rules import default_rules
from heimdallr_ray.dicom.series import Phase, break_tie
from heimdallr_ray.ids import Uid
from heimdallr_ray.operations.series import explain_study
from heimdallr_ray.pipelines.describe import series_choices
from tests.integration.pipelines.test_study import TwoSeries
from tests.support.dicom import ct_datasets, ct_study, to_bytes

STUDY = str(Uid.derived("study"))
SOFT, BONE = (str(Uid.derived(seed, "series")) for seed in ("study", "bone"))


def invoke(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["series", *words], env={"HEIMDALLR_PROFILE": "demo", "HEIMDALLR_DATA_DIR": ""})
    return done.exit_code, done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    bone = ct_study(24, seed="bone", ConvolutionKernel="BONE", SeriesDescription="[red]bone", StudyInstanceUID=STUDY)
    for number, content in enumerate([*ct_study(24), *bone]):
        (made / f"{number}.dcm").write_bytes(content)
    (made / "notes.txt").write_text("no DICOM")
    return made


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder with the same study in its catalog, cancelled."""
    database = Database(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    database.migrate()
    site = TwoSeries(database, tmp_path)
    with database.write() as session:
        study = study_by_uid(session, STUDY)
        assert study is not None
        cancel_jobs(session, study.id, now=site.clock.now(), actor="test", reason="test")
        transition(session, study.id, StudyState.CANCELLED, now=SystemClock().now(), actor="test")
    database.close()
    return tmp_path


def test_a_folder_is_explained_line_by_line(folder: Path, tmp_path: Path) -> None:
    status, said = invoke("explain", str(folder), "--data-dir", str(tmp_path))
    assert status == 0
    assert f"study {STUDY}" in said
    assert f"rules heimdallr-series version {default_rules().file.version} (" in said and "purpose volume" in said
    assert "1 file without a DICOM object" in said
    assert "at the first that differs the lowest wins" in said
    heads = [line.split() for line in said.splitlines() if line.startswith("    rule ")]
    assert heads == [["rule", "value", "effect", "score"]] * 2
    chosen, refused = said.index("* No. 2  CT  Test series"), said.index("  No. 2  CT  [red]bone")
    assert chosen < refused
    profile = default_rules().profiles("volume")[0]
    for rule in (*profile.refuse, "geometry", *profile.order):
        assert f"\n    {rule} " in said[chosen:refused]
    assert "sharp_kernel: kernel BONE is for bone or lung" in said[refused:]


def test_the_same_as_json(folder: Path, tmp_path: Path) -> None:
    status, said = invoke("explain", str(folder), "--data-dir", str(tmp_path), "--json")
    assert status == 0
    document: dict[str, Any] = json.loads(said)
    (study,) = document["studies"]
    assert (document["skipped_files"], study["rules"]["sha256"]) == (1, default_rules().sha256)
    by_uid = {one["series_uid"]: one for one in study["series"]}
    assert (by_uid[SOFT]["accepted"], by_uid[BONE]["code"], by_uid[BONE]["can_be_chosen"]) == (
        *(True, "sharp_kernel"),
        True,
    )
    assert {"rule", "value", "effect", "score"} == set(by_uid[SOFT]["lines"][0])


def test_where_nothing_can_be_measured_the_status_says_so(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(ct_study(1)[0])
    status, said = invoke("explain", str(path), "--data-dir", str(tmp_path))
    assert (status, "too_few_slices" in said) == (3, True)
    path.write_bytes(b"no DICOM")
    status, said = invoke("explain", str(path), "--data-dir", str(tmp_path))
    assert (status, "empty_input" in said) == (1, True)


def test_a_dicomdir_is_no_study_of_its_own(folder: Path, tmp_path: Path) -> None:
    directory = ct_datasets(1)[0]
    directory.SOPClassUID, directory.StudyInstanceUID = MediaStorageDirectoryStorage, ""
    (folder / "DICOMDIR").write_bytes(to_bytes(directory))
    status, said = invoke("explain", str(folder), "--data-dir", str(tmp_path))
    assert (status, said.count("study "), "2 files without a DICOM object" in said) == (0, 1, True)


def test_a_site_explains_by_its_own_rules(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIMDALLR_SERIES_RULES", str(tmp_path / "none.toml"))
    status, said = invoke("explain", str(folder), "--data-dir", str(tmp_path))
    assert (status, "bad_setting" in said, "none.toml" in said) == (1, True, True)


def test_a_study_of_the_catalog_is_explained_and_another_series_chosen(data_dir: Path) -> None:
    status, said = invoke("explain", STUDY, "--data-dir", str(data_dir))
    assert status == 0, said
    assert "a person chose" not in said

    assert invoke("choose", STUDY, BONE, "--data-dir", str(data_dir))[0] == 2, "a reason is needed"
    status, said = invoke("choose", STUDY, BONE, "--reason", "motion", "--data-dir", str(data_dir))
    assert (status, "queued" in said) == (0, True)
    status, said = invoke("explain", STUDY, "--data-dir", str(data_dir))
    assert "a person chose No. 2 " in said and f" ({BONE}): " in said and "motion" in said
    assert "overruled" in said
    database = Database(f"sqlite:///{data_dir / 'catalog.sqlite'}")
    with database.read() as session:
        study = study_by_uid(session, STUDY)
        assert study is not None
        assert jobs_of(session, study.id)[0].payload["series"]["series_uid"] == BONE
        (event,) = [one for one in event_history(session, study.id) if one.kind == "study.series"]
    assert event.actor.startswith("cli:")
    database.close()

    again = invoke("choose", STUDY, "--reason", "back", "--data-dir", str(data_dir))
    assert (again[0], "not_retryable" in again[1]) == (1, True)


def test_a_tilt_is_taken_out_on_request(data_dir: Path) -> None:
    words = ("choose", STUDY, "--deskew", "--reason", "tilted", "--data-dir", str(data_dir))
    assert invoke(*words)[0] == 0
    database = Database(f"sqlite:///{data_dir / 'catalog.sqlite'}")
    with database.read() as session:
        study = study_by_uid(session, STUDY)
        assert study is not None
        kept = jobs_of(session, study.id)[0].payload["series"]
    database.close()
    assert (kept["series_uid"], kept["deskew"]) == (None, True)
    status, said = invoke("explain", STUDY, "--data-dir", str(data_dir))
    assert (status, "a person chose" in said, "a tilt is to be taken out: " in said) == (0, False, True)
    status, said = invoke("explain", STUDY, "--data-dir", str(data_dir), "--json")
    assert json.loads(said)["studies"][0]["deskew"]["reason"] == "tilted"


def _ended(data_dir: Path) -> None:
    database = Database(f"sqlite:///{data_dir / 'catalog.sqlite'}")
    with database.write() as session:
        study = study_by_uid(session, STUDY)
        assert study is not None
        cancel_jobs(session, study.id, now=SystemClock().now(), actor="test", reason="test")
        transition(session, study.id, StudyState.CANCELLED, now=SystemClock().now(), actor="test")
    database.close()


def test_taking_the_tilt_out_keeps_the_chosen_series_and_says_what_changed(data_dir: Path) -> None:
    status, said = invoke("choose", STUDY, BONE, "--reason", "motion", "--data-dir", str(data_dir))
    assert (status, f"({BONE}), chosen by " in said, "(before: as the rules choose)" in said) == (0, True, True), said
    _ended(data_dir)
    status, said = invoke("choose", STUDY, "--deskew", "--reason", "askew", "--data-dir", str(data_dir))
    series, tilt = said.splitlines()[-2:]
    assert status == 0 and BONE in series and series.endswith(": motion (unchanged)"), said
    assert tilt.startswith("tilt: taken out, asked for by ") and tilt.endswith("(before: as the site's setting says)")
    _ended(data_dir)
    words = ("choose", STUDY, "--no-deskew", "--by-rules", "--reason", "back", "--data-dir", str(data_dir))
    status, said = invoke(*words)
    assert (status, "series: as the rules choose (before: " in said) == (0, True), said


def test_the_commands_that_help_prints_are_whole() -> None:
    status, said = invoke("choose", "--help")
    assert (status, "Why; needed" in said) == (0, True), said
    for words in ("SERIES_UID --reason", "--deskew --reason"):
        assert words in " ".join(said.split()), said


@pytest.mark.parametrize(
    ("words", "code"),
    [(("explain", "1.2.3"), "not_found"), (("explain", "nothing/here"), "not_found"),
     (("choose", STUDY, "1.2.3", "--reason", "x"), "not_found")],
)  # fmt: skip
def test_what_is_not_there_is_said(data_dir: Path, words: tuple[str, ...], code: str) -> None:
    status, said = invoke(*words, "--data-dir", str(data_dir))
    assert (status, code in said) == (1, True), said


def test_what_is_neither_a_path_nor_a_uid_nor_a_catalog_is_said_in_words(tmp_path: Path) -> None:
    status, said = invoke("explain", "nothing/here", "--data-dir", str(tmp_path))
    assert (status, "not_found: nothing/here: no such file or folder, and no StudyInstanceUID" in said) == (1, True)
    status, said = invoke("explain", STUDY, "--data-dir", str(tmp_path / "empty"))
    assert (status, "not_found: " in said, "empty holds no catalog" in said) == (1, True, True), said
    assert not (tmp_path / "empty" / "catalog.sqlite").exists()


class TwoPhases(TwoSeries):
    """Two series that only a contrast phase that no header tells could part."""

    def _batch(self) -> list[bytes]:
        return [
            *ct_study(24),
            *ct_study(24, seed="two", SeriesDescription="two", StudyInstanceUID=STUDY, SeriesNumber=9),
        ]


def test_a_study_that_has_run_is_explained_as_it_was_decided(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    database.migrate()
    TwoPhases(database, tmp_path)
    settings = load({}, profile="demo", data_dir=tmp_path)
    first = explain_study(settings, Uid.parse(STUDY), default_rules()).selection
    assert len(first.finalists) == 2
    settled = break_tie(first, [Phase.ARTERIAL, Phase.NATIVE])
    assert settled.chosen is not first.chosen
    with database.write() as session:
        study = study_by_uid(session, STUDY)
        assert study is not None
        record_selection(session, study.id, series_choices(settled, None))
    database.close()

    status, said = invoke("explain", STUDY, "--data-dir", str(tmp_path))
    assert status == 0, said
    assert "as its last run decided and recorded" in said
    assert f"rules heimdallr-series version {default_rules().file.version} (" in said
    two = str(Uid.derived("two", "series"))
    chosen, other = said.index(f"  {two}, 24 objects"), said.index(f"  {SOFT}, 24 objects")
    assert chosen < other
    assert "phase_model" in said[chosen:other] and "native" in said[chosen:other]
    assert "another series is preferred by the contrast phase model" in said[other:]

    status, said = invoke("explain", STUDY, "--data-dir", str(tmp_path), "--json")
    (kept,) = json.loads(said)["studies"]
    assert (status, kept["recorded"], kept["rules"]["sha256"]) == (0, True, default_rules().sha256)
    assert [one["series_uid"] for one in kept["series"] if one["accepted"]] == [two]

    status, said = invoke("explain", STUDY, "--again", "--data-dir", str(tmp_path))
    assert (status, "* No. 2  CT  Test series" in said, "the contrast phase model is asked between:" in said) == (
        *(0, True),
        True,
    )
    assert "as its last run" not in said
    status, said = invoke("explain", STUDY, "--purpose", "bone", "--data-dir", str(tmp_path))
    assert "purpose bone" in said and "as its last run" not in said


def test_a_part_of_the_body_that_stays_unmeasured_is_told(tmp_path: Path) -> None:
    for name, n in (("Head", 12), ("Abdomen", 30)):
        for number, content in enumerate(
            ct_study(n, seed=name, spacing_mm=3.0, SeriesDescription=name, StudyInstanceUID=STUDY)
        ):
            (tmp_path / f"{name}-{number}.dcm").write_bytes(content)
    head = Uid.derived("Head", "series")
    status, said = invoke("explain", str(tmp_path), "--data-dir", str(tmp_path))
    assert (status, f"not measured: head, shown by {head}" in said) == (0, True), said
    status, said = invoke("explain", str(tmp_path), "--data-dir", str(tmp_path), "--json")
    (told,) = json.loads(said)["studies"][0]["not_measured"]
    assert (told["region"], told["series_uid"]) == ("head", head)
