"""Calls of nnU-Net's networks, seen from outside of whoever makes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def watched(before: Callable[[Any], None] | None = None, after: Callable[[Any], None] | None = None) -> Generator[None]:
    """Inside, `before` and `after` each get the tile of every call of a network, in this process."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    def calls(function: Callable[[Any], None]) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...], *_: object) -> None:  # noqa: ANN401 - torch's module
            if isinstance(module, PlainConvUNet):
                function(inputs[0])

        return hook

    with ExitStack() as hooks:
        if before is not None:
            hooks.callback(register_module_forward_pre_hook(calls(before)).remove)
        if after is not None:
            hooks.callback(register_module_forward_hook(calls(after)).remove)
        yield


class ForwardCpu:
    """CPU seconds of this process, all threads, inside the networks.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        """Nothing so far."""
        self.seconds = 0.0
        self._began = 0.0

    @contextmanager
    def watching(self) -> Generator[None]:
        """Inside, calls are timed."""
        with watched(self._before, self._after):
            yield

    def _before(self, _: object) -> None:
        self._began = time.process_time()

    def _after(self, _: object) -> None:
        self.seconds += time.process_time() - self._began


def outside_cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads, that `work` spends outside the networks."""
    inside = ForwardCpu()
    began = time.process_time()
    with inside.watching():
        work()
    return time.process_time() - began - inside.seconds
