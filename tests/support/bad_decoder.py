"""A decoder's child process whose codec does what the content says: it crashes, hangs, eats memory, or obeys."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from heimdallr_ray.dicom import decoder


def misbehaved(content: bytes, job: decoder.Job) -> Any:
    word, _, rest = content.partition(b" ")
    match word:
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"leave":
            os._exit(3)
        case b"spin":
            while True:
                pass
        case b"sleep":
            time.sleep(60)
        case b"stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case b"eat":
            # Untouched, so that the limit on addresses is met before that on time.
            eaten = [np.empty(64 << 20, np.uint8) for _ in range(4096)]
            return np.full(job.shape, len(eaten), job.dtype)
        case b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"kill-once":
            marker = Path(rest.decode())
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case b"shape":
            return np.zeros((1, 1), job.dtype)
        case b"dtype":
            return np.zeros(job.shape, np.float64)
        case b"limits":
            kinds = (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)
            return np.array([resource.getrlimit(kind)[1] for kind in kinds], job.dtype)
        case b"environment":
            secrets = [name for name in os.environ if "HEIMDALLR" in name]
            return np.array([len(secrets), os.getpid()], job.dtype)
        case _:
            pass
    return np.full(job.shape, len(content), job.dtype)


if __name__ == "__main__":
    decoder.decoded = misbehaved
    decoder.main()
