"""Every refusal at an HTTP door has one line in the log that says why, and nothing of a patient."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from heimdallr_ray.api.app import ApiServices, create_app
from tests.integration.api.conftest import TOKEN, bearer, client_of
from tests.support.intake import ct_slice, file_bytes
from tests.support.related import TYPE, related
from tests.support.seeded import services

PATIENT = "DOE^JANE"
STOW, UPLOAD = "/dicomweb/studies", "/api/v1/upload"
Ask = Callable[[TestClient], Any]


def zipped(content: bytes) -> dict[str, Any]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{PATIENT}.dcm", content)
    return {"file": (f"{PATIENT}.zip", buffer.getvalue(), "application/zip")}


def image() -> bytes:
    dataset = ct_slice(1, "1.2.3", "1.2.3.1")
    dataset.PatientName = PATIENT
    return file_bytes(dataset)


def stow(path: str = STOW, body: bytes = b"", kind: str = TYPE, **headers: str) -> Ask:
    sent = {"Content-Type": kind, **bearer(TOKEN), **headers}
    return lambda client: client.post(path, content=body, headers=sent)


def upload(files: dict[str, Any], token: str = TOKEN, **headers: str) -> Ask:
    return lambda client: client.post(UPLOAD, files=files, headers={**bearer(token), **headers})


@pytest.fixture
def site(tmp_path: Path) -> ApiServices:
    return services(tmp_path / "data", api_token=TOKEN)


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        (upload(zipped(b""), token="a-token-that-nobody-knows"), 401, "unauthorized"),
        (upload(zipped(b"no image")), 400, "empty_input"),
        (upload({"file": (f"{PATIENT}.zip", b"PK no archive", "application/zip")}), 400, "bad_archive"),
        (upload(zipped(image()[:400])), 400, "truncated"),
        (upload(zipped(image()), Origin="http://evil.example"), 403, "forbidden"),
        (stow(body=b"", kind="application/json"), 415, "unsupported_media"),
        (stow(body=b"", Accept="image/png"), 406, "not_acceptable"),
        (stow(path=f"{STOW}/{PATIENT}", body=related([image()])), 400, "bad_identifier"),
        (stow(path=f"{STOW}/{'1' * 65}", body=related([image()])), 422, "invalid_request"),
        (stow(body=related([])), 400, "empty_input"),
    ],
)
def test_each_refusal_has_a_line_with_its_reason(
    site: ApiServices, caplog: pytest.LogCaptureFixture, ask: Ask, status: int, code: str
) -> None:
    answer = ask(client_of(create_app(site)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    lines = [vars(record) for record in caplog.records if record.getMessage() == "request.refused"]
    assert [(line["code"], line["status"], line["address"]) for line in lines] == [(code, status, "127.0.0.1")]
    assert lines[0]["reason"] and lines[0]["levelname"] == "WARNING"
    assert PATIENT not in str([vars(record) for record in caplog.records if record.name.startswith("heimdallr_ray")])


def test_a_draining_stack_says_so_in_the_log(site: ApiServices, caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(create_app(replace(site, draining=lambda: True)))
    assert upload(zipped(image()))(client).status_code == 503
    assert stow(body=related([image()]))(client).status_code == 503
    lines = [vars(record) for record in caplog.records if record.getMessage() == "request.refused"]
    assert [line["code"] for line in lines] == ["draining", "draining"]


def test_single_objects_of_a_request_have_their_codes_in_the_log(
    site: ApiServices, caplog: pytest.LogCaptureFixture
) -> None:
    answer = stow(body=related([image(), b"no image"]))(client_of(create_app(site)))
    assert answer.status_code == 202
    lines = [vars(record) for record in caplog.records if record.getMessage() == "stow.refused"]
    assert [line["codes"] for line in lines] == [{"not_dicom": 1}]
