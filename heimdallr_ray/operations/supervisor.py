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
from typing import Any, cast

import httpx
import yaml

import heimdallr_ray
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings, save_effective
from heimdallr_ray.errors import HeimdallrError, NotReady
from heimdallr_ray.operations import ports, processes
from heimdallr_ray.operations.lock import DataFolderLock, Holder
from heimdallr_ray.operations.rayhead import NAMESPACE, RayHead, environment
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.weights import read_manifest

log = logging.getLogger(__name__)

READY_S = 60.0
FIRST_READY_S = 120.0
"""The first start on a data folder compiles kernels and fills file caches."""
STOP_S = 13.0
REMEMBER_EVERY_S = 2.0
SCP_ACTOR = "dicom_scp"

Progress = Callable[[str], None]


def serve_config_path() -> Path:
    """serve_config.yaml: beside the package in a checkout, inside it in a wheel."""
    packaged = Path(heimdallr_ray.__file__).parent / "deployments" / "serve_config.yaml"
    return packaged if packaged.exists() else Path(heimdallr_ray.__file__).parents[1] / "serve_config.yaml"


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


def server_url(settings: Settings) -> str:
    """Where a browser on this machine finds the pages."""
    host = settings.server_host if settings.server_host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server_port}"


def last_line(message: str) -> str:
    """The last line of a message that may be a traceback: the error itself."""
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


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
        self._lock: DataFolderLock | None = None
        self._holder: Holder | None = None
        self._head: RayHead | None = None
        self._started = False

    @property
    def url(self) -> str:
        """Where the pages are."""
        return server_url(self.settings)

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
        self._require_ports()
        read_manifest(self.settings.resolved_weights_dir or weights_dir())
        self._progress("database")
        database = Database(self.settings.resolved_database_url)
        database.migrate()
        database.close()
        effective = self.settings.run_dir / "settings.json"
        save_effective(self.settings, effective)
        self._progress("ray head")
        self._head = RayHead(self.settings)
        self._connect(deadline)
        self._head.remember()
        self._progress("DICOM listener")
        self._deploy(effective)
        self._start_scp(effective, deadline)
        self._progress("models and Serve application")
        self._wait_ready(deadline)
        self._head.remember()
        (self.settings.run_dir / "started_before").touch()
        self._set_state("ready")
        self._progress("ready")

    def wait(self) -> None:
        """Returns when a signal came, or when the stack is drained.

        Raises:
            NotReady: the Ray head ended by itself.
        """
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
        self._set_state("stopping")
        self._progress("stopping")
        left: list[int] = []
        if self._head is not None:
            self._head.remember()
            with contextlib.suppress(Exception):
                self._stop_scp(timeout_s=3.0)
            import ray

            with contextlib.suppress(Exception):
                ray.shutdown()
            left = self._head.stop(STOP_S - 4.0)
        if self._lock is not None:
            self._lock.release()
        self._started = False
        return left

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
        import ray

        while True:
            self._interrupted()
            self._head.require_alive()
            try:
                ray.init(  # pyright: ignore[reportUnknownMemberType]
                    address=self._head.address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False
                )
                break
            except (ConnectionError, RuntimeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise NotReady(f"the Ray head does not answer: {error}") from error
                time.sleep(0.3)
        # ray.init installs its own SIGTERM handler, which would end us without cleaning up.
        self._install_signals()

    def _start_scp(self, effective: Path, deadline: float) -> None:
        import ray

        from heimdallr_ray.listener.actor import DicomScp

        actor = cast(Any, DicomScp).options(
            name=SCP_ACTOR, namespace=NAMESPACE, lifetime="detached", get_if_exists=True
        )
        handle = actor.remote(str(effective), self.build)
        try:
            ray.get(handle.status.remote(), timeout=max(1.0, deadline - time.monotonic()))
        except Exception as error:
            raise NotReady(f"the DICOM listener did not start: {error}") from error

    def _deploy(self, effective: Path) -> None:
        from ray.serve._private.api import serve_start
        from ray.serve.schema import ServeDeploySchema

        values = yaml.safe_load(serve_config_path().read_text(encoding="utf-8"))
        values["http_options"].update(host=self.settings.server_host, port=self.settings.server_port)
        values["logging_config"].update(
            logs_dir=str(self.settings.log_dir / "serve"), log_level=self.settings.log_level
        )
        values["applications"][0]["args"] = {"build": self.build, "settings_file": str(effective)}
        if self.settings.device == "cuda":
            for deployment in values["applications"][0]["deployments"]:
                if deployment["name"] == "Segmenter":
                    deployment["ray_actor_options"]["num_gpus"] = 1
        config = ServeDeploySchema.model_validate(values)
        try:
            client = cast(Any, serve_start)(
                http_options=config.http_options.model_dump(),
                proxy_location=config.proxy_location,
                global_logging_config=config.logging_config,
            )
            client.deploy_apps(config)
        except Exception as error:
            raise NotReady(f"Serve did not start: {str(error).splitlines()[0]}") from error

    def _wait_ready(self, deadline: float) -> None:
        assert self._head is not None  # noqa: S101
        missing = "nothing answered yet"
        while time.monotonic() < deadline:
            self._interrupted()
            self._head.require_alive()
            missing = self._missing()
            if not missing:
                return
            time.sleep(0.3)
        raise NotReady(f"not ready in time: {missing}; logs are in {self.settings.log_dir}")

    def _missing(self) -> str:
        from ray import serve

        status = serve.status()
        application = status.applications.get("heimdallr")
        if application is None:
            return "Serve has not accepted the application"
        if application.status == "DEPLOY_FAILED":
            raise NotReady(f"the application failed: {last_line(application.message)}")
        pending: list[str] = []
        for name, deployment in application.deployments.items():
            if deployment.status == "DEPLOY_FAILED" or "heimdallr_ray.errors." in deployment.message:
                raise NotReady(f"{name} failed: {last_line(deployment.message)}")
            if deployment.status != "HEALTHY":
                pending.append(f"{name} is {deployment.status.value}: {last_line(deployment.message)}")
        if pending or application.status != "RUNNING":
            return "; ".join(pending) or f"application is {application.status}"
        try:
            answer = httpx.get(f"{self.url}/api/v1/ready", timeout=5.0, headers=self._authorization())
        except httpx.HTTPError as error:
            return f"HTTP does not answer: {type(error).__name__}"
        return "" if answer.status_code == 200 else f"/api/v1/ready says {answer.status_code}: {answer.text[:300]}"

    def _authorization(self) -> dict[str, str]:
        token = self.settings.api_token.get_secret_value()
        return {"Authorization": f"Bearer {token}"} if token else {}

    # Signals and state -----------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_drain)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _on_drain(self, _number: int, _frame: FrameType | None) -> None:
        self._drain.set()

    def _interrupted(self) -> None:
        if self._stop.is_set():
            raise NotReady("stopped before it was ready")

    def _set_state(self, state: str) -> None:
        if self._lock is not None and self._holder is not None:
            self._holder = replace(self._holder, state=state)
            self._lock.note(self._holder)

    # Stop ------------------------------------------------------------------------------------------------------------

    def _drained(self) -> bool:
        if self._holder is not None and self._holder.state != "draining":
            self._set_state("draining")
            self._progress("draining: no new associations; waiting for queued and running studies")
            self._stop_scp(timeout_s=10.0)
        try:
            answer = httpx.get(f"{self.url}/api/v1/status", timeout=5.0, headers=self._authorization())
            states = cast(dict[str, int], answer.json()["studies"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            log.warning("status not available while draining", extra={"error": type(error).__name__})
            return False
        return not any(states.get(state, 0) for state in ("queued", "running"))

    def _stop_scp(self, timeout_s: float) -> None:
        import ray

        try:
            handle = ray.get_actor(SCP_ACTOR, namespace=NAMESPACE)
        except ValueError:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(cast(Any, handle).stop.remote(), timeout=timeout_s)
        ray.kill(handle)


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
