"""One supervisor: Ray head as a child, the SCP actor, the Serve application. Stopped, it leaves no trace."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import heimdallr_ray
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings, save_effective
from heimdallr_ray.errors import HeimdallrError, NotReady
from heimdallr_ray.operations import application, ports, processes
from heimdallr_ray.operations.leases import release_leases_of_the_dead
from heimdallr_ray.operations.lock import DataFolderLock, Holder
from heimdallr_ray.operations.rayhead import NAMESPACE, RayHead, environment
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.weights import read_manifest

log = logging.getLogger(__name__)

READY_S = 60.0
FIRST_READY_S = 120.0
"""The first start after an installation reads gigabytes of libraries that no cache holds yet."""
STOP_S = 13.0
REMEMBER_EVERY_S = 2.0
SCP_ACTOR = "dicom_scp"

Progress = Callable[[str], None]


def build_id() -> str:
    """Version plus a digest of the package's own sources: changed code is redeployed."""
    root = Path(heimdallr_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{heimdallr_ray.__version__}+{digest.hexdigest()[:12]}"


def resolve_ports(settings: Settings) -> Settings:
    """The settings with every port that was left to us (0) replaced by a free one."""
    names = [name for name in ("server_port", "dicom_port") if getattr(settings, name) == 0]
    return settings.model_copy(update=dict(zip(names, ports.pick_free(len(names)), strict=True)))


class Supervisor:
    """Starts, watches and stops the stack of one data folder."""

    def __init__(self, settings: Settings, clock: Clock, progress: Progress = lambda _: None) -> None:
        """Nothing is started yet."""
        self.settings = resolve_ports(settings)
        self.build = build_id()
        self._clock = clock
        self._progress = progress
        self._stop = threading.Event()
        self._drain = threading.Event()
        self._waiting = False
        self._lock: DataFolderLock | None = None
        self._holder: Holder | None = None
        self._head: RayHead | None = None
        self._started = False

    @property
    def _draining_file(self) -> Path:
        """While it is there, uploads are refused."""
        return self.settings.run_dir / "draining"

    @property
    def url(self) -> str:
        """Where the pages are."""
        return application.server_url(self.settings)

    def start(self) -> None:
        """The stack is ready.

        Raises:
            AlreadyRunning: another supervisor holds the data folder.
            WeightsMissing, WeightsTampered: there is no readable registry of models.
            NotReady: it did not become ready within 60 s (120 s on the first start); says what was missing.
        """
        self.settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DataFolderLock(self.settings.run_dir)
        self._started = True
        first = not (self.settings.run_dir / "started_before").exists()
        deadline = time.monotonic() + (FIRST_READY_S if first else READY_S)
        self._holder = Holder(
            pid=os.getpid(),
            started_at=self._clock.now().isoformat(timespec="seconds"),
            server_url=self.url,
            dicom=f"{self.settings.ae_title}@{self.settings.dicom_host}:{self.settings.dicom_port}",
            build=self.build,
            state="starting",
        )
        self._lock.note(self._holder)
        self._install_signals()
        self._draining_file.unlink(missing_ok=True)
        self._require_ports()
        read_manifest(self.settings.resolved_weights_dir or weights_dir())
        self._progress("database")
        database = Database(self.settings.resolved_database_url)
        database.migrate()
        release_leases_of_the_dead(self.settings, database, self._clock, orderly=False)
        database.close()
        effective = self.settings.run_dir / "settings.json"
        save_effective(self.settings, effective)
        self._progress("ray head")
        self._head = RayHead(self.settings)
        self._connect(deadline)
        self._head.remember()
        self._progress("DICOM listener")
        application.deploy(self.settings, effective, self.build)
        self._start_scp(effective, deadline)
        self._progress("models and Serve application")
        self._wait_ready(deadline)
        self._head.remember()
        (self.settings.run_dir / "started_before").touch()
        self._set_state("ready")
        self._progress("ready")

    def wait(self) -> None:
        """Returns when a signal came, or when the stack is drained. Until it is called, a signal raises NotReady.

        Raises:
            NotReady: the Ray head ended by itself.
        """
        self._waiting = True
        while not self._stop.wait(REMEMBER_EVERY_S if not self._drain.is_set() else 0.5):
            assert self._head is not None  # noqa: S101
            self._head.require_alive()
            self._head.remember()
            if self._drain.is_set() and self._drained():
                return

    def stop(self) -> list[int]:
        """No process of ours and no open port is left; running work is leased anew by the next start.

        Returns the pids that could not be ended.
        """
        if not self._started:
            return []
        self._waiting = True
        self._set_state("stopping")
        self._progress("stopping")
        left: list[int] = []
        if self._head is not None:
            self._head.remember()
            with contextlib.suppress(Exception):
                self._stop_scp(timeout_s=3.0)
            with contextlib.suppress(Exception):
                _ray().shutdown()
            left = self._head.stop(STOP_S - 4.0)
            self._release_leases()
        self._draining_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
        self._started = False
        return left

    def _release_leases(self) -> None:
        """What was running waits again, at no cost: it was stopped on purpose."""
        database = Database(self.settings.resolved_database_url)
        try:
            release_leases_of_the_dead(self.settings, database, self._clock, orderly=True)
        except HeimdallrError as error:
            # The leases run out by themselves.
            log.warning("leases not released", extra={"code": error.code})
        finally:
            database.close()

    # Start -----------------------------------------------------------------------------------------------------------

    def _require_ports(self) -> None:
        wanted = {"HTTP": (self.settings.server_host, self.settings.server_port)}
        wanted["DICOM"] = (self.settings.dicom_host, self.settings.dicom_port)
        for what, (host, port) in wanted.items():
            if not ports.is_free(port, host):
                who = ", ".join(f"{at.process} (pid {at.pid})" for at in ports.listeners({port})) or "another process"
                raise NotReady(f"{what} port {port} is taken by {who}; free it or set another one")

    def _connect(self, deadline: float) -> None:
        assert self._head is not None  # noqa: S101
        os.environ.update(environment(self._head.where))
        os.environ.pop("RAY_ADDRESS", None)
        ray = _ray()
        while True:
            self._head.require_alive()
            if time.monotonic() > deadline:
                raise NotReady("the Ray head does not answer")
            # ray.init waits for minutes on a port where nobody listens.
            if not ports.answers(self._head.gcs_port):
                time.sleep(0.2)
                continue
            try:
                ray.init(address=self._head.address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
                break
            except (ConnectionError, RuntimeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise NotReady(f"the Ray head does not answer: {error}") from error
                time.sleep(0.3)
        # ray.init installs its own SIGTERM handler, which would end us without cleaning up.
        self._install_signals()

    def _start_scp(self, effective: Path, deadline: float) -> None:
        from heimdallr_ray.listener.actor import DicomScp

        actor = DicomScp.options(name=SCP_ACTOR, namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
        handle = actor.remote(str(effective), self.build)
        try:
            _ray().get(handle.status.remote(), timeout=max(1.0, deadline - time.monotonic()))
        except Exception as error:
            raise NotReady(f"the DICOM listener did not start: {error}") from error

    def _wait_ready(self, deadline: float) -> None:
        assert self._head is not None  # noqa: S101
        missing = "nothing answered yet"
        while time.monotonic() < deadline:
            self._head.require_alive()
            missing = application.missing(self.settings)
            if not missing:
                return
            time.sleep(0.3)
        raise NotReady(f"not ready in time: {missing}; logs are in {self.settings.log_dir}")

    # Signals and state -----------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_drain)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()
        if not self._waiting:
            raise NotReady("stopped by a signal before the work was done")

    def _on_drain(self, _number: int, _frame: FrameType | None) -> None:
        self._drain.set()

    def _set_state(self, state: str) -> None:
        if self._lock is not None and self._holder is not None:
            self._holder = replace(self._holder, state=state)
            self._lock.note(self._holder)

    # Stop ------------------------------------------------------------------------------------------------------------

    def _drained(self) -> bool:
        if self._holder is not None and self._holder.state != "draining":
            self._set_state("draining")
            self._progress("draining: no new images; open studies are closed and finished")
            self._draining_file.touch()
            ray = _ray()
            ray.get(ray.get_actor(SCP_ACTOR, namespace=NAMESPACE).drain.remote(), timeout=30.0)
        return application.unfinished(self.settings) == 0

    def _stop_scp(self, timeout_s: float) -> None:
        ray = _ray()
        try:
            handle = ray.get_actor(SCP_ACTOR, namespace=NAMESPACE)
        except ValueError:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(handle.stop.remote(), timeout=timeout_s)
        ray.kill(handle)


def _ray() -> Any:  # noqa: ANN401
    """Ray, whose types do not describe it; imported late, for its import reads the environment."""
    import ray

    return ray


def describe(holder: Holder) -> dict[str, Any]:
    """The holder's note as JSON."""
    return asdict(holder)


def stack_memory_mib(supervisor_pid: int) -> float:
    """PSS of the supervisor and everything below it, in MiB."""
    import psutil

    return processes.stack_pss_mib([psutil.Process(supervisor_pid), *processes.descendants(supervisor_pid)])


def run(settings: Settings, clock: Clock, progress: Progress) -> int:
    """`heimdallr up`: start, wait, stop. The exit status: 0 after an orderly stop, 1 with the reason said."""
    supervisor = Supervisor(settings, clock, progress)
    try:
        supervisor.start()
        supervisor.wait()
    except HeimdallrError as error:
        progress(f"failed: {error.code}: {error.detail}")
        return 1
    finally:
        left = supervisor.stop()
        if left:
            progress(f"processes that did not end: {left}")
    return 0
