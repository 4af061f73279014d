"""A decoder's child process that every frame crashes."""

from __future__ import annotations

import os
import signal
from typing import Any

from heimdallr_ray.dicom import decoder


def crash(content: bytes, job: decoder.Job) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


if __name__ == "__main__":
    decoder.decoded = crash
    decoder.main()
