"""Volumes against dcm2niix, an independent converter: no voxel differs, no corner is 0.01 mm away."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.series import Kind, group
from heimdallr_ray.dicom.synthetic import write_ct_series, write_localizer
from heimdallr_ray.ids import Uid
from heimdallr_ray.volume import Volume
from tests.support.dicom import ct_datasets, indexed, new_uid, pixels, set_pixels, to_bytes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nibabel")


def converted(contents: Sequence[bytes], folder: Path) -> list[Any]:
    """dcm2niix's images of these objects, turned to RAS."""
    source, target = folder / "in", folder / "out"
    source.mkdir()
    target.mkdir()
    for number, content in enumerate(contents):
        (source / f"{number:05d}.dcm").write_bytes(content)
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "%s", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return [nib.as_closest_canonical(nib.load(path)) for path in sorted(target.glob("*.nii"))]


def assert_equal(volume: Volume, reference: Any) -> None:
    ours = cast("Any", nib.as_closest_canonical(nib.Nifti1Image(np.asarray(volume.array), volume.affine_ras)))
    theirs, mine = np.asarray(reference.dataobj), np.asarray(ours.dataobj)
    assert theirs.shape == mine.shape
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.array(mine.shape) - 1
    assert np.abs(corners @ (ours.affine - reference.affine).T).max() < 0.01
    if volume.array.dtype == np.int16:
        assert int((theirs != mine).sum()) == 0
    else:
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-3)


def compare(contents: Sequence[bytes], folder: Path) -> Volume:
    index, read = indexed(contents)
    (stack,) = [series for series in group(index) if series.kind is Kind.STACK]
    volume = assemble(stack, read)
    assert_equal(volume, max(converted(contents, folder), key=lambda image: int(np.prod(image.shape))))
    return volume


def plain(made: list[Dataset]) -> list[Dataset]:
    return made


def shuffled(made: list[Dataset]) -> list[Dataset]:
    order = np.random.default_rng(0).permutation(len(made))
    for number, k in enumerate(order, start=1):
        made[int(k)].InstanceNumber = number
    return made


def descending(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        dataset.ImagePositionPatient = [-180, -180, -float(dataset.ImagePositionPatient[2])]
    return made


def anisotropic(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        dataset.PixelSpacing = ["0.5", "0.9"]
    return made


def sagittal(made: list[Dataset]) -> list[Dataset]:
    for k, dataset in enumerate(made):
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [-50.0 + k, -100, 100]
    return made


def oblique(made: list[Dataset]) -> list[Dataset]:
    c, s = 0.96592583, 0.25881905
    for k, dataset in enumerate(made):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, c, s]
        dataset.ImagePositionPatient = [-180, round(-180 - s * k, 6), round(-150 + c * k, 6)]
    return made


def jitter(made: list[Dataset]) -> list[Dataset]:
    # dcm2niix takes the slice distance from the first two slices, we take it from first and last: they stay exact.
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, -180, round(-150 + k + (0.004 if k % 3 == 2 else 0), 4)]
        dataset.Exposure, dataset.XRayTubeCurrent = 100 + k // 8, 200 + k
    return made


def monochrome1(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    return made


def padding(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        stored = pixels(dataset).astype(np.int16) - np.int16(1024)
        stored[:5] = -2000
        set_pixels(dataset, stored)
        dataset.RescaleIntercept, dataset.BitsStored, dataset.HighBit = "0", 16, 15
        dataset.add_new(0x00280120, "SS", -2000)
    return made


def half_slope(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        dataset.RescaleSlope = "0.5"
    return made


def slope_per_slice(made: list[Dataset]) -> list[Dataset]:
    for k, dataset in enumerate(made):
        dataset.RescaleSlope = f"{1 + k * 0.01:.4f}"
    return made


def exact_duplicate(made: list[Dataset]) -> list[Dataset]:
    return [*made, copy.deepcopy(made[5])]


def localizer_inside(made: list[Dataset]) -> list[Dataset]:
    scout = new_uid(copy.deepcopy(made[0]), "scout")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient, scout.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [-180, 0, 100]
    return [*made, scout]


@pytest.mark.parametrize(
    "change",
    [
        *(plain, shuffled, descending, anisotropic, sagittal, oblique, jitter, monochrome1, padding),
        *(half_slope, slope_per_slice, exact_duplicate, localizer_inside),
    ],
)
def test_difficult_series_equal_dcm2niix(change: Callable[[list[Dataset]], list[Dataset]], tmp_path: Path) -> None:
    compare([to_bytes(dataset) for dataset in change(ct_datasets(40))], tmp_path)


def test_synthetic_ct_equals_dcm2niix_and_its_phantom(tmp_path: Path) -> None:
    hu = np.random.default_rng(3).integers(-1024, 3000, (40, 36, 24), dtype=np.int16)
    affine = np.array([[1.5, 0, 0, -20], [0, 1.2, 0, -30], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])
    facts: dict[str, Any] = {
        "study_uid": Uid.derived("study"),
        "patient_id": "DEMO",
        "patient_name": "DEMO^ONE",
        "study_datetime": datetime(2026, 1, 2, 3, 4, 5),
    }
    contents = [
        *(content for _, content in write_ct_series(hu, affine, series_uid=Uid.derived("a"), **facts)),
        *(content for _, content in write_localizer(hu, affine, series_uid=Uid.derived("b"), **facts)),
    ]
    volume = compare(contents, tmp_path)
    assert_equal(volume, nib.Nifti1Image(hu, affine))
