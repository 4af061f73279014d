"""Hostile objects and archives at the HTTP doors: bounded, kept byte for byte or refused, never obeyed."""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.tables import InstanceRow
from heimdallr_ray.listener import part10
from tests.hostile.listener.test_archives import CASES, GOOD, archive
from tests.hostile.listener.test_hostile_objects import (
    ENDLESS,
    IDENTIFIERS,
    TRACES,
    VALUES,
    with_identifier,
)
from tests.support.bombs import deflated_bomb_data_set
from tests.support.cost import OwnCost, measured_cost
from tests.support.intake import ct_slice, dataset_bytes, file_bytes, sha256
from tests.support.listeners import children_of
from tests.support.related import TYPE, related
from tests.support.seeded import services
from tests.support.starts import started

STUDY = "1.2.826.0.1.3680043.9.9.4"
TRIES = 2
"""Of a time that others' work on the machine may lengthen, the best counts."""
Send = Callable[[TestClient, list[bytes]], Any]


def by_zip(client: TestClient, objects: list[bytes]) -> Any:
    members = ((f"{number}.dcm", content) for number, content in enumerate(objects))
    content = archive(*members, method=zipfile.ZIP_STORED)
    return client.post("/api/v1/upload", files={"file": ("study.zip", content)})


def by_file(client: TestClient, objects: list[bytes]) -> Any:
    answer = None
    for content in objects:
        answer = client.post("/api/v1/upload", files={"file": ("image", content)})
    return answer


def by_stow(client: TestClient, objects: list[bytes]) -> Any:
    return client.post("/dicomweb/studies", content=related(objects), headers={"Content-Type": TYPE})


DOORS = {"zip": by_zip, "file": by_file, "stow": by_stow}


@pytest.fixture
def made(tmp_path: Path) -> ApiServices:
    return services(tmp_path / "data")


@pytest.fixture
def client(made: ApiServices) -> TestClient:
    client = TestClient(
        create_app(made), base_url="http://localhost", client=("127.0.0.1", 1), raise_server_exceptions=False
    )
    # What is imported and allocated once does not count as the cost of an object.
    for send in DOORS.values():
        assert send(client, [file_bytes(ct_slice(1, STUDY, f"{STUDY}.1"))]).status_code == 200
    return client


def part10_of(data_set: bytes, sop: str = "1.2.3.4.5") -> bytes:
    meta = part10.FileMeta(0, part10.EXPLICIT_LITTLE, "1.2.840.10008.5.1.4.1.1.2", sop)
    return part10.encode_meta(meta) + data_set


def kept(made: ApiServices) -> dict[str, InstanceRow]:
    """sha256 of the data set to the row, of all instances."""
    with made.database.read() as session:
        rows = session.exec(select(InstanceRow)).all()
    return {sha256(dataset_bytes(made.blobs.path(row.blob_sha256).read_bytes())): row for row in rows}


def spooled(made: ApiServices) -> list[Path]:
    folders = (made.settings.spool_dir, made.settings.data_dir / "uploads")
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]


@pytest.mark.parametrize("door", DOORS)
def test_a_deflated_bomb_is_stored_byte_for_byte_and_never_inflated(
    made: ApiServices, client: TestClient, door: str
) -> None:
    """Check 18 of the reliability list by HTTP: 1 GiB in 1.04 MB costs under 64 MiB and under 0.5 s."""
    meta = part10.FileMeta(0, part10.DEFLATED_LITTLE, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5")
    bomb = part10.encode_meta(meta) + deflated_bomb_data_set()
    with measured_cost() as cost:
        answer = DOORS[door](client, [bomb])
    print(f"{door}: {answer.status_code}, {cost}")
    assert cost.cpu_s < 0.5
    assert cost.growth_mib < 64
    assert answer.status_code == 200
    assert sha256(deflated_bomb_data_set()) in kept(made)


@pytest.mark.parametrize("door", ["file", "stow"])
@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_endless_structures_are_answered_within_bounds(
    made: ApiServices, client: TestClient, door: str, body: bytes
) -> None:
    """Check 24 of the reliability list by HTTP: refused or parsed in under 2 s and 256 MiB."""
    content = part10_of(body)
    costs: list[OwnCost] = []
    answer: Any = None
    for _ in range(TRIES):
        with measured_cost() as cost:
            answer = DOORS[door](client, [content])
        costs.append(cost)
    print(f"{door}, {len(body)} bytes: {answer.status_code}, {costs}")
    assert min(cost.cpu_s for cost in costs) < 2
    assert max(cost.growth_mib for cost in costs) < 256
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    assert (sha256(body) in kept(made)) == (answer.status_code == 200)
    assert spooled(made) == []


@pytest.mark.parametrize("door", ["zip", "stow"])
def test_hostile_identifiers_name_no_file_and_start_no_process(
    tmp_path: Path, made: ApiServices, client: TestClient, door: str
) -> None:
    """Check 22 of the reliability list by HTTP: 12 values in 5 identifiers of data set and file meta, and in names."""
    root = made.settings.data_dir
    around = {folder: set(folder.iterdir()) for folder in (tmp_path, Path("/tmp"), Path("/etc"), Path.cwd())}
    children = set(children_of(os.getpid()))
    bodies: list[bytes] = []
    with started() as processes:
        for value in VALUES:
            raw, objects = value.encode("utf-8"), list[bytes]()
            for keyword in IDENTIFIERS:
                body = with_identifier(keyword, raw, len(bodies))
                bodies.append(body)
                objects.append(part10_of(body, value if keyword == "SOPInstanceUID" and value.isascii() else "1.2.3"))
            answer = DOORS[door](client, objects)
            assert answer.status_code == 200, (value, answer.text)
        # The catalog answers for each of these studies, and nothing of them is markup or a header there.
        listed = client.get("/api/v1/studies", params={"limit": 200})
    assert listed.status_code == 200
    assert "x-evil" not in {name.lower() for name in listed.headers}
    assert processes == []
    assert set(children_of(os.getpid())) <= children
    assert len(bodies) == len(VALUES) * len(IDENTIFIERS) == 60
    rows = kept(made)
    assert {sha256(body) for body in bodies} <= set(rows)
    for row in rows.values():
        assert re.fullmatch(r"[0-9.]{1,64}", row.sop_uid)
    for folder, entries in around.items():
        assert [path for path in set(folder.iterdir()) - entries if TRACES.search(path.name)] == []
    assert set(tmp_path.iterdir()) == around[tmp_path]
    assert [path for path in root.rglob("*") if TRACES.search(path.name) or path.is_symlink()] == []


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("magic", [b"\x7fELF\x02\x01\x01", b"MZ\x90\x00\x03"], ids=["ELF", "PE"])
def test_a_file_that_is_also_a_program_is_stored_as_none(
    made: ApiServices, client: TestClient, door: str, magic: bytes
) -> None:
    """Check 27 of the reliability list by HTTP: zero preamble, no executable file, the image as it was."""
    image = file_bytes(ct_slice(2, STUDY, f"{STUDY}.1"))
    polyglot = magic.ljust(128, b"\x90") + image[128:]
    answer = DOORS[door](client, [polyglot])
    assert answer.status_code == 200
    # No route serves an object; whatever a route serves is taken for what it says it is.
    assert answer.headers["x-content-type-options"] == "nosniff"
    row = kept(made)[sha256(dataset_bytes(image))]
    blob = made.blobs.path(row.blob_sha256)
    assert blob.read_bytes()[:128] == bytes(128)
    assert blob.stat().st_mode & 0o111 == 0


@cache
def huge_bomb() -> bytes:
    """522 kB that inflate to 512 MiB."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as output,
        output.open("zeros.dcm", "w", force_zip64=True) as entry,
    ):
        for _ in range(512):
            entry.write(bytes(1 << 20))
    assert buffer.tell() < 540_000
    return buffer.getvalue()


@cache
def crowd() -> bytes:
    """100,000 entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as output:
        for number in range(100_000):
            output.writestr(zipfile.ZipInfo(f"{number}"), b"")
    return buffer.getvalue()


def three_levels() -> bytes:
    inner = archive(("one.dcm", GOOD))
    return archive(("outer.zip", archive(("middle.zip", archive(("inner.zip", inner))))))


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "522 kB to 512 MiB": huge_bomb,
    "three levels": three_levels,
    "100,000 entries": crowd,
    **{name: CASES[name][0] for name in ("overlap", "duplicate names", "symlink", "parent", "absolute")},
    **{name: CASES[name][0] for name in ("drive letter", "nul")},
}


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256(path.read_bytes()) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", ["/api/v1/upload", "/upload"])
def test_the_ten_archives_are_refused_and_change_nothing(
    tmp_path: Path, made: ApiServices, client: TestClient, path: str
) -> None:
    """Check 21 of the reliability list by HTTP."""
    assert len(ARCHIVES) == 10
    before = {name: digest for name, digest in tree(tmp_path).items() if "catalog.sqlite" not in name}
    for name, make in ARCHIVES.items():
        content = make()
        with measured_cost() as cost:
            answer = client.post(path, files={"file": ("study.zip", content)})
        print(f"{name}: {answer.status_code} {answer.json()['error']['code']}, {cost}")
        assert 400 <= answer.status_code < 500, name
        assert cost.growth_mib < 96, name
        assert spooled(made) == [], name
    assert {name: digest for name, digest in tree(tmp_path).items() if "catalog.sqlite" not in name} == before


@pytest.mark.parametrize("door", DOORS)
def test_a_full_disk_refuses_and_room_lets_in_again(
    made: ApiServices, client: TestClient, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """Check 13 of the reliability list by HTTP, with ENOSPC for the small disk: rows are files, nothing is doubled."""
    objects = [file_bytes(ct_slice(number, STUDY, f"{STUDY}.2", size=128)) for number in range(1, 7)]
    real_write, real_writev = os.write, os.writev
    left = 5 * len(objects[0]) // 2

    def take(size: int) -> None:
        nonlocal left
        if size > 4096:
            left -= size
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    def write(fd: int, data: Any) -> int:
        take(len(data))
        return real_write(fd, data)

    def writev(fd: int, buffers: Sequence[Any]) -> int:
        take(sum(map(len, buffers)))
        return real_writev(fd, buffers)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "writev", writev)
    answers = [DOORS[door](client, [content]) for content in objects]
    monkeypatch.undo()
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 200, 507, 507, 507, 507]
    assert {answer.json()["error"]["code"] for answer in answers[2:]} == {"storage_full"}
    assert {answer.headers["retry-after"] for answer in answers[2:]} == {"5"}
    stored = {sha256(dataset_bytes(content)) for content in objects} & set(kept(made))
    assert stored == {sha256(dataset_bytes(content)) for content in objects[:2]}
    assert spooled(made) == []
    assert DOORS[door](client, objects).status_code == 200
    assert {sha256(dataset_bytes(content)) for content in objects} <= set(kept(made))
    assert len(kept(made)) == 7  # and the one of the fixture
