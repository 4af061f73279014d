"""One server of the intake benchmark in a process of its own: `python -m bench.intake_server KIND FOLDER PORT`.

It prints its port, answers each line of its input with a line when all that it acknowledged is where it belongs, and
ends with its input.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from typing import Any, cast

FLUSH_S = 120.0


def ours(folder: Path, port: int, durability: str, backend: str) -> None:
    """Our listener as its actor runs it: port, committer, watcher; studies are not closed while they are sent."""
    from heimdallr_ray.catalog.database import Database
    from heimdallr_ray.clock import SystemClock
    from heimdallr_ray.config import load
    from heimdallr_ray.listener.heap import keep_for_good
    from heimdallr_ray.listener.service import ListenerService
    from heimdallr_ray.storage.blobs import LocalBlobStore

    folder.mkdir(parents=True, exist_ok=True)
    settings = load(
        {},
        data_dir=folder,
        dicom_port=port,
        durability=durability,
        dicom_backend=backend,
        idle_seconds=3600.0,
        disk_refuse_percent=100.0,
        disk_warn_percent=100.0,
        min_free_mib=0,
    )
    database = Database(settings.resolved_database_url)
    database.migrate()
    service = ListenerService(settings, database, LocalBlobStore(settings.blob_dir), SystemClock())
    service.start()
    keep_for_good()
    say(service.scp.port)
    for _ in sys.stdin:
        if not (service.scp.sync(FLUSH_S) and service.receiver.flush(FLUSH_S)):
            raise TimeoutError("rows were not committed")
        say(service.receiver.counts().committed)
    service.stop()


def original(folder: Path, port: int) -> None:
    """Pynetdicom as the original Heimdallr used it: the data set is decoded and written again by pydicom."""
    from pydicom.uid import UID
    from pynetdicom import evt
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.presentation import AllStoragePresentationContexts

    stored = 0

    def on_store(event: Any) -> int:  # noqa: ANN401
        nonlocal stored
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        target = folder / str(dataset.StudyInstanceUID)
        target.mkdir(parents=True, exist_ok=True)
        dataset.save_as(target / f"{UID(dataset.SOPInstanceUID)}.dcm", enforce_file_format=True)
        stored += 1
        return 0x0000

    entity = ApplicationEntity("HEIMDALLR")
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(cast(str, context.abstract_syntax))

    def on_open(event: Any) -> None:  # noqa: ANN401
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    server = cast(Any, entity).start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store), (evt.EVT_CONN_OPEN, on_open)]
    )
    say(server.server_address[1])
    for _ in sys.stdin:
        say(stored)
    server.shutdown()


def say(number: int) -> None:
    """One line for the parent."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the input ends."""
    logging.basicConfig(level=logging.WARNING)
    kind, folder, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if kind == "original":
        original(folder, port)
    else:
        durability, _, backend = kind.partition("/")
        ours(folder, port, durability, backend or "wire")


if __name__ == "__main__":
    main()
