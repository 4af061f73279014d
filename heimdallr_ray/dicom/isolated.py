"""Frames whose only decoder can end its process on damaged input (GDCM: JPEG lossless, 12-bit JPEG), in a child.

One child serves this process; it dies with it, with a frame that kills it, and after `limits.DECODE_TIMEOUT_S`. The
next frame starts another. What travels is one line of JSON and bytes; nothing is pickled.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import subprocess
import sys
import threading
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from heimdallr_ray.dicom import limits
from heimdallr_ray.errors import NotAVolume

DECODER_ERRORS: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
"""What the codecs raise on damaged input, found by feeding them damage."""

_MAX_LINE: Final = 4096

Options = dict[str, int | str]


def decoded(frame: bytes, syntax: str, plugin: str, options: Options) -> NDArray[Any]:
    """One frame `[row, column]` by pydicom's decoder, in this process.

    Raises:
        Exception: those of DECODER_ERRORS.
    """
    decoder = cast("Any", get_decoder(UID(syntax)))
    found, _ = decoder.as_array(
        encapsulate([frame], has_bot=False), raw=True, index=0, decoding_plugin=plugin, **options
    )
    return cast("NDArray[Any]", found)


def decoded_in_child(frame: bytes, syntax: str, plugin: str, options: Options) -> NDArray[Any]:
    """As `decoded`, in the child process.

    Raises:
        NotAVolume: `undecodable_pixels`: the decoder refused, crashed, or took too long.
    """
    with _CHILD.lock:
        request = {"syntax": syntax, "plugin": plugin, "options": options, "bytes": len(frame)}
        try:
            return _CHILD.ask(request, frame)
        except (OSError, EOFError, ValueError) as error:
            _CHILD.stop()
            raise NotAVolume("undecodable_pixels", "the decoder's process ended or answered nonsense") from error


class _Child:
    """The child process of this process, started when first asked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any], frame: bytes) -> NDArray[Any]:
        process = self._running()
        timer = threading.Timer(limits.DECODE_TIMEOUT_S, process.kill)
        timer.daemon = True
        timer.start()
        try:
            to_child, from_child = cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout)
            to_child.write(json.dumps(request).encode() + b"\n" + frame)
            to_child.flush()
            reply = cast("dict[str, Any]", json.loads(from_child.readline(_MAX_LINE) or b"0") or {})
            if not reply:
                raise EOFError
            if "error" in reply:
                raise NotAVolume("undecodable_pixels", f"{reply['error']} from the decoder")
            size = int(reply["bytes"])
            if not 0 <= size <= limits.MAX_PIXEL_BYTES_PER_OBJECT:
                raise ValueError(size)
            content = from_child.read(size)
            if len(content) < size:
                raise EOFError
            return np.frombuffer(content, np.dtype(str(reply["dtype"]))).reshape(reply["shape"])
        finally:
            timer.cancel()

    def stop(self) -> None:
        """The child is gone."""
        process, self._process = self._process, None
        # After a fork the child belongs to the other process.
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait(timeout=limits.DECODE_TIMEOUT_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            command = [sys.executable, "-m", "heimdallr_ray.dicom.isolated"]
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no outside text
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._owner = os.getpid()
        return self._process


_CHILD: Final = _Child()
atexit.register(_CHILD.stop)


def main() -> None:
    """The child's side: frames in on standard input, pixels out on what was standard output, until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.DECODER_MEMORY_BYTES, limits.DECODER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = sys.stdin.buffer
    # Codecs print to standard output; the answers get a descriptor of their own.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        while line := requests.readline(_MAX_LINE):
            request = json.loads(line)
            frame = requests.read(int(request["bytes"]))
            try:
                found = decoded(frame, request["syntax"], request["plugin"], request["options"])
            except (*DECODER_ERRORS, MemoryError) as error:
                answers.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
            else:
                head = {"dtype": found.dtype.str, "shape": found.shape, "bytes": found.nbytes}
                answers.write(json.dumps(head).encode() + b"\n" + np.ascontiguousarray(found).tobytes())
            answers.flush()


if __name__ == "__main__":
    main()
