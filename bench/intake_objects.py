"""DICOM files to send: a CT study of many slices, made anew for each turn so that nobody has seen its UIDs."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.9.9"
_PLACE = "70000001"
"""Stands in every UID of a template for the number of the turn."""


class Objects:
    """Files of one study; `renewed` gives them other UIDs."""

    def __init__(self, folder: Path, templates: list[bytes]) -> None:
        self._folder = folder
        self._templates = templates
        self._numbers = itertools.count(70_000_002)
        self._paths: list[Path] = []
        self.renewed(1)

    def __len__(self) -> int:
        return len(self._templates)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self._templates))

    def paths(self) -> list[Path]:
        """All files."""
        return self._paths

    def renewed(self, parts: int) -> list[Path]:
        """Folders of the same study under new UIDs, its files dealt to `parts` folders."""
        number = str(next(self._numbers)).encode()
        folders = [self._folder / f"{parts}_{part}" for part in range(parts)]
        self._paths = []
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for index, template in enumerate(self._templates):
            head = template[:16384].replace(_PLACE.encode(), number)
            path = folders[index % parts] / f"{index:04d}.dcm"
            path.write_bytes(head + template[16384:])
            self._paths.append(path)
        return folders


def make_objects(folder: Path, count: int, size: int) -> Objects:
    """`count` CT slices of `size` x `size`, with the attributes that a scanner writes."""
    noise = np.random.default_rng(7).integers(-1000, 1000, (size, size + count), dtype=np.int16)
    return Objects(folder, [_slice(index, size, noise) for index in range(count)])


def _slice(index: int, size: int, noise: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> bytes:
    study = f"{ROOT}.{_PLACE}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{study}.7.{index + 1}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.3.4")
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.7"
    dataset.FrameOfReferenceUID = f"{study}.8"
    for name, value in _TEXTS.items():
        setattr(dataset, name, value)
    step = Dataset()
    step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID = UID("1.2.840.10008.3.1.2.3.3"), UID(f"{study}.9")
    dataset.ReferencedPerformedProcedureStepSequence = DicomSequence([step])
    dataset.InstanceNumber = index + 1
    dataset.ImagePositionPatient = [-200.0, -190.5, 1.25 * index]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceLocation = 1.25 * index
    dataset.PixelSpacing = [0.78125, 0.78125]
    dataset.SamplesPerPixel = 1
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.WindowCenter, dataset.WindowWidth = [40, -600], [400, 1200]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    for number in range(24):
        # A vendor's private block, as CT scanners write it.
        dataset.add_new(0x00190010, "LO", "VENDOR BLOCK")
        dataset.add_new(0x00191000 + number, "LO", f"private value {number}")
    dataset.PixelData = np.ascontiguousarray(noise[:, index : index + size]).tobytes()
    with io.BytesIO() as buffer:
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


_TEXTS: dict[str, object] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
    "InstanceCreationDate": "20260102",
    "InstanceCreationTime": "101112.123456",
    "StudyDate": "20260102",
    "SeriesDate": "20260102",
    "AcquisitionDate": "20260102",
    "ContentDate": "20260102",
    "StudyTime": "101000.000000",
    "SeriesTime": "101100.000000",
    "AcquisitionTime": "101112.123456",
    "ContentTime": "101112.223456",
    "AccessionNumber": "A1234567",
    "Modality": "CT",
    "Manufacturer": "BENCH",
    "InstitutionName": "Bench Hospital",
    "ReferringPhysicianName": "Doe^Jane",
    "StationName": "CT01",
    "StudyDescription": "CT Chest and abdomen",
    "SeriesDescription": "Abdomen 1.25 soft",
    "InstitutionalDepartmentName": "Radiology",
    "ManufacturerModelName": "Model 64",
    "PatientName": "Bench^Patient",
    "PatientID": "B-0001",
    "PatientBirthDate": "19600101",
    "PatientSex": "F",
    "PatientAge": "066Y",
    "BodyPartExamined": "ABDOMEN",
    "ScanOptions": "HELICAL",
    "SliceThickness": 1.25,
    "KVP": 120,
    "DataCollectionDiameter": 500,
    "DeviceSerialNumber": "12345",
    "SoftwareVersions": "v1.2.3",
    "ProtocolName": "Chest and abdomen",
    "ReconstructionDiameter": 400,
    "DistanceSourceToDetector": 1040,
    "DistanceSourceToPatient": 570,
    "GantryDetectorTilt": 0,
    "TableHeight": 150,
    "RotationDirection": "CW",
    "ExposureTime": 500,
    "XRayTubeCurrent": 240,
    "Exposure": 120,
    "FilterType": "BODY",
    "GeneratorPower": 60,
    "FocalSpots": 1.2,
    "ConvolutionKernel": "B30f",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": 3,
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
    "PhotometricInterpretation": "MONOCHROME2",
}
