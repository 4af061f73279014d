"""The whole product as a child process: `heimdallr up` on a data folder of its own, ports of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import psutil

from heimdallr_ray.catalog.states import TERMINAL
from heimdallr_ray.operations import lock, ports, processes
from tests.support.freeport import free_ports

START_S = 150.0
"""Five times a quiet start; how long one takes is asked by the benchmark `road`, and the default by test_lifecycle."""
READY_S = 2 * START_S + 20.0
HANG_S = 60.0
"""Many times what a stop takes; how long it takes is asked by the benchmark `road`."""
# The packages' own variables would make the child depend on the shell that runs the tests.
LEFT_OUT = ("HEIMDALLR_TEST_DATA", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")


@dataclass
class Stack:
    """One running stack; `start` and `stop` may be called again and again on the same data folder."""

    data_dir: Path
    overrides: Mapping[str, str] = field(default_factory=dict[str, str])
    server_port: int = 0
    dicom_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.server_port, self.dicom_port = free_ports(2)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def log_file(self) -> Path:
        return self.data_dir / "up.log"

    def log_path(self) -> Path:
        """The log file, in a folder that exists."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        return self.log_file

    def environment(self) -> dict[str, str]:
        names = ("port", "dashboard_port", "agent_port", "client_port", "metrics_port")
        return {
            **{key: value for key, value in os.environ.items() if key not in LEFT_OUT},
            **{f"HEIMDALLR_RAY_{name.upper()}": "0" for name in names},
            "HEIMDALLR_PROFILE": "demo",
            "HEIMDALLR_DATA_DIR": str(self.data_dir),
            "HEIMDALLR_SERVER_PORT": str(self.server_port),
            "HEIMDALLR_DICOM_PORT": str(self.dicom_port),
            "HEIMDALLR_IDLE_SECONDS": "3",
            "HEIMDALLR_SETTLE_AFTER_ABORT_SECONDS": "3",
            "HEIMDALLR_SCAN_SECONDS": "0.5",
            "HEIMDALLR_RAY_WORKER_PORTS": "21000-29999",
            "HEIMDALLR_START_SECONDS": str(START_S),
            **self.overrides,
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "heimdallr_ray.cli", *words]

    def start(self) -> Stack:
        try:
            return self._start()
        except BaseException:
            self.clean_up()
            raise

    def _start(self) -> Stack:
        with self.log_path().open("ab") as log:
            self.process = subprocess.Popen(
                self.command("up"), env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + READY_S
        while self.state() != "ready":
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the stack did not become ready:\n{self.log_file.read_text()[-4000:]}")
            time.sleep(0.2)
        return self

    def state(self) -> str:
        """State in the note of the process that we started; the note of an earlier, killed one does not count."""
        holder = lock.read_holder(self.data_dir / "run")
        ours = self.process is not None and holder is not None and holder.pid == self.process.pid
        return holder.state if ours and holder is not None else "down"

    def members(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            head = psutil.Process(self.process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Seconds from the signal until the supervisor ended."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(HANG_S)
        return time.monotonic() - began

    def kill_everything(self) -> int:
        """SIGKILL to every process of the stack at once; how many there were."""
        members = self.members()
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(members, timeout=15)
        assert self.process is not None
        self.process.wait(15)
        return len(members)

    def clean_up(self) -> None:
        """Nothing of this stack is left, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill_everything()
        processes.end(processes.remembered(self.data_dir / "run" / "processes.json"), term_s=0, kill_s=5)

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def studies(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self.get("/studies?limit=200")["studies"])

    def wait_for(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """The first true value of `condition`; answers that do not come yet are asked for again."""
        deadline = time.monotonic() + timeout_s
        last: object = None
        while time.monotonic() < deadline:
            try:
                last = condition()
            except httpx.HTTPError as error:
                last = error
            else:
                if last:
                    return last
            time.sleep(0.25)
        raise AssertionError(f"{what}: not within {timeout_s:.0f} s; last answer {last!r}")

    def finished(self, study_uid: str, timeout_s: float = 300) -> dict[str, Any]:
        """The study's detail once it is in a terminal state."""

        def terminal() -> dict[str, Any] | None:
            answer = httpx.get(f"{self.url}/api/v1/studies/{study_uid}", timeout=10)
            if answer.status_code != 200:
                return None
            detail = cast(dict[str, Any], answer.json())
            return detail if detail["study"]["state"] in TERMINAL else None

        return cast(dict[str, Any], self.wait_for(terminal, timeout_s, f"study {study_uid[-12:]} to finish"))

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A `heimdallr` command against this stack."""
        return subprocess.run(
            self.command(*words),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """A `heimdallr` command against this stack, not waited for."""
        return subprocess.Popen(self.command(*words), env=self.environment(), stdin=subprocess.DEVNULL)

    def run_json(self, *words: str, timeout_s: float = 120) -> Any:
        done = self.run(*words, "--json", timeout_s=timeout_s)
        return json.loads(done.stdout)


def listener_process(stack: Stack) -> psutil.Process:
    """The one that holds the DICOM port."""
    (found,) = ports.listeners({stack.dicom_port})
    assert found.pid is not None
    return psutil.Process(found.pid)


def gone(members: Sequence[psutil.Process]) -> None:
    """None of them is left, or will be once the kernel is done with it."""
    assert processes.wait_until(lambda: not any(member.is_running() for member in members), timeout_s=10)
