"""Debian's Orthanc as a peer: started by the test on free ports, spoken to by its REST interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.freeport import free_ports

PROGRAM = shutil.which("Orthanc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"]))
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
"""Debian's package orthanc-dicomweb."""
START_S = 60.0


class Orthanc:
    """One Orthanc in a folder; `start` after `kill` goes on with the same database and ports."""

    def __init__(
        self,
        folder: Path,
        modalities: Mapping[str, Mapping[str, Any]],
        aet: str = "ORTHANC",
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.aet = aet
        self.http_port, self.dicom_port = free_ports(2)
        self._folder = folder
        self.index = folder / "storage" / "index"
        """Its SQLite database."""
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = folder / "orthanc.json"
        self._settings.write_text(
            json.dumps(
                {
                    "Name": "peer",
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "HttpPort": self.http_port,
                    "DicomPort": self.dicom_port,
                    "DicomAet": aet,
                    "DicomModalities": modalities,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "Plugins": [],
                    "SaveJobs": True,
                    "JobsHistorySize": 100,
                    "DicomAlwaysAllowStore": True,
                    "StorageCommitmentReportsSize": 100,
                    **(more or {}),
                }
            ),
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=60, trust_env=False)

    def start(self) -> None:
        """It answers."""
        assert PROGRAM is not None
        # Without TCP_NODELAY each C-STORE waits 40 ms for a delayed acknowledgement.
        with (self._folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, str(self._settings)], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if self.client.get("/system").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
            assert self._process.poll() is None, (self._folder / "log.txt").read_text(errors="replace")[-2000:]
        raise AssertionError("Orthanc did not start")

    def kill(self) -> None:
        """SIGKILL; what it had not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        self.client.close()

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, content: object) -> Any:
        """POST of bytes, or of anything else as JSON."""
        if isinstance(content, bytes):
            answer = self.client.post(path, content=content)
        else:
            answer = self.client.post(path, json=content)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def orthanc(
    folder: Path,
    modalities: Mapping[str, Mapping[str, Any]],
    aet: str = "ORTHANC",
    more: Mapping[str, Any] | None = None,
) -> Generator[Orthanc]:
    """An Orthanc that answers; it is gone afterwards. `more` are further keys of its configuration."""
    server = Orthanc(folder, modalities, aet, more)
    try:
        server.start()
        yield server
    finally:
        server.stop()
