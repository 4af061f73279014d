"""Deliberate differences from upstream, refusals, and what a second task of a study does not do again."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from heimdallr_ray.errors import Broken, EmptyImage, NotAVolume
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.weights import write_manifest
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets
from tests.integration.segmentation.peer import Case, Geometry, run_upstream, volume_of
from tests.support.bounds import within

pytestmark = pytest.mark.timeout(900)

GRID = Geometry("LPS", (26, 24, 20), (2.8, 2.8, 3.6), "LPS")
INSTALLED = ("total_fastest", "trunk_cavities", "vertebrae_body", "cerebral_bleed", "liver_segments", "kidney_cysts")
EMPTY = Case("liver_segments", GRID)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # no bias: the rough model sees nothing that a task crops to
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), INSTALLED, brain_bias=-5.0)


@pytest.fixture(scope="module")
def engine(weights: Path) -> ResidentEngine:
    return ResidentEngine(weights, threads=1)


def volume() -> Volume:
    return volume_of(GRID.image("CT"), "CT")


@pytest.mark.slow
def test_nothing_to_crop_to_is_zeros_here_and_a_guess_upstream(
    weights: Path, engine: ResidentEngine, tmp_path: Path
) -> None:
    run_upstream(weights, (EMPTY,), tmp_path)
    theirs = nib.Nifti1Image.from_bytes((tmp_path / f"{EMPTY.name}.nii").read_bytes())
    # in memory upstream goes on with the whole image; should it stop doing so, this difference is over
    assert np.asanyarray(theirs.dataobj).any()
    image = volume()
    ours = engine.segment(image, EMPTY.task)
    assert not ours.label_map.array.any()
    assert ours.label_map.array.shape == GRID.shape
    assert np.array_equal(ours.label_map.affine_ras, image.affine_ras)
    assert ours.timings.forward_s == 0.0, "the model of the task has run"


def test_a_second_task_at_a_spacing_does_nothing_again(engine: ResidentEngine) -> None:
    image = volume()
    first = engine.segment(image, "trunk_cavities").timings
    second = engine.segment(image, "vertebrae_body").timings
    assert (first.loads, first.canonical_views, first.resamplings) == (1, 1, 1)
    assert (second.loads, second.canonical_views, second.resamplings) == (0, 0, 0)
    assert second.load_s == second.resample_s == 0.0
    rough = engine.segment(image, "total_fastest").timings
    assert (rough.loads, rough.canonical_views, rough.resamplings) == (0, 0, 1)
    # the rough mask is there; its crop is empty
    third = engine.segment(image, "cerebral_bleed").timings
    assert (third.loads, third.canonical_views, third.resamplings) == (0, 0, 0)
    again = engine.segment(volume(), "vertebrae_body").timings
    assert (again.loads, again.canonical_views, again.resamplings) == (1, 1, 1)


def test_a_run_counts_what_its_study_did(weights: Path) -> None:
    run = ResidentEngine(weights, threads=1).run_plan(volume(), ("trunk_cavities", "vertebrae_body"))
    assert run.plan.run == ("trunk_cavities", "vertebrae_body")
    assert (run.timings.loads, run.timings.canonical_views, run.timings.resamplings) == (1, 1, 2)


def test_a_label_that_the_table_does_not_hold_is_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        names = {value: f"structure_{value}" for value in range(1, 9)}
        changed.setattr(identity_nets, "_labels", lambda _spec, _model: names)
        identity_nets.write_registry(tmp_path, ("vertebrae_body",))
    engine = ResidentEngine(tmp_path, threads=1)
    with pytest.raises(Broken, match=r"totalsegmentator/305 gave label \d, which its table does not hold"):
        engine.segment(volume(), "vertebrae_body")


def test_folds_that_are_not_installed_are_missing(tmp_path: Path) -> None:
    identity_nets.write_registry(tmp_path, ("pleural_pericard_effusion", "total_fastest"))
    (model,) = TASKS["pleural_pericard_effusion"].models
    for fold in identity_nets.INSTALLED_FOLDS:
        (tmp_path / model.checkpoint_of(fold)).unlink()
    write_manifest(tmp_path, synthetic=True)
    engine = ResidentEngine(tmp_path, threads=1)
    assert "pleural_pericard_effusion" not in engine.available_tasks


@pytest.mark.parametrize("shape", [(2, 2, 2), (512, 512, 1), (1, 300, 300), (40, 40, 3)])
def test_too_few_voxels_are_refused_at_once(engine: ResidentEngine, shape: tuple[int, int, int]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.int16)
    with within(), pytest.raises(NotAVolume) as refused:
        engine.segment(Volume(array, np.eye(4), VolumeSource("CT")), "total_fastest")
    assert refused.value.reason == "too_small"


def test_a_plate_thinner_than_the_models_voxel_is_refused(engine: ResidentEngine) -> None:
    array = np.random.default_rng(1).integers(-100, 100, (60, 60, 5)).astype(np.int16)
    with pytest.raises(NotAVolume) as refused:
        engine.segment(Volume(array, np.diag([1.0, 1.0, 0.5, 1.0]), VolumeSource("CT")), "total_fastest")
    assert refused.value.reason == "too_small"


def test_an_image_of_which_the_model_would_see_zeros_only_is_refused(engine: ResidentEngine) -> None:
    array = np.zeros((40, 40, 40), np.int16)
    array[21, 21, 21] = 1
    with pytest.raises(EmptyImage):
        engine.segment(Volume(array, np.diag([1.0, 1.0, 1.0, 1.0]), VolumeSource("CT")), "total_fastest")
