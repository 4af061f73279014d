"""The child's side of `isolated`: compressed bytes in, pixels out, inside limits that the kernel keeps.

A codec that crashes, spins or asks for memory ends this process and nothing else. What travels is a fixed head, JSON
and bytes; nothing is pickled. The process reads and writes no file.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from heimdallr_ray.dicom import limits

DECODER_ERRORS: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
"""What the codecs raise on damaged input, found by feeding them damage."""

READY: Final = b"HRD1"
REQUEST: Final = struct.Struct("<IQ")
"""Bytes of JSON, bytes of compressed content behind it."""
ANSWER: Final = struct.Struct("<BQ")
"""1 and the bytes of pixels that follow, or 0 and the bytes of the error's name that follow."""

MAX_REQUEST_JSON: Final = 1 << 20
PARENT_POLL_MS: Final = 2000
"""How often a waiting child looks whether its parent is still there: the pipe alone does not tell where another
process inherited its other end."""

TOO_LATE: Final = (signal.SIGPROF, signal.SIGALRM)
"""What ends a child whose frame takes too much processor time, or too long."""

INFLATE: Final = "inflate"
"""The plugin's name of a raw deflate stream, which zlib reads."""
_INFLATE_PIECE: Final = 1 << 20

Options = dict[str, int | str]


class StreamEnds(EOFError):
    """A deflate stream holds less than is wanted."""


class Job(NamedTuple):
    """One frame to decode, or one data set to inflate.

    Attributes:
        syntax: Transfer Syntax UID.
        plugin: pydicom's name of the decoder, or INFLATE.
        options: what pydicom's decoder asks for; for INFLATE `skip`, the inflated bytes that are not wanted.
        size: compressed bytes.
        dtype: NumPy's name of the samples that come out.
        shape: of what comes out.
    """

    syntax: str
    plugin: str
    options: Options
    size: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def decoded_bytes(self) -> int:
        """Bytes that come out."""
        found = np.dtype(self.dtype).itemsize
        for length in self.shape:
            found *= length
        return found

    def cpu_s(self, base_s: float) -> float:
        """Processor time that it may take."""
        return base_s + limits.DECODE_CPU_S_PER_MIB * self.decoded_bytes / (1 << 20)


def decoded(content: bytes, job: Job) -> NDArray[Any]:
    """The pixels of one frame, or the inflated bytes of one data set, in this process.

    Raises:
        Exception: those of DECODER_ERRORS, and MemoryError.
    """
    if job.plugin == INFLATE:
        return _inflated(content, int(job.options["skip"]), job.shape[0])
    decoder = cast("Any", get_decoder(UID(job.syntax)))
    found, _ = decoder.as_array(
        encapsulate([content], has_bot=False), raw=True, index=0, decoding_plugin=job.plugin, **job.options
    )
    return cast("NDArray[Any]", found)


def _inflated(content: bytes, skip: int, wanted: int) -> NDArray[np.uint8]:
    """`wanted` bytes of the inflated stream behind the first `skip`; never holds more than those and a piece."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    out = np.empty(wanted, np.uint8)
    filled, rest = 0, content
    try:
        while filled < wanted:
            piece = inflater.decompress(rest, _INFLATE_PIECE)
            rest = inflater.unconsumed_tail
            if not piece and (inflater.eof or not rest):
                raise StreamEnds
            dropped = min(skip, len(piece))
            skip -= dropped
            take = min(len(piece) - dropped, wanted - filled)
            out[filled : filled + take] = np.frombuffer(piece, np.uint8, take, dropped)
            filled += take
    except zlib.error as error:
        raise ValueError from error
    return out


def checked(content: bytes, job: Job) -> NDArray[Any]:
    """As `decoded`, contiguous, of the type and shape that were asked for.

    Raises:
        ValueError: the decoder returned something else; and as `decoded`.
    """
    found = decoded(content, job)
    if found.shape != job.shape or found.dtype.newbyteorder("=") != np.dtype(job.dtype):
        raise ValueError(f"{found.dtype} {found.shape}")
    return np.ascontiguousarray(found, np.dtype(job.dtype))


def main() -> None:
    """Requests in on standard input, pixels out on what was standard output, until the input or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for late in TOO_LATE:
        signal.signal(late, signal.SIG_DFL)
    parent = os.getppid()
    # Codecs print to standard output; the answers get a descriptor of their own.
    answers = os.dup(1)
    os.dup2(2, 1)
    base = _address_space()
    _limit(resource.RLIMIT_AS, base + limits.DECODER_MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    with os.fdopen(answers, "wb", buffering=0) as target:
        target.write(READY)
        source = sys.stdin.buffer
        while _there(source, parent):
            head = source.read(REQUEST.size)
            if len(head) < REQUEST.size:
                return
            _answer(head, source, target, base)


def _there(source: BinaryIO, parent: int) -> bool:
    """True once a request has come; False once the parent has gone."""
    poller = select.poll()
    poller.register(source.fileno(), select.POLLIN)
    while os.getppid() == parent:
        if poller.poll(PARENT_POLL_MS):
            return True
    return False


def _answer(head: bytes, source: BinaryIO, target: BinaryIO, base: int) -> None:
    json_bytes, content_bytes = REQUEST.unpack(head)
    request = cast("dict[str, Any]", json.loads(source.read(min(json_bytes, MAX_REQUEST_JSON))))
    jobs = [Job(*item[:5], shape=tuple(item[5])) for item in request["jobs"]]
    content = source.read(content_bytes)
    _limit_memory(base, jobs, content_bytes)
    found: list[NDArray[Any]] = []
    at = 0
    try:
        for job in jobs:
            frame, at = content[at : at + job.size], at + job.size
            found.append(
                _within(job.cpu_s(float(request["seconds"])), lambda frame=frame, job=job: checked(frame, job))
            )
    except (*DECODER_ERRORS, MemoryError) as error:
        name = type(error).__name__.encode()
        _send(target, ANSWER.pack(0, len(name)), name)
        return
    _send(target, ANSWER.pack(1, sum(item.nbytes for item in found)), *(item.data.cast("B") for item in found))


def _within(cpu_s: float, action: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    # The signals end the process: a codec does not come back to the interpreter to be told.
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, limits.DECODE_WALL_FACTOR * cpu_s)
    try:
        return action()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _send(target: BinaryIO, *parts: bytes | memoryview) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[target.write(view) :]


def _limit_memory(base: int, jobs: list[Job], content_bytes: int) -> None:
    """What these frames may take: the batch in and out, and working room for its largest frame."""
    largest = max((job.decoded_bytes for job in jobs), default=0)
    wanted = 2 * content_bytes + sum(job.decoded_bytes for job in jobs) + limits.DECODER_MEMORY_FACTOR * largest
    room = min(limits.DECODER_MEMORY_BASE_BYTES + wanted, limits.DECODER_MEMORY_BYTES)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (min(base + room, hard), hard))


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
