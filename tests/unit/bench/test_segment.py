from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import nets, phantoms, segment
from heimdallr_ray.segmentation.tasks import task_spec
from heimdallr_ray.segmentation.weights import verify


def test_medians_are_taken_over_what_lies_outside_the_network_turn_by_turn():
    found = segment.medians([(10.0, 9.5), (12.0, 9.0), (11.0, 10.0)])
    assert (found.total_s, found.forward_s, found.outside_s) == (11.0, 9.5, 1.0)


def test_a_registry_of_random_nets_has_the_real_labels_and_patch_and_is_marked(tmp_path: Path):
    folder = nets.write_registry(tmp_path, {"total": nets.PATCH_1_5_MM}, nets.SMALL)
    registry = verify(folder)
    assert registry.synthetic
    labels = set()
    for model in task_spec("total").models:
        dataset = json.loads(registry.read(f"{model.folder}/dataset.json"))
        plans = json.loads(registry.read(f"{model.folder}/plans.json"))
        labels |= set(dataset["labels"]) - {"background"}
        assert "SYNTHETIC" in dataset["description"]
        assert plans["configurations"]["3d_fullres"]["patch_size"] == [128, 128, 128]
        assert 0 < nets.parameters(folder / model.checkpoint) < 2000
    assert len(labels) == 117


def test_a_task_without_a_spacing_of_its_own_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="cerebral_bleed"):
        nets.write_registry(tmp_path, {"cerebral_bleed": nets.PATCH_3_MM}, nets.SMALL)


def test_the_long_trunk_is_the_size_that_is_promised_at_the_models_spacing():
    hu, affine = phantoms.long_trunk(60)
    assert hu.shape == (512, 512, 60)
    assert hu.flags.f_contiguous
    assert hu.dtype == np.int16
    # 750 slices of 2 mm are 1000 of 1.5 mm
    assert np.allclose(np.diag(affine), [-1.5, -1.5, 2.0, 1.0])
    assert 750 * affine[2, 2] == 1000 * 1.5
