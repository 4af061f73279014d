"""A listener in a process of its own, to be killed: `python -m tests.support.listener_runner DATA_DIR PORT IDLE_S`.

It opens nothing before it has read a line, so that a second one can be ready when the first is killed.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from tests.support.intake import Intake


def main() -> None:
    root, port, idle_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    sys.stdin.readline()
    intake = Intake(root, dicom_port=port, idle_seconds=idle_s)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with intake.listening() as service:
        sys.stdout.write(f"{service.scp.port}\n")
        sys.stdout.flush()
        ended.wait(600)


if __name__ == "__main__":
    main()
