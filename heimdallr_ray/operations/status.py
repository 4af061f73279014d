"""`heimdallr status`: who holds the data folder, what the listener and the API say of themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast

import httpx

from heimdallr_ray.api.services import DRAINING, READY
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Settings, load_effective
from heimdallr_ray.deployments.readiness import LISTENER, SILENT
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.overview import existing, watermarks
from heimdallr_ray.listener.room import RoomLevel, measure
from heimdallr_ray.listener.snapshots import FOLDER, Snapshot, read_snapshots
from heimdallr_ray.listener.snapshots import LISTENER as LISTENER_KIND
from heimdallr_ray.operations import application, doors, failures, lock, neighbours, supervisor
from heimdallr_ray.operations.doctor import FIRST_STEP, ran_as, weights_dir_of
from heimdallr_ray.segmentation.engine import EXACT
from heimdallr_ray.segmentation.notes import HOMES, read_notes, read_refusal

WELL = "well"
"""First word of what is said of a listener that works."""
FRESH_S = 10.0
"""A listener tells of itself every second. One whose word is older may be stuck, or have no room to write it."""
REFUSED = "refuse"


def listener_words(told: Snapshot | None, answered: str, now: datetime) -> str:
    """What the listener says of itself. Nobody calls at its port: whoever does is a peer, with all that it leaves.

    Args:
        told: what it wrote last; None where it wrote nothing, or has ended.
        answered: what it answers when it is asked, a word of `/api/v1/ready`.
        now: the time.
    """
    fresh = told is not None and abs((now - told.written_at).total_seconds()) <= FRESH_S
    if told is None or not fresh:
        if answered == DRAINING:
            return "draining: the port is closed"
        return (
            f"{WELL}, by its answer; it cannot write of itself" if answered == READY else f"does not work: {answered}"
        )
    state = told.state
    if not state.healthy:
        return f"does not work: {state.trouble or 'one of its parts has ended'}"
    if state.trouble:
        return f"works in part: {state.trouble}"
    if state.draining:
        return "draining: the port is closed"
    return f"{WELL}: port {state.port}, {len(state.open)} open"


def _answered(settings: Settings) -> str:
    """What the application heard of the listener when it asked."""
    try:
        body = application.get(settings, "/api/v1/ready").json()
        return str(body["components"][LISTENER])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return SILENT


def _listener(settings: Settings, now: datetime) -> str:
    told = [one for one in read_snapshots(settings.run_dir / FOLDER, now) if one.kind == LISTENER_KIND]
    newest = max(told, key=lambda one: one.written_at, default=None)
    return listener_words(newest, _answered(settings), now)


def disk_words(settings: Settings) -> dict[str, Any]:
    """What the room on the disk means for the doors; nothing where there is enough."""
    marks = watermarks(settings)
    try:
        room = measure(existing(settings.data_dir))
    except HeimdallrError as error:
        return {"disk": f"{error.code}: {error.detail}"}
    level = room.level(marks)
    if level is RoomLevel.WELL:
        return {}
    said = f"{room.used_percent:.0f} % used, {room.free_bytes >> 20} MiB free"
    if level is RoomLevel.WARN:
        return {"disk": f"warn: {said}; images are refused from {marks.refuse_percent:g} % on"}
    return {"disk": f"{REFUSED}: {said}; images are refused until there is room"}


def models_lacking(settings: Settings) -> str:
    """What the registry lacks for a Segmenter to be ready, with the command that brings it; empty where nothing."""
    from heimdallr_ray.pipelines.demand import demand_of
    from heimdallr_ray.segmentation.registry import require_needed

    try:
        require_needed(weights_dir_of(settings), demand_of(settings.measurements))
    except HeimdallrError as error:
        return f"{error.code}: {error.detail}"
    return ""


def segmenter_notes(settings: Settings) -> dict[str, Any]:
    """What the Segmenter replicas of this host say of their models, where there is more to say than that they run."""
    found = read_notes(settings.run_dir / HOMES)
    said = list(dict.fromkeys(words for one in found for words in one.notes))
    faster = list(dict.fromkeys(words for one in found for words in one.turbo))
    told: dict[str, Any] = {}
    if any(one.mode != EXACT for one in found):
        told["mode"] = ", ".join(dict.fromkeys(one.mode for one in found))
        told["turbo"] = "; ".join(faster) or "no model: all run in exact mode"
    if said:
        told["notes"] = "; ".join(said)
    refused = read_refusal(settings.run_dir)
    if refused:
        told["refused"] = refused
    return {"segmenter": told} if told else {}


def collect(settings: Settings) -> dict[str, Any]:
    """Everything that is known about the stack of this data folder, as JSON."""
    holder = lock.read_holder(settings.run_dir)
    if holder is None or not lock.is_held(settings.run_dir):
        taken = {name: f"held by {other.words}" for name, other in neighbours.on_our_ports(settings)}
        ran = ran_as(settings.run_dir)
        if ran and "profile" not in settings.model_fields_set:
            settings = settings.model_copy(update={"profile": ran})
        lacking = models_lacking(settings)
        failed = failures.read(settings.run_dir)
        return {
            "state": "down",
            "data_dir": str(settings.data_dir),
            "profile": settings.profile,
            **({"failed": failed.words} if failed else {}),
            **({"ports": taken} if taken else {}),
            **({"models": lacking} if lacking else {}),
        }
    with contextlib.suppress(HeimdallrError):
        settings = load_effective(settings.run_dir / "settings.json")
    report: dict[str, Any] = {"state": holder.state}
    if holder.state == "starting":
        report["step"] = holder.step or FIRST_STEP
    noted = {name: value for name, value in supervisor.describe(holder).items() if name != "step" and value != ""}
    report.update({"data_dir": str(settings.data_dir), "profile": settings.profile, **noted})
    if holder.state == "starting":
        # Listener and API are not there yet.
        lacking = models_lacking(settings)
        return {**report, "models": lacking} if lacking else report
    report["listener"] = _listener(settings, SystemClock().now())
    report["dicom"] = doors.summary(settings)
    report.update(disk_words(settings))
    try:
        answer = application.get(settings, "/api/v1/status")
        report["api"] = answer.json() if answer.status_code == 200 else f"answers {answer.status_code}"
    except (httpx.HTTPError, ValueError) as error:
        report["api"] = f"no answer: {type(error).__name__}"
    lacking = models_lacking(settings)
    if lacking:
        report["models"] = lacking
    report.update(segmenter_notes(settings))
    report["memory_mib"] = round(supervisor.stack_memory_mib(holder.pid), 1)
    return report


def flatten(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows for a person."""
    for key, value in report.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(cast(dict[str, Any], value), f"{name}.")
        else:
            yield name, "none" if value is None else str(value)


def exit_status(report: dict[str, Any]) -> int:
    """0 ready, 3 nothing runs, 1 something else; a disk without room for images is something else."""
    if report["state"] == "down":
        return 3
    works = str(report.get("listener", "")).startswith(WELL) and isinstance(report.get("api"), dict)
    has_room = not str(report.get("disk", "")).startswith(REFUSED)
    return 0 if report["state"] == "ready" and works and has_room else 1
