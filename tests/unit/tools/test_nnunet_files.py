from __future__ import annotations

import json
from typing import Any

import pytest

from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.specs import RESIDENT
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg.labels import labels_of_model
from tools.demo_weights.recipes import RECIPES
from tools.nnunet_files import Unet, upstream_labels


def committed(recipe_id: int, name: str) -> dict[str, Any]:
    return json.loads((weights_dir() / RECIPES[recipe_id].model_path / name).read_text())


@pytest.mark.parametrize("number", RECIPES)
def test_a_recipe_writes_the_files_that_lie_beside_the_packaged_weights(number: int) -> None:
    recipe = RECIPES[number]
    assert recipe.plans() == committed(number, "plans.json")
    dataset = committed(number, "dataset.json")
    assert recipe.dataset(dataset["numTraining"]) == dataset


def test_every_stage_has_its_kernel_stride_and_convolutions() -> None:
    described = Unet((4, 8, 16), 2, first_stride=(1, 2, 2), kernels=((1, 3, 3),)).architecture()["arch_kwargs"]
    assert described["n_stages"] == 3
    assert described["kernel_sizes"] == [[1, 3, 3]] * 3
    assert described["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert described["n_conv_per_stage"] == [2, 2, 2] and described["n_conv_per_stage_decoder"] == [2, 2]
    assert described["norm_op"] == "torch.nn.modules.instancenorm.InstanceNorm3d"


def test_a_network_is_made_of_what_was_asked_for() -> None:
    network = Unet((4, 8), 1).network(7)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["encoder.stages.0.0.convs.0.conv.weight"] == (4, 1, 3, 3, 3)
    assert shapes["decoder.seg_layers.0.weight"] == (7, 4, 1, 1, 1)


@pytest.mark.parametrize("kernels", [((1, 1, 1), (3, 3, 3)), ()])
def test_kernels_that_do_not_fit_the_stages_are_refused(kernels: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ValueError, match="3 stages"):
        Unet((4, 8, 16), 1, kernels=kernels).architecture()


@pytest.mark.parametrize("name", [name for name, spec in TASKS.items() if spec.backend == RESIDENT])
def test_the_labels_that_models_are_made_with_are_those_that_the_engine_expects(name: str) -> None:
    spec = TASKS[name]
    for model in spec.models:
        assert upstream_labels(spec, model) == labels_of_model(spec, model)
