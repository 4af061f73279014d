"""An upload that breaks off goes on where it was; its studies stay open from the first request to the last."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from sqlmodel import col, select

from heimdallr_ray.api.uploads import MAX_LOOKS
from heimdallr_ray.catalog.associations import mark_lost
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import AssociationRow
from heimdallr_ray.clients import upload
from heimdallr_ray.clients.upload import upload_zip
from heimdallr_ray.errors import BadArchive, NotReady, StorageFull, TruncatedObject
from heimdallr_ray.listener import vouching
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.receive import Receiver
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, wait_for, write_study
from tests.support.server import serving_intake
from tests.support.wirepeer import CT, EXPLICIT

UID = "1.2.826.0.1.3680043.9.9.1"


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data")


@pytest.fixture
def url(intake: Intake) -> Generator[str]:
    with serving_intake(intake) as base:
        yield base


@pytest.fixture(autouse=True)
def _small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "BATCH_OBJECTS", 4)
    monkeypatch.setattr(upload, "PAUSE_FIRST_S", 0.01)


def rows(intake: Intake) -> list[AssociationRow]:
    with intake.database.read() as session:
        return list(session.exec(select(AssociationRow).order_by(col(AssociationRow.id))).all())


class Breaking:
    """Lets so many uploads pass, then the connection breaks as often as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, passing: int, breaks: int) -> None:
        self.passing, self.breaks = passing, breaks
        post = httpx.Client.post

        def counted(client: httpx.Client, url: str, **how: Any) -> httpx.Response:
            if "upload" in url:
                if self.passing <= 0 and self.breaks > 0:
                    self.breaks -= 1
                    raise httpx.ReadError("broken off")
                self.passing -= 1
            return post(client, url, **how)

        monkeypatch.setattr(httpx.Client, "post", counted)


def test_what_is_there_is_not_sent_again(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_study(tmp_path / "study", 11)
    broken = Breaking(monkeypatch, passing=2, breaks=upload.ATTEMPTS)
    with pytest.raises(NotReady, match="8 images are stored, the same command goes on from there"):
        upload_zip(tmp_path / "study", url)
    assert (len(intake.instances()), broken.breaks) == (8, 0)
    (row,) = rows(intake)
    assert (row.door, row.closed_at) == ("upload", None)
    told: list[tuple[int, int]] = []
    report = upload_zip(tmp_path / "study", url, on_progress=lambda *now: told.append(now))
    assert (report.accepted, report.already_there, report.requests) == (11, 8, 1)
    assert report.study_uids == (UID,)
    whole = sum(path.stat().st_size for path in paths)
    assert told[0] == (sum(path.stat().st_size for path in paths[:8]), whole)
    assert told[-1] == (whole, whole)
    assert report.bytes_sent < whole / 2
    (again,) = rows(intake)
    assert (again.id, again.how, again.stored) == (row.id, "released", 11)
    assert set(intake.stored().values()) == {sha256(dataset_bytes(path.read_bytes())) for path in paths}
    third = upload_zip(tmp_path / "study", url)
    assert (third.accepted, third.already_there, third.requests, third.bytes_sent) == (11, 11, 0, 0)
    assert {item.association_id for item in intake.instances()} == {row.id}


def test_a_break_that_heals_is_not_told(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "study", 9)
    Breaking(monkeypatch, passing=1, breaks=upload.ATTEMPTS - 1)
    report = upload_zip(tmp_path / "study", url)
    assert (report.accepted, report.already_there, report.requests) == (9, 0, 3)
    assert len(intake.instances()) == 9


def test_an_answer_that_is_lost_costs_nothing(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "study", 9)
    post, lost = httpx.Client.post, [False]

    def loses(client: httpx.Client, url: str, **how: Any) -> httpx.Response:
        answer = post(client, url, **how)
        if "upload" in url and not lost[0]:
            lost[0] = True
            raise httpx.ReadError("the answer was lost")
        return answer

    monkeypatch.setattr(httpx.Client, "post", loses)
    report = upload_zip(tmp_path / "study", url)
    assert (report.accepted, len(intake.instances())) == (9, 9)


def test_objects_without_a_study_stay_one_study_over_a_break(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study").mkdir()
    for index in range(1, 10):
        dataset = ct_slice(index, "", "")
        dataset.SOPInstanceUID = ""
        (tmp_path / "study" / f"{index}").write_bytes(file_bytes(dataset))
    Breaking(monkeypatch, passing=1, breaks=upload.ATTEMPTS)
    with pytest.raises(NotReady):
        upload_zip(tmp_path / "study", url)
    report = upload_zip(tmp_path / "study", url)
    assert (report.accepted, report.already_there) == (9, 4)
    assert [study.n_instances for study in intake.studies()] == [9]


def nameless(folder: Path, numbers: range) -> Path:
    """Images of one scan that name neither study nor series, as an anonymiser leaves them."""
    folder.mkdir()
    for number in numbers:
        dataset = ct_slice(number, "", "", size=8)
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.9.9.71.{number}"
        (folder / f"{number}.dcm").write_bytes(file_bytes(dataset))
    return folder


@pytest.mark.parametrize("first", [range(10), range(9, 10), range(20)])
def test_images_without_a_study_join_those_of_the_folder_that_are_there(
    tmp_path: Path, intake: Intake, url: str, first: range
) -> None:
    assert upload_zip(nameless(tmp_path / "first", first), url).accepted == len(first)
    report = upload_zip(nameless(tmp_path / "all", range(20)), url)
    assert (report.accepted, report.already_there) == (20, len(first))
    assert report.requests == (0 if len(first) == 20 else 5)
    (study,) = intake.studies()
    assert (study.n_instances, study.uid_generated) == (20, True)
    assert len(intake.instances()) == 20


def test_a_zip_goes_on_too_and_a_copy_counts_once(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_study(tmp_path / "study", 10)
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)
        archive.write(paths[0], "copy.dcm")
    Breaking(monkeypatch, passing=1, breaks=upload.ATTEMPTS)
    with pytest.raises(NotReady):
        upload_zip(tmp_path / "study.zip", url)
    report = upload_zip(tmp_path / "study.zip", url)
    assert (report.accepted, report.already_there) == (11, 5)
    assert len(intake.instances()) == 10


def test_other_bytes_under_a_known_uid_are_sent(tmp_path: Path, intake: Intake, url: str) -> None:
    (path,) = write_study(tmp_path / "study", 1)
    upload_zip(tmp_path / "study", url)
    changed = dcmread(path)
    changed.PatientComments = "changed"
    changed.save_as(path)
    report = upload_zip(tmp_path / "study", url)
    assert (report.accepted, report.already_there) == (1, 0)
    assert [row.sop_uid_conflict for row in intake.instances()] == [True, True]


def test_one_object_that_cannot_be_taken_refuses_them_all_before_the_first_is_sent(
    tmp_path: Path, intake: Intake, url: str
) -> None:
    paths = write_study(tmp_path / "study", 9)
    paths[7].write_bytes(paths[7].read_bytes()[:400])
    with pytest.raises(
        TruncatedObject, match=r"1 of 9 DICOM files cannot be taken \(0008.dcm: .*\(truncated\)\); nothing"
    ):
        upload_zip(tmp_path / "study", url)
    assert intake.instances() == []


def test_a_request_that_is_too_large_is_cut(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", max_upload_mib=1)
    write_study(tmp_path / "study", 6, size=512)
    with serving_intake(intake) as base:
        report = upload_zip(tmp_path / "study", base)
    assert (report.accepted, report.already_there) == (6, 0)
    assert report.requests > 2
    (row,) = rows(intake)
    assert (row.how, row.stored) == ("released", 6)


def test_a_full_disk_ends_it_at_once_and_room_lets_it_go_on(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "study", 6)
    full = [False]
    post = httpx.Client.post

    def fills(client: httpx.Client, url: str, **how: Any) -> httpx.Response:
        if "upload" in url and full[0]:
            body = {"error": {"code": "storage_full", "detail": "less than min_free_mib is free"}}
            return httpx.Response(507, json=body)
        full[0] = full[0] or "upload" in url
        return post(client, url, **how)

    monkeypatch.setattr(httpx.Client, "post", fills)
    with pytest.raises(StorageFull, match="min_free_mib is free; 4 images are stored, the same command goes on"):
        upload_zip(tmp_path / "study", url)
    monkeypatch.undo()
    assert upload_zip(tmp_path / "study", url).already_there == 4


def test_a_session_whose_client_has_gone_is_lost_and_found_again(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "study", 9)
    Breaking(monkeypatch, passing=1, breaks=upload.ATTEMPTS)
    with pytest.raises(NotReady):
        upload_zip(tmp_path / "study", url)
    with intake.database.write() as session:
        assert mark_lost(session, (), intake.clock.now(), doors=(Door.UPLOAD,)) == 1
    assert [row.how for row in rows(intake)] == ["lost"]
    assert upload_zip(tmp_path / "study", url).accepted == 9
    (row,) = rows(intake)
    assert (row.how, row.stored) == ("released", 9)


def test_a_study_is_not_closed_between_two_requests_of_its_upload(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", settle_after_release_seconds=0.3, settle_after_abort_seconds=60.0)
    contents = [path.read_bytes() for path in write_study(tmp_path / "study", 3)]
    with intake.listening(), serving_intake(intake) as base, httpx.Client(trust_env=False) as client:

        def send(content: bytes, *, more: bool) -> None:
            headers = {"X-Upload-Session": "a" * 32, **({"X-Upload-More": "true"} if more else {})}
            answer = client.post(f"{base}/api/v1/upload", files={"file": ("image", content)}, headers=headers)
            assert answer.status_code == 200

        send(contents[0], more=True)
        time.sleep(4 * intake.settings.idle_seconds)
        assert (intake.jobs(), [study.epoch for study in intake.studies()]) == ([], [1])
        send(contents[1], more=True)
        send(contents[2], more=False)
        wait_for(lambda: len(intake.jobs()) == 1, 30, "the study's job")
        assert [(study.epoch, study.n_instances) for study in intake.studies()] == [(1, 3)]


def test_a_zip_that_means_harm_is_not_sent(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.dcm", b"x")
    with pytest.raises(BadArchive):
        upload_zip(tmp_path / "evil.zip", "http://127.0.0.1:9")


@pytest.mark.parametrize("session", ["", "x" * 32, "A" * 32, "../../" + "a" * 26, "a" * 33])
def test_a_session_has_a_name_of_its_form(url: str, tmp_path: Path, session: str) -> None:
    content = write_study(tmp_path, 1)[0].read_bytes()
    with httpx.Client(trust_env=False) as client:
        answer = client.post(
            f"{url}/api/v1/upload", files={"file": ("a", content)}, headers={"X-Upload-Session": session}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "rejected")
        more = client.post(f"{url}/api/v1/upload", files={"file": ("a", content)}, headers={"X-Upload-More": "true"})
        assert more.status_code == 400


def damage(intake: Intake, sop_uid: str) -> Path:
    """One bit of the object's blob is another than was received."""
    (row,) = (row for row in intake.instances() if row.sop_uid == sop_uid)
    path = intake.blobs.path(row.blob_sha256)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    return path


def test_what_the_disk_has_damaged_or_lost_is_sent_again_and_is_whole_then(
    tmp_path: Path, intake: Intake, url: str
) -> None:
    paths = write_study(tmp_path / "study", 6)
    bodies = {sha256(dataset_bytes(path.read_bytes())) for path in paths}
    upload_zip(tmp_path / "study", url)
    damage(intake, f"{UID}.7.2")
    (lost,) = (row for row in intake.instances() if row.sop_uid == f"{UID}.7.5")
    intake.blobs.path(lost.blob_sha256).unlink()
    told: list[tuple[int, int]] = []
    report = upload_zip(tmp_path / "study", url, on_stored=lambda *now: told.append(now))
    # Four were not sent; of the two that were, the catalog knew the rows.
    assert (told[0], told[-1]) == ((4, 6), (6, 6))
    assert (report.accepted, report.requests) == (6, 1)
    for row in intake.instances():
        intake.blobs.verify(row.blob_sha256)
    assert len(intake.instances()) == 6
    assert set(intake.stored().values()) == bodies
    third = upload_zip(tmp_path / "study", url)
    assert (third.already_there, third.requests, third.bytes_sent) == (6, 0, 0)


def test_what_a_power_cut_may_still_take_is_sent_again(tmp_path: Path) -> None:
    """Images that came by C-STORE with durability = study, before their study is closed."""
    intake = Intake(tmp_path / "data", durability="study")
    receiver = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    paths = write_study(tmp_path / "study", 3)
    for index, path in enumerate(paths, start=1):
        came = Arrival("a1", Door.DICOM, intake.clock.now(), EXPLICIT, CT, f"{UID}.7.{index}")
        receiver.commit_group([receiver.accept(came, [dataset_bytes(path.read_bytes())])])
    assert [row.durable for row in intake.instances()] == [False] * 3
    told: list[tuple[int, int]] = []
    with serving_intake(intake) as base:
        upload_zip(tmp_path / "study", base, on_stored=lambda *now: told.append(now))
        assert told[0] == (0, 3)
        assert len(intake.instances()) == 3
        (study,) = intake.studies()
        assert receiver.harden([study.id]) == {study.id}
        report = upload_zip(tmp_path / "study", base)
        assert (report.already_there, report.requests) == (3, 0)


def test_an_answer_in_part_is_asked_on(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "study", 7)
    upload_zip(tmp_path / "study", url)
    damage(intake, f"{UID}.7.4")
    # Each answer ends behind its first object, as where the disk is very slow.
    monkeypatch.setattr(vouching.vouched_for, "__defaults__", (-1.0,))
    asked: list[int] = []
    post = httpx.Client.post

    def counted(client: httpx.Client, url: str, **how: Any) -> httpx.Response:
        if url.endswith(upload.KNOWN_PATH):
            asked.append(len(how["json"]["instances"]))
        return post(client, url, **how)

    monkeypatch.setattr(httpx.Client, "post", counted)
    told: list[tuple[int, int]] = []
    report = upload_zip(tmp_path / "study", url, on_stored=lambda *now: told.append(now))
    assert asked == [7, 6, 5, 4, 3, 2, 1]
    assert (told[0], report.accepted, report.requests) == ((6, 7), 7, 1)


def test_a_server_that_looks_at_nothing_is_not_asked_for_ever(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "study", 3)
    post = httpx.Client.post

    def nothing(client: httpx.Client, url: str, **how: Any) -> httpx.Response:
        if url.endswith(upload.KNOWN_PATH):
            return httpx.Response(200, json={"known": [], "looked_at": 0})
        return post(client, url, **how)

    monkeypatch.setattr(httpx.Client, "post", nothing)
    assert upload_zip(tmp_path / "study", url).accepted == 3


def test_the_doors_answer_while_others_ask_what_is_there(
    tmp_path: Path, intake: Intake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hangs under those who ask: the others are answered, and one more who asks is told to come again."""
    (path,) = write_study(tmp_path / "study", 1)
    upload_zip(tmp_path / "study", url)
    (row,) = intake.instances()
    hanging, entered = threading.Event(), threading.Semaphore(0)
    flaw_of = vouching.flaw_of

    def hangs(*what: Any) -> str:
        entered.release()
        assert hanging.wait(30)
        return flaw_of(*what)

    monkeypatch.setattr(vouching, "flaw_of", hangs)
    body = {"instances": [{"sop_uid": row.sop_uid, "sha256": row.blob_sha256}]}
    with httpx.Client(trust_env=False, timeout=40) as client, ThreadPoolExecutor(MAX_LOOKS) as pool:
        ask = partial(client.post, f"{url}{upload.KNOWN_PATH}", json=body)
        asking = [pool.submit(ask) for _ in range(MAX_LOOKS)]
        try:
            assert all(entered.acquire(timeout=30) for _ in asking)
            refused = ask()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert client.get(f"{url}/api/v1/health").status_code == 200
            files = {"file": ("a", path.read_bytes())}
            assert client.post(f"{url}/api/v1/upload", files=files).status_code == 200
        finally:
            hanging.set()
        assert [one.result().json() for one in asking] == [{"known": [0], "looked_at": 1}] * MAX_LOOKS


def test_known_is_bounded(url: str) -> None:
    one = {"sop_uid": "1.2.3", "sha256": "a" * 64}
    with httpx.Client(trust_env=False) as client:

        def ask(instances: list[dict[str, str]]) -> httpx.Response:
            return client.post(f"{url}/api/v1/instances/known", json={"instances": instances})

        assert ask([one] * 2000).json() == {"known": [], "looked_at": 2000}
        assert ask([one] * 2001).status_code == 422
        assert ask([{**one, "sha256": "A" * 64}]).status_code == 422
        assert ask([{**one, "sop_uid": "1" * 65}]).status_code == 422
        assert ask([]).json() == {"known": [], "looked_at": 0}
