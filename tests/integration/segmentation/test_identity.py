"""The engine's masks are TotalSegmentator's: voxels, affine, header, every byte of the image it would have returned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(900)

UPSTREAM = Path(__file__).parents[3] / "bench" / "segment_upstream.py"
TASKS = (FIRST_PASS, TOTAL_FAST, TISSUE_TYPES, CEREBRAL_BLEED)


def upstream_images(weights: Path, image: Any, folder: Path, tasks: tuple[str, ...]) -> dict[str, bytes]:
    """What TotalSegmentator's own API returns, in a process of its own (it starts more)."""
    source = folder / "source.nii"
    nib.save(image, source)
    command = [sys.executable, str(UPSTREAM), "1", str(weights), str(folder / "home"), str(source), str(folder), *tasks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # the API counts its runs there; our own settings leave the statistics off
    assert json.loads((folder / "home" / "config.json").read_text())["send_usage_stats"] is False
    return {task: (folder / f"{task}.nii").read_bytes() for task in tasks}


def assert_identical(weights: Path, image: Any, folder: Path, tasks: tuple[str, ...]) -> None:
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.segmentation.totalseg.nifti import to_nifti

    expected = upstream_images(weights, image, folder, tasks)
    source = cast("nib.Nifti1Image", nib.load(folder / "source.nii"))
    engine = ResidentEngine(weights, home_dir=folder / "engine_home")
    volume = Volume(np.asanyarray(source.dataobj).astype(np.int16), np.asarray(source.affine), VolumeSource("CT"))
    for task in tasks:
        theirs = nib.Nifti1Image.from_bytes(expected[task])
        labels = engine.segment(volume, task).label_map
        assert np.unique(labels.array).size > 1, f"{task}: an empty mask proves nothing"
        assert np.array_equal(labels.array, np.asanyarray(theirs.dataobj)), task
        assert np.array_equal(labels.affine_ras, np.asarray(theirs.affine)), task
        ours = to_nifti(labels, source)
        assert ours.header == theirs.header, task
        assert ours.to_bytes() == expected[task], task


def image_of(shape: tuple[int, int, int], spacing: tuple[float, float, float], codes: str, degrees: float) -> Any:
    back = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[c, -s, 0, 13.3], [s, c, 0, -81.7], [0, 0, 1, 205.1], [0, 0, 0, 1]])
    affine = turn @ np.diag([*spacing, 1.0]) @ inv_ornt_aff(back, shape)
    return nib.Nifti1Image(identity_nets.body(shape, affine), affine)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("random_weights"), TASKS)


def test_all_tasks_on_a_phantom(weights: Path, tmp_path: Path) -> None:
    assert_identical(weights, image_of((46, 40, 26), (2.4, 2.4, 4.0), "LPS", 0.0), tmp_path, TASKS)


def test_oblique_and_permuted_axes(weights: Path, tmp_path: Path) -> None:
    image = image_of((40, 56, 50), (3.7, 2.1, 2.6), "PIR", 7.0)
    assert_identical(weights, image, tmp_path, (CEREBRAL_BLEED,))


@pytest.mark.slow
def test_five_parts_merged(tmp_path: Path) -> None:
    folder = identity_nets.write_registry(tmp_path / "weights", ("total",))
    (tmp_path / "out").mkdir()
    assert_identical(folder, image_of((44, 40, 30), (2.0, 2.0, 2.5), "LAS", 0.0), tmp_path / "out", ("total",))


@pytest.mark.data
def test_all_tasks_on_a_real_scan(weights: Path, tmp_path: Path) -> None:
    source = Path(os.environ["HEIMDALLR_TEST_DATA"]) / "totalsegmentator" / "example_ct_sm.nii.gz"
    assert_identical(weights, nib.load(source), tmp_path, TASKS)
