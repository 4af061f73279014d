"""What is tried, in which order, when a model does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, TypeVar

import torch

from heimdallr_ray.errors import OutOfMemory
from heimdallr_ray.segmentation.engine import MemoryStep

T = TypeVar("T")

_SIGNS: Final = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
"""torch's allocator on the host, cuDNN and cuBLAS tell of it by a bare RuntimeError with one of these."""


COARSER: Final = {"total": "total_fast", "total_mr": "total_mr_fast"}
"""What may stand in for a task that fits nowhere. Nothing at 6 mm: that is for finding out, never for measuring."""
EVERY_ROAD: Final = "every_road"
"""What failed before another resolution is taken."""
BUDGET: Final = "memory_budget"
"""The same where the site's budget refuses the model."""


class Sums(StrEnum):
    """Where the logits of the tiles are added up."""

    DEVICE = "device"
    """Where the network is, as upstream."""
    HOST = "host"
    """On the host, for the whole image, as upstream does when the device is full."""
    RING = "ring"
    """On the host, for as many planes as a tile is deep."""


class Road(StrEnum):
    """One way of running a model, as provenance names it."""

    WHOLE = "whole"
    """Everything where it was meant to be."""
    HOST_SUMS = "host_sums"
    """Tiles on the device, logits of the whole image on the host; upstream's own answer to a full device."""
    PLANES = "planes"
    """Tiles on the device, logits of a few planes at a time on the host."""
    PARTS = "parts"
    """As the last one, for three overlapping parts of the image; labels near the seams may differ."""
    CPU = "cpu"
    """The network on the host too."""
    CPU_PARTS = "cpu_parts"
    """The same for three overlapping parts; labels near the seams may differ."""

    @property
    def on_host(self) -> bool:
        """The network runs on the host, whatever the engine's device."""
        return self in (Road.CPU, Road.CPU_PARTS)

    @property
    def in_parts(self) -> bool:
        """The image is cut into parts."""
        return self in (Road.PARTS, Road.CPU_PARTS)

    @property
    def sums(self) -> Sums:
        """Where the logits are added up."""
        if self is Road.HOST_SUMS:
            return Sums.HOST
        return Sums.RING if self in (Road.PLANES, Road.PARTS) else Sums.DEVICE


def roads(*, accelerated: bool, splittable: bool) -> tuple[Road, ...]:
    """All roads in the order in which they are tried.

    Args:
        accelerated: the engine's device is not the host.
        splittable: the image can be cut into parts and is not cut already.
    """
    on_device = (Road.WHOLE, Road.HOST_SUMS, Road.PLANES, Road.PARTS, Road.CPU, Road.CPU_PARTS)
    order = on_device if accelerated else (Road.WHOLE, Road.CPU_PARTS)
    return tuple(road for road in order if splittable or not road.in_parts)


def is_out_of_memory(error: BaseException) -> bool:
    """True where `error` says that an allocation failed, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def named(what: str) -> Generator[None]:
    """Want of memory inside the block is told as ours.

    Raises:
        OutOfMemory: an allocation failed; says `what`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(what) from error
        raise


def first_that_fits(
    model_id: str, order: tuple[Road, ...], attempt: Callable[[Road], T], release: Callable[[], None]
) -> tuple[T, tuple[MemoryStep, ...]]:
    """What the first road gives that does not run out of memory, and the steps that led to it.

    Args:
        model_id: of the model, for the record.
        order: at least one road.
        attempt: does it.
        release: gives back what a failed attempt left in caches.

    Raises:
        OutOfMemory: none of them fits; names all.
    """
    steps: list[MemoryStep] = []
    for number, road in enumerate(order):
        try:
            return attempt(road), tuple(steps)
        except OutOfMemory:
            if number + 1 < len(order):
                steps.append(MemoryStep(model_id, road, order[number + 1]))
        # here the error is gone, and with it the frames that held what had been allocated
        release()
    raise OutOfMemory(f"{model_id} did not fit: tried {', '.join(order)}")
