from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.api.uploads import STALE_S, sweep
from tests.integration.api.conftest import client_of
from tests.support.intake import write_study
from tests.support.seeded import services

UID = "1.2.826.0.1.3680043.9.9.1"


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def study_zip(tmp_path: Path) -> bytes:
    members = {path.name: path.read_bytes() for path in write_study(tmp_path / "dicom", 3)}
    return zipped({**members, "readme.txt": b"no image"})


@pytest.fixture
def client(empty: ApiServices) -> TestClient:
    return client_of(create_app(empty))


def left_behind(made: ApiServices) -> list[str]:
    return [path.name for path in (made.settings.data_dir / "uploads").glob("*")]


def test_a_study_is_on_the_worklist_when_the_upload_answers(client: TestClient, empty: ApiServices, study_zip: bytes):
    answer = client.post("/api/v1/upload", files={"file": ("study.zip", study_zip, "application/zip")})
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 3,
        "already_there": 0,
        "rejected": 1,
        "rejections": {"not_dicom": 1},
        "study_uids": [UID],
    }
    again = client.post("/api/v1/upload", files={"file": ("study.zip", study_zip, "application/zip")})
    assert (again.json()["accepted"], again.json()["already_there"]) == (3, 3)
    detail = client.get(f"/api/v1/studies/{UID}").json()
    assert (detail["study"]["n_instances"], detail["study"]["door"]) == (3, "upload")
    assert left_behind(empty) == []


@pytest.mark.parametrize("name", ["image.dcm", "IM0001", "image.zip"])
def test_one_dicom_file_needs_no_zip(client: TestClient, empty: ApiServices, tmp_path: Path, name: str):
    content = write_study(tmp_path / "dicom", 1)[0].read_bytes()
    bare = content[content.index(b"\x08\x00\x05\x00") :] if b"\x08\x00\x05\x00" in content else content
    for file in (content, bare):
        answer = client.post("/api/v1/upload", files={"file": (name, file)})
        assert (answer.status_code, answer.json()["accepted"], answer.json()["study_uids"]) == (200, 1, [UID])
    assert client.get(f"/api/v1/studies/{UID}").json()["study"]["door"] == "upload"
    assert left_behind(empty) == []
    cut = client.post("/api/v1/upload", files={"file": (name, content[:400])})
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "truncated")


def test_the_original_s_clients_get_the_original_s_answer(client: TestClient, study_zip: bytes):
    answer = client.post("/upload", files={"file": ("CASE_01.ZIP", study_zip, "application/zip")})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"status", "message", "original_file"}
    assert (body["status"], body["original_file"]) == ("Accepted", "CASE_01.ZIP")
    assert client.get(f"/api/v1/studies/{UID}").status_code == 200


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("study.rar", b"Rar!", "bad_archive"),
        ("study", b"PK", "bad_archive"),
        ("study.zip", b"this is no archive", "bad_archive"),
        ("study.zip", b"", "empty_input"),
        ("study.zip", zipped({"a.txt": b"text"}), "empty_input"),
        ("study.zip", zipped({"../../evil.dcm": b"x"}), "bad_archive"),
        ("study.zip", zipped({"a.dcm": b"x" * 100})[:-20], "bad_archive"),
    ],
)
def test_bad_uploads_are_refused_by_code(
    client: TestClient, empty: ApiServices, path: str, name: str, content: bytes, code: str
):
    answer = client.post(path, files={"file": (name, content, "application/zip")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert left_behind(empty) == []
    assert client.get("/api/v1/studies").json()["total"] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no archive", "neither a ZIP nor a DICOM file by its content"),
        (zipped({"a.dcm": b"x" * 100})[:-20], "the ZIP is damaged, cut off or packed in a way that is not read here"),
        (zipped({"a.txt": b"text", "b.txt": b"text"}), "none of its 2 files is a DICOM image; nothing was stored"),
    ],
)
def test_junk_is_told_what_it_is(client: TestClient, content: bytes, words: str):
    answer = client.post("/api/v1/upload", files={"file": ("study.zip", content, "application/zip")})
    assert words in answer.json()["error"]["detail"]


@pytest.mark.parametrize("name", ["study", "study.dcm", "..."])
def test_a_zip_is_one_by_its_content_but_for_the_original_s_clients(client: TestClient, study_zip: bytes, name: str):
    files = {"file": (name, study_zip, "application/octet-stream")}
    refused = client.post("/upload", files=files)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_archive")
    assert "/api/v1/upload" in refused.json()["error"]["detail"]
    assert client.post("/api/v1/upload", files=files).json()["accepted"] == 3


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
def test_an_image_that_cannot_be_kept_is_no_success_so_that_the_client_keeps_its_files(
    client: TestClient, empty: ApiServices, tmp_path: Path, path: str
):
    members = {item.name: item.read_bytes() for item in write_study(tmp_path / "dicom", 3)}
    members["0002.dcm"] = members["0002.dcm"][:400]
    answer = client.post(path, files={"file": ("study.zip", zipped({**members, "readme.txt": b"no image"}))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "truncated")
    assert "1 of 3 DICOM files" in answer.json()["error"]["detail"]
    assert client.get("/api/v1/studies").json()["total"] == 0
    assert left_behind(empty) == []


def test_what_was_left_out_is_told_to_the_original_s_clients(client: TestClient, study_zip: bytes):
    message = client.post("/upload", files={"file": ("a.zip", study_zip)}).json()["message"]
    assert message == "3 images of 1 study stored, 1 file not DICOM and left out"


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
def test_without_the_minimum_of_free_space_an_upload_is_refused(tmp_path: Path, study_zip: bytes, path: str):
    made = services(tmp_path / "data", min_free_mib=1 << 40)
    answer = client_of(create_app(made)).post(path, files={"file": ("a.zip", study_zip)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert answer.headers["retry-after"] == "5"
    assert left_behind(made) == []


@pytest.mark.parametrize(("number", "status", "code"), [(28, 507, "storage_full"), (5, 503, "storage_failed")])
def test_a_folder_that_cannot_be_made_is_told_by_code(
    client: TestClient, study_zip: bytes, monkeypatch: pytest.MonkeyPatch, number: int, status: int, code: str
):
    def refuses(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "mkdir", refuses)
    answer = client.post("/upload", files={"file": ("a.zip", study_zip)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
def test_a_draining_stack_takes_no_upload_and_says_so(empty: ApiServices, study_zip: bytes, path: str):
    flag = empty.settings.data_dir / "draining"
    client = client_of(create_app(replace(empty, draining=flag.exists)))
    flag.touch()
    answer = client.post(path, files={"file": ("a.zip", study_zip)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in answer.headers
    ready = client.get("/api/v1/ready")
    checks = {check["name"]: (check["ok"], check["detail"]) for check in ready.json()["checks"]}
    assert ready.status_code == 503
    assert checks["intake"] == (False, "draining: The stack is about to stop and takes nothing new in.")
    assert client.get("/api/v1/studies").status_code == 200
    flag.unlink()
    assert client.post(path, files={"file": ("a.zip", study_zip)}).status_code == 200


def test_a_body_without_a_file_is_refused(client: TestClient):
    assert client.post("/upload", files={"other": ("a.zip", b"PK")}).json()["error"]["code"] == "empty_input"
    assert client.post("/upload", data={"file": "text"}).status_code == 400
    assert client.post("/upload", content=b"PK", headers={"Content-Type": "application/zip"}).status_code == 400
    assert client.post("/upload").status_code == 400


def test_what_is_too_large_is_refused_before_and_while_it_comes_in(tmp_path: Path):
    made = services(tmp_path / "data", max_upload_mib=1)
    client = client_of(create_app(made))
    declared = client.post(
        "/api/v1/upload",
        content=b"x",
        headers={"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(3 << 20)},
    )
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "too_large")

    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 65_536

    streamed = client.post(
        "/api/v1/upload", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (413, "too_large")
    assert left_behind(made) == []


def filled_to(total: int, folder: Path) -> bytes:
    """A ZIP of CT images with pixels of noise and one text, which unpack to `total` bytes together."""
    members = {path.name: path.read_bytes() for path in write_study(folder, 7, size=256)}
    rest = total - sum(map(len, members.values()))
    assert rest > 0
    return zipped({**members, "readme.txt": b"x" * rest})


def everything_kept(made: ApiServices) -> list[Path]:
    settings = made.settings
    folders = (settings.data_dir / "uploads", settings.spool_dir, settings.blob_dir)
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
def test_good_images_that_unpack_to_more_than_the_limit_are_refused_whole(tmp_path: Path, path: str):
    made = services(tmp_path / "data", max_unpacked_mib=1)
    client = client_of(create_app(made))
    above = filled_to((1 << 20) + 1, tmp_path / "dicom")
    answer = client.post(path, files={"file": ("a.zip", above, "application/zip")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert everything_kept(made) == []
    assert client.get("/api/v1/studies").json()["total"] == 0
    at = filled_to(1 << 20, tmp_path / "dicom")
    assert client.post(path, files={"file": ("a.zip", at, "application/zip")}).status_code == 200
    assert client.get(f"/api/v1/studies/{UID}").json()["study"]["n_instances"] == 7


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
def test_an_image_above_the_largest_one_refuses_its_archive(tmp_path: Path, path: str):
    made = services(tmp_path / "data", max_instance_mib=1)
    client = client_of(create_app(made))
    members = {item.name: item.read_bytes() for item in write_study(tmp_path / "dicom", 2)}
    (large,) = write_study(tmp_path / "large", 1, size=725)
    answer = client.post(path, files={"file": ("a.zip", zipped({**members, "large.dcm": large.read_bytes()}))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "1 of 3 DICOM files" in answer.json()["error"]["detail"]
    assert everything_kept(made) == []
    assert client.post(path, files={"file": ("a.zip", zipped(members))}).status_code == 200


def test_files_of_dead_uploads_are_swept_and_living_ones_are_not(tmp_path: Path):
    for name in ("old.zip", "new.zip", "note.txt"):
        (tmp_path / name).write_bytes(b"x")
    modified = (tmp_path / "old.zip").stat().st_mtime
    import os

    os.utime(tmp_path / "new.zip", (modified + STALE_S, modified + STALE_S))
    assert sweep(tmp_path, modified + STALE_S + 1) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.zip", "note.txt"]


def test_every_refusal_is_logged_with_its_reason(
    client: TestClient, study_zip: bytes, caplog: pytest.LogCaptureFixture
):
    ways = {
        "bad_archive": lambda: client.post("/api/v1/upload", files={"file": ("a.zip", b"no archive")}),
        "empty_input": lambda: client.post("/api/v1/upload", files={"other": ("a.zip", b"PK")}),
        "rejected": lambda: client.post("/api/v1/upload", content=b"PK", headers={"Content-Type": "text/plain"}),
        "unsupported_media": lambda: client.post("/dicomweb/studies", content=b"x"),
        "forbidden": lambda: client.post("/api/v1/upload", headers={"Origin": "http://evil.example"}),
    }
    for code, way in ways.items():
        caplog.clear()
        with caplog.at_level("WARNING", "heimdallr_ray"):
            assert way().json()["error"]["code"] == code
        refused = [vars(record) for record in caplog.records if record.getMessage() == "request.refused"]
        assert [(facts["code"], facts["address"], bool(facts["reason"])) for facts in refused] == [
            (code, "127.0.0.1", True)
        ]
