"""The quick reading of what tells an object: the same as the whole header's, or nothing."""

from __future__ import annotations

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from heimdallr_ray.dicom.identity import IdentityFacts, read_identity, read_quickly
from heimdallr_ray.dicom.read import data_set_offset, read_header
from tests.support.dicom import ct_datasets, to_bytes


def ct_object(syntax: str = ExplicitVRLittleEndian) -> bytes:
    (dataset,) = ct_datasets(1, RequestedProcedurePriority="STAT")
    return to_bytes(dataset, syntax)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
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
