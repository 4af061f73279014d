"""The quick reading of what tells an object: the same as the whole header's, or nothing."""

from __future__ import annotations

import struct
from functools import cache
from itertools import accumulate

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.header import SYNTHETIC_CREATOR, Header
from heimdallr_ray.dicom.identity import Identified, IdentityFacts, read_identity, read_quickly
from heimdallr_ray.dicom.read import data_set_offset, read_header
from heimdallr_ray.errors import HeimdallrError, TooLarge, TruncatedObject
from tests.support.dicom import ct_datasets, to_bytes

PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
MUTANTS = 2000
LATER = 0x00431010
"""A tag behind those that tell an object."""
Answer = tuple[object, ...] | type[HeimdallrError]


def ct_object(syntax: str = ExplicitVRLittleEndian) -> bytes:
    (dataset,) = ct_datasets(1, RequestedProcedurePriority="STAT")
    return to_bytes(dataset, syntax)


@pytest.mark.parametrize("syntax", PLAIN)
def test_it_says_what_the_header_says(syntax: str) -> None:
    content = ct_object(syntax)
    header, found = read_header(content), read_quickly(content, data_set_offset(content), syntax)
    assert found is not None
    assert (found.sop_uid, found.sop_class_uid) == (header.sop_uid, header.sop_class_uid)
    for name in IdentityFacts.__slots__:
        assert getattr(found.facts, name) == getattr(header, name), name


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_what_few_write_is_read_by_the_header(syntax: str) -> None:
    content = ct_object(syntax)
    assert read_quickly(content, data_set_offset(content), syntax) is None
    found = read_identity(content, len(content), data_set_offset(content), syntax)
    assert found is not None and found.facts == read_header(content)


def test_first_bytes_that_end_anywhere_say_all_or_nothing() -> None:
    """Also where they end between two elements: those behind are not taken for absent."""
    content = ct_object()
    offset = data_set_offset(content)
    whole = read_quickly(content, offset, ExplicitVRLittleEndian)
    answers = [read_quickly(content[:end], offset, ExplicitVRLittleEndian) for end in range(offset, offset + 1000)]
    assert whole is not None
    assert all(answer in (None, whole) for answer in answers)
    assert answers[0] is None and whole in answers


# The same answer as the whole header's, whatever comes ---------------------------------------------------------------


def said_of(facts: IdentityFacts | Header, sop_class_uid: object, sop_uid: object) -> Answer:
    return (sop_class_uid, sop_uid, *(getattr(facts, name) for name in IdentityFacts.__slots__))


def said_by(found: Identified | None) -> Answer | None:
    return None if found is None else said_of(*found)


def header_answer(content: bytes) -> Answer:
    """What the whole header says, or the error that refuses it."""
    try:
        header = read_header(content)
    except HeimdallrError as error:
        return type(error)
    return said_of(header, header.sop_class_uid, header.sop_uid)


def identity_answer(content: bytes, offset: int, syntax: str) -> Answer | None:
    try:
        return said_by(read_identity(content, len(content), offset, syntax))
    except HeimdallrError as error:
        return type(error)


@cache
def file_start(syntax: str) -> bytes:
    """Preamble and file meta information."""
    content = ct_object(syntax)
    return content[: data_set_offset(content)]


@cache
def elements(syntax: str, pixels: bool = True) -> tuple[bytes, ...]:
    """The encoded elements of an image that has what images have: private elements, sequences, an overlay."""
    (dataset,) = ct_datasets(1, RequestedProcedurePriority="STAT", StudyDescription="Head", SpecificCharacterSet="")
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    item.RequestAttributesSequence = Sequence([Dataset()])
    dataset.ReferencedImageSequence = Sequence([item])
    dataset.ReferencedStudySequence = Sequence([item, item])
    dataset["ReferencedStudySequence"].is_undefined_length = True
    dataset.ProcedureCodeSequence = Sequence()
    for group in (0x0009, 0x0029, 0x0043, 0x2005):
        dataset.private_block(group, "HEIMDALLR TEST", create=True).add_new(1, "OB", bytes(30))
    dataset.add(DataElement(0x60003000, "OW", bytes(64)))
    dataset["PixelData"].VR = "OW"
    if not pixels:
        del dataset.PixelData
    pieces: list[bytes] = []
    for element in dataset:
        one = Dataset()
        one.add(element)
        target = DicomBytesIO()
        target.is_little_endian, target.is_implicit_VR = True, syntax == ImplicitVRLittleEndian
        write_dataset(target, one)
        pieces.append(target.getvalue())
    return tuple(pieces)


def encoded(tag: int, vr: bytes, value: bytes, syntax: str, length: int | None = None) -> bytes:
    """One element, which may say another length than it has."""
    said = len(value) if length is None else length
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if syntax == ImplicitVRLittleEndian:
        return start + struct.pack("<I", said) + value
    if vr in (b"OB", b"SQ", b"UN"):
        return start + vr + b"\0\0" + struct.pack("<I", said) + value
    return start + vr + struct.pack("<H", said & 0xFFFF) + value


def inserted(syntax: str, rng: np.random.Generator) -> bytes:
    """An element that few objects have."""
    item, item_end = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0"
    sequence_end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    undefined = limits.MAX_NESTING * (item + b"\xff" * 4 + encoded(0x00081140, b"SQ", b"", syntax, 0xFFFFFFFF))
    long_item = item + struct.pack("<I", 5000)
    unvalued = item + b"\xff" * 4 + item_end + sequence_end
    synthetic = SYNTHETIC_CREATOR.encode() + b" " * (len(SYNTHETIC_CREATOR) % 2)
    uid = b"1.2.826.0.1.3680043.9.9.%d" % rng.integers(10, 90)
    tag = int(rng.choice([0x00080018, 0x0020000D, 0x0020000E, 0x00090012, LATER, 0x20051012, 0x52009230, 0x7FE00008]))
    return (
        encoded(tag, b"UI", uid + b"\0" * (len(uid) % 2), syntax),
        encoded(tag, b"LO", synthetic, syntax),
        encoded(tag, b"LO", synthetic, syntax) + encoded(tag, b"UN", unvalued, syntax, 0xFFFFFFFF),
        encoded(tag, b"OB", bytes(10), syntax, 60_000),
        encoded(tag, b"ZZ", b"", syntax),
        encoded(tag, b"UN", unvalued, syntax, 0xFFFFFFFF),
        encoded(tag, b"SQ", undefined, syntax, 0xFFFFFFFF),
        encoded(0x52009230, b"SQ", long_item + bytes(20), syntax),
        encoded(0x52009230, b"SQ", long_item + bytes(20), syntax, 0xFFFFFFFF),
        item_end,
        sequence_end,
    )[int(rng.integers(0, 11))]


def mutant(syntax: str, rng: np.random.Generator) -> bytes:
    """A data set with one to three changes of its elements and their bytes."""
    pieces = list(elements(syntax, pixels=bool(rng.integers(0, 4))))
    for _ in range(int(rng.integers(1, 4))):
        at, other = (int(place) for place in rng.integers(0, len(pieces), 2))
        match int(rng.integers(0, 8)):
            case 0:
                hurt = bytearray(pieces[at])
                # Mostly in its header.
                where = int(rng.integers(0, len(hurt) if rng.random() < 0.3 else 8))
                hurt[where] ^= 1 << int(rng.integers(0, 8))
                pieces[at] = bytes(hurt)
            case 1:
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case 2:
                pieces.insert(0, pieces.pop(at))
            case 3:
                pieces.insert(other, pieces[at])
            case 4:
                pieces.insert(len(pieces) - 1, inserted(syntax, rng))
            case 5:
                pieces.insert(at, inserted(syntax, rng))
            case 6:
                tag, vr = pieces[at][:4], pieces[at][4:6]
                length = b"\xff\xff\xff\xff"
                pieces[at] = tag + (length if syntax == ImplicitVRLittleEndian else vr + b"\0\0" + length)
            case _:
                del pieces[at]
    return b"".join(pieces)


@pytest.mark.parametrize("syntax", PLAIN)
def test_of_a_mutant_it_says_nothing_or_what_the_header_says(syntax: str) -> None:
    """Also which ones are refused, and whatever of them is in memory."""
    start = file_start(syntax)
    said = refused = left = 0
    for seed in range(MUTANTS):
        rng = np.random.default_rng([31, seed])
        content = start + mutant(syntax, rng)
        wanted = header_answer(content)
        some = int(rng.integers(len(start), len(content)))
        for end, size in ((len(content), None), (len(content), len(content)), (some, None), (some, len(content))):
            quick = read_quickly(content[:end], len(start), syntax, size)
            assert said_by(quick) in (None, wanted), f"seed {seed}, first {end} bytes"
            said, left = said + (quick is not None), left + (quick is None)
        assert identity_answer(content, len(start), syntax) == wanted, f"seed {seed}"
        refused += isinstance(wanted, type)
    assert min(said, refused, left) > MUTANTS // 8, "the mutants are too much the same to show anything"


@pytest.mark.parametrize("syntax", PLAIN)
@pytest.mark.parametrize("pixels", [True, False])
def test_an_object_cut_at_and_about_each_element_is_told_as_its_header_is(syntax: str, pixels: bool) -> None:
    start, pieces = file_start(syntax), elements(syntax, pixels)
    body = b"".join(pieces)
    for boundary in accumulate(map(len, pieces)):
        for end in range(boundary - 1, min(boundary + 13, len(body) + 1)):
            content = start + body[:end]
            answer, wanted = identity_answer(content, len(start), syntax), header_answer(content)
            assert answer == wanted, f"cut at {end}"
            assert said_by(read_quickly(content, len(start), syntax)) in (None, wanted)


@pytest.mark.parametrize("named", [*PLAIN, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, "1.2.3"])
@pytest.mark.parametrize("syntax", PLAIN)
def test_a_data_set_that_goes_on_with_file_meta_information_is_told_as_its_header_is(syntax: str, named: str) -> None:
    """Also behind an image of the same layout; the whole header takes the transfer syntax that is named there."""
    start = file_start(syntax)
    value = named.encode() + b"\0" * (len(named) % 2)
    for name in (value, b"1" * len(value), value):
        content = start + encoded(0x00020010, b"UI", name, syntax) + b"".join(elements(syntax))
        assert identity_answer(content, len(start), syntax) == header_answer(content)


@pytest.mark.parametrize("syntax", PLAIN)
def test_images_with_later_elements_and_objects_without_pixels_are_read_quickly(syntax: str) -> None:
    start = file_start(syntax)
    image, report = (start + b"".join(elements(syntax, pixels)) for pixels in (True, False))
    assert said_by(read_quickly(image, len(start), syntax)) == header_answer(image)
    assert said_by(read_quickly(report, len(start), syntax, len(report))) == header_answer(report)
    # It may go on with another Study Instance UID.
    assert read_quickly(report, len(start), syntax) is None


@pytest.mark.parametrize("syntax", PLAIN)
def test_a_study_uid_behind_a_later_element_counts(syntax: str) -> None:
    start, pieces = file_start(syntax), elements(syntax)
    late = encoded(LATER, b"LO", b"GEMS_PARM_01", syntax)
    content = start + late + b"".join(pieces)
    found = read_identity(content, len(content), len(start), syntax)
    assert found is not None and found.facts.study_uid == read_header(content).study_uid is not None


@pytest.mark.parametrize("syntax", PLAIN)
def test_a_header_that_is_cut_behind_all_that_is_sought_is_refused(syntax: str) -> None:
    start = file_start(syntax)
    content = start + b"".join(elements(syntax, pixels=False)) + encoded(0x60013000, b"OB", b"short", syntax, 60_000)
    with pytest.raises(TruncatedObject):
        read_identity(content, len(content), len(start), syntax)


def test_an_object_larger_than_any_may_be_is_refused() -> None:
    content = ct_object()
    with pytest.raises(TooLarge):
        read_identity(content, limits.MAX_OBJECT_BYTES + 1, data_set_offset(content), ExplicitVRLittleEndian)


def test_more_elements_than_a_header_may_have_are_refused() -> None:
    """The quick reading does not count them."""
    syntax = ExplicitVRLittleEndian
    start = file_start(syntax)
    many = b"".join(
        encoded(tag, b"LO", b"", syntax) for tag in range(LATER, LATER + limits.MAX_ELEMENTS_OF_ONE_LEVEL + 1)
    )
    content = start + b"".join(elements(syntax)[:-2]) + many + elements(syntax)[-1]
    assert header_answer(content) is TooLarge
    assert identity_answer(content, len(start), syntax) is TooLarge
