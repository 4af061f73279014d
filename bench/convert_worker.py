"""One converter of `bench convert` in a process of its own, warm: a line on standard input is one conversion.

Run as a script: `convert_worker.py CONTENDER FOLDER TRUTH.npz`. It answers each line with one JSON object:
{"cpu_s", "wall_s"}, and to the line "check" with {"voxels_wrong", "corner_mm"} beside them: against the truth, outside
the timed part. CPU seconds are those of all threads.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Grid = tuple[NDArray[Any], NDArray[np.float64]]
"""Voxels `[i, j, k]` and their affine to RAS mm."""


def heimdallr(folder: Path) -> Callable[[], Grid]:
    """Our road: every header once, the series chosen, its pixels as a Volume."""
    from heimdallr_ray.dicom.assemble import assemble
    from heimdallr_ray.dicom.read import read_header
    from heimdallr_ray.dicom.series import IndexedInstance, group, select

    def convert() -> Grid:
        indexed = [IndexedInstance(read_header(path), str(path), path.stat().st_size) for path in folder.iterdir()]
        chosen = select(group(indexed)).chosen
        if chosen is None:
            raise ValueError("no series was chosen")
        volume = assemble(chosen, lambda locator: Path(locator).read_bytes())
        return volume.array, volume.affine_ras

    return convert


def simpleitk(folder: Path) -> Callable[[], Grid]:
    """SimpleITK's series reader (GDCM), as its documentation shows."""
    import SimpleITK

    itk = cast(Any, SimpleITK)

    kept: list[object] = []

    def convert() -> Grid:
        kept.clear()
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
        kept.append(image)  # the array is a view of it
        lps = np.eye(4)
        lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        lps[:3, 3] = image.GetOrigin()
        return itk.GetArrayViewFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps

    return convert


def dicom2nifti(folder: Path) -> Callable[[], Grid]:
    """dicom2nifti, into an uncompressed file; its image is taken from what it returns."""
    import dicom2nifti as converter

    target = Path(tempfile.mkdtemp(dir=folder.parent)) / "volume.nii"

    def convert() -> Grid:
        image = cast(Any, converter).dicom_series_to_nifti(str(folder), str(target), reorient_nifti=False)["NII"]
        return np.asanyarray(image.dataobj), image.affine

    return convert


CONTENDERS: dict[str, Callable[[Path], Callable[[], Grid]]] = {
    "heimdallr": heimdallr,
    "SimpleITK": simpleitk,
    "dicom2nifti": dicom2nifti,
}


def compare(found: Grid, truth: Grid) -> dict[str, float]:
    """Voxels that differ and the largest distance of a corner, both images turned to RAS axes."""
    from nibabel import orientations

    turn = cast(Any, orientations)

    def canonical(grid: Grid) -> Grid:
        array, affine = grid
        change = turn.io_orientation(affine)
        return turn.apply_orientation(array, change), affine @ turn.inv_ornt_aff(change, array.shape)

    (array, affine), (true_array, true_affine) = canonical(found), canonical(truth)
    if array.shape != true_array.shape:
        return {"voxels_wrong": float(true_array.size), "corner_mm": 1e9}
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.array(array.shape) - 1
    apart = np.linalg.norm((corners @ (affine - true_affine).T)[:, :3], axis=1)
    return {"voxels_wrong": float(np.count_nonzero(array != true_array)), "corner_mm": float(apart.max())}


def main(contender: str, folder: str, truth: str) -> None:
    """Convert once for each line until standard input ends."""
    with np.load(truth) as stored:
        expected = stored["array"].transpose(2, 1, 0), stored["affine"]
    convert = CONTENDERS[contender](Path(folder))
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = convert()
        spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        compared = compare(found, expected) if line.strip() == "check" else {}
        sys.stdout.write(json.dumps({**spent, **compared}) + "\n")
        sys.stdout.flush()
        del found


if __name__ == "__main__":
    main(*sys.argv[1:])
