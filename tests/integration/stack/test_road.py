"""Real peers against the running product: every road in, every bad input, one honest state each."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.data import get_testdata_file

from tests.support import dicom as synthetic
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(600)


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _upload(stack: Stack, content: bytes, name: str = "study.zip", path: str = "/api/v1/upload") -> httpx.Response:
    return httpx.post(f"{stack.url}{path}", files={"file": (name, content, "application/zip")}, timeout=60)


def _by_code(detail: dict[str, Any]) -> dict[str, int]:
    codes: dict[str, int] = {}
    for series in detail["series"]:
        code = "chosen" if series["chosen"] else series["reject_code"]
        codes[code] = codes.get(code, 0) + 1
    return codes


@pytest.mark.peers("dcmsend")
@pytest.mark.data
def test_dcmtk_sends_a_real_ct_study(stack: Stack, data_folder: Path) -> None:
    before = {study["study_uid"] for study in stack.studies()}
    sent = subprocess.run(
        ["/usr/bin/dcmsend", "--scan-directories", "--recurse", "--no-halt", "-aec", "HEIMDALLR", "127.0.0.1",
         str(stack.dicom_port), str(data_folder / "dcm_qa_ct" / "Philips_S21570")],
        env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    # The folder holds DICOMDIR files, which are no images: without --no-halt dcmsend stops at the first.
    assert sent.returncode == 0, sent.stdout + sent.stderr

    def arrived() -> list[str]:
        return [study["study_uid"] for study in stack.studies() if study["study_uid"] not in before]

    new = stack.wait_for(arrived, 30, "the study to appear")
    assert len(new) == 1
    detail = stack.finished(new[0])
    assert detail["study"]["state"] == "done", detail["study"]["reason"]
    found = {series["reject_code"] or "chosen": series["n_instances"] for series in detail["series"]}
    # The colour summary of the exam is a secondary capture.
    assert found == {"chosen": 28, "localizer": 1, "not_volume_sop": 6}
    assert _by_code(detail) == dict.fromkeys(found, 1)
    assert all(series["reason"] for series in detail["series"])


@pytest.mark.data
def test_zip_with_blank_uids_is_one_study_of_twenty_slices(stack: Stack, data_folder: Path) -> None:
    folder = data_folder / "totalsegmentator" / "example_ct_dicom"
    answer = _upload(stack, _zip({f"a/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["accepted"] == 20
    assert len(body["study_uids"]) == 1
    detail = stack.finished(body["study_uids"][0])
    assert detail["study"]["state"] == "done", detail["study"]["reason"]
    assert detail["study"]["n_instances"] == 20
    assert [series["n_instances"] for series in detail["series"] if series["chosen"]] == [20]


def test_the_original_client_is_understood(stack: Stack) -> None:
    content = _zip({f"{i}.dcm": one for i, one in enumerate(synthetic.ct_study(12, seed="original"))})
    answer = _upload(stack, content, name="case1.zip", path="/upload")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "Accepted"
    assert body["original_file"] == "case1.zip"
    assert body["message"]
    assert _upload(stack, content, name="case1.tar", path="/upload").status_code == 400


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda: b"this is no archive", 400, "bad_archive"),
        (lambda: _zip({"../../evil.dcm": synthetic.ct_study(1)[0]}), 400, "bad_archive"),
        (lambda: _zip({"readme.txt": b"no DICOM here"}), 400, "empty_input"),
        (lambda: _zip({}), 400, "empty_input"),
    ],
    ids=["not a zip", "traversal", "no dicom", "empty"],
)
def test_bad_archives_are_refused_with_a_code(stack: Stack, make: Callable[[], bytes], status: int, code: str) -> None:
    answer = _upload(stack, make())
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code


def test_a_study_without_a_usable_series_says_why(stack: Stack) -> None:
    answer = _upload(stack, _zip({"two.dcm": synthetic.ct_study(2, seed="two")[0]}))
    assert answer.status_code == 200, answer.text
    detail = stack.finished(answer.json()["study_uids"][0])
    assert detail["study"]["state"] == "not_applicable"
    assert detail["study"]["reason_code"] == "no_usable_series"
    assert "too_few_slices" in detail["study"]["reason"]


def test_mr_without_mr_weights_says_so(stack: Stack) -> None:
    slices = synthetic.ct_study(16, seed="mr", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    answer = _upload(stack, _zip({f"{i}.dcm": one for i, one in enumerate(slices)}))
    assert answer.status_code == 200, answer.text
    detail = stack.finished(answer.json()["study_uids"][0])
    assert detail["study"]["state"] == "not_applicable"
    assert detail["study"]["reason_code"] == "modality_not_supported"


def test_a_truncated_file_is_refused_by_name_and_nothing_of_its_archive_is_kept(stack: Stack) -> None:
    before = {study["study_uid"] for study in stack.studies()}
    good = synthetic.ct_study(14, seed="cut")
    cut = [*good[:7], good[7][:-2000], *good[8:]]
    answer = _upload(stack, _zip({f"{i}.dcm": one for i, one in enumerate(cut)}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "truncated")
    assert "1 of 14 DICOM files" in answer.json()["error"]["detail"]
    assert {study["study_uid"] for study in stack.studies()} == before
    assert httpx.get(f"{stack.url}/api/v1/ready", timeout=10).status_code == 200
    assert _upload(stack, _zip({f"{i}.dcm": one for i, one in enumerate(good)})).json()["accepted"] == 14


def test_every_listed_artifact_can_be_fetched(stack: Stack) -> None:
    done = [study for study in stack.studies() if study["state"] == "done"]
    if not done:
        content = _zip({f"{i}.dcm": one for i, one in enumerate(synthetic.ct_study(24, seed="plain"))})
        done = [stack.finished(_upload(stack, content).json()["study_uids"][0])["study"]]
    detail = stack.get(f"/studies/{done[0]['study_uid']}")
    names = {artifact["name"] for artifact in detail["artifacts"]}
    assert {"id.json", "results.json", "resultados.json"} <= names
    for artifact in detail["artifacts"]:
        got = httpx.get(f"{stack.url}/api/v1/studies/{done[0]['study_uid']}/artifacts/{artifact['name']}", timeout=30)
        assert got.status_code == 200
        assert len(got.content) == artifact["size"]


def test_pydicoms_other_objects_are_stored_and_explained(stack: Stack, tmp_path: Path) -> None:
    for name in ("rtplan.dcm", "CT_small.dcm"):
        (tmp_path / name).write_bytes(Path(str(get_testdata_file(name))).read_bytes())
    report = stack.run_json("send", str(tmp_path), "--port", str(stack.dicom_port))
    assert report["sent"] == 2, report
    assert report["failed"] == 0


def test_every_process_of_the_intake_tells_its_figures(stack: Stack, tmp_path: Path) -> None:
    """The listener's actor with its receiving process, and the HTTP door behind Ray Serve, in a real stack."""
    (tmp_path / "CT_small.dcm").write_bytes(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    assert stack.run_json("send", str(tmp_path), "--port", str(stack.dicom_port))["sent"] == 1

    def told() -> str | None:
        text = httpx.get(f"{stack.url}/metrics", timeout=30).text
        both = all(f'process="{process}"' in text for process in ("listener-0", "http-0"))
        return text if both and 'heimdallr_intake_instances_total{door="dicom",process="listener-0"}' in text else None

    text = stack.wait_for(told, 30, "the figures of both")
    stored = next(
        line for line in text.splitlines() if line.startswith('heimdallr_intake_instances_total{door="dicom"')
    )
    assert float(stored.split()[-1]) >= 1
    seen = stack.get("/intake")
    assert any(sender["stored"] for sender in seen["senders"]), seen
    audit = stack.run("audit", "verify")
    assert audit.returncode == 0, audit.stdout + audit.stderr
