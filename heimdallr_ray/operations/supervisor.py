"""One supervisor: Ray head as a child, the SCP actor, the Serve application. Stopped, it leaves no trace."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from heimdallr_ray import logs
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings, is_loopback, save_effective
from heimdallr_ray.errors import AlreadyRunning, HeimdallrError, NotReady
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.operations import accelerator, application, failures, ports, processes
from heimdallr_ray.operations.bounded import within
from heimdallr_ray.operations.build import build_id
from heimdallr_ray.operations.connection import Connection
from heimdallr_ray.operations.leases import release_leases_of_the_dead
from heimdallr_ray.operations.lock import DataFolderLock, Holder
from heimdallr_ray.operations.rayhead import RayHead
from heimdallr_ray.operations.vigil import Watch
from heimdallr_ray.pipelines.demand import demand_of
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.registry import require_needed

if TYPE_CHECKING:
    from heimdallr_ray.operations.scp_actor import ListenerActor

log = logging.getLogger(__name__)

FIRST_START_TIMES = 2
"""The first start after an installation reads gigabytes of libraries that no cache holds yet."""
GRACE_S = 2.0
"""Before the last moment of a start: a step that watches the time itself says more than one that is cut off."""
ATTEMPT_S = 5.0
DISCONNECT_S = 2.0
STOP_S = 12.0
"""Of the 15 s that a stop may take; the rest is for the leases and for the interpreter's own end."""
STOP_SCP_S = 3.0
RELEASE_S = 1.0
REMEMBER_EVERY_S = 2.0
DRAIN_EVERY_S = 0.5
STOPPED = "stopped by a signal before the work was done"

Progress = Callable[[str], None]


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
        self._connection = Connection()
        self._listener: ListenerActor | None = None
        self._mark = DrainMark(self.settings.run_dir)
        self._gpus = 0
        self._started = False

    @property
    def url(self) -> str:
        """Where the pages are."""
        return application.server_url(self.settings)

    def start(self) -> None:
        """The stack is ready.

        Raises:
            AlreadyRunning: another supervisor holds the data folder.
            NotReady: the log cannot be written.
            WeightsMissing, WeightsTampered: there is no readable registry with the models that a CT study needs.
            NotReady: it was not ready within `start_seconds` (twice that on the first start); says what was missing,
                and where the time is set.
        """
        self.settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DataFolderLock(self.settings.run_dir)
        self._started = True
        logs.require_writable(self.settings)
        first = not (self.settings.run_dir / "started_before").exists()
        given_s = self.settings.start_seconds * (FIRST_START_TIMES if first else 1)
        last = time.monotonic() + given_s
        deadline = last - GRACE_S
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
        self._mark.clear()
        self._require_ports()
        try:
            self._start_parts(deadline, last)
        except NotReady as error:
            if self._stop.is_set() or time.monotonic() < deadline:
                raise
            raise NotReady(
                f"{error.detail}; this start had {given_s:g} s: set start_seconds (HEIMDALLR_START_SECONDS, now "
                f"{self.settings.start_seconds:g}) higher where the machine is busy, models are large or the disk slow"
            ) from error

    def _start_parts(self, deadline: float, last: float) -> None:
        within("the weights' manifest", last, self._require_weights)
        within("the look for an accelerator", last, self._resolve_device)
        self._progress("database")
        within("the database", last, self._prepare_database)
        effective = self.settings.run_dir / "settings.json"
        save_effective(self.settings, effective)
        self._progress("ray head")
        with self._undisturbed():
            self._head = RayHead(self.settings, self._gpus)
        head = self._head
        within("the connection to the Ray head", last, lambda: self._connection.open(head, deadline))
        # Where ray.init runs in the main thread it installs its own SIGTERM handler, which would not clean up.
        self._install_signals()
        self._head.remember()
        self._progress("DICOM listener")
        within("Ray Serve", last, lambda: application.deploy(self.settings, effective, self.build))
        self._listener = within("the DICOM listener", last, lambda: self._start_scp(effective, deadline))
        self._progress("models and Serve application")
        self._wait_ready(deadline, last)
        self._head.remember()
        (self.settings.run_dir / "started_before").touch()
        failures.forget(self.settings.run_dir)
        self._set_state("ready")
        self._progress("ready")

    def wait(self) -> None:
        """Returns when a signal came, or when the stack is drained. Until it is called, a signal raises NotReady.

        A part that does not work for longer than Ray needs to restart it is logged, told and noted: the state is
        `degraded` until it works again.

        Raises:
            NotReady: the Ray head ended by itself.
        """
        assert self._listener is not None  # noqa: S101
        self._waiting = True
        watch = Watch(self.settings, self._listener, self._progress, self._set_state)
        while not self._stop.wait(REMEMBER_EVERY_S if not self._drain.is_set() else DRAIN_EVERY_S):
            assert self._head is not None  # noqa: S101
            self._head.require_alive()
            self._head.remember()
            watch.look(draining=self._drain.is_set())
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
            last = time.monotonic() + STOP_S
            self._head.remember()
            if self._listener is not None:
                with self._told("the DICOM listener's own end"):
                    self._listener.stop(STOP_SCP_S)
            apart = False
            with self._told("the end of the connection to Ray"):
                self._connection.close(ATTEMPT_S, DISCONNECT_S)
                apart = True
            left = self._head.stop(last - time.monotonic() - RELEASE_S, gently=apart)
            self._release_leases()
        self._mark.clear()
        if self._lock is not None:
            self._lock.release()
        self._started = False
        return left

    @contextlib.contextmanager
    def _told(self, what: str) -> Generator[None]:
        """Whatever fails inside is told and logged, and what comes after it is done all the same."""
        try:
            yield
        except Exception as error:
            code = error.code if isinstance(error, HeimdallrError) else type(error).__name__
            detail = first_line(str(error))
            log.warning("stack.stop_failed", extra={"what": what, "code": code, "detail": detail})
            self._progress(f"{what} failed: {code}: {detail}")

    def _release_leases(self) -> None:
        """What was running waits again, at no cost: it was stopped on purpose."""
        database = Database(self.settings.resolved_database_url)
        try:
            release_leases_of_the_dead(self.settings, database, self._clock, orderly=True)
        except HeimdallrError as error:
            # The leases run out by themselves.
            log.warning("lease.not_released", extra={"code": error.code})
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

    def _require_weights(self) -> None:
        require_needed(self.settings.resolved_weights_dir or weights_dir(), demand_of(self.settings.measurements))

    def _resolve_device(self) -> None:
        """From here on the settings say `cpu` or `cuda`, for Ray, for Serve and for the replicas alike."""
        wanted = self.settings.device
        found = accelerator.Accelerators(0, 0) if wanted == "cpu" else accelerator.look()
        device = accelerator.resolve(wanted, found)
        if found.present and device == "cpu":
            log.warning("device.unusable", extra={"detail": accelerator.unusable(found)})
            self._progress(f"models run on the CPU: {accelerator.unusable(found)}")
        self._gpus = found.usable if device == "cuda" else 0
        self.settings = self.settings.model_copy(update={"device": device})

    def _prepare_database(self) -> None:
        database = Database(self.settings.resolved_database_url)
        try:
            database.migrate()
            release_leases_of_the_dead(self.settings, database, self._clock, orderly=False)
        finally:
            database.close()

    def _start_scp(self, effective: Path, deadline: float) -> ListenerActor:
        # Late, for it imports Ray.
        from heimdallr_ray.operations.scp_actor import ListenerActor

        listener = ListenerActor(effective, self.build)
        listener.wait_ready(max(1.0, deadline - time.monotonic()))
        return listener

    def _wait_ready(self, deadline: float, last: float) -> None:
        assert self._head is not None  # noqa: S101
        missing = "nothing answered yet"
        while time.monotonic() < deadline:
            self._head.require_alive()
            missing = within(f"Serve's answer to the question what is missing ({missing})", last,
                             lambda: application.missing(self.settings))  # fmt: skip
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
            raise NotReady(STOPPED)

    @contextlib.contextmanager
    def _undisturbed(self) -> Generator[None]:
        """A signal is answered at the end: what is started inside is known by then, and can be ended.

        Raises:
            NotReady: a signal came meanwhile.
        """
        self._waiting = True
        yield
        self._waiting = False
        if self._stop.is_set():
            raise NotReady(STOPPED)

    def _on_drain(self, _number: int, _frame: FrameType | None) -> None:
        self._drain.set()

    def _set_state(self, state: str, detail: str = "") -> None:
        if self._lock is None or self._holder is None:
            return
        changed = replace(self._holder, state=state, detail=detail)
        if changed != self._holder:
            self._holder = changed
            log.info("stack.state", extra={"state": state, "detail": detail, "build": self.build})
            self._lock.note(changed)

    # Stop ------------------------------------------------------------------------------------------------------------

    def _drained(self) -> bool:
        """True once nothing can come in any more and nothing is unfinished; asked again and again.

        In this order, so that what one door lets through is seen by the count: the mark, the listener's port and
        spool, the uploads that store, the studies.
        """
        assert self._listener is not None  # noqa: S101
        try:
            if not self._mark.is_set():
                self._set_state("draining")
                self._progress("draining: no new images; open studies are closed and finished")
                self._mark.set()
            if not self._listener.drained() or not self._mark.quiet():
                return False
        except HeimdallrError as error:
            # The disk refuses the mark: the next round tries again, `down` without --drain ends it.
            log.warning("stack.not_drained_yet", extra={"code": error.code, "detail": error.detail})
            return False
        return application.unfinished(self.settings) == 0


def exposure(supervisor_pid: int) -> str:
    """What to know of Ray's ports, in a line; empty where none of them can be reached from other machines."""
    pids = {process.pid for process in processes.descendants(supervisor_pid)}
    count = sum(not is_loopback(one.address.removeprefix("::ffff:")) for one in ports.listeners(pids=pids))
    return (
        f"Ray            {count} ports listen on all addresses and want Ray's token; keep them behind the firewall: "
        "docs/operations/security.md"
        if count
        else ""
    )


def first_line(text: str) -> str:
    """The first line of a message, bounded: exceptions of Ray carry whole tracebacks."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "no reason given")


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
    logs.configure(supervisor.settings, "supervisor", console=True)
    try:
        supervisor.start()
        if told := exposure(os.getpid()):
            progress(told)
        supervisor.wait()
    except HeimdallrError as error:
        log.error("stack.failed", extra={"code": error.code, "detail": error.detail})  # noqa: TRY400
        if not isinstance(error, AlreadyRunning) and error.detail != STOPPED:
            failures.note(settings.run_dir, clock.now(), error.code, error.detail)
        progress(f"failed: {error.code}: {error.detail}")
        return 1
    finally:
        left = supervisor.stop()
        if left:
            progress(f"processes that did not end: {left}")
    return 0
