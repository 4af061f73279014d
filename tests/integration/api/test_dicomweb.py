"""STOW-RS by hand: what is answered as stored is stored, what is refused is listed, and no more than allowed comes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.tables import InstanceRow
from heimdallr_ray.ids import Uid
from tests.integration.api.conftest import client_of
from tests.support.intake import ct_slice, dataset_bytes, file_bytes, sha256
from tests.support.related import TYPE, related
from tests.support.seeded import services

UID, OTHER = "1.2.826.0.1.3680043.9.9.1", "1.2.826.0.1.3680043.9.9.2"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
NAMESPACE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


def image(index: int, study: str = UID, **changes: Any) -> bytes:
    dataset = ct_slice(index, study, f"{study or UID}.7")
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return file_bytes(dataset)


def stow(client: TestClient, objects: list[bytes], study: str = "", **headers: str) -> Any:
    path = f"/dicomweb/studies/{study}" if study else "/dicomweb/studies"
    return client.post(path, content=related(objects), headers={"Content-Type": TYPE, **headers})


def uids(answer: Any, tag: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.json().get(tag, {}).get("Value", [])]


def reasons(answer: Any, tag: str = "00081198") -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer.json().get(tag, {}).get("Value", [])]


def stored(made: ApiServices) -> dict[str, str]:
    with made.database.read() as session:
        rows = session.exec(select(InstanceRow)).all()
    return {row.sop_uid: sha256(dataset_bytes(made.blobs.path(row.blob_sha256).read_bytes())) for row in rows}


def left(made: ApiServices) -> list[Path]:
    return [path for path in made.settings.spool_dir.rglob("*") if path.is_file()]


@pytest.fixture
def client(empty: ApiServices) -> TestClient:
    return client_of(create_app(empty))


def test_all_are_stored_byte_for_byte_when_it_answers(client: TestClient, empty: ApiServices):
    objects = [image(1), image(2), image(3)]
    answer = stow(client, objects)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert uids(answer, "00081199") == [f"{UID}.7.{index}" for index in (1, 2, 3)]
    assert answer.json()["00081199"]["Value"][0]["00081150"] == {"vr": "UI", "Value": [CT_CLASS]}
    assert answer.json()["00081190"] == {"vr": "UR"}  # there is no retrieval to point at
    assert "00081198" not in answer.json()
    assert stored(empty) == {f"{UID}.7.{i}": sha256(dataset_bytes(o)) for i, o in enumerate(objects, 1)}
    study = client.get(f"/api/v1/studies/{UID}").json()["study"]
    assert (study["door"], study["n_instances"]) == ("stow", 3)
    assert left(empty) == []
    again = stow(client, objects, UID)
    assert (again.status_code, len(uids(again, "00081199"))) == (200, 3)
    assert len(stored(empty)) == 3


def test_the_refused_are_listed_and_the_others_stored(client: TestClient, empty: ApiServices):
    truncated, text = image(2)[:400], b"this is no DICOM" * 10
    answer = stow(client, [image(1), truncated, text, image(3)])
    assert answer.status_code == 202
    assert uids(answer, "00081199") == [f"{UID}.7.1", f"{UID}.7.3"]
    assert (uids(answer, "00081198"), reasons(answer)) == ([f"{UID}.7.2"], [0xC000])
    assert reasons(answer, "0008119A") == [0xC000]
    assert set(stored(empty)) == {f"{UID}.7.1", f"{UID}.7.3"}
    assert left(empty) == []


def test_objects_of_another_study_than_the_address_names_fail(client: TestClient, empty: ApiServices):
    answer = stow(client, [image(1), image(2, OTHER), image(3, "")], UID)
    assert answer.status_code == 202
    assert uids(answer, "00081198") == [f"{OTHER}.7.2", f"{UID}.7.3"]
    assert reasons(answer) == [0xA900, 0xA900]
    assert set(stored(empty)) == {f"{UID}.7.1"}
    none = stow(client, [image(4, OTHER)], UID)
    assert (none.status_code, reasons(none)) == (409, [0xA900])
    assert stow(client, [image(1)], "1.2.x").json()["error"]["code"] == "bad_identifier"
    assert set(stored(empty)) == {f"{UID}.7.1"}
    assert left(empty) == []


def test_an_object_without_identifiers_is_answered_with_those_it_got(client: TestClient, empty: ApiServices):
    dataset = ct_slice(1, "", "")
    dataset.SOPInstanceUID = ""
    content = file_bytes(dataset)
    answer = stow(client, [content])
    assert answer.status_code == 200
    assert uids(answer, "00081199") == list(stored(empty))
    assert Uid.parse(uids(answer, "00081199")[0])


def test_none_that_can_be_taken_is_a_conflict(client: TestClient, empty: ApiServices):
    answer = stow(client, [b"text", image(1)[:300]])
    assert answer.status_code == 409
    assert len(reasons(answer, "0008119A")) + len(reasons(answer)) == 2
    assert stored(empty) == {}


def test_xml_for_whom_asks_for_it(client: TestClient):
    answer = stow(client, [image(1), image(2)[:400]], accept="application/dicom+xml")
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/dicom+xml")
    root = ElementTree.fromstring(answer.content)  # noqa: S314
    assert root.tag == f"{NAMESPACE}NativeDicomModel"
    found = {element.get("tag"): element for element in root}
    assert list(found) == ["00081190", "00081198", "00081199"]
    failed = found["00081198"].find(f"{NAMESPACE}Item")
    assert failed is not None and failed.get("number") == "1"
    assert [element[0].text for element in failed] == [CT_CLASS, f"{UID}.7.2", str(0xC000)]
    both = stow(client, [image(1)], accept="application/dicom+xml;q=0.5, application/dicom+json")
    assert both.headers["content-type"] == "application/dicom+xml"
    refused = stow(client, [image(9)], accept="image/png")
    assert (refused.status_code, refused.json()["error"]["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"Content-Type": "application/dicom"}, image(1), 415, "unsupported_media"),
        ({"Content-Type": TYPE.replace("application/dicom", "application/dicom+json")}, b"", 415, "unsupported_media"),
        ({"Content-Type": TYPE, "Content-Encoding": "gzip"}, b"", 415, "unsupported_media"),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, b"", 400, "rejected"),
        ({"Content-Type": TYPE}, related([b"{}"], head=b"Content-Type: application/dicom+json\r\n"), 415, None),
        ({"Content-Type": TYPE}, related([image(1)], head=b"Content-Transfer-Encoding: base64\r\n"), 415, None),
        ({"Content-Type": TYPE}, related([image(1)])[:-20], 400, "rejected"),
        ({"Content-Type": TYPE}, related([]), 400, "empty_input"),
        ({"Content-Type": TYPE}, b"", 400, "rejected"),
    ],
)
def test_requests_that_are_none(
    client: TestClient, empty: ApiServices, headers: dict[str, str], body: bytes, status: int, code: str | None
):
    answer = client.post("/dicomweb/studies", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code or "unsupported_media")
    assert stored(empty) == {}
    assert left(empty) == []


def test_a_request_that_breaks_off_has_stored_nothing(client: TestClient, empty: ApiServices):
    whole = related([image(1), image(2)])
    answer = client.post("/dicomweb/studies", content=whole[:-3000], headers={"Content-Type": TYPE})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "rejected")
    assert stored(empty) == {}
    assert left(empty) == []


def test_the_limits_hold(tmp_path: Path):
    made = services(tmp_path / "data", max_upload_mib=2, max_instance_mib=1, max_zip_entries=3)
    client = client_of(create_app(made))
    large = file_bytes(ct_slice(9, UID, f"{UID}.7", size=800))
    answer = stow(client, [image(1), large, image(2)])
    assert (answer.status_code, uids(answer, "00081198")) == (202, [f"{UID}.7.9"])
    assert set(stored(made)) == {f"{UID}.7.1", f"{UID}.7.2"}
    many = stow(client, [image(index) for index in range(3, 7)])
    assert (many.status_code, many.json()["error"]["code"]) == (413, "too_large")

    def endless() -> Iterator[bytes]:
        yield related([image(5)])[:-40]
        for _ in range(80):
            yield bytes(65_536)

    streamed = client.post("/dicomweb/studies", content=endless(), headers={"Content-Type": TYPE})
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (413, "too_large")
    declared = client.post(
        "/dicomweb/studies", content=b"x", headers={"Content-Type": TYPE, "Content-Length": str(3 << 20)}
    )
    assert declared.status_code == 413
    assert set(stored(made)) == {f"{UID}.7.1", f"{UID}.7.2"}
    assert left(made) == []


def test_without_room_or_while_the_stack_drains_nothing_is_taken(tmp_path: Path):
    made = services(tmp_path / "data", min_free_mib=1 << 40)
    answer = stow(client_of(create_app(made)), [image(1)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    open_again = services(tmp_path / "other")
    answer = stow(client_of(create_app(replace(open_again, draining=lambda: True))), [image(1)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert stored(made) == stored(open_again) == {}
