"""A start ends in time whatever hangs; what fails while the stack is stopped is told, and the rest is stopped."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Settings, load, load_effective
from heimdallr_ray.errors import NotReady, StorageFull
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.operations import accelerator, application, connection, ports, rayhead
from heimdallr_ray.operations import supervisor as supervisor_module
from heimdallr_ray.operations.accelerator import Accelerators
from heimdallr_ray.operations.bounded import within
from heimdallr_ray.operations.supervisor import Supervisor


class Head:
    """A Ray head that can be stopped."""

    def __init__(self) -> None:
        self.stopped = 0
        self.gently = True

    def remember(self) -> None:
        """Nothing to remember."""

    def stop(self, timeout_s: float, *, gently: bool) -> list[int]:
        self.stopped += 1
        self.gently = gently
        assert timeout_s > 3
        return []


class Listener:
    """A listener that answers a stop, or a drain, with an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.is_drained = False

    def stop(self, timeout_s: float) -> None:
        if self.error is not None:
            raise self.error

    def drained(self) -> bool:
        return self.is_drained


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Supervisor:
    settings = load({}, data_dir=tmp_path, server_port=0, dicom_port=0)
    database = Database(settings.resolved_database_url)
    database.migrate()
    database.close()
    made = Supervisor(settings, SystemClock(), said.append)
    parts = cast(Any, made)
    parts._started, parts._head = True, Head()
    return made


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (ConnectionError("no route\nTraceback: ..."), "ConnectionError", "no route"),
        (StorageFull("4 MiB left"), "storage_full", "4 MiB left"),
        (RuntimeError(), "RuntimeError", "no reason given"),
    ],
)
def test_a_part_that_cannot_be_stopped_is_told_and_the_rest_is_stopped(
    supervisor: Supervisor,
    said: list[str],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
    detail: str,
) -> None:
    parts = cast(Any, supervisor)
    parts._listener = Listener(error)
    DrainMark(supervisor.settings.run_dir).set()
    with caplog.at_level(logging.WARNING, logger="heimdallr_ray.operations.supervisor"):
        assert supervisor.stop() == []
    assert f"the DICOM listener's own end failed: {code}: {detail}" in said
    (record,) = caplog.records
    assert (record.__dict__["code"], record.__dict__["detail"]) == (code, detail)
    assert parts._head.stopped == 1
    assert not DrainMark(supervisor.settings.run_dir).is_set()


def test_a_stack_is_not_drained_before_port_and_uploads_are_quiet(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heimdallr_ray.operations.application.unfinished", lambda _: 0)
    parts, listener = cast(Any, supervisor), Listener()
    parts._listener = listener
    mark = DrainMark(supervisor.settings.run_dir)
    with mark.storing():
        assert not parts._drained()
        assert mark.is_set()
        listener.is_drained = True
        assert not parts._drained()
    assert parts._drained()
    monkeypatch.setattr("heimdallr_ray.operations.application.unfinished", lambda _: None)
    assert not parts._drained(), "an API that does not answer is no proof"


class SilentHead(Head):
    """A Ray head that was started, and whose port is answered."""

    def __init__(self, settings: Settings, gpus: int) -> None:
        super().__init__()
        self.where = rayhead.places(settings)
        self.address, self.gcs_port, self.gpus = "127.0.0.1:1", 1, gpus

    def require_alive(self) -> None:
        """It lives."""


class SilentRay:
    """A Ray that does nothing, at once or for ever."""

    def __init__(self, init: Callable[..., None]) -> None:
        self.init = init

    def shutdown(self) -> None:
        """Nothing was connected."""


def test_a_head_is_not_ended_gently_while_this_process_still_connects(
    fresh: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def connecting(*_: object, **__: object) -> None:
        entered.set()
        leave.wait(60)

    monkeypatch.setattr(connection, "ray_module", lambda: SilentRay(connecting))
    monkeypatch.setattr(supervisor_module, "ATTEMPT_S", 0.2)
    with pytest.raises(NotReady, match="the connection to the Ray head"):
        fresh.start()
    assert entered.is_set()
    fresh.stop()
    leave.set()
    assert cast(Any, fresh)._head.gently is False
    assert any("Ray still connects" in line for line in said)


def test_a_head_is_ended_after_an_attempt_to_connect_has_ended(
    fresh: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    entered, stopping = threading.Event(), threading.Event()

    def connecting(*_: object, **__: object) -> None:
        entered.set()
        stopping.wait(60)
        time.sleep(0.5)
        order.append("connected")

    monkeypatch.setattr(connection, "ray_module", lambda: SilentRay(connecting))
    monkeypatch.setattr(supervisor_module, "ATTEMPT_S", 30.0)
    monkeypatch.setattr(SilentHead, "stop", lambda *_, **__: order.append("head ended") or [])
    with pytest.raises(NotReady, match="the connection to the Ray head"):
        fresh.start()
    assert entered.is_set()
    stopping.set()
    fresh.stop()
    assert order == ["connected", "head ended"]


def test_nothing_connects_after_the_end() -> None:
    calls: list[str] = []

    class Ray:
        def init(self, **_: object) -> None:
            calls.append("init")

    made = connection.Connection()
    made.close(1.0, 1.0)
    assert cast(Any, made)._attempt(Ray(), "127.0.0.1:1") is False
    assert calls == []


def test_a_signal_while_the_head_is_started_is_answered_once_it_is_known(
    fresh: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(SilentHead):
        def __init__(self, settings: Settings, gpus: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            super().__init__(settings, gpus)

    monkeypatch.setattr(supervisor_module, "RayHead", Interrupted)
    with pytest.raises(NotReady, match="stopped by a signal"):
        fresh.start()
    head = cast(Any, fresh)._head
    fresh.stop()
    assert head.stopped == 1


def hang(*_: object, **__: object) -> None:
    threading.Event().wait(60)


def nothing(*_: object, **__: object) -> None:
    """Done at once."""


@pytest.fixture
def fresh(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor that starts on a database and a Ray that answer at once, and has 3 s for its first start."""
    monkeypatch.setattr(supervisor_module, "GRACE_S", 0.5)
    monkeypatch.setattr(supervisor_module, "ATTEMPT_S", 0.5)
    monkeypatch.setattr(Database, "migrate", nothing)
    monkeypatch.setattr(supervisor_module, "release_leases_of_the_dead", nothing)
    monkeypatch.setattr(supervisor_module, "RayHead", SilentHead)
    monkeypatch.setattr(connection, "ray_module", lambda: SilentRay(nothing))
    monkeypatch.setattr(ports, "answers", lambda _: True)
    monkeypatch.setattr(application, "deploy", nothing)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    server, dicom = ports.pick_free(2)
    settings = load({}, profile="demo", device="cpu", data_dir=tmp_path, server_port=server, dicom_port=dicom)
    made = Supervisor(
        settings.model_copy(update={"start_seconds": 1.5}),
        SystemClock(),
        said.append,
    )
    yield made
    made.stop()
    for number, handler in handlers.items():
        signal.signal(number, handler)


HANGING: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the weights' manifest": lambda patch: patch.setattr(supervisor_module, "require_needed", hang),
    "the database": lambda patch: patch.setattr(Database, "migrate", hang),
    "the connection to the Ray head": lambda patch: patch.setattr(connection, "ray_module", lambda: SilentRay(hang)),
    "Ray Serve": lambda patch: patch.setattr(application, "deploy", hang),
    "the DICOM listener": lambda patch: patch.setattr(Supervisor, "_start_scp", hang),
}


@pytest.mark.parametrize("step", HANGING)
def test_a_step_that_hangs_ends_the_start_in_time_and_is_named(
    fresh: Supervisor, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    HANGING[step](monkeypatch)
    began = time.monotonic()
    with pytest.raises(NotReady, match=f"not ready in time: {step} has not ended") as late:
        fresh.start()
    assert "this start had 3 s: set start_seconds (HEIMDALLR_START_SECONDS, now 1.5) higher" in late.value.detail
    assert time.monotonic() - began < 15
    monkeypatch.setattr(connection, "ray_module", lambda: SilentRay(nothing))
    assert fresh.stop() == []


def test_a_question_to_serve_that_hangs_ends_the_start(fresh: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_start_scp", lambda *_: Listener())
    answers = iter(["Segmenter is loading"])

    def missing(_settings: Settings) -> str:
        for answer in answers:
            return answer
        hang()
        return ""

    monkeypatch.setattr(application, "missing", missing)
    with pytest.raises(NotReady, match=r"not ready in time: .*Segmenter is loading.* has not ended"):
        fresh.start()


def test_a_start_that_fails_before_its_time_is_up_blames_no_time(
    fresh: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise NotReady("Serve did not start: no")

    monkeypatch.setattr(application, "deploy", refused)
    with pytest.raises(NotReady) as early:
        fresh.start()
    assert early.value.detail == "Serve did not start: no"


def test_what_a_step_raises_is_raised_and_what_it_gives_is_given() -> None:
    assert within("a step", time.monotonic() + 20, lambda: 7) == 7
    assert within("a step", time.monotonic() + 20, lambda: None) is None
    with pytest.raises(StorageFull, match="4 MiB"):
        within("a step", time.monotonic() + 20, lambda: exec("raise error", {"error": StorageFull("4 MiB left")}))  # noqa: S102


@pytest.mark.parametrize(
    ("found", "gpus", "device"), [(Accelerators(2, 2), 2, "cuda"), (Accelerators(1, 0, "too old"), 0, "cpu")]
)
def test_the_device_is_resolved_once_for_ray_serve_and_replicas(
    fresh: Supervisor,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    found: Accelerators,
    gpus: int,
    device: str,
) -> None:
    deployed: list[Settings] = []
    monkeypatch.setattr(accelerator, "look", lambda: found)
    monkeypatch.setattr(application, "deploy", lambda settings, *_: deployed.append(settings))
    monkeypatch.setattr(application, "missing", lambda _: "")
    monkeypatch.setattr(Supervisor, "_start_scp", lambda *_: Listener())
    fresh.settings = fresh.settings.model_copy(update={"device": "auto", "start_seconds": 60.0})
    fresh.start()
    assert cast(Any, fresh)._head.gpus == gpus
    assert load_effective(fresh.settings.run_dir / "settings.json").device == device
    assert [settings.device for settings in deployed] == [device]
    assert any("models run on the CPU" in line and "too old" in line for line in said) == (device == "cpu")


def test_only_ports_that_others_can_reach_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "::1", "::ffff:127.0.0.1"]

    def listeners(*_: object, **__: object) -> list[ports.Listener]:
        return [ports.Listener(address, 1, 1, "ray") for address in addresses]

    monkeypatch.setattr(ports, "listeners", listeners)
    assert supervisor_module.exposure(os.getpid()) == ""
    addresses += ["::", "0.0.0.0"]
    told = supervisor_module.exposure(os.getpid())
    assert "2 ports listen on all addresses" in told and "docs/operations/security.md" in told
