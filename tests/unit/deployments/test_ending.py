"""A replica that has lost its device ends with the study that cost it; one that has not goes on."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from heimdallr_ray.deployments.ending import EXIT_STATUS, ending_with
from heimdallr_ray.errors import DeviceLost, OutOfMemory
from heimdallr_ray.segmentation.totalseg.device import require_device


class Ended(BaseException):
    """In the place of the process's end."""


def _fault(_device: str) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")


def _room(_device: str) -> tuple[int, int]:
    return 1, 2


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    return statuses


@pytest.mark.parametrize(
    ("answer", "raised", "left", "statuses"),
    [
        (_fault, RuntimeError("CUDA error"), Ended, [EXIT_STATUS]),
        (_fault, OutOfMemory("too large"), OutOfMemory, []),
        (_room, RuntimeError("a defect"), RuntimeError, []),
        # whoever raised it has asked the device already
        (_room, DeviceLost("cuda does not compute"), Ended, [EXIT_STATUS]),
    ],
)
def test_only_a_lost_device_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
    ended: list[int],
    answer: Callable[[str], object],
    raised: Exception,
    left: type[BaseException],
    statuses: list[int],
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", answer)
    with pytest.raises(left), ending_with("cuda"):
        raise raised
    assert ended == statuses


def test_a_device_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", _fault)
    require_device("cpu")
    with pytest.raises(DeviceLost, match=r"^cuda:1 does not answer: CUDA error: an illegal memory access"):
        require_device("cuda:1")
