"""Objects made to hurt: each is refused by type, quickly, before anything large is allocated."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.decode import stored_pixels
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import group, select
from heimdallr_ray.errors import BlobMissing, HeimdallrError, NotAVolume, NotDicom, TooLarge, TruncatedObject
from tests.support.dicom import ct_datasets, ct_study, indexed, set_pixels, to_bytes

BUDGET_MB = 48


def explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    size = len(value) if length is None else length
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    return head + (struct.pack("<HI", 0, size) if long else struct.pack("<H", size)) + value


def part10(body: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    meta = explicit(0x00020010, b"UI", syntax)
    return b"\0" * 128 + b"DICM" + explicit(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta + body


def bounded(action: Callable[[], object]) -> None:
    """`action` raises one of ours within a tenth of a second of processor time and a few megabytes."""
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(HeimdallrError):
            action()
        seconds = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # tracemalloc slows a walk of many elements several times; the bound itself is 0.1 s.
    assert seconds < 1.0
    assert peak < BUDGET_MB << 20


def nested(levels: int) -> bytes:
    opening = explicit(0x00081140, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opening * levels + closing * levels


def test_ten_thousand_nested_sequences():
    with pytest.raises(TooLarge):
        read_header(part10(nested(10_000)))
    bounded(lambda: read_header(part10(nested(10_000))))
    bounded(lambda: read_header(part10(opening_only(10_000))))


def opening_only(levels: int) -> bytes:
    return (explicit(0x00081140, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * levels


def test_functional_groups_nested_in_themselves():
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    groups = explicit(0x52009230, b"SQ", b"", 0xFFFFFFFF) + item
    bounded(lambda: read_header(part10(groups * 5_000)))


def test_a_million_tiny_elements():
    body = explicit(0x00091001, b"CS", b"") * 1_000_000
    started = time.process_time()
    with pytest.raises(TooLarge):
        read_header(part10(body))
    assert time.process_time() - started < 2.0


def test_huge_image_in_a_tiny_file_is_refused_before_allocation():
    (content,) = ct_study(1, Rows=65535, Columns=65535, PixelData=b"\0\0")
    header = read_header(content)
    bounded(lambda: stored_pixels(content, header))
    index, read = indexed([content])
    series = group(index)
    bounded(lambda: assemble(series[0], read))
    assert select(series).chosen is None
    started = time.process_time()
    with pytest.raises(TooLarge):
        stored_pixels(content, header)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_large_claim_by_a_small_compressed_object(syntax: str):
    (dataset,) = ct_datasets(1, (64, 64))
    if syntax != DeflatedExplicitVRLittleEndian:
        to_bytes(dataset)
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.Rows = dataset.Columns = 16_000
    content = to_bytes(dataset, syntax)
    header = read_header(content)
    bounded(lambda: stored_pixels(content, header))


def test_a_codestream_larger_than_its_header_says_is_not_decoded():
    (dataset,) = ct_datasets(1, (512, 512))
    to_bytes(dataset)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.Rows = dataset.Columns = 64
    content = to_bytes(dataset)
    with pytest.raises(NotAVolume) as caught:
        stored_pixels(content, read_header(content))
    assert caught.value.reason == "undecodable_pixels"


def test_deflated_bomb_is_bounded():
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = explicit(0x00080060, b"CS", b"CT") + explicit(0x00091001, b"OB", b"", 3 << 30)
    bomb = deflate.compress(head)
    for _ in range(200):
        bomb += deflate.compress(b"\0" * (1 << 20))
    bomb += deflate.flush()
    content = part10(bomb, b"1.2.840.10008.1.2.1.99")
    assert len(content) < 300_000
    bounded(lambda: read_header(content))


def test_deflated_elements_without_end_are_bounded():
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(explicit(0x00080060, b"CS", b"CT") + explicit(0x00091001, b"CS", b"A ") * 3_000_000)
    content = part10(body + deflate.flush(), b"1.2.840.10008.1.2.1.99")
    with pytest.raises(TooLarge):
        read_header(content)


def test_a_length_beyond_the_file_reads_nothing():
    bounded(lambda: read_header(part10(explicit(0x00080060, b"CS", b"CT") + explicit(0x00091001, b"OB", b"", 1 << 31))))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not DICOM at all" * 100,
        b"\0" * 132,
        b"\0" * 128 + b"DICM",
        part10(b""),
        part10(b"\xff" * 4000),
        part10(b"garbage that is no element" * 20),
        part10(explicit(0x00080060, b"CS", b"CT"))[:-1],
    ],
)
def test_what_is_no_data_set_is_refused(content: bytes):
    with pytest.raises((NotDicom, TruncatedObject)):
        read_header(content)


def refusal(**overrides: object) -> str:
    index, read = indexed(to_bytes(dataset) for dataset in ct_datasets(12, **overrides))  # type: ignore[arg-type]
    series = group(index)
    assert select(series).chosen is None
    with pytest.raises(NotAVolume) as caught:
        assemble(series[0], read)
    return caught.value.reason


@pytest.mark.parametrize("value", ["NaN", "inf", "-inf", "1e400", "one"])
def test_rescale_that_is_no_number_is_refused(value: str):
    contents = [
        content.replace(b"DS\x02\x001 ", b"DS" + struct.pack("<H", 6) + value.ljust(6).encode())
        for content in ct_study(12)
    ]
    index, read = indexed(contents)
    assert "rescale_slope" in index[0].header.malformed
    with pytest.raises(NotAVolume) as caught:
        assemble(group(index)[0], read)
    assert caught.value.reason == "bad_rescale"
    assert select(group(index)).chosen is None


def test_geometry_that_no_person_has_is_refused():
    assert refusal(PixelSpacing=["0", "0"]) == "bad_spacing"
    assert refusal(PixelSpacing=["-1", "1"]) == "bad_spacing"
    assert refusal(ImageOrientationPatient=["0"] * 6) == "bad_orientation"
    assert refusal(ImagePositionPatient=["0", "0", "0"]) == "single_slice"
    assert refusal(ImagePositionPatient=["0", "0"]) == "no_geometry"
    assert refusal(RescaleSlope="0") == "bad_rescale"
    assert refusal(BitsStored=0, BitsAllocated=12) == "unsupported_pixels"
    assert refusal(HighBit=40) == "unsupported_pixels"


def test_bytes_that_changed_since_they_were_indexed_are_not_read_as_pixels():
    contents = ct_study(12)
    index, read = indexed(contents)
    with pytest.raises((BlobMissing, TruncatedObject)):
        assemble(group(index)[0], lambda locator: read(locator)[40:])


def test_a_series_of_thousands_of_orientations_is_grouped_in_bounded_parts():
    rng = np.random.default_rng(0)
    made = []
    for k, dataset in enumerate(ct_datasets(300, (2, 2))):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (*turn[:, 0], *turn[:, 1])]
        dataset.InstanceNumber = k
        made.append(set_pixels(dataset, np.zeros((2, 2), np.uint16)))
    index, _ = indexed(to_bytes(dataset) for dataset in made)
    series = group(index)
    assert len(series) <= limits.MAX_SERIES_PARTS
    assert select(series).chosen is None


def test_overlong_text_is_cut_and_control_characters_go():
    header = read_header(ct_study(1, ImageComments="x" * 10_000, StationName="a")[0])
    assert len(header.image_comments) == 1024


def test_a_dicomdir_and_an_empty_sequence_are_no_series_to_measure():
    (content,) = ct_study(1, SOPClassUID="1.2.840.10008.1.3.10", ReferencedStudySequence=[Dataset()])
    index, _ = indexed([content])
    assert [item.code for item in select(group(index)).decisions] == ["not_volume_sop"]
