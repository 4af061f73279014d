from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.segmentation.demo import evaluation
from heimdallr_ray.segmentation.demo.evaluation import Score


def test_dice_and_volumes_of_two_masks() -> None:
    truth, found = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    truth[:4], found[2:4] = True, True
    score = evaluation.compare(truth, found, voxel_ml=0.5)
    assert score.dice == pytest.approx(2 * 200 / 600)
    assert score == Score(score.dice, 200.0, 100.0)


def test_nothing_in_both_has_no_dice() -> None:
    empty = np.zeros((2, 2, 2), bool)
    assert evaluation.compare(empty, empty, 1.0).dice is None


def test_the_mean_leaves_out_cases_without_the_structure() -> None:
    cases = [{"bleed": Score(0.8, 20.0, 19.0)}, {"bleed": Score(0.0, 0.0, 3.0)}, {"bleed": Score(0.6, 9.0, 5.0)}]
    assert evaluation.mean_dice(cases) == {"bleed": pytest.approx(0.7)}


def test_cases_of_the_evaluation_are_varied() -> None:
    heads = [evaluation.head_case(seed) for seed in evaluation.HEAD_SEEDS[:5]]
    assert [head.truth.bleed_ml > 0 for head in heads].count(False) == 2
    assert len({head.truth.phase for head in heads}) == 2
