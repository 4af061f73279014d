"""Decoding in child processes: whatever compressed bytes do to a codec, this process goes on.

A small pool of children, started when first needed, each with limits of memory and time (`decoder`). A child serves
one batch at a time and lives on; one that crashed, hung or was killed is reaped and replaced. Children end with this
process: their input ends, and they look for their parent.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.decoder import ANSWER, READY, REQUEST, TOO_LATE, Job, StreamEnds
from heimdallr_ray.errors import DecoderUnavailable, NotAVolume, TruncatedObject

_BOOT: Final = "import runpy, sys; sys.path[:0] = sys.argv[2:]; runpy.run_module(sys.argv[1], run_name='__main__')"
"""The child finds its modules where this process does, and nowhere in its working directory."""
_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""All that a decoder needs of the environment; it sees no setting and no secret of ours."""
_STARTS: Final = 2
_TRIES: Final = 2
_MAX_ERROR_NAME: Final = 200
_PIPE_BYTES: Final = 1 << 20
_END_S: Final = 5.0
_BUSY_S: Final = 1800.0
"""Until another study's batches, however slow, let go of a child."""
_STREAM_ENDS: Final = f"{StreamEnds.__name__} from the decoder"
_KILLED_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM})

Frame = tuple[bytes, Job]

log = logging.getLogger(__name__)


class _Died(Exception):
    """The child ended, or no longer answers; `by` is the signal that ended it, where one did."""

    def __init__(self, by: int | None) -> None:
        super().__init__(by)
        self.by = by


class _Child:
    """One child process, used by one thread at a time."""

    def __init__(self, module: str) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - as the interpreter reads sys.path
        command = [sys.executable, "-P", "-s", "-c", _BOOT, module, *path]
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no outside text
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )
        self._to = cast("BinaryIO", self.process.stdin).fileno()
        self._from = cast("BinaryIO", self.process.stdout).fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
            _widen(pipe)
        try:
            self._greeted()
        except BaseException:
            self.end()
            raise

    def answers(self, frames: Sequence[Frame], outs: Sequence[NDArray[Any]], seconds: float) -> str:
        """`outs` hold the pixels of `frames`; else the name of the error that the decoder raised.

        Raises:
            _Died: the child crashed, was killed, or did not answer in time.
        """
        request = json.dumps({"seconds": seconds, "jobs": [list(job) for _, job in frames]}).encode()
        size = sum(job.size for _, job in frames)
        deadline = time.monotonic() + _wall_s(frames, seconds)
        for part in (REQUEST.pack(len(request), size) + request, *(content for content, _ in frames)):
            self._send(part, deadline)
        good, length = ANSWER.unpack(self._received(ANSWER.size, deadline))
        if not good:
            return self._received(min(length, _MAX_ERROR_NAME), deadline).decode("ascii", "replace")
        if length != sum(out.nbytes for out in outs):
            raise _Died(None)
        for out in outs:
            self._receive_into(out.reshape(-1).data.cast("B"), deadline)
        return ""

    def end(self) -> int | None:
        """The child is gone and reaped; the signal that ended it, where one did before this call."""
        try:
            code: int | None = self.process.wait(timeout=0.2) if self.process.poll() is None else self.process.poll()
        except subprocess.TimeoutExpired:
            code = None
            self.process.kill()
            self.process.wait(timeout=_END_S)
        for pipe in (self.process.stdin, self.process.stdout):
            cast("BinaryIO", pipe).close()
        return -code if code is not None and code < 0 else None

    def _greeted(self) -> None:
        if self._received(len(READY), time.monotonic() + limits.DECODER_START_S) != READY:
            raise _Died(None)

    def _send(self, content: bytes, deadline: float) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise _Died(None) from None

    def _received(self, size: int, deadline: float) -> bytes:
        found = bytearray(size)
        self._receive_into(memoryview(found), deadline)
        return bytes(found)

    def _receive_into(self, view: memoryview, deadline: float) -> None:
        while view:
            try:
                count = os.readv(self._from, [view])
            except BlockingIOError:
                self._wait(self._from, select.POLLIN, deadline)
                continue
            if not count:
                raise _Died(None)
            view = view[count:]

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(pipe, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise _Died(signal.SIGALRM)


def _wall_s(frames: Sequence[Frame], cpu_s: float) -> float:
    return limits.DECODE_WALL_FACTOR * sum(job.cpu_s(cpu_s) for _, job in frames) + _END_S


def _widen(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        # The user's share of pipe memory is used up: the usual size is only slower.
        log.debug("pipe stays small")


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
        self._idle: list[_Child] = []
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
        except _Died as error:
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

    def _child(self) -> _Child:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and child.process.poll() is None:
            return child
        if child is not None:
            child.end()
        for _ in range(_STARTS):
            try:
                return _Child(self._module)
            except (_Died, OSError):
                continue
        raise DecoderUnavailable("the decoder's process does not start")


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
