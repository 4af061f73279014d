"""A device that refuses everything is no reason to call a model in another way: it rises by name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from heimdallr_ray.errors import DeviceLost
from heimdallr_ray.segmentation.tasks import FIRST_PASS, task_spec
from heimdallr_ray.segmentation.totalseg import turbo
from heimdallr_ray.segmentation.totalseg.device import require_computing
from heimdallr_ray.segmentation.totalseg.recipe import PLAIN, Recipe
from heimdallr_ray.segmentation.totalseg.store import ModelStore
from heimdallr_ray.segmentation.totalseg.turbo import Verdict

CUDA = torch.device("cuda")
FASTER = Recipe(channels_last=True)
ERRORS = (
    RuntimeError("CUDA error: unspecified launch failure\nCompile with ..."),
    RuntimeError("CUDA error: device-side assert triggered"),
)
ones = torch.ones


def refuses(*_: object, **__: object) -> torch.Tensor:
    raise ERRORS[0]


def full(*_: object, **__: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def computes(*size: int, device: torch.device) -> torch.Tensor:
    assert device == CUDA
    return ones(*size)


class Model:
    """A model whose faster way ends in an error."""

    device, spec = CUDA, task_spec(FIRST_PASS).models[0]

    def __init__(self, error: Exception) -> None:
        self.error = error

    def use(self, recipe: Recipe) -> None:
        if recipe != PLAIN:
            raise self.error


@pytest.mark.parametrize("answer", [computes, full])
def test_a_device_that_computes_or_is_full_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[..., torch.Tensor]
) -> None:
    monkeypatch.setattr(torch, "ones", answer)
    require_computing(CUDA)


def test_a_device_that_refuses_is_lost_and_the_host_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", refuses)
    require_computing(torch.device("cpu"))
    with pytest.raises(DeviceLost, match=r"^cuda does not compute: CUDA error: unspecified launch failure$"):
        require_computing(CUDA)


def tried(error: Exception) -> str:
    model, tile = cast(Any, Model(error)), torch.zeros(1)
    return turbo._tried(model, (PLAIN, FASTER), tile, np.zeros(1, np.uint8), 1.0, lambda: 0.0)[0]


@pytest.mark.parametrize("error", ERRORS)
def test_a_step_that_cost_the_device_is_not_a_step_that_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(torch, "ones", computes)
    assert tried(error) == "failed with RuntimeError"
    monkeypatch.setattr(torch, "ones", refuses)
    with pytest.raises(DeviceLost):
        tried(error)


@pytest.mark.parametrize("error", ERRORS)
def test_nor_is_it_where_a_model_is_loaded_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    store, row = ModelStore(cast(Any, None), CUDA, cast(Any, None), turbo=True), task_spec(FIRST_PASS)
    exact = SimpleNamespace(device=CUDA)
    monkeypatch.setattr(store, "_built", lambda *_: exact)

    def again() -> Any:
        store._verdicts[Model.spec.dataset_id] = Verdict(FASTER, 1.0, 0.5, ())
        return store._by_its_recipe(cast(Any, Model(error)), row)

    monkeypatch.setattr(torch, "ones", computes)
    assert again() is exact
    monkeypatch.setattr(torch, "ones", refuses)
    with pytest.raises(DeviceLost):
        again()
