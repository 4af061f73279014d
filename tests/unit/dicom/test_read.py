"""Headers: what is read, from whatever the object is written in."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.read import is_cut, read_head, read_header
from heimdallr_ray.errors import NotDicom, TooLarge, TruncatedObject
from tests.support.dicom import ct_datasets, ct_study, to_bytes


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def test_every_field_of_a_ct_slice():
    (content,) = ct_study(1, RequestedProcedurePriority="stat", PatientAge="064Y", PixelPaddingValue=63536 & 0xFFFF)
    header = read_header(content)
    assert (header.modality, header.rows, header.columns, header.bits_stored) == ("CT", 32, 24, 12)
    assert header.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert header.ipp == (-180.0, -180.0, -150.0)
    assert header.iop == (1, 0, 0, 0, 1, 0)
    assert header.pixel_spacing == (0.7, 0.7)
    assert (header.rescale_slope, header.rescale_intercept, header.kvp) == (1.0, -1024.0, 120.0)
    assert (header.patient_name, header.patient_id, header.patient_sex) == ("Test^Person", "TEST-1", "F")
    assert (header.patient_birth_date, header.study_date, header.accession_number) == ("19600101", "20260102", "A1")
    assert header.requested_priority == "STAT"
    assert header.patient_age_years == 64
    assert header.pixel_padding == 63536
    assert (header.synthetic, header.malformed) == (False, ())
    assert header.pixels is not None
    assert header.pixels.length == 32 * 24 * 2
    assert header.pixels.offset + header.pixels.length == len(content)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_the_same_header_in_every_encoding(syntax: str):
    plain = read_header(ct_study(1)[0])
    (dataset,) = ct_datasets(1)
    dataset.ReferencedStudySequence = Sequence([Dataset()])
    dataset["ReferencedStudySequence"].is_undefined_length = True
    other = read_header(to_bytes(dataset, syntax))
    for name in plain.__slots__:
        if name not in ("transfer_syntax_uid", "pixels"):
            assert getattr(other, name) == getattr(plain, name), name


def test_path_stream_and_bytes_read_alike(tmp_path: Path):
    (content,) = ct_study(1)
    path = tmp_path / "x"
    path.write_bytes(content)
    assert read_header(content) == read_header(path) == read_header(io.BytesIO(content))


def test_a_header_larger_than_the_first_read_is_read_on(tmp_path: Path):
    (dataset,) = ct_datasets(1)
    dataset.add_new(0x00091001, "OB", b"\1" * 3_000_000)
    dataset.add_new(0x00090010, "LO", "SOMEBODY")
    path = tmp_path / "x"
    path.write_bytes(to_bytes(dataset))
    assert read_header(path).rows == 32


class Counting(io.BytesIO):
    """A source that counts what is taken of it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.taken += len(content)
        return content


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_long_header_is_read_once(syntax: str):
    """20,000 elements and then the rows: no byte is read twice, and little of the pixels behind them."""
    (dataset,) = ct_datasets(1)
    for number in range(20_000):
        dataset.add_new(0x00191000 + number, "LO", f"{number:08d}")
    content = to_bytes(dataset, syntax)
    source = Counting(content)
    header = read_header(source)
    assert (header.rows, header.pixels is None) == (32, False)
    assert source.taken <= len(content)
    assert read_head(content, len(content)) == header
    if syntax != DeflatedExplicitVRLittleEndian:
        assert read_head(content[:100_000], len(content)) is None


def test_a_deflated_header_is_read_as_far_as_it_inflates():
    (dataset,) = ct_datasets(1)
    dataset.add_new(0x00190010, "LO", "SOMEBODY")
    dataset.add_new(0x00191000, "OB", bytes(range(256)) * 12_000)
    content = to_bytes(dataset, DeflatedExplicitVRLittleEndian)
    header = read_header(Counting(content))
    assert header.rows == 32
    # Cut in the middle of what is deflated, or with something behind it.
    with pytest.raises((TruncatedObject, NotDicom)):
        read_header(content[: len(content) // 2])
    assert read_header(content + bytes(64)) == header


def test_more_elements_than_any_object_has_side_by_side_are_refused():
    (dataset,) = ct_datasets(1)
    for number in range(limits.MAX_ELEMENTS_OF_ONE_LEVEL):
        dataset.add_new(0x00190000 + 0x1000 + number, "LO", "")
    with pytest.raises(TooLarge, match="side by side"):
        read_header(to_bytes(dataset))


def test_declared_implicit_but_written_explicit_is_read():
    (content,) = ct_study(1)
    lied = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    assert lied != content
    assert read_header(lied).patient_id == "TEST-1"


def test_blank_identifiers_fall_back_to_the_file_meta_information():
    (dataset,) = ct_datasets(1)
    uid = dataset.SOPInstanceUID
    content = to_bytes(dataset)
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        setattr(dataset, keyword, "")
    dataset.file_meta.MediaStorageSOPInstanceUID, dataset.preamble = uid, b"\0" * 128
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=False)
    header = read_header(buffer.getvalue())
    assert header.sop_uid == read_header(content).sop_uid
    assert header.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert (header.study_uid, header.series_uid) == (None, None)


def test_malformed_numbers_are_named_and_never_a_number():
    (dataset,) = ct_datasets(1)
    content = to_bytes(dataset)
    tag = struct.pack("<HH", 0x28, 0x1053) + b"DS" + struct.pack("<H", 2) + b"1 "
    assert tag in content
    hostile = content.replace(tag, struct.pack("<HH", 0x28, 0x1053) + b"DS" + struct.pack("<H", 4) + b"NaN ")
    header = read_header(hostile)
    assert header.rescale_slope is None
    assert "rescale_slope" in header.malformed


def test_hostile_identifiers_are_no_identifiers():
    (content,) = ct_study(1, PatientID="../../etc/passwd\nx")
    evil = content.replace(b"2.25.", b"../..", 20)
    header = read_header(evil)
    assert header.study_uid is None
    assert "\n" not in header.patient_id


def test_pixels_shorter_than_declared_are_seen_without_reading_them():
    (content,) = ct_study(1)
    header = read_header(content[:-100])
    assert is_cut(header, len(content) - 100)
    assert not is_cut(read_header(content), len(content))
    with pytest.raises(TruncatedObject):
        read_header(content[:-100], stop_before_pixels=False)
    read_header(content, stop_before_pixels=False)


def test_an_object_cut_inside_its_header_is_truncated():
    (content,) = ct_study(1)
    pixels = read_header(content).pixels
    assert pixels is not None
    for at in range(140, pixels.tag_offset):
        try:
            header = read_header(content[:at])
        except (TruncatedObject, NotDicom):
            continue
        assert header.pixels is None, at


def test_age_from_birth_date_where_the_age_is_absent():
    header = read_header(ct_study(1)[0])
    assert header.patient_age_years == 66
    assert read_header(ct_study(1, PatientAge="018M")[0]).patient_age_years == pytest.approx(1.5)
    blank = read_header(ct_study(1, PatientBirthDate="")[0])
    assert blank.patient_age_years is None


@pytest.mark.parametrize(
    ("name", "modality", "rows"),
    [
        ("CT_small.dcm", "CT", 128),
        ("MR_small.dcm", "MR", 64),
        ("MR_small_RLE.dcm", "MR", 64),
        ("MR_small_bigendian.dcm", "MR", 64),
        ("image_dfl.dcm", "OT", 512),
        ("rtdose.dcm", "RTDOSE", 10),
        ("rtplan.dcm", "RTPLAN", None),
        ("test-SR.dcm", "SR", None),
        ("liver_1frame.dcm", "SEG", 512),
    ],
)
def test_objects_of_other_makers(name: str, modality: str, rows: int | None):
    header = read_header(bundled(name))
    assert (header.modality, header.rows) == (modality, rows)


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 4096, b"PK\x03\x04" + b"x" * 500, b"\0" * 128 + b"DICM"])
def test_what_is_not_dicom_is_refused(content: bytes):
    with pytest.raises((NotDicom, TruncatedObject)):
        read_header(content)


def test_numbers_of_a_header_are_finite():
    for name in ("CT_small.dcm", "MR_small.dcm", "emri_small.dcm"):
        path = get_testdata_file(name, download=False)
        if path is None:
            continue
        header = read_header(Path(str(path)))
        for field in header.__slots__:
            value = getattr(header, field)
            assert not isinstance(value, float) or math.isfinite(value), field
