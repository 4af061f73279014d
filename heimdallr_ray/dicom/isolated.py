"""Decoding in child processes: whatever compressed bytes do to a codec, this process goes on.

A small pool of children, started when first needed, each with limits of memory and time (`decoder`). A child serves
one batch at a time and lives on; one that crashed, hung or was killed is reaped and replaced. Children end with this
process: their input ends, and they look for their parent.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.child import Child, Died, Frame
from heimdallr_ray.dicom.decoder import TOO_LATE, Job, StreamEnds
from heimdallr_ray.errors import DecoderUnavailable, NotAVolume, TruncatedObject

log = logging.getLogger(__name__)

_STARTS: Final = 2
_TRIES: Final = 2
_BUSY_S: Final = 1800.0
"""Until another study's batches, however slow, let go of a child."""
_STREAM_ENDS: Final = f"{StreamEnds.__name__} from the decoder"
_KILLED_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM})


class DecoderPool:
    """Up to `processes` children and as many threads that talk to them."""

    def __init__(
        self,
        processes: int,
        *,
        module: str = "heimdallr_ray.dicom.decoder",
        cpu_s: float = limits.DECODE_CPU_S,
    ) -> None:
        """No child is started yet. `module` is what a child runs; `cpu_s` as `limits.DECODE_CPU_S`."""
        self.processes = max(1, min(processes, limits.MAX_DECODER_PROCESSES))
        self._module = module
        self._cpu_s = cpu_s
        self._free = threading.BoundedSemaphore(self.processes)
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._stopped = False
        self._threads: ThreadPoolExecutor | None = None

    def decode(self, frames: Sequence[Frame]) -> list[NDArray[Any]]:
        """The pixels of each frame, in order, by one child.

        Raises:
            NotAVolume: `undecodable_pixels`: the decoder refused, crashed, took too long or too much memory.
            TruncatedObject: a deflated data set ends too soon.
            DecoderUnavailable: no child can be started, or it is killed from outside again and again.
        """
        outs = [np.empty(job.shape, np.dtype(job.dtype)) for _, job in frames]
        if not self._free.acquire(timeout=_BUSY_S):
            raise DecoderUnavailable("every decoder is busy")
        try:
            for _ in range(_TRIES):
                found = self._tried(frames, outs)
                if found is None:
                    continue
                if found == _STREAM_ENDS:
                    raise TruncatedObject("the deflated data set ends before its pixels do")
                if found:
                    raise NotAVolume("undecodable_pixels", found)
                return outs
        finally:
            self._free.release()
        raise DecoderUnavailable("the decoder's process was killed from outside")

    def submit(self, frames: Sequence[Frame]) -> Future[list[NDArray[Any]]]:
        """As `decode`, meanwhile."""
        return self.threads.submit(self.decode, frames)

    def warm_up(self) -> int:
        """As many idle children are there as may work at once; returns how many. One that does not start is logged."""
        held = 0
        while held < self.processes and self._free.acquire(blocking=False):
            held += 1
        try:
            # All are started before the first is given back: the next call would find that one.
            starting = [self.threads.submit(self._child_or_none) for _ in range(held)]
            found = [one.result() for one in starting]
            with self._lock:
                self._idle.extend(child for child in found if child is not None)
        finally:
            for _ in range(held):
                self._free.release()
        return len(self.pids)

    @property
    def threads(self) -> ThreadPoolExecutor:
        """One thread per child."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="decoder")
            return self._threads

    @property
    def pids(self) -> list[int]:
        """The idle children."""
        with self._lock:
            return [child.process.pid for child in self._idle]

    def stop(self) -> None:
        """No idle child is left, and one that is busy ends with its batch; later frames start a child each."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            threads, self._threads = self._threads, None
        for child in idle:
            child.process.kill()
            child.end()
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def _tried(self, frames: Sequence[Frame], outs: Sequence[NDArray[Any]]) -> str | None:
        """Empty where `outs` are filled, else why not; None where the child was killed from outside."""
        child = self._child()
        try:
            found = child.answers(frames, outs, self._cpu_s)
        except Died as error:
            by = child.end() or error.by
            if by in _KILLED_FROM_OUTSIDE:
                return None
            return "the decoder took too long" if by in TOO_LATE else "the decoder's process ended"
        except BaseException:
            child.process.kill()
            child.end()
            raise
        with self._lock:
            keep = not self._stopped
            if keep:
                self._idle.append(child)
        if not keep:
            child.process.kill()
            child.end()
        return f"{found} from the decoder" if found else ""

    def _child(self) -> Child:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and child.process.poll() is None:
            return child
        if child is not None:
            child.end()
        for _ in range(_STARTS):
            try:
                return Child(self._module)
            except (Died, OSError):
                continue
        raise DecoderUnavailable("the decoder's process does not start")

    def _child_or_none(self) -> Child | None:
        try:
            return self._child()
        except DecoderUnavailable as error:
            log.warning("decoder.not_started", extra={"code": error.code})
            return None


def _usual_processes() -> int:
    return min(len(os.sched_getaffinity(0)), 4)


class _Here:
    """The pool of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: DecoderPool | None = None

    def after_fork(self) -> None:
        # Children, threads and locks belong to the other process.
        self.lock, self.pool = threading.Lock(), None

    def stop(self) -> None:
        if self.pool is not None:
            self.pool.stop()


_HERE: Final = _Here()
atexit.register(_HERE.stop)
os.register_at_fork(after_in_child=_HERE.after_fork)


def pool() -> DecoderPool:
    """The pool of this process; as many children as cores, at most 4, until `configure` says otherwise."""
    with _HERE.lock:
        if _HERE.pool is None:
            _HERE.pool = DecoderPool(_usual_processes())
        return _HERE.pool


def configure(processes: int) -> None:
    """From now on this process decodes in `processes` children; 0: as many as cores, at most 4."""
    wanted = DecoderPool(processes or _usual_processes())
    with _HERE.lock:
        before, _HERE.pool = _HERE.pool, wanted
    if before is not None:
        before.stop()


def warm_up() -> int:
    """The children of this process's pool are there before a study needs them; returns how many."""
    return pool().warm_up()


def batches(jobs: Sequence[Job]) -> list[slice]:
    """`jobs` cut into requests of a bounded number of frames and bytes, in order."""
    found: list[slice] = []
    first = size = 0
    for index, job in enumerate(jobs):
        count = index - first
        if count and (count >= limits.DECODE_BATCH_FRAMES or size + job.decoded_bytes > limits.DECODE_BATCH_BYTES):
            found.append(slice(first, index))
            first, size = index, 0
        size += job.decoded_bytes
    if jobs:
        found.append(slice(first, len(jobs)))
    return found


def decoded_frames(frames: Sequence[Frame], keep: Callable[[int, NDArray[Any]], None]) -> None:
    """`keep(index, pixels)` was called for each frame, in order; several children decode side by side.

    Raises:
        NotAVolume, DecoderUnavailable: as `DecoderPool.decode`.
    """
    using = pool()
    waiting: deque[tuple[int, Future[list[NDArray[Any]]]]] = deque()

    def take() -> None:
        first, future = waiting.popleft()
        for offset, pixels in enumerate(future.result()):
            keep(first + offset, pixels)

    parts = batches([job for _, job in frames])
    if len(parts) == 1:
        for index, pixels in enumerate(using.decode(frames)):
            keep(index, pixels)
        return
    try:
        for part in parts:
            waiting.append((part.start, using.submit(frames[part])))
            if len(waiting) > using.processes:
                take()
        while waiting:
            take()
    finally:
        for _, future in waiting:
            future.cancel()
