"""Time inside the bare network."""

from __future__ import annotations

import time
from typing import Any, cast

import torch


class ForwardClock:
    """Seconds inside the bare network, by host time on the CPU and by events on the GPU."""

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._host_s = 0.0
        self._start = 0.0
        self._events: list[tuple[Any, Any]] = []
        network.register_forward_pre_hook(self._before)
        network.register_forward_hook(self._after)

    def _event(self) -> Any:  # noqa: ANN401
        event: Any = cast(Any, torch.cuda).Event(enable_timing=True)
        event.record()
        return event

    def _before(self, *_: object) -> None:
        if self._cuda:
            self._events.append((self._event(), None))
        else:
            self._start = time.perf_counter()

    def _after(self, *_: object) -> None:
        if self._cuda:
            self._events[-1] = (self._events[-1][0], self._event())
        else:
            self._host_s += time.perf_counter() - self._start

    def take(self) -> float:
        """Seconds since the last call of this method."""
        seconds = self._host_s
        if self._cuda:
            torch.cuda.synchronize()
            seconds += sum(first.elapsed_time(last) for first, last in self._events if last is not None) / 1000.0
        self._host_s, self._events = 0.0, []
        return seconds
