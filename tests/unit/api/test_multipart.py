from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdallr_ray.api.multipart import MAX_PARTS, OVERHEAD_BYTES, UploadedFile, receive_file
from heimdallr_ray.errors import BadArchive, EmptyInput, HeimdallrError, Rejected, TooLarge

TYPE = "multipart/form-data; boundary=XyZ"


def part(content: bytes, name: str = "file", filename: str | None = "study.zip") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return b"--XyZ\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--XyZ--\r\n"


def receive(
    body: bytes, target: Path, *, max_bytes: int = 1 << 20, step: int = 7, content_type: str = TYPE
) -> UploadedFile:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(receive_file(chunks(), content_type, "file", ".zip", target, max_bytes))


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


@given(st.binary(max_size=400))
def test_no_body_gets_past_the_typed_errors(tmp_path_factory: pytest.TempPathFactory, body: bytes):
    target = tmp_path_factory.mktemp("upload") / "x"
    try:
        receive(b"--XyZ\r\n" + body, target, step=11)
    except HeimdallrError:
        return
