from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from heimdallr_ray.errors import Broken, OutOfMemory
from heimdallr_ray.segmentation.engine import MemoryStep
from heimdallr_ray.segmentation.totalseg.memory import Road, Sums, first_that_fits, is_out_of_memory, roads


def test_a_host_has_one_more_road_and_an_accelerator_five() -> None:
    assert roads(accelerated=False, splittable=True) == (Road.WHOLE, Road.CPU_PARTS)
    assert roads(accelerated=False, splittable=False) == (Road.WHOLE,)
    assert roads(accelerated=True, splittable=True) == tuple(Road)
    assert roads(accelerated=True, splittable=False) == (Road.WHOLE, Road.HOST_SUMS, Road.PLANES, Road.CPU)


def test_each_road_says_where_it_needs_memory() -> None:
    assert [road for road in Road if road.on_host] == [Road.CPU, Road.CPU_PARTS]
    assert [road for road in Road if road.in_parts] == [Road.PARTS, Road.CPU_PARTS]
    sums = [Sums.DEVICE, Sums.HOST, Sums.RING, Sums.RING, Sums.DEVICE, Sums.DEVICE]
    assert [road.sums for road in Road] == sums


def test_what_torch_and_numpy_really_raise_is_recognised() -> None:
    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(2**58, dtype=torch.uint8)
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(2**58, np.uint8)
    assert is_out_of_memory(by_torch.value) and is_out_of_memory(by_numpy.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_has_many_faces(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), Broken("x")]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("failures", range(6))
def test_the_roads_are_tried_in_order_and_each_step_is_recorded(failures: int) -> None:
    tried: list[Road] = []
    released: list[int] = []

    def attempt(road: Road) -> str:
        tried.append(road)
        if len(tried) <= failures:
            raise OutOfMemory("full")
        return f"by {road}"

    found, steps = first_that_fits("net/1", tuple(Road), attempt, lambda: released.append(len(tried)))
    order = tuple(Road)
    assert found == f"by {order[failures]}"
    assert tried == list(order[: failures + 1])
    assert released == list(range(1, failures + 1))
    assert steps == tuple(MemoryStep("net/1", before, after) for before, after in pairwise(order[: failures + 1]))


def test_where_nothing_fits_the_error_names_the_model_and_all_that_was_tried() -> None:
    def attempt(road: Road) -> None:
        raise OutOfMemory("full")

    with pytest.raises(OutOfMemory, match="net/1 did not fit: tried whole, cpu_parts"):
        first_that_fits("net/1", roads(accelerated=False, splittable=True), attempt, lambda: None)


def test_what_a_failed_attempt_held_is_gone_before_caches_are_released() -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []
    gone: list[bool] = []

    def attempt(road: Road) -> int:
        if road is not Road.WHOLE:
            return 1
        large = torch.zeros(8)
        held.append(weakref.ref(large))
        try:
            large.resize_(2**58)
        except RuntimeError as error:
            raise OutOfMemory("full") from error
        return 0

    first_that_fits("net/1", (Road.WHOLE, Road.CPU), attempt, lambda: gone.append(held[0]() is None))
    assert gone == [True]


def test_another_error_ends_the_search() -> None:
    def attempt(road: Road) -> None:
        raise Broken("a logit that is not finite")

    with pytest.raises(Broken):
        first_that_fits("net/1", tuple(Road), attempt, lambda: pytest.fail("nothing to release"))
