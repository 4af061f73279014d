"""A listener in processes of its own: what they cost is read from the kernel, what they count from the listener."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
START_S = 120.0
RECEIVING = "heimdallr_ray.listener.wire.child"
"""In the command line of a receiving process."""
MAX_LOG_BYTES = 64 << 20
ERROR_LINE = re.compile(r" (ERROR|CRITICAL) heimdallr_ray|^Traceback|^Fatal ")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What something has cost a process."""

    cpu_s: float
    rss_growth_mib: float
    """Highest resident size meanwhile, less that before."""


class ListenerProcess:
    """A running `tests.support.listener_runner`."""

    def __init__(self, process: subprocess.Popen[str], root: Path, said: IO[str]) -> None:
        """`said` is what the receiving processes write."""
        self.process = process
        self._said = said
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
        """What the listener counts (see `listener_runner`), with the errors of its receiving processes."""
        self._say()
        status: dict[str, Any] = json.loads(self._line(30.0))
        for line in self.said().splitlines():
            if ERROR_LINE.search(line):
                status["errors"][line] = 1
        return status

    def said(self) -> str:
        """The log of its receiving processes."""
        return os.pread(self._said.fileno(), MAX_LOG_BYTES, 0).decode("utf-8", "replace")

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

    def children(self) -> list[int]:
        """Processes that it has started and that still run."""
        return children_of(self.pid)

    def receiving(self) -> list[int]:
        """Those of its children that receive."""
        return [pid for pid in self.children() if RECEIVING in _command_line(pid)]

    def _pids(self) -> list[int]:
        return [self.pid, *self.receiving()]

    def rss_mib(self) -> float:
        """Resident size now, of it and of its receiving processes together."""
        return sum(_status_mib(pid, "VmRSS") for pid in self._pids())

    def peak_mib(self) -> float:
        """Highest resident size of each since the start or the last `cost`, together."""
        return sum(_status_mib(pid, "VmHWM") for pid in self._pids())

    def cpu_s(self) -> float:
        """Processor time of all threads of all of them."""
        return sum(_cpu_s(pid) for pid in self._pids())

    def open_files(self) -> int:
        """Descriptors of all of them."""
        return sum(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) for pid in self._pids())

    def cost(self, action: Callable[[], object]) -> Cost:
        """What the listener spent while `action` ran. A receiving process that is replaced meanwhile is an error."""
        pids = self._pids()
        for pid in pids:
            # The highest resident size counts from here on (proc(5), clear_refs).
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        before, cpu = self.rss_mib(), self.cpu_s()
        action()
        assert self._pids() == pids, "a receiving process has died"
        return Cost(self.cpu_s() - cpu, self.peak_mib() - before)


def children_of(pid: int) -> list[int]:
    """Processes that this one has started and that still run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text(encoding="ascii").split()]


def _command_line(pid: int) -> str:
    """Empty where the process has gone meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def _status_mib(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def prepared(root: Path, port: int = 0, idle_s: float = 1.0, **changes: object) -> Generator[ListenerProcess]:
    """A process with everything imported and nothing opened; `begin` starts it. Killed at the end if it still lives."""
    settings = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.listener_runner", str(root), str(port), str(idle_s), *settings],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    listener = ListenerProcess(process, root, said)
    try:
        yield listener
    finally:
        process.kill()
        process.wait(30)
        sys.stderr.write(listener.said())
        said.close()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def running(root: Path, port: int = 0, idle_s: float = 1.0, **changes: object) -> Generator[ListenerProcess]:
    """A listener that answers."""
    with prepared(root, port, idle_s, **changes) as listener:
        listener.begin()
        yield listener
