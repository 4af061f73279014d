"""The upload client against the real HTTP interface."""

from __future__ import annotations

import zipfile
from collections.abc import Generator
from pathlib import Path

import pytest

from heimdallr_ray.api.app import create_app
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.clients.upload import upload_zip
from heimdallr_ray.errors import BadArchive, EmptyInput, NotReady, TooLarge, Unauthorized
from heimdallr_ray.listener.receive import Receiver
from tests.support.intake import Intake, write_study
from tests.support.server import serving

TOKEN = "a token for this test only"


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data", api_token=TOKEN, max_upload_mib=1)


@pytest.fixture
def url(intake: Intake) -> Generator[str]:
    receiver = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    services = ApiServices(
        settings=intake.settings,
        database=intake.database,
        blobs=intake.blobs,
        receiver=receiver,
        clock=intake.clock,
        static_dir=None,
        build="test",
    )
    with serving(create_app(services)) as base:
        yield base


def test_a_folder_is_zipped_and_stored(tmp_path: Path, intake: Intake, url: str) -> None:
    write_study(tmp_path / "study" / "deep", 4)
    (tmp_path / "study" / "notes.txt").write_text("no DICOM")
    told: list[tuple[int, int]] = []
    report = upload_zip(tmp_path / "study", url, TOKEN, on_progress=lambda *now: told.append(now))
    assert (report.accepted, report.rejected) == (4, 1)
    assert report.study_uids == ("1.2.826.0.1.3680043.9.9.1",)
    assert told[-1] == (report.bytes_sent, report.bytes_sent)
    assert len(intake.instances()) == 4


def test_refusals_are_typed(tmp_path: Path, intake: Intake, url: str) -> None:
    good, text = tmp_path / "good.zip", tmp_path / "text.zip"
    with zipfile.ZipFile(good, "w") as archive:
        archive.write(write_study(tmp_path / "study", 1)[0], "1.dcm")
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("notes.txt", "no DICOM")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a ZIP")
    write_study(tmp_path / "large", 1, size=1024)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unauthorized):
        upload_zip(good, url, "another token, just as long")
    with pytest.raises(Unauthorized):
        upload_zip(good, url)
    with pytest.raises(EmptyInput):
        upload_zip(text, url, TOKEN)
    with pytest.raises(EmptyInput):
        upload_zip(tmp_path / "empty", url, TOKEN)
    with pytest.raises(BadArchive):
        upload_zip(tmp_path / "broken.zip", url, TOKEN)
    with pytest.raises((TooLarge, NotReady)):
        upload_zip(tmp_path / "large", url, TOKEN)
    with pytest.raises(NotReady):
        upload_zip(good, "http://127.0.0.1:9", TOKEN)
    assert intake.instances() == []
    assert upload_zip(good, url, TOKEN).accepted == 1
