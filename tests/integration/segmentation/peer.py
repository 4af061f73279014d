"""Images in any orientation, what upstream makes of them, and the comparison with the engine, byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from heimdallr_ray.segmentation.engine import Segmentation
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.nifti import to_nifti
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

SCRIPT = Path(__file__).with_name("upstream_peer.py")
LIMIT_S = 3000


@dataclass(frozen=True)
class Geometry:
    """A grid: voxels, mm per voxel, axes, degrees about z."""

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    codes: str
    degrees: float = 0.0

    def image(self, modality: str) -> Any:
        """A body on this grid."""
        back = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(self.codes))
        c, s = np.cos(np.deg2rad(self.degrees)), np.sin(np.deg2rad(self.degrees))
        turn = np.array([[c, -s, 0, 13.3], [s, c, 0, -81.7], [0, 0, 1, 205.1], [0, 0, 0, 1]])
        affine = turn @ np.diag([*self.spacing_mm, 1.0]) @ inv_ornt_aff(back, self.shape)
        array = (
            identity_nets.mr_body(self.shape) if modality == "MR" else identity_nets.body(self.shape, affine, seed=3)
        )
        return nib.Nifti1Image(array, affine)


@dataclass(frozen=True)
class Case:
    """One task on one grid."""

    task: str
    geometry: Geometry
    force_split: bool = False

    @property
    def name(self) -> str:
        """For files and test ids."""
        return f"{self.task}-{self.geometry.name}"


def run_upstream(
    weights: Path, cases: Sequence[Case], folder: Path, *, processes: bool = False, images: dict[str, Any] | None = None
) -> None:
    """`folder` holds the source image and upstream's answer of each case.

    Args:
        weights: registry.
        cases: tasks and grids.
        folder: empty.
        processes: the API as it is, with the processes that it spawns.
        images: given images by name of the case, in the place of bodies on the case's grid.
    """
    jobs: list[dict[str, Any]] = []
    for case in cases:
        spec, source = TASKS[case.task], folder / f"{case.name}.source.nii"
        nib.save((images or {}).get(case.name) or case.geometry.image(spec.modality), source)
        options = {key: True for key in ("fast", "fastest") if getattr(spec, key)}
        if case.force_split:
            options["force_split"] = True
        job = {"source": str(source), "out": str(folder / f"{case.name}.nii"), "task": spec.upstream_task}
        jobs.append({**job, "options": options})
    order = folder / "job.json"
    home = folder / "home"
    order.write_text(json.dumps({"weights": str(weights), "home": str(home), "processes": processes, "cases": jobs}))
    command = [sys.executable, str(SCRIPT), str(order)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # the API counts its runs there; our own settings leave the statistics off
    assert json.loads((home / "config.json").read_text())["send_usage_stats"] is False


def volume_of(source: Any, modality: str) -> Volume:
    """The image of a NIfTI file as the engine takes it."""
    dtype = np.float32 if modality == "MR" else np.int16
    return Volume(np.asanyarray(source.dataobj).astype(dtype), np.asarray(source.affine), VolumeSource(modality))


def assert_identical(engine: ResidentEngine, case: Case, folder: Path) -> Segmentation:
    """The engine's labels of a case, which it returns, are upstream's: voxels, affine, header, every byte."""
    source = cast("nib.Nifti1Image", nib.load(folder / f"{case.name}.source.nii"))
    expected = (folder / f"{case.name}.nii").read_bytes()
    theirs = nib.Nifti1Image.from_bytes(expected)
    made = engine.segment(volume_of(source, TASKS[case.task].modality), case.task)
    labels = made.label_map
    assert np.unique(labels.array).size > 1, f"{case.name}: an empty mask proves nothing"
    assert np.array_equal(labels.array, np.asanyarray(theirs.dataobj)), case.name
    assert np.array_equal(labels.affine_ras, np.asarray(theirs.affine)), case.name
    ours = to_nifti(labels, source)
    assert ours.header == theirs.header, case.name
    assert ours.to_bytes() == expected, case.name
    return made
