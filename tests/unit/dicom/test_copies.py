"""Objects under one SOP Instance UID of which some were cut off."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from heimdallr_ray.dicom.copies import without_cut_copies
from heimdallr_ray.dicom.grouping import IndexedInstance
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.ids import Uid
from tests.support.intake import ct_slice, file_bytes

RLE = "1.2.840.10008.1.2.5"


def compressed(content: bytes, *, whole: bool) -> bytes:
    """The object with its native pixels replaced by two fragments."""
    header = read_header(content)
    assert header.pixels is not None
    # Tag, VR, two reserved bytes and the length stand before the pixels.
    start = content[: header.pixels.offset - 4] + struct.pack("<I", 0xFFFFFFFF)
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (b"", b"\1" * 64))
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if whole else b""
    return start + items + end


class Objects:
    """What a study holds, by locator."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.read: list[str] = []

    def add(self, locator: str, content: bytes, *, syntax: str = "", uid: str = "") -> IndexedInstance:
        header = read_header(content)
        self.content[locator] = content
        given = {"transfer_syntax_uid": syntax} if syntax else {}
        header = replace(header, **given, **({"sop_uid": Uid(uid)} if uid else {}))
        return IndexedInstance(header, locator, len(content), locator)

    def bytes_of(self, locator: str) -> bytes:
        self.read.append(locator)
        return self.content[locator]


def slice_bytes(number: int) -> bytes:
    return file_bytes(ct_slice(number, "1.2.3", "1.2.3.4", size=16))


def kept(objects: Objects, *instances: IndexedInstance) -> list[str]:
    return [one.locator for one in without_cut_copies(instances, objects.bytes_of)]


def test_a_cut_copy_gives_way_to_a_whole_one_whatever_the_order() -> None:
    objects = Objects()
    other = objects.add("other", slice_bytes(2))
    whole, cut = objects.add("whole", slice_bytes(1)), objects.add("cut", slice_bytes(1)[:-200])
    assert kept(objects, cut, other, whole) == ["other", "whole"]
    assert kept(objects, whole, cut, other) == ["whole", "other"]
    assert objects.read == [], "headers and sizes tell"


def test_without_a_whole_one_all_stay() -> None:
    objects = Objects()
    first, second = objects.add("a", slice_bytes(1)[:-200]), objects.add("b", slice_bytes(1)[:-300])
    alone = objects.add("c", slice_bytes(2)[:-200])
    assert kept(objects, first, second, alone) == ["a", "b", "c"]


def test_whole_ones_that_differ_are_not_judged_here() -> None:
    objects = Objects()
    other_bytes = slice_bytes(1)[:-1] + b"\x77"
    assert kept(objects, objects.add("a", slice_bytes(1)), objects.add("b", other_bytes)) == ["a", "b"]


@pytest.mark.parametrize("cut_at", [None, -40])
def test_compressed_copies_are_read_to_their_end(cut_at: int | None) -> None:
    objects = Objects()
    whole = objects.add("whole", compressed(slice_bytes(1), whole=True), syntax=RLE)
    cut = objects.add("cut", compressed(slice_bytes(1), whole=False)[:cut_at], syntax=RLE)
    assert kept(objects, cut, whole) == ["whole"]
    assert sorted(objects.read) == ["cut", "whole"]


def test_one_of_a_kind_is_not_read() -> None:
    objects = Objects()
    cut = objects.add("cut", compressed(slice_bytes(1), whole=False), syntax=RLE)
    assert kept(objects, cut, objects.add("other", slice_bytes(2))) == ["cut", "other"]
    assert objects.read == []
