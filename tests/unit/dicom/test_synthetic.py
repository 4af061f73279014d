"""Phantoms written as CT come back as they were, marked as synthetic."""

from __future__ import annotations

import io
from datetime import date, datetime
from typing import Any

import numpy as np
import pydicom
import pytest

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import group, select
from heimdallr_ray.dicom.synthetic import write_ct_series, write_localizer
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_study, indexed

FACTS: dict[str, Any] = {
    "study_uid": Uid.derived("study"),
    "patient_id": "DEMO-7",
    "patient_name": "DEMO^SEVEN",
    "study_datetime": datetime(2026, 3, 4, 5, 6, 7),
    "study_description": "Demo CT",
    "sex": "F",
    "birth_date": date(1960, 5, 6),
}


def phantom(shape: tuple[int, int, int] = (30, 26, 14)) -> np.ndarray:
    return np.random.default_rng(1).integers(-1024, 3000, shape, dtype=np.int16)


AFFINES = {
    "RAS": np.array([[1.5, 0, 0, -20], [0, 1.2, 0, -30], [0, 0, 2.0, 5], [0, 0, 0, 1.0]]),
    "LPI": np.array([[-1.5, 0, 0, 20], [0, -1.2, 0, 30], [0, 0, -2.0, 5], [0, 0, 0, 1.0]]),
    "SAR": np.array([[0, 0, 1.5, 20], [0, 1.2, 0, 30], [2.0, 0, 0, 5], [0, 0, 0, 1.0]]),
    "tilted": np.array([[-1.5, 0, 0, 20], [0, -1.2, 0.4, 30], [0, 0, 2.0, 5], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_every_voxel_comes_back_at_its_place(name: str):
    hu, affine = phantom(), AFFINES[name]
    objects = [content for _, content in write_ct_series(hu, affine, series_uid=Uid.derived("a"), **FACTS)]
    index, read = indexed(objects)
    volume = assemble(group(index)[0], read)
    assert volume.source.synthetic
    assert volume.array.dtype == np.int16
    rng = np.random.default_rng(2)
    for _ in range(200):
        voxel = [int(rng.integers(0, size)) for size in hu.shape]
        place = affine @ [*voxel, 1]
        found = np.linalg.solve(volume.affine_ras, place)[:3]
        nearest = tuple(int(value) for value in np.rint(found))
        assert np.abs(found - nearest).max() < 1e-4
        assert volume.array[nearest] == hu[tuple(voxel)]


def test_a_demo_study_holds_a_localizer_that_is_not_chosen():
    hu, affine = phantom(), AFFINES["RAS"]
    objects = [
        *write_ct_series(hu, affine, series_uid=Uid.derived("a"), requested_priority="STAT", **FACTS),
        *write_localizer(hu, affine, series_uid=Uid.derived("b"), **FACTS),
    ]
    assert len({name for name, _ in objects}) == len(objects) == 15
    index, _ = indexed(content for _, content in objects)
    assert all(item.header.synthetic for item in index)
    assert {item.header.requested_priority for item in index} == {"STAT", ""}
    decisions = select(group(index)).decisions
    assert sorted(item.code for item in decisions) == ["chosen", "localizer"]


def test_the_same_call_writes_the_same_bytes():
    once, again = (
        list(write_ct_series(phantom(), AFFINES["RAS"], series_uid=Uid.derived("a"), **FACTS)) for _ in range(2)
    )
    assert once == again


def test_objects_carry_the_attributes_that_a_ct_image_must_have():
    (_, content), *_ = write_ct_series(phantom(), AFFINES["RAS"], series_uid=Uid.derived("a"), **FACTS)
    dataset = pydicom.dcmread(io.BytesIO(content))
    # Type 1 of the modules that PS3.3 table A.3-1 marks M.
    for keyword in (
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
        *("ImageType", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
        *("RescaleIntercept", "RescaleSlope", "Rows", "Columns", "PixelRepresentation", "PixelData", "PixelSpacing"),
        *("ImageOrientationPatient", "ImagePositionPatient"),
    ):
        assert dataset[keyword].value not in (None, ""), keyword
    # Type 2: there, possibly blank.
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
        *("ReferringPhysicianName", "AccessionNumber", "SeriesNumber", "PositionReferenceIndicator", "Manufacturer"),
        *("InstanceNumber", "SliceThickness", "KVP", "AcquisitionNumber"),
    ):
        assert keyword in dataset, keyword
    assert dataset.PatientAge == "065Y"
    assert "SYNTHETIC" in dataset.ImageComments


def test_the_marker_survives_the_loss_of_private_elements():
    (_, content), *_ = write_ct_series(phantom(), AFFINES["RAS"], series_uid=Uid.derived("a"), **FACTS)
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.remove_private_tags()
    stripped = io.BytesIO()
    dataset.save_as(stripped, enforce_file_format=True)
    assert read_header(stripped.getvalue()).synthetic
    assert not read_header(ct_study(1)[0]).synthetic


def test_values_that_cannot_be_stored_are_refused():
    hu = phantom()
    hu[0, 0, 0] = 32000
    with pytest.raises(ValueError, match="31743"):
        next(write_ct_series(hu, AFFINES["RAS"], series_uid=Uid.derived("a"), **FACTS))
