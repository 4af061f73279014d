"""dcm2niix, an independent converter: a fresh run, its images by its own report, and the comparison with a volume."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dcm2niix
import nibabel as nib
import numpy as np

from heimdallr_ray.volume import Volume

CORNER_MM = 0.01

_CONVERTED = re.compile(r"^Convert (\d+) DICOM as (.+) \([0-9x]+\)$", re.MULTILINE)


@dataclass(frozen=True)
class Converted:
    """One line of the report: how many objects became which image, and what was made from that image."""

    objects: int
    image: Any
    """The image itself, turned to RAS; never what was made from it."""
    derived: dict[str, Any]
    """`_Eq_1`, `_Tilt_1`, `_Tilt_Eq_1`, `_ROI1`: images by their suffix, turned to RAS."""


@dataclass(frozen=True)
class Run:
    """What dcm2niix did: exit status, its report, its images."""

    status: int
    report: str
    converted: tuple[Converted, ...]


def run(contents: Sequence[bytes], folder: Path) -> Run:
    """dcm2niix over these objects."""
    source, target = folder / "in", folder / "out"
    source.mkdir()
    target.mkdir()
    for number, content in enumerate(contents):
        (source / f"{number:05d}.dcm").write_bytes(content)
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "%s", "-o", str(target), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=120, text=True, errors="replace")
    lines = _CONVERTED.findall(done.stdout)
    found = tuple(_converted(int(objects), Path(stem), [Path(one) for _, one in lines]) for objects, stem in lines)
    return Run(done.returncode, done.stdout, found)


def converted(contents: Sequence[bytes], folder: Path) -> list[Any]:
    """dcm2niix's images of these objects, turned to RAS."""
    return [one.image for one in run(contents, folder).converted]


def assert_equal(volume: Volume, reference: Any, *, interpolated: Sequence[int] = ()) -> None:
    """No voxel differs, and no corner is CORNER_MM away; halves of `interpolated` slices may be rounded either way."""
    ours = turned(nib.Nifti1Image(np.asarray(volume.array), volume.affine_ras))
    theirs, mine = np.asarray(reference.dataobj), np.asarray(ours.dataobj)
    assert theirs.shape == mine.shape
    assert corner_distance_mm(mine.shape, ours.affine, reference.affine) < CORNER_MM
    if volume.array.dtype == np.int16:
        differs = theirs != mine
        assert (np.abs(theirs.astype(np.int32) - mine)[:, :, list(interpolated)] <= 1).all()
        differs[:, :, list(interpolated)] = False
        assert int(differs.sum()) == 0
    else:
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-3)


def corner_distance_mm(shape: Sequence[int], a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance of the eight corners of a grid under two affines."""
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.array(shape[:3]) - 1
    return float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max())


def turned(image: Any) -> Any:
    """The same image with its axes in the order and direction nearest to RAS."""
    return cast("Any", nib.as_closest_canonical(image))


def _converted(objects: int, stem: Path, stems: Sequence[Path]) -> Converted:
    derived = {
        path.stem.removeprefix(stem.name): turned(nib.load(path))
        for path in stem.parent.glob(f"{stem.name}_*.nii")
        if path.with_suffix("") not in stems
    }
    return Converted(objects, turned(nib.load(stem.with_name(stem.name + ".nii"))), derived)
