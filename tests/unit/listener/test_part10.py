"""Group 0002 by hand, against pydicom as the reference."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from heimdallr_ray.errors import HeimdallrError, NotDicom, TooLarge
from heimdallr_ray.listener import part10
from tests.support.intake import ct_slice, dataset_bytes, file_bytes

META = part10.FileMeta(
    dataset_offset=0,
    transfer_syntax_uid=str(ExplicitVRLittleEndian),
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3",
    implementation_class_uid=part10.IMPLEMENTATION_CLASS_UID,
    implementation_version=part10.IMPLEMENTATION_VERSION,
    source_ae="CT1",
)


def test_what_is_written_is_a_part_10_file_for_pydicom_and_for_us() -> None:
    body = dataset_bytes(file_bytes(ct_slice(1, "1.2.3", "1.2.3.4")))
    head = part10.encode_meta(META)
    dataset = dcmread(io.BytesIO(head + body))
    assert dataset.PatientID == "P1"
    assert dataset.file_meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert dataset.file_meta.SourceApplicationEntityTitle == "CT1"
    assert dataset.file_meta.FileMetaInformationGroupLength == len(head) - 144
    parsed = part10.parse_meta(head + body)
    assert parsed.dataset_offset == len(head)
    assert (parsed.sop_instance_uid, parsed.source_ae) == ("1.2.3", "CT1")


def test_the_preamble_is_zero_so_no_stored_file_is_executable() -> None:
    assert part10.encode_meta(META)[:132] == b"\0" * 128 + b"DICM"


def test_a_file_without_preamble_and_a_bare_data_set_are_recognised() -> None:
    content = file_bytes(ct_slice(1, "1.2.3", "1.2.3.4"))
    offset = len(content) - len(dataset_bytes(content))
    assert part10.identify(content[132:]).dataset_offset == offset - 132
    bare = part10.identify(dataset_bytes(content))
    assert (bare.dataset_offset, bare.transfer_syntax_uid) == (0, part10.EXPLICIT_LITTLE)


@pytest.mark.parametrize(
    ("implicit", "little", "syntax"),
    [(True, True, part10.IMPLICIT_LITTLE), (False, True, part10.EXPLICIT_LITTLE), (False, False, part10.EXPLICIT_BIG)],
)
def test_bare_data_sets_tell_their_encoding(implicit: bool, little: bool, syntax: str) -> None:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    dataset = ct_slice(1, "1.2.3", "1.2.3.4")
    del dataset.PixelData
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    write_dataset(stream, dataset)
    assert part10.guess_transfer_syntax(stream.getvalue()) == syntax


@pytest.mark.parametrize("content", [b"", b"hello world, this is text" * 20, b"PK\x03\x04" + b"\0" * 300, b"\0" * 500])
def test_other_files_are_not_dicom(content: bytes) -> None:
    with pytest.raises(NotDicom):
        part10.identify(content)


def test_an_endless_group_0002_is_refused() -> None:
    head = b"\0" * 128 + b"DICM" + b"\x02\x00\x02\x01OB\0\0" + (1 << 30).to_bytes(4, "little")
    with pytest.raises(TooLarge):
        part10.identify(head + b"\0" * 1000)


# No deadline: what is asked is the answer, and a machine that does other work stops for a while now and then.
@settings(deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_identified_or_refused_by_type(content: bytes, prefixed: bool) -> None:
    head = (part10.PREAMBLE + b"\x02\x00" if prefixed else b"") + content
    try:
        meta = part10.identify(head)
    except HeimdallrError:
        return
    assert 0 <= meta.dataset_offset <= len(head)
