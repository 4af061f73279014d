"""A large upload through Serve: what its sender is faster by than the disk lies in nobody's memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.stack import Stack

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
MIB = 1 << 20
SIZE = 600 * MIB
ROOM_MIB = 100
"""The window, Serve's messages on their way, and what an allocator keeps of them; the body is several times that."""


def on_the_road(stack: Stack) -> dict[str, psutil.Process]:
    found: dict[str, psutil.Process] = {}
    for process in stack.members():
        title = " ".join(process.cmdline())
        for name in ("ProxyActor", "ServeReplica:heimdallr:Ingress"):
            if name in title:
                found[name] = process
    return found


def own(process: psutil.Process) -> int:
    """Bytes that are the process's alone: of Ray's object store each process sees every page that it ever touched."""
    return int(process.memory_full_info().uss)


def body(boundary: str) -> Iterator[bytes]:
    yield f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'.encode()
    block = os.urandom(MIB)
    for _ in range(SIZE // MIB):
        yield block
    yield f"\r\n--{boundary}--\r\n".encode()


def test_neither_proxy_nor_replica_holds_an_upload_in_memory(stack: Stack) -> None:
    processes = on_the_road(stack)
    assert len(processes) == 2, processes
    before = {name: own(process) for name, process in processes.items()}
    peak = dict(before)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for name, process in processes.items():
                peak[name] = max(peak[name], own(process))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        length = sum(len(part) for part in body("xyz"))
        headers = {"Content-Type": "multipart/form-data; boundary=xyz", "Content-Length": str(length)}
        with httpx.Client(trust_env=False, timeout=300) as client:
            answer = client.post(f"{stack.url}/api/v1/upload", content=body("xyz"), headers=headers)
    finally:
        ended.set()
        watching.join(10)
    # All of it was read: it is no archive.
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_archive")
    grown = {name: (peak[name] - before[name]) / MIB for name in peak}
    print({name: f"{mib:.0f} MiB" for name, mib in grown.items()})
    assert max(grown.values()) < ROOM_MIB
