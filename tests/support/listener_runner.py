"""A listener in a process of its own, to be killed: `python -m tests.support.listener_runner DATA_DIR PORT IDLE_S`.

It opens nothing before it has read a line, so that a second one can be ready when the first is killed. Further
arguments are settings, NAME=VALUE with the value in JSON. Each further line that it reads is answered with one line of
JSON: what `ListenerService.status` counts, and how many records each logger message of level ERROR has had.
"""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

from heimdallr_ray.listener.service import ListenerService
from tests.support.intake import Intake

SYNC_S = 20.0


class ErrorCounter(logging.Handler):
    """Counts what the package logs as an error, by message."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        # pynetdicom calls whatever a stranger sends an error.
        if not record.name.startswith("heimdallr_ray"):
            return
        what = f"{record.msg} {record.exc_info[1]!r}" if record.exc_info else str(record.msg)
        self.counts[what[:300]] += 1


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def answer_each_line(service: ListenerService, errors: ErrorCounter) -> None:
    """Until the parent closes the pipe."""
    while sys.stdin.readline():
        gc.collect()
        # What was answered is counted, whichever process took it.
        if not service.scp.sync(SYNC_S):
            errors.counts["a receiving process does not answer"] += 1
        status = service.status()
        say(
            json.dumps(
                {
                    "counts": status.counts,
                    "healthy": status.healthy,
                    "open": status.open_associations,
                    "spool": status.spool_depth,
                    "quarantined": status.quarantined,
                    "threads": threading.active_count(),
                    "errors": dict(errors.counts),
                }
            )
        )


def main() -> None:
    root, port, idle_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    changes = {name: json.loads(value) for name, _, value in (item.partition("=") for item in sys.argv[4:])}
    sys.stdin.readline()
    errors = ErrorCounter()
    logging.getLogger().addHandler(errors)
    intake = Intake(root, dicom_port=port, **{"idle_seconds": idle_s, **changes})
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with intake.listening() as service:
        say(str(service.scp.port))
        threading.Thread(target=answer_each_line, args=(service, errors), daemon=True).start()
        ended.wait(3600)


if __name__ == "__main__":
    main()
