from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.segmentation.demo import anatomy, phantom
from heimdallr_ray.segmentation.demo.anatomy import Phase, Tissue

COARSE = (4.0, 4.0, 4.0)
TORSO = (20.0, 540.0)


def test_one_seed_is_one_picture() -> None:
    first, second = phantom.make(5, COARSE, TORSO), phantom.make(5, COARSE, TORSO)
    other = phantom.make(6, COARSE, TORSO)
    assert np.array_equal(first.hu, second.hu)
    assert first.truth == second.truth
    assert not np.array_equal(first.total, other.total)


def test_a_seed_is_one_body_at_any_spacing() -> None:
    coarse = phantom.make(5, (3.0, 3.0, 3.0), TORSO).truth
    fine = phantom.make(5, (2.0, 2.0, 2.5), TORSO).truth
    assert coarse.phase is fine.phase
    assert coarse.hu == fine.hu
    for name in ("liver", "spleen", "kidney_left", "kidney_right", "heart", "lung_left", "skeletal_muscle"):
        assert fine.volumes_ml[name] == pytest.approx(coarse.volumes_ml[name], rel=0.03), name


def test_volumes_are_those_of_the_labels() -> None:
    made = phantom.make(7, COARSE, TORSO)
    voxel_ml = 0.064
    assert made.truth.volumes_ml["liver"] == pytest.approx((made.total == 5).sum() * voxel_ml)
    assert made.truth.volumes_ml["lung_right"] == pytest.approx(np.isin(made.total, (12, 13, 14)).sum() * voxel_ml)
    assert made.truth.volumes_ml["torso_fat"] == pytest.approx((made.tissue == Tissue.TORSO_FAT).sum() * voxel_ml)


def test_organs_lie_on_their_sides_in_ras() -> None:
    made = phantom.make(8, COARSE, TORSO)

    def centre_mm(label: int) -> np.ndarray:
        index = np.argwhere(made.total == label).mean(axis=0)
        return (made.affine_ras @ [*index, 1.0])[:3]

    assert centre_mm(5)[0] > 40 > 0 > centre_mm(1)[0]
    assert centre_mm(2)[0] > 0 > centre_mm(3)[0]
    assert centre_mm(51)[1] > 0 > centre_mm(30)[1]
    assert centre_mm(44)[2] > centre_mm(31)[2] > centre_mm(27)[2]


@pytest.mark.parametrize("phase", list(Phase))
def test_painted_density_is_what_a_region_measures(phase: Phase) -> None:
    made = phantom.make(9, (2.0, 2.0, 3.0), (80.0, 320.0), phase=phase, noise_hu=8.0)
    for name, label in (("liver", 5), ("spleen", 1), ("kidney_left", 3)):
        where = np.argwhere(made.total == label)
        i, j, k = where.mean(axis=0).astype(int)
        core = made.hu[i - 3 : i + 4, j - 3 : j + 4, k - 2 : k + 3]
        assert abs(core.mean() - made.truth.hu[name]) < 6, name


def test_native_organs_have_plausible_densities() -> None:
    hu = phantom.make(10, COARSE, TORSO, phase=Phase.NATIVE).truth.hu
    assert 50 < hu["liver"] < 68
    assert 25 < hu["kidney_right"] < 40
    assert -860 < hu["lung_left"] < -800


def test_every_vertebra_of_the_abdomen_is_there() -> None:
    made = phantom.make(11, (3.0, 3.0, 3.0), TORSO)
    present = set(np.unique(made.total))
    assert {27, 28, 29, 30, 31, 32} <= present
    assert len({anatomy.posterior_element_hu(label) for label in anatomy.VERTEBRA_Z_MM}) == 24


def test_organs_do_not_touch_the_wall() -> None:
    made = phantom.make(12, (2.0, 2.0, 3.0), (180.0, 300.0))
    wall = (made.tissue == Tissue.SKELETAL_MUSCLE) & (made.total == 0)
    assert not (wall[1:] & (made.total[:-1] == 5)).any()
    assert wall.any()


def test_the_head_holds_the_wanted_bleed() -> None:
    made = phantom.make(13, (1.5, 1.5, 2.0), (606.0, 800.0), bleed_ml=(25.0,), fov_mm=(224.0, 256.0))
    assert made.truth.bleed_ml == pytest.approx(25.0, rel=0.04)
    assert (made.total[made.bleed] == anatomy.BRAIN).all()
    assert 55 < made.hu[made.bleed].mean() < 85


def test_no_bleed_unless_wanted() -> None:
    made = phantom.make(13, (3.0, 3.0, 3.0), (606.0, 800.0), fov_mm=(224.0, 256.0))
    assert made.truth.bleed_ml == 0.0
    assert not made.bleed.any()


def test_a_bleed_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head"):
        phantom.make(1, COARSE, TORSO, bleed_ml=(20.0,))


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        phantom.make(1, COARSE, (100.0, 100.0))


def test_the_demo_head_is_whole_and_bleeds() -> None:
    made = phantom.head_bleed(3)
    assert 60 <= made.hu.shape[2] <= 100
    assert 20 <= made.truth.bleed_ml <= 40
    assert made.truth.phase is Phase.NATIVE
    brain = made.total == anatomy.BRAIN
    for axis in range(3):
        ends = brain.take([0, -1], axis=axis)
        assert not ends.any()
    assert phantom.head_bleed(3, with_bleed=False).truth.bleed_ml == 0.0


def test_the_demo_torso_has_whole_organs() -> None:
    made = phantom.chest_abdomen(4)
    assert made.hu.shape == (320, 240, 260)
    assert np.allclose(np.diag(made.affine_ras)[:3], (1.25, 1.25, 2.0))
    for label in (5, 1, 2, 3, 51, 27):
        assert not (made.total[:, :, [0, -1]] == label).any(), label
    assert 900 < made.truth.volumes_ml["liver"] < 1900
