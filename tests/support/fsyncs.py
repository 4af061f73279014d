"""What the disk itself takes, measured while something else is: a plain write and fsync of the size of an image."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

IMAGE_BYTES = 525_000


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Fsyncs:
    """When each began and ended, in monotonic seconds."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    @property
    def took_s(self) -> list[float]:
        return [end - began for began, end in self.spans]


@contextmanager
def fsyncs_beside(folder: Path, every_s: float = 0.1) -> Generator[Fsyncs]:
    """A write + fsync of 525 kB in `folder`, one every `every_s` while the block runs."""
    seen = Fsyncs()
    ended = threading.Event()
    content = os.urandom(IMAGE_BYTES)

    def measure() -> None:
        path = folder / "fsync"
        while not ended.wait(every_s):
            began = time.monotonic()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(descriptor, content)
            os.fsync(descriptor)
            os.close(descriptor)
            seen.spans.append((began, time.monotonic()))
        path.unlink(missing_ok=True)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join(60)
