"""How much memory a network's activations take at most, measured while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # torch's documented name for this; there is no public one
from torch.utils._pytree import tree_leaves

_leaves: Any = tree_leaves


def stored_bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Bytes behind tensors; what several of them share counts once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (one.untyped_storage() for one in tensors)}
    return sum(storages.values())


@dataclass
class Peak:
    """What `measured` found.

    Attributes:
        nbytes: the most that was held at any one time, beyond what was there before.
    """

    nbytes: int = 0


class _Counter(TorchDispatchMode):
    """Adds up the storages of all results until they are given back; torch has no statistics of its own on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._living: dict[int, weakref.ref[Any]] = {}
        self._held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        made = func(*args, **(kwargs or {}))
        for one in _leaves(made):
            if isinstance(one, torch.Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:  # noqa: ANN401
        number, nbytes = int(storage._cdata), int(storage.nbytes())
        if number in self._living:
            return

        def gone(_: object) -> None:
            del self._living[number]
            self._held -= nbytes

        self._living[number] = weakref.ref(storage, gone)
        self._held += nbytes
        self.peak = max(self.peak, self._held)


@contextmanager
def measured(device: torch.device) -> Generator[Peak]:
    """The peak of what is allocated inside the block, by torch's operations on the CPU, by its allocator elsewhere.

    On the CPU the scratch memory inside one operation is not seen.
    """
    peak = Peak()
    if device.type == "cuda":
        cuda: Any = torch.cuda
        cuda.synchronize(device)
        cuda.reset_peak_memory_stats(device)
        before = int(cuda.memory_allocated(device))
        yield peak
        cuda.synchronize(device)
        peak.nbytes = max(0, int(cuda.max_memory_allocated(device)) - before)
        return
    with _Counter() as counter:
        yield peak
    peak.nbytes = counter.peak
