"""A listener in a process of its own: what it costs is read from the kernel, what it counts from itself."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_S = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What something has cost a process."""

    cpu_s: float
    rss_growth_mib: float
    """Highest resident size meanwhile, less that before."""


class ListenerProcess:
    """A running `tests.support.listener_runner`."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        self.process = process
        self.root = root
        self.port = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self) -> int:
        """The listener answers on its port, which is returned."""
        self._say()
        self.port = int(self._line(START_S))
        return self.port

    def status(self) -> dict[str, Any]:
        """What the listener counts (see `listener_runner`)."""
        self._say()
        return json.loads(self._line(30.0))

    def kill(self) -> None:
        """SIGKILL; it is gone."""
        self.process.kill()
        self.process.wait(30)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def _say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def _line(self, timeout_s: float) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        assert ready, f"the listener said nothing for {timeout_s} s"
        return self.process.stdout.readline().strip()

    # From the kernel -------------------------------------------------------------------------------------------------

    def _status_mib(self, field: str) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))

    def rss_mib(self) -> float:
        """Resident size now."""
        return self._status_mib("VmRSS")

    def peak_mib(self) -> float:
        """Highest resident size since the start or the last `cost`."""
        return self._status_mib("VmHWM")

    def cpu_s(self) -> float:
        """Processor time of all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def open_files(self) -> int:
        """Descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def children(self) -> list[int]:
        """Processes that it has started."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for path in tasks for pid in path.read_text(encoding="ascii").split()]

    def cost(self, action: Callable[[], object]) -> Cost:
        """What the listener spent while `action` ran."""
        # The highest resident size counts from here on (proc(5), clear_refs).
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")
        before, cpu = self.rss_mib(), self.cpu_s()
        action()
        return Cost(self.cpu_s() - cpu, self.peak_mib() - before)


@contextmanager
def prepared(root: Path, port: int = 0, idle_s: float = 1.0, **changes: object) -> Generator[ListenerProcess]:
    """A process with everything imported and nothing opened; `begin` starts it. Killed at the end if it still lives."""
    settings = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.listener_runner", str(root), str(port), str(idle_s), *settings],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield ListenerProcess(process, root)
    finally:
        process.kill()
        process.wait(30)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def running(root: Path, port: int = 0, idle_s: float = 1.0, **changes: object) -> Generator[ListenerProcess]:
    """A listener that answers."""
    with prepared(root, port, idle_s, **changes) as listener:
        listener.begin()
        yield listener
