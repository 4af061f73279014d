"""A PACS in its own process: Debian's Orthanc with its DICOMweb plugin, on free loopback ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PLUGINS = Path("/usr/share/orthanc/plugins")
DICOMWEB = PLUGINS / "libOrthancDicomWeb.so"
START_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    """A running server."""

    url: str
    dicom_port: int

    def client(self, timeout_s: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def store(self, content: bytes) -> None:
        """`content`, a Part 10 file, is in the PACS."""
        with self.client() as client:
            client.post("/instances", content=content).raise_for_status()

    def studies(self) -> list[str]:
        """Orthanc's own ids of its studies."""
        with self.client() as client:
            return client.get("/studies").raise_for_status().json()


@contextmanager
def orthanc(folder: Path, **changes: Any) -> Generator[Orthanc]:
    """A server with its data in `folder`; `changes` are keys of its configuration file."""
    folder.mkdir(parents=True, exist_ok=True)
    http_port, dicom_port = free_port(), free_port()
    configuration: dict[str, Any] = {
        "Name": "PACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": "PACS",
        "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [],
        "DicomWeb": {"Enable": True, "Servers": {}},
        **changes,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration), encoding="utf-8")
    log = (folder / "orthanc.log").open("wb")
    process = subprocess.Popen(
        ["/usr/sbin/Orthanc", str(file)], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "TCP_NODELAY": "1"}
    )
    made = Orthanc(f"http://127.0.0.1:{http_port}", dicom_port)
    try:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, (folder / "orthanc.log").read_text(errors="replace")
            assert time.monotonic() < deadline, "Orthanc did not start"
            try:
                with made.client(1.0) as client:
                    client.get("/system").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        log.close()
