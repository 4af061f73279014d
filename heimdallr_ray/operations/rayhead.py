"""The Ray head as a child process with its own ports, temporary folder and token. `ray stop` is never called."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from heimdallr_ray.api import flow
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import Broken, NotReady
from heimdallr_ray.folders import make_private, open_private
from heimdallr_ray.operations import ports, processes

NAMESPACE = "heimdallr"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TELLING = re.compile(r"exit code\(s\)|\w+(Error|Exception)\b|\bdied\b|\bfailed\b|\bFATAL\b", re.IGNORECASE)
_LAST_LINES = 400
_MOST_WORDS = 300
NODE_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class RayPlaces:
    """Where this installation's Ray keeps its things."""

    temp_dir: Path
    token_file: Path
    log_file: Path
    processes_file: Path


def places(settings: Settings) -> RayPlaces:
    """The Ray places of a data folder; the temporary folder is short, for unix socket names end at 107 characters."""
    digest = hashlib.sha256(str(settings.data_dir.resolve()).encode()).hexdigest()[:10]
    return RayPlaces(
        temp_dir=Path(tempfile.gettempdir()) / f"heimdallr-{os.getuid()}-{digest}",
        token_file=settings.run_dir / "ray_token",
        log_file=settings.log_dir / "ray-head.log",
        processes_file=settings.run_dir / "processes.json",
    )


def ensure_token(path: Path) -> None:
    """A token file of mode 0600 exists.

    Raises:
        Broken: the file is readable by others.
    """
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise Broken(f"{path.name} is readable by others; chmod 600 it")


def environment(where: RayPlaces) -> dict[str, str]:
    """What Ray reads from the environment, for the head and for every process that connects to it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(where.token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_TMPDIR": str(where.temp_dir),
        # Ray runs its workers at niceness 15 by default; the DICOM listener is one of them.
        "RAY_worker_niceness": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "heimdallr_ray.api.flow:proxy_middlewares",
        flow.FOLDER: str(where.temp_dir / "flow"),
    }


class RayHead:
    """A running Ray head."""

    def __init__(self, settings: Settings, gpus: int) -> None:
        """Start `ray start --head --block` as a child, with as many GPUs to reserve as torch can use."""
        self.where = places(settings)
        self._prepare_folders()
        ensure_token(self.where.token_file)
        self.gcs_port, dashboard, agent, client, metrics = self._ports(settings)
        self.address = f"{NODE_ADDRESS}:{self.gcs_port}"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address", NODE_ADDRESS, "--port", str(self.gcs_port)),
            *("--temp-dir", str(self.where.temp_dir), "--include-dashboard", "false"),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client)),
            *("--metrics-export-port", str(metrics), "--num-cpus", str(settings.ray_num_cpus or 8)),
            *("--num-gpus", str(gpus)),
            *("--object-store-memory", str(settings.object_store_mib * 2**20)),
            *("--resources", json.dumps({"dicom_scp": 1}), "--labels", "tier=live"),
        ]
        if settings.ray_worker_ports:
            first, last = settings.ray_worker_ports.split("-")
            command += ["--min-worker-port", first, "--max-worker-port", last]
        child_environment = {**os.environ, **environment(self.where), "PYTHONUNBUFFERED": "1"}
        child_environment.pop("RAY_ADDRESS", None)
        with open(self.where.log_file, "ab", opener=open_private) as log:
            self.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )

    def _prepare_folders(self) -> None:
        for folder in (self.where.token_file.parent, self.where.log_file.parent):
            make_private(folder)
        left_over = processes.remembered(self.where.processes_file) + processes.belonging_to(str(self.where.temp_dir))
        stubborn = processes.end(left_over, term_s=0, kill_s=5)
        if stubborn:
            raise Broken(f"processes of an earlier run do not end: {[process.pid for process in stubborn]}")
        with contextlib.suppress(FileNotFoundError):
            if self.where.temp_dir.lstat().st_uid != os.getuid():
                raise Broken(f"{self.where.temp_dir} belongs to another user; remove it")
        shutil.rmtree(self.where.temp_dir, ignore_errors=True)
        try:
            self.where.temp_dir.mkdir(mode=0o700)
        except FileExistsError as error:
            raise Broken(f"{self.where.temp_dir} is in the way; remove it") from error

    @staticmethod
    def _ports(settings: Settings) -> list[int]:
        wanted = [
            settings.ray_port,
            settings.ray_dashboard_port,
            settings.ray_agent_port,
            settings.ray_client_port,
            settings.ray_metrics_port,
        ]
        free = ports.pick_free(len(wanted))
        return [port or spare for port, spare in zip(wanted, free, strict=True)]

    @property
    def alive(self) -> bool:
        """True while the head runs."""
        return self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """The head and everything below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(self.process.pid), *processes.descendants(self.process.pid)]
        return []

    def remember(self) -> None:
        """Write down which processes are ours, so that the next start can end them if this one is killed."""
        processes.remember(self.where.processes_file, self.processes())

    def require_alive(self) -> None:
        """Nothing happens while the head runs.

        Raises:
            NotReady: it ended; the message holds its last words and the path of its log.
        """
        if not self.alive:
            said = last_words(self.where.log_file.read_text(encoding="utf-8", errors="replace"))
            raise NotReady(
                f"the Ray head ended with {self.process.returncode}: {said}; its log is {self.where.log_file}"
            )

    def stop(self, timeout_s: float, *, gently: bool = True) -> list[int]:
        """End the head and all that it started within `timeout_s`; returns pids that are still there.

        Args:
            timeout_s: how long all of it may take.
            gently: the head is asked to end its own. False where this process is still tied to it: then all of it is
                killed at one stroke, the raylet last, for its death may be ours.
        """
        deadline = time.monotonic() + timeout_s
        family = {process.pid: process for process in self.processes()}
        for process in processes.remembered(self.where.processes_file):
            family.setdefault(process.pid, process)
        if self.alive and gently:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(min(5.0, timeout_s / 2))
        for process in processes.belonging_to(str(self.where.temp_dir)):
            family.setdefault(process.pid, process)
        left = processes.end(
            sorted(family.values(), key=_is_raylet), term_s=0, kill_s=max(1.0, deadline - time.monotonic())
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.where.processes_file.unlink(missing_ok=True)
        shutil.rmtree(self.where.temp_dir, ignore_errors=True)
        return [process.pid for process in left]


def _is_raylet(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "raylet"
    return False


def last_words(log: str) -> str:
    """The line near the end of Ray's log that says most of why it ended, bounded; Ray ends its logs with statistics."""
    lines = [line.strip() for line in _COLOUR.sub("", log).splitlines()[-_LAST_LINES:] if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)]
    return (telling or lines or ["it said nothing"])[-1][:_MOST_WORDS]
