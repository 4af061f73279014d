"""A listener in a process of its own, to be killed: `python -m tests.support.listener_runner DATA_DIR PORT IDLE_S`."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from tests.support.intake import Intake


def main() -> None:
    root, port, idle_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    intake = Intake(root, dicom_port=port, idle_seconds=idle_s)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with intake.listening() as service:
        sys.stdout.write(f"{service.scp.port}\n")
        sys.stdout.flush()
        ended.wait(600)


if __name__ == "__main__":
    main()
