from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heimdallr_ray.api.related import (
    MAX_BESIDE_BYTES,
    MAX_HEADER_BYTES,
    RelatedReader,
    parse_content_type,
)
from heimdallr_ray.errors import HeimdallrError, Rejected, TooLarge
from tests.support.related import BOUNDARY, related

MARK = BOUNDARY.encode()


def cut(body: bytes, step: int) -> Iterator[bytes]:
    return (body[start : start + step] for start in range(0, len(body), step))


def read(body: bytes, step: int = 7, max_parts: int = 100) -> list[tuple[str, bytes]]:
    reader = RelatedReader(cut(body, step), MARK, max_parts)
    return [(part.content_type, b"".join(part.body)) for part in reader.parts()]


@pytest.mark.parametrize("step", [1, 13, 1 << 20])
def test_parts_come_byte_for_byte(step: int):
    objects = [bytes(range(256)) * 9, b"", b"\r\n--a-boundary\r\n\r\n--a-boundary-of-a-tes", b"\r\n"]
    assert read(related(objects), step) == [("application/dicom", content) for content in objects]


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_any_content_survives_any_cutting(objects: list[bytes], step: int):
    assert [content for _, content in read(related(objects), step)] == objects


@given(st.binary(max_size=400), st.integers(1, 90))
@settings(max_examples=150, deadline=None)
def test_garbage_ends_in_a_typed_error_or_in_parts(garbage: bytes, step: int):
    for body in (garbage, b"--" + MARK + garbage, b"--" + MARK + b"\r\n" + garbage, related([b"x"]) + garbage):
        try:
            read(body, step)
        except HeimdallrError as error:
            assert isinstance(error, Rejected)


def test_what_rfc_2046_allows_is_taken():
    body = b"preamble\r\n" + related([b"one"], head=b"").replace(b"test\r\n", b"test \t\r\n", 1) + b"epilogue"
    assert read(body) == [("", b"one")]
    assert read(related([b"x"], head=b'content-type:Application/DICOM ; transfer-syntax="1.2"\r\n')) == [
        ("application/dicom", b"x")
    ]
    assert read(b"--" + MARK + b"--") == []


def test_a_part_that_nobody_reads_is_passed_over():
    reader = RelatedReader(cut(related([b"a" * 100, b"b"]), 9), MARK, 5)
    assert [b"" if number == 0 else b"".join(part.body) for number, part in enumerate(reader.parts())] == [b"", b"b"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", Rejected),
        (b"no multipart at all", Rejected),
        (related([b"x" * 100])[:-60], Rejected),
        (related([b"x"])[: -len(BOUNDARY)], Rejected),
        (related([b"x"]).replace(b"test\r\n", b"test!\r\n", 1), Rejected),
        (related([b"x"], head=b"A: " + b"y" * MAX_HEADER_BYTES + b"\r\n"), TooLarge),
        (b"p" * (MAX_BESIDE_BYTES + 1) + b"\r\n" + related([b"x"]), Rejected),
        (related([b"x"]) + b"e" * (MAX_BESIDE_BYTES + 1), Rejected),
        (related([b"x"] * 101), TooLarge),
    ],
)
def test_what_is_malformed_or_too_much_is_refused(body: bytes, error: type[HeimdallrError]):
    for step in (1000, 1 << 20):
        with pytest.raises(error):
            read(body, step)


def test_no_more_than_a_chunk_is_held():
    held: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield b"--" + MARK + b"\r\n\r\n"
        for _ in range(200):
            held.append(len(reader._buffer))
            yield b"\r" * 4096
        yield b"\r\n--" + MARK + b"--"

    reader = RelatedReader(chunks(), MARK, 1)
    total = sum(len(piece) for part in reader.parts() for piece in part.body)
    assert total == 200 * 4096
    assert max(held) <= 4096 + len(MARK) + 4


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', (b"abc", "application/dicom")),
        ('Multipart/Related; boundary="a b:c"; type=application/dicom', (b"a b:c", "application/dicom")),
        ("multipart/related;boundary=x", (b"x", "")),
        (f"multipart/related; boundary={'f' * 73}", (b"f" * 73, "")),  # Orthanc's, longer than RFC 2046 allows
        ("multipart/form-data; boundary=x", None),
        ("application/dicom", None),
        ("", None),
        (None, None),
    ],
)
def test_content_type(header: str | None, found: tuple[bytes, str] | None):
    parsed = parse_content_type(header)
    assert (None if parsed is None else (parsed.boundary, parsed.root_type)) == found


@pytest.mark.parametrize("boundary", ["", '""', "x" * 201, '"x\u00e4"'])
def test_a_boundary_has_to_be_one(boundary: str):
    with pytest.raises(Rejected):
        parse_content_type(f"multipart/related; boundary={boundary}")
