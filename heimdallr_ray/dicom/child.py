"""One child process of `isolated`, seen from its parent: started, asked, waited for with a bound, and reaped."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, BinaryIO, Final, cast

from numpy.typing import NDArray

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.decoder import ANSWER, READY, REQUEST, Job

_BOOT: Final = "import runpy, sys; sys.path[:0] = sys.argv[2:]; runpy.run_module(sys.argv[1], run_name='__main__')"
"""The child finds its modules where this process does, and nowhere in its working directory."""
_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""All that a decoder needs of the environment; it sees no setting and no secret of ours."""
_MAX_ERROR_NAME: Final = 200
_PIPE_BYTES: Final = 1 << 20
END_S: Final = 5.0
"""For a child to be gone, and for its answer to travel."""

Frame = tuple[bytes, Job]

log = logging.getLogger(__name__)


class Died(Exception):
    """The child ended, or no longer answers; `by` is the signal that ended it, where one did."""

    def __init__(self, by: int | None) -> None:
        super().__init__(by)
        self.by = by


class Child:
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
            Died: the child crashed, was killed, or did not answer in time.
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
            raise Died(None)
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
            self.process.wait(timeout=END_S)
        for pipe in (self.process.stdin, self.process.stdout):
            cast("BinaryIO", pipe).close()
        return -code if code is not None and code < 0 else None

    def _greeted(self) -> None:
        if self._received(len(READY), time.monotonic() + limits.DECODER_START_S) != READY:
            raise Died(None)

    def _send(self, content: bytes, deadline: float) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise Died(None) from None

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
                raise Died(None)
            view = view[count:]

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(pipe, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise Died(signal.SIGALRM)


def _wall_s(frames: Sequence[Frame], cpu_s: float) -> float:
    return limits.DECODE_WALL_FACTOR * sum(job.cpu_s(cpu_s) for _, job in frames) + END_S


def _widen(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        # The user's share of pipe memory is used up: the usual size is only slower.
        log.debug("decoder.pipe_stays_small")
