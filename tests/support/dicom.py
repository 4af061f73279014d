"""Small DICOM objects for tests: plain bytes, built with pydicom, independent of the package's own writer."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance
from heimdallr_ray.ids import Uid


def ct_datasets(
    n_slices: int,
    shape: tuple[int, int] = (32, 24),
    *,
    seed: str = "study",
    spacing_mm: float = 1.0,
    **overrides: object,
) -> list[Dataset]:
    """An axial CT of (rows, columns) pixels, slices upwards, HU = -1000 + noise + 10 x slice, to be changed at will."""
    rng = np.random.default_rng(abs(hash_of(seed)))
    return [_slice(k, n_slices, shape, seed, spacing_mm, rng, overrides) for k in range(n_slices)]


def ct_study(
    n_slices: int,
    shape: tuple[int, int] = (32, 24),
    *,
    seed: str = "study",
    spacing_mm: float = 1.0,
    **overrides: object,
) -> list[bytes]:
    """`ct_datasets` as Part 10 files; overrides are DICOM keywords."""
    made = ct_datasets(n_slices, shape, seed=seed, spacing_mm=spacing_mm, **overrides)
    return [to_bytes(dataset) for dataset in made]


def to_bytes(dataset: Dataset, transfer_syntax: str | None = None) -> bytes:
    """A Part 10 file; other syntaxes than Explicit VR Little Endian must suit the dataset's pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(dataset.get("SOPInstanceUID") or Uid.derived("blank"))
    before = getattr(dataset, "file_meta", None)
    declared = before.get("TransferSyntaxUID") if before is not None else None
    meta.TransferSyntaxUID = UID(transfer_syntax or declared or ExplicitVRLittleEndian)
    dataset.file_meta = meta
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def indexed(objects: Iterable[bytes]) -> tuple[list[IndexedInstance], Callable[[str], bytes]]:
    """The index of some objects, located by sha256, and the function that reads them."""
    by_digest = {hashlib.sha256(content).hexdigest(): content for content in objects}
    found = [IndexedInstance(read_header(content), digest, len(content)) for digest, content in by_digest.items()]
    return found, by_digest.__getitem__


def hash_of(text: str) -> int:
    """A number that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def new_uid(dataset: Dataset, *parts: str) -> Dataset:
    """`dataset` under another SOP Instance UID."""
    dataset.SOPInstanceUID = str(Uid.derived(str(dataset.SOPInstanceUID), *parts))
    return dataset


def set_pixels(dataset: Dataset, stored: np.ndarray) -> Dataset:
    """`dataset` with these stored values `[row, column]`; size and signedness follow the array."""
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.PixelData = stored.tobytes()
    return dataset


def pixels(dataset: Dataset) -> np.ndarray:
    """Stored values `[row, column]` of a dataset from `ct_datasets`."""
    kind = "i" if dataset.PixelRepresentation else "u"
    return np.frombuffer(dataset.PixelData, f"<{kind}2").reshape(dataset.Rows, dataset.Columns)


def hu_of(datasets: Sequence[Dataset]) -> np.ndarray:
    """Rescaled values `[i, j, k]` of datasets in slice order."""
    planes = [pixels(item) * float(item.RescaleSlope) + float(item.RescaleIntercept) for item in datasets]
    return np.stack(planes).transpose(2, 1, 0)


def _slice(
    k: int,
    n_slices: int,
    shape: tuple[int, int],
    seed: str,
    spacing_mm: float,
    rng: np.random.Generator,
    overrides: dict[str, object],
) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = str(Uid.derived(seed, "instance", str(k)))
    dataset.StudyInstanceUID = str(Uid.derived(seed))
    dataset.SeriesInstanceUID = str(Uid.derived(seed, "series"))
    dataset.FrameOfReferenceUID = str(Uid.derived(seed, "frame of reference"))
    dataset.Modality, dataset.Manufacturer = "CT", "TEST"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20260102"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "101112"
    dataset.PatientName, dataset.PatientID = "Test^Person", "TEST-1"
    dataset.PatientBirthDate, dataset.PatientSex = "19600101", "F"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "A1", "1", ""
    dataset.StudyDescription, dataset.SeriesDescription = "Test study", "Test series"
    dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.InstanceNumber = 2, 1, k + 1
    dataset.KVP, dataset.ConvolutionKernel, dataset.SliceThickness = "120", "STANDARD", str(spacing_mm)
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = ["-180", "-180", str(round(-150 + k * spacing_mm, 4))]
    dataset.PixelSpacing = ["0.7", "0.7"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
    stored = rng.integers(24, 1024, shape, dtype=np.uint16) + np.uint16(10 * k * 100 // max(100, n_slices))
    dataset.Rows, dataset.Columns = shape
    dataset.PixelData = stored.astype("<u2").tobytes()
    for keyword, value in overrides.items():
        setattr(dataset, keyword, value)
    return dataset


def enhanced(
    datasets: Sequence[Dataset], *, sop_class: str = EnhancedCTImageStorage, frames: Sequence[dict[str, object]] = ()
) -> Dataset:
    """One multi-frame object of single slices, with their planes and rescale in per-frame functional groups.

    `frames` adds to each frame what tells it apart: index (Temporal Position Index), stack (Stack ID), offset_s
    (Temporal Position Time Offset), trigger_ms (Nominal Cardiac Trigger Delay Time), percent (Nominal Percentage of
    Cardiac Phase), acquisition (Frame Acquisition Number), at (Frame Acquisition DateTime), echo_ms (Effective Echo
    Time), b_value (Diffusion b-value), kind (Frame Type).
    """
    whole = copy.deepcopy(datasets[0])
    whole.SOPClassUID, whole.SOPInstanceUID = sop_class, str(Uid.derived(str(whole.SOPInstanceUID), "enhanced"))
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        delattr(whole, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        delattr(whole, keyword)
    whole.NumberOfFrames = len(datasets)
    whole.SharedFunctionalGroupsSequence = [Dataset()]
    facts = list(frames) or [{}] * len(datasets)
    whole.PerFrameFunctionalGroupsSequence = [
        _functional_groups(dataset, extra) for dataset, extra in zip(datasets, facts, strict=True)
    ]
    whole.PixelData = b"".join(dataset.PixelData for dataset in datasets)
    return whole


def _functional_groups(dataset: Dataset, extra: dict[str, object]) -> Dataset:
    groups = Dataset()
    groups.PlanePositionSequence = [_item(ImagePositionPatient=dataset.ImagePositionPatient)]
    groups.PlaneOrientationSequence = [_item(ImageOrientationPatient=dataset.ImageOrientationPatient)]
    groups.PixelMeasuresSequence = [_item(PixelSpacing=dataset.PixelSpacing, SliceThickness=dataset.SliceThickness)]
    groups.PixelValueTransformationSequence = [
        _item(RescaleSlope=dataset.RescaleSlope, RescaleIntercept=dataset.RescaleIntercept, RescaleType="HU")
    ]
    for sequence, names in _FRAME_FACTS.items():
        told = {keyword: extra[name] for name, keyword in names.items() if name in extra}
        if told:
            setattr(groups, sequence, [_item(**told)])
    return groups


_FRAME_FACTS = {
    "FrameContentSequence": {
        "index": "TemporalPositionIndex",
        "stack": "StackID",
        "acquisition": "FrameAcquisitionNumber",
        "at": "FrameAcquisitionDateTime",
    },
    "TemporalPositionSequence": {"offset_s": "TemporalPositionTimeOffset"},
    "CardiacSynchronizationSequence": {
        "trigger_ms": "NominalCardiacTriggerDelayTime",
        "percent": "NominalPercentageOfCardiacPhase",
    },
    "MREchoSequence": {"echo_ms": "EffectiveEchoTime"},
    "MRDiffusionSequence": {"b_value": "DiffusionBValue"},
    "CTImageFrameTypeSequence": {"kind": "FrameType"},
}


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
