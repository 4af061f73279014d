from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heimdallr_ray.api.multipart import MAX_PARTS, OVERHEAD_BYTES, UploadedFile, receive_file
from heimdallr_ray.errors import (
    BadArchive,
    EmptyInput,
    HeimdallrError,
    Rejected,
    StorageFailed,
    StorageFull,
    TooLarge,
)

TYPE = "multipart/form-data; boundary=XyZ"


def part(content: bytes, name: str = "file", filename: str | None = "study.zip") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return b"--XyZ\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--XyZ--\r\n"


def receive(
    body: bytes,
    target: Path,
    *,
    max_bytes: int = 1 << 20,
    step: int = 7,
    content_type: str = TYPE,
    min_free_bytes: int = 0,
) -> UploadedFile:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(receive_file(chunks(), content_type, "file", ".zip", target, max_bytes, min_free_bytes))


@pytest.mark.parametrize("step", [1, 13, 1 << 20])
def test_the_file_arrives_byte_for_byte(tmp_path: Path, step: int):
    content = bytes(range(256)) * 9 + b"\r\n--XyZ\rnot a boundary\r\n--XyX"
    got = receive(part(b"a note", "note", None) + part(content) + END, tmp_path / "x", step=step)
    assert got.path.read_bytes() == content
    assert (got.size, got.client_name) == (len(content), "study.zip")


@pytest.mark.parametrize("name", ["../../evil.zip", "/etc/passwd.zip", "C:\\x\\y.zip", "a\tb.zip", "x" * 300 + ".zip"])
def test_the_client_s_name_is_text_and_no_path(tmp_path: Path, name: str):
    try:
        receive(part(b"x", filename=name.replace("\\", "\\\\")) + END, tmp_path / "target")
    except BadArchive:
        assert len(name) > 255
    assert {path.name for path in tmp_path.iterdir()} == {"target"}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (part(b"") + END, EmptyInput),
        (part(b"x", "other") + END, EmptyInput),
        (part(b"x", filename=None) + END, EmptyInput),
        (END, EmptyInput),
        (b"", EmptyInput),
        (part(b"x", filename="study.tar") + END, BadArchive),
        (part(b"x" * 100)[:-30], Rejected),
        (b"this is not multipart", Rejected),
        (part(b"x", "a", None) * (MAX_PARTS + 1) + END, Rejected),
        (b"--XyZ\r\n" + b"X-A: " + b"b" * 10_000 + b"\r\n\r\nx\r\n" + END, Rejected),
        (part(b"x" * 2000) + END, TooLarge),
        (part(b"x" * (OVERHEAD_BYTES + 5000)) + END, TooLarge),
    ],
)
def test_what_is_not_a_whole_file_is_refused(tmp_path: Path, body: bytes, error: type[HeimdallrError]):
    with pytest.raises(error):
        receive(body, tmp_path / "x", max_bytes=1000, step=100)


@pytest.mark.parametrize(
    "content_type", ["", "application/zip", "multipart/form-data", "multipart/mixed; boundary=XyZ"]
)
def test_other_content_types_are_refused(tmp_path: Path, content_type: str):
    with pytest.raises(Rejected, match="multipart"):
        receive(part(b"x") + END, tmp_path / "x", content_type=content_type)


def test_an_upload_never_overwrites(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"there before")
    with pytest.raises(FileExistsError):
        receive(part(b"x") + END, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"there before"


# Wall time is the machine's, not the parser's: every example makes a file and an event loop.
@settings(deadline=None)
@given(st.binary(max_size=400))
def test_no_body_gets_past_the_typed_errors(tmp_path_factory: pytest.TempPathFactory, body: bytes):
    target = tmp_path_factory.mktemp("upload") / "x"
    try:
        receive(b"--XyZ\r\n" + body, target, step=11)
    except HeimdallrError:
        return


class _Failing:
    """A file whose device refuses the second write."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.writes = 0

    def write(self, data: bytes) -> int:
        self.writes += 1
        if self.writes == 2:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (errno.ENOSPC, StorageFull, 507),
        (errno.EDQUOT, StorageFull, 507),
        (errno.EIO, StorageFailed, 503),
        (errno.EROFS, StorageFailed, 503),
    ],
)
@pytest.mark.parametrize("where", ["open", "write"])
def test_a_device_that_refuses_is_told_by_code_and_not_by_500(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[HeimdallrError], status: int, where: str
):
    def opened(*_: object) -> _Failing:
        if where == "open":
            raise OSError(number, os.strerror(number))
        return _Failing(number)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(error) as raised:
        receive(part(b"x" * (3 << 20)) + END, tmp_path / "x", max_bytes=4 << 20, step=1 << 18)
    assert raised.value.http_status == status


def test_the_minimum_free_space_is_asked_before_the_first_byte_and_with_every_mebibyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "x"
    with pytest.raises(StorageFull):
        receive(part(b"x") + END, target, min_free_bytes=1 << 60)
    assert not target.exists()
    free = shutil.disk_usage(tmp_path).free
    real, asked = os.statvfs, 0

    def filling_up(path: Path) -> os.statvfs_result:
        nonlocal asked
        asked += 1
        found = list(real(path))
        found[4] = (free if asked < 4 else 0) // found[1]
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", filling_up)
    with pytest.raises(StorageFull, match=r"min_free_mib|disk_refuse_percent"):
        receive(part(b"x" * (8 << 20)) + END, target, max_bytes=9 << 20, step=1 << 18, min_free_bytes=1)
    assert asked == 4
    assert 1 << 20 < target.stat().st_size < 4 << 20
