"""What the tests of the doors share: DICOM files with known bytes, a listener, dcmtk clients."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import InstanceRow, JobRow, StudyRow
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Settings
from heimdallr_ray.listener.service import ListenerService
from heimdallr_ray.storage.blobs import LocalBlobStore

T = TypeVar("T")


def ct_slice(index: int, study_uid: str, series_uid: str, *, size: int = 64, patient_id: str = "P1") -> Dataset:
    """One CT image of `size` x `size`; the same arguments give the same bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{series_uid or '2.25.1'}.{index}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.3.4")
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.Modality = "CT"
    dataset.PatientID = patient_id
    dataset.PatientName = "Test^Intake"
    dataset.StudyDate = "20260102"
    dataset.SeriesNumber = 3
    dataset.InstanceNumber = index
    dataset.ImagePositionPatient = [0, 0, float(index)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [1, 1]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    pixels = np.random.default_rng(index).integers(-1000, 1000, (size, size), dtype=np.int16)
    dataset.PixelData = pixels.tobytes()
    return dataset


def file_bytes(dataset: Dataset) -> bytes:
    """The Part 10 file of `dataset`."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_study(folder: Path, count: int, study_uid: str = "1.2.826.0.1.3680043.9.9.1", size: int = 64) -> list[Path]:
    """`count` slices of one series as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for index in range(1, count + 1):
        path = folder / f"{index:04d}.dcm"
        path.write_bytes(file_bytes(ct_slice(index, study_uid, f"{study_uid}.7", size=size)))
        paths.append(path)
    return paths


def dataset_bytes(content: bytes) -> bytes:
    """The data set of a Part 10 file: what follows group 0002, found by its declared length (PS3.10 7.1)."""
    assert content[128:132] == b"DICM"
    assert content[132:140] == b"\x02\x00\x00\x00UL\x04\x00"
    return content[144 + int.from_bytes(content[140:144], "little") :]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wait_for(probe: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """The first true value of `probe`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(0.05)
    raise AssertionError(f"timed out after {timeout_s} s: {what}")


class Intake:
    """An installation's data folder with its database and blobs, and a listener whose doors are as they are delivered.

    One process of its own receives; with `listener_processes=0` this process does, for tests that reach into it.
    """

    def __init__(self, root: Path, **changes: object) -> None:
        values: dict[str, object] = {
            "data_dir": root,
            "dicom_port": 0,
            "idle_seconds": 1.0,
            "settle_after_abort_seconds": 1.0,
            "scan_seconds": 0.2,
            "min_free_mib": 0,
        }
        self.settings = Settings(**{**values, **changes})  # pyright: ignore[reportArgumentType]
        root.mkdir(parents=True, exist_ok=True)
        self.database = Database(self.settings.resolved_database_url)
        self.database.migrate()
        self.blobs = LocalBlobStore(self.settings.blob_dir)
        self.clock = SystemClock()

    @contextmanager
    def listening(self) -> Generator[ListenerService]:
        """A listener on a port that the system chooses."""
        service = ListenerService(self.settings, self.database, self.blobs, self.clock)
        service.start()
        try:
            yield service
        finally:
            service.stop(grace_s=1.0)

    def instances(self) -> list[InstanceRow]:
        with self.database.read() as session:
            return list(session.exec(select(InstanceRow)).all())

    def studies(self) -> list[StudyRow]:
        with self.database.read() as session:
            return list(session.exec(select(StudyRow)).all())

    def jobs(self) -> list[JobRow]:
        with self.database.read() as session:
            return list(session.exec(select(JobRow)).all())

    def stored(self) -> dict[str, str]:
        """SOP Instance UID to the sha256 of the data set in its blob, read from the disk."""
        return {
            row.sop_uid: sha256(dataset_bytes(self.blobs.path(row.blob_sha256).read_bytes()))
            for row in self.instances()
        }

    def spooled(self) -> list[str]:
        """Every file of an object in the spool, at whatever stage."""
        root = self.settings.spool_dir
        found = (path for stage in ("incoming", "ready", "quarantine") for path in (root / stage).rglob("*"))
        return sorted(str(path.relative_to(root)) for path in found if path.is_file())


def all_committed(service: ListenerService, timeout_s: float = 30.0) -> bool:
    """True once every image that was answered is a row or set aside, whichever process took it."""
    return service.scp.sync(timeout_s) and service.receiver.flush(timeout_s)


def dcmtk(program: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run one of dcmtk's clients (the system's, not a Python package's of the same name)."""
    return subprocess.run(
        [f"/usr/bin/{program}", *arguments],
        env={**os.environ, "TCP_NODELAY": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def storescu(port: int, paths: Sequence[Path], *options: str, called: str = "HEIMDALLR") -> str:
    """Send with dcmtk's storescu; returns what it said."""
    done = dcmtk("storescu", "-v", "-aec", called, *options, "127.0.0.1", str(port), *map(str, paths))
    return done.stdout + done.stderr
