"""CT series made from phantoms, as a scanner would send them, and marked so that nothing takes them for a patient's.

Every object carries the private block HEIMDALLR SYNTHETIC, that name as Manufacturer, and an image comment;
`Header.synthetic` is True for it. Identifiers depend on the arguments alone, so the same call writes the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, cast

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds

from heimdallr_ray.dicom.geometry import LPS_TO_RAS
from heimdallr_ray.dicom.grouping import CT_IMAGE
from heimdallr_ray.dicom.header import SYNTHETIC_CREATOR
from heimdallr_ray.dicom.read import EXPLICIT_LE
from heimdallr_ray.ids import Uid

IMAGE_COMMENT: Final = "SYNTHETIC PHANTOM - NOT A PATIENT"
_INTERCEPT: Final = -1024
_MAX_PIXELS: Final = 65_535


@dataclass(frozen=True)
class _Grid:
    """Values `[i, j, k]` with i towards the left, j towards the back, k towards the head, and their LPS affine."""

    hu: NDArray[np.int16]
    affine_lps: NDArray[np.float64]


def write_ct_series(
    hu: NDArray[np.int16],
    affine_ras: NDArray[np.float64],
    *,
    study_uid: Uid,
    series_uid: Uid,
    patient_id: str,
    patient_name: str,
    study_datetime: datetime,
    study_description: str = "",
    series_description: str = "",
    series_number: int = 2,
    sex: str = "",
    birth_date: date | None = None,
    accession_number: str = "",
    requested_priority: str = "",
    body_part: str = "",
    kernel: str = "STANDARD",
    kvp: float = 120.0,
    slice_thickness_mm: float | None = None,
    contrast_agent: str = "",
) -> Iterator[tuple[str, bytes]]:
    """One CT Image Storage object per slice (PS3.3 section A.3), Explicit VR Little Endian, as (file name, bytes).

    Args:
        hu: `[i, j, k]` Hounsfield units in any axis order and direction that `affine_ras` describes.
        affine_ras: voxel index to RAS mm; a sheared third axis is a gantry tilt and is kept.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID; instance UIDs and the frame of reference are derived from these.
        patient_id: Patient ID.
        patient_name: in DICOM form, FAMILY^GIVEN.
        study_datetime: study, series and acquisition date and time.
        study_description: Study Description.
        series_description: Series Description.
        series_number: Series Number.
        sex: M, F, O or "".
        birth_date: Patient's Birth Date.
        accession_number: Accession Number.
        requested_priority: Requested Procedure Priority (0040,1003); left out where "".
        body_part: Body Part Examined.
        kernel: Convolution Kernel.
        kvp: KVP.
        slice_thickness_mm: the slice distance where None.
        contrast_agent: Contrast/Bolus Agent; left out where "".

    Raises:
        ValueError: values outside -32768..31743 HU, over 65,535 rows or columns, or in-plane axes not at a right angle.
    """
    grid = _lps(hu, affine_ras)
    step = grid.affine_lps[:3, 2]
    row, column = _unit(grid.affine_lps[:3, 0]), _unit(grid.affine_lps[:3, 1])
    spacing_mm = abs(float(step @ np.cross(row, column)))
    common = _common(study_uid, series_uid, patient_id, patient_name, study_datetime)
    common.StudyDescription, common.SeriesDescription = study_description[:64], series_description[:64]
    common.SeriesNumber, common.PatientSex, common.AccessionNumber = series_number, sex, accession_number[:16]
    common.PatientBirthDate = birth_date.strftime("%Y%m%d") if birth_date else ""
    if birth_date is not None:
        common.PatientAge = _age(birth_date, study_datetime.date())
    if requested_priority:
        common.RequestedProcedurePriority = requested_priority[:16]
    if contrast_agent:
        common.ContrastBolusAgent = contrast_agent[:64]
    common.BodyPartExamined = body_part[:16].upper()
    common.ConvolutionKernel, common.KVP = kernel[:16], _ds(kvp)
    common.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    common.SliceThickness = _ds(slice_thickness_mm or spacing_mm)
    common.SpacingBetweenSlices = _ds(spacing_mm)
    tilt = float(np.degrees(np.arccos(min(1.0, spacing_mm / float(np.linalg.norm(step))))))
    common.GantryDetectorTilt = _ds(round(tilt, 4))
    _set_plane(common, grid.affine_lps)
    slices = grid.hu.shape[2]
    for k in range(slices):
        _set_image(common, grid.hu[:, :, k].T, series_uid, k + 1)
        common.ImagePositionPatient = [_ds(value) for value in grid.affine_lps[:3, 3] + k * step]
        common.SliceLocation = _ds(float(grid.affine_lps[2, 3] + k * step[2]))
        yield f"CT.{series_number:03d}.{k + 1:05d}.dcm", _encoded(common)


def write_localizer(
    hu: NDArray[np.int16],
    affine_ras: NDArray[np.float64],
    *,
    study_uid: Uid,
    series_uid: Uid,
    patient_id: str,
    patient_name: str,
    study_datetime: datetime,
    study_description: str = "",
    sex: str = "",
    birth_date: date | None = None,
    accession_number: str = "",
    series_number: int = 1,
) -> Iterator[tuple[str, bytes]]:
    """One frontal planning image (Image Type LOCALIZER): the mean of `hu` from front to back. Arguments as above.

    Raises:
        ValueError: as `write_ct_series`.
    """
    grid = _lps(hu, affine_ras)
    across, up = grid.affine_lps[:3, 0], grid.affine_lps[:3, 2]
    frontal = np.rint(grid.hu.mean(axis=1)).astype(np.int16)
    common = _common(study_uid, series_uid, patient_id, patient_name, study_datetime)
    common.StudyDescription, common.SeriesDescription = study_description[:64], "Localizer"
    common.SeriesNumber, common.PatientSex, common.AccessionNumber = series_number, sex, accession_number[:16]
    common.PatientBirthDate = birth_date.strftime("%Y%m%d") if birth_date else ""
    common.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    common.SliceThickness, common.KVP, common.ConvolutionKernel = "1", "120", ""
    top_left = grid.affine_lps @ np.array([0.0, (grid.hu.shape[1] - 1) / 2, grid.hu.shape[2] - 1, 1.0])
    plane = np.stack([across, -up], axis=1)
    common.ImageOrientationPatient = [_ds(value) for axis in plane.T for value in _unit(axis)]
    common.PixelSpacing = [_ds(float(np.linalg.norm(up))), _ds(float(np.linalg.norm(across)))]
    common.ImagePositionPatient = [_ds(value) for value in top_left[:3]]
    _set_image(common, frontal[:, ::-1].T, series_uid, 1)
    yield f"CT.{series_number:03d}.00001.dcm", _encoded(common)


def _lps(hu: NDArray[np.int16], affine_ras: NDArray[np.float64]) -> _Grid:
    if hu.ndim != 3 or max(hu.shape) > _MAX_PIXELS or int(hu.max()) > 32767 + _INTERCEPT:
        raise ValueError("expected [i, j, k] with values up to 31743 HU")
    nibabel = cast("Any", orientations)
    change = nibabel.ornt_transform(nibabel.io_orientation(affine_ras), nibabel.axcodes2ornt(("L", "P", "S")))
    turned = cast("NDArray[np.int16]", nibabel.apply_orientation(hu, change))
    affine = np.asarray(affine_ras @ nibabel.inv_ornt_aff(change, hu.shape), dtype=np.float64)
    grid = _Grid(turned, LPS_TO_RAS @ affine)
    if abs(float(_unit(grid.affine_lps[:3, 0]) @ _unit(grid.affine_lps[:3, 1]))) > 1e-4:
        raise ValueError("rows and columns are not at a right angle")
    return grid


def _common(study_uid: Uid, series_uid: Uid, patient_id: str, patient_name: str, when: datetime) -> Dataset:
    """Patient, Study, Series, Frame of Reference, Equipment, Acquisition and SOP Common modules (PS3.3 table A.3-1)."""
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    common.SOPClassUID, common.Modality = CT_IMAGE, "CT"
    common.StudyInstanceUID, common.SeriesInstanceUID = str(study_uid), str(series_uid)
    common.FrameOfReferenceUID = str(Uid.derived(study_uid, "frame of reference"))
    common.PositionReferenceIndicator = ""
    common.PatientName, common.PatientID = patient_name[:64], patient_id[:64]
    day, clock = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    common.StudyDate = common.SeriesDate = common.AcquisitionDate = common.ContentDate = day
    common.StudyTime = common.SeriesTime = common.AcquisitionTime = common.ContentTime = clock
    common.ReferringPhysicianName, common.StudyID = "", "1"
    common.Manufacturer, common.ManufacturerModelName = SYNTHETIC_CREATOR, "phantom"
    common.PatientPosition, common.AcquisitionNumber = "HFS", 1
    common.SamplesPerPixel, common.PhotometricInterpretation = 1, "MONOCHROME2"
    common.BitsAllocated, common.BitsStored, common.HighBit, common.PixelRepresentation = 16, 16, 15, 1
    common.RescaleIntercept, common.RescaleSlope, common.RescaleType = str(_INTERCEPT), "1", "HU"
    common.WindowCenter, common.WindowWidth = "40", "400"
    common.ImageComments = IMAGE_COMMENT
    common.private_block(0x0009, SYNTHETIC_CREATOR, create=True).add_new(0x01, "LO", IMAGE_COMMENT)
    return common


def _set_plane(common: Dataset, affine_lps: NDArray[np.float64]) -> None:
    common.ImageOrientationPatient = [_ds(value) for axis in (0, 1) for value in _unit(affine_lps[:3, axis])]
    between_columns, between_rows = (float(np.linalg.norm(affine_lps[:3, axis])) for axis in (0, 1))
    common.PixelSpacing = [_ds(between_rows), _ds(between_columns)]


def _set_image(common: Dataset, hu: NDArray[np.int16], series_uid: Uid, instance: int) -> None:
    common.SOPInstanceUID = str(Uid.derived(series_uid, str(instance)))
    common.InstanceNumber = instance
    common.Rows, common.Columns = int(hu.shape[0]), int(hu.shape[1])
    stored = (hu.astype(np.int32) - _INTERCEPT).astype("<i2")
    common.PixelData = stored.tobytes()
    common["PixelData"].VR = "OW"


def _encoded(common: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = common.SOPClassUID
    meta.MediaStorageSOPInstanceUID = common.SOPInstanceUID
    meta.TransferSyntaxUID = UID(EXPLICIT_LE)
    meta.ImplementationClassUID = UID(Uid.derived("heimdallr_ray", "implementation class"))
    meta.ImplementationVersionName = "HEIMDALLR_RAY"
    common.file_meta = meta
    target = io.BytesIO()
    common.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return found


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 table 6.2-1)."""
    return format_number_as_ds(float(value) + 0.0)


def _age(born: date, seen: date) -> str:
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return f"{max(0, min(years, 999)):03d}Y"
