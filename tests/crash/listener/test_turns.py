"""What goes wrong in one association of a process is no matter of the others, nor of the studies that wait to close."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.listener import reception
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.spool import Spool
from heimdallr_ray.listener.writer import HEAD_BYTES, ROOM_BYTES
from tests.support.intake import Intake, ct_slice, dataset_bytes, dcmtk, file_bytes, wait_for
from tests.support.wirepeer import Gone, WirePeer

STUDY = "1.2.826.0.1.3680043.9.9.65"
HANG_S = 30.0


def body(index: int, size: int = 16) -> bytes:
    return dataset_bytes(file_bytes(ct_slice(index, STUDY, f"{STUDY}.7", size=size)))


def long_header() -> bytes:
    """Of one image of which more is read than is kept in memory."""
    dataset = ct_slice(1, STUDY, f"{STUDY}.7")
    dataset.private_block(0x0009, "LONG", create=True).add_new(0x01, "OB", bytes(2 * HEAD_BYTES))
    return dataset_bytes(file_bytes(dataset))


CALLS: dict[str, Callable[[], bytes]] = {
    "writev": lambda: body(1, 512),
    "fsync": lambda: body(1, 512),
    "room": lambda: body(1, 2200),
    "read_back": long_header,
}


@pytest.mark.peers("echoscu")
@pytest.mark.parametrize("call", CALLS)
def test_a_disk_that_stands_still_keeps_nobody_else_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    intake = Intake(tmp_path / "data", listener_processes=0)
    stands, goes_on = threading.Event(), threading.Event()
    content = CALLS[call]()

    def stand_still() -> None:
        stands.set()
        goes_on.wait(HANG_S)

    def stall() -> None:
        if call == "room":
            require_room = Spool.require_room

            def slow_room(spool: Spool, size: int = 0) -> None:
                if size == ROOM_BYTES:
                    stand_still()
                require_room(spool, size)

            monkeypatch.setattr(Spool, "require_room", slow_room)
        elif call == "read_back":

            def slow_read(path: Path) -> Header:
                stand_still()
                return read_header(path)

            monkeypatch.setattr(reception, "read_header", slow_read)
        else:
            real = getattr(os, call)

            def slow(fd: int, *arguments: Sequence[bytes]) -> object:
                if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".part":
                    stand_still()
                return real(fd, *arguments)

            monkeypatch.setattr(os, call, slow)

    answers: list[int] = []
    with intake.listening() as service:
        stall()

        def send() -> None:
            with WirePeer(service.scp.port) as peer:
                answers.append(peer.store(content, f"{STUDY}.7.1"))

        sender = threading.Thread(target=send)
        sender.start()
        assert stands.wait(HANG_S)
        echo = dcmtk("echoscu", "-aec", "HEIMDALLR", "-ta", "10", "-td", "10", "127.0.0.1", str(service.scp.port))
        assert echo.returncode == 0, echo.stderr
        assert answers == []
        goes_on.set()
        sender.join(HANG_S)
        assert answers == [0]


def test_a_report_that_breaks_costs_its_association_and_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(tmp_path / "data", listener_processes=0)
    answers: list[int] = []

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Registry, "stored", broken)
    with intake.listening() as service:
        with pytest.raises(Gone), WirePeer(service.scp.port) as peer:
            answers.append(peer.store(body(1), f"{STUDY}.7.1"))
            peer.store(body(2), f"{STUDY}.7.2")
        assert answers == [0]
        wait_for(lambda: not service.registry.open_associations(), HANG_S, "the association to be closed")
        # Nothing waits for ever for the report that will not come.
        assert service.scp.sync(HANG_S)
        assert list(intake.settings.spool_dir.glob("incoming/*/*.part")) == []
        assert service.receiver.adopt_orphans(0.0) == 1
        assert len(intake.instances()) == 1
    assert "connection.failed" in caplog.text
