"""On the committed demo weights, too, the engine's masks are upstream's: networks that find something in a body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from heimdallr_ray.segmentation.demo import phantom, weights_dir
from heimdallr_ray.segmentation.demo.phantom import Phantom
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from tests.integration.segmentation.peer import Case, Geometry, assert_identical, run_upstream, volume_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TORSO = Geometry("torso", (0, 0, 0), (0, 0, 0), "")
HEAD = Geometry("head", (0, 0, 0), (0, 0, 0), "")
"""Names alone: the images are the phantoms below."""
CASES = (Case(FIRST_PASS, TORSO), Case(TOTAL_FAST, TORSO), Case(TISSUE_TYPES, TORSO), Case(CEREBRAL_BLEED, HEAD))
LEAST_LABELS = {FIRST_PASS: 10, TOTAL_FAST: 20, TISSUE_TYPES: 4, CEREBRAL_BLEED: 2}
"""Values that a mask must hold, background included: an almost empty one would prove little."""


def torso() -> Phantom:
    """Liver to pelvis, coarse."""
    return phantom.make(31_001, (3.1, 2.9, 4.0), (60.0, 330.0), noise_hu=9.0)


def head() -> Phantom:
    """A native head with 30 ml of blood."""
    native = phantom.Phase.NATIVE
    return phantom.make(
        31_002, (1.3, 1.3, 3.0), (606.0, 800.0), phase=native, bleed_ml=(30.0,), noise_hu=4.0, fov_mm=(224.0, 256.0)
    )


def image_of(made: Phantom) -> Any:
    return nib.Nifti1Image(made.hu, made.affine_ras)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upstream_demo")
    images = {TORSO: image_of(torso()), HEAD: image_of(head())}
    run_upstream(weights_dir(), CASES, folder, images={case.name: images[case.geometry] for case in CASES})
    return folder


@pytest.fixture(scope="module")
def engine() -> ResidentEngine:
    return ResidentEngine(weights_dir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_demo_weights_give_upstreams_masks(engine: ResidentEngine, upstream: Path, case: Case) -> None:
    assert_identical(engine, case, upstream)
    source: Any = nib.load(upstream / f"{case.name}.source.nii")
    labels = engine.segment(volume_of(source, "CT"), case.task).label_map
    assert np.unique(labels.array).size >= LEAST_LABELS[case.task]
