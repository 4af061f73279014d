"""`heimdallr status`: who holds the data folder, what the API says, whether the listener echoes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import httpx
from pynetdicom import AE  # pyright: ignore[reportUnknownVariableType]

from heimdallr_ray.config import Settings, load_effective
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.reactor import at_rest
from heimdallr_ray.operations import application, lock, neighbours, supervisor
from heimdallr_ray.operations.doctor import ran_as, weights_dir_of
from heimdallr_ray.segmentation.engine import EXACT
from heimdallr_ray.segmentation.notes import HOMES, read_notes, read_refusal

VERIFICATION = "1.2.840.10008.1.1"
ANSWER_S = 5.0
ECHO_OK = "answers C-ECHO"
FIRST_STEP = "ports and weights"
"""What a supervisor looks at before the first step that it tells."""


def _echo(settings: Settings, dicom: str) -> str:
    # A listener that knows its callers knows us by the name of the first of them.
    entity = cast(Any, AE)(ae_title=(*settings.allowed_calling_aes, "HEIMDALLR_STAT")[0])
    entity.add_requested_context(VERIFICATION)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = ANSWER_S
    address = dicom.partition("@")[2]
    host, _, port = address.rpartition(":")
    association = entity.associate(host, int(port), ae_title=settings.ae_title)
    if not association.is_established:
        return "does not accept an association"
    with at_rest(association, ANSWER_S) as resting:
        answer = association.send_c_echo() if resting else None
    association.release()
    return ECHO_OK if answer and answer.Status == 0 else "association without an answer to C-ECHO"


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
        return {
            "state": "down",
            "data_dir": str(settings.data_dir),
            "profile": settings.profile,
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
    report["listener"] = _echo(settings, holder.dicom)
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
    """0 ready, 3 nothing runs, 1 something else."""
    if report["state"] == "down":
        return 3
    well = report["state"] == "ready" and report.get("listener") == ECHO_OK and isinstance(report.get("api"), dict)
    return 0 if well else 1
