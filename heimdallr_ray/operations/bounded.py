"""Steps that others' code takes as long as it likes, ended by a deadline of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from heimdallr_ray.errors import NotReady

T = TypeVar("T")


def within(step: str, deadline: float, work: Callable[[], T]) -> T:
    """What `work` gives; it runs in a thread of its own, so that neither it nor what it waits for can hold us.

    A signal's handler runs meanwhile. `work` that does not end is left behind: its thread ends with the process.

    Args:
        step: what is waited for, in words.
        deadline: monotonic seconds.
        work: called once.

    Raises:
        NotReady: it did not end before the deadline; names the step.
        BaseException: whatever `work` raised.
    """
    values: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            values.append(work())
        except BaseException as error:
            failures.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=run, name=f"start: {step}", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - began))
    if failures:
        raise failures[0]
    if not values:
        raise NotReady(f"not ready in time: {step} has not ended after {time.monotonic() - began:.0f} s")
    return values[0]
