"""A stack with a tilt is to the models what it is to upstream: an image of its voxel sizes, whatever its angles."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import pytest

from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from tests.integration.segmentation import identity_nets
from tests.integration.segmentation.peer import Case, Geometry, assert_identical, run_upstream

pytestmark = pytest.mark.timeout(600)

TILT_DEG = 18.5


def test_the_engine_equals_upstream_on_a_tilted_stack(tmp_path: Path) -> None:
    case = Case("total_fast", Geometry("tilted", (24, 22, 14), (2.4, 2.4, 4.0), "LPS"))
    upright = case.geometry.image("CT")
    affine = np.array(upright.affine)
    affine[1, 2] += affine[2, 2] * np.tan(np.deg2rad(TILT_DEG))
    tilted = nib.Nifti1Image(np.asanyarray(upright.dataobj), affine)
    weights = identity_nets.write_registry(tmp_path / "weights", (case.task,))
    answers = tmp_path / "upstream"
    answers.mkdir()
    run_upstream(weights, [case], answers, images={case.name: tilted})
    source = cast(nib.Nifti1Image, nib.load(answers / f"{case.name}.source.nii"))
    assert np.allclose(np.asarray(source.affine), affine, atol=1e-4), "the tilt is in the image that upstream read"
    assert_identical(ResidentEngine(weights), case, answers)
