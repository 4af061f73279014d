"""`heimdallr status`: who holds the data folder, what the API says, whether the listener echoes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import httpx
from pynetdicom import AE  # pyright: ignore[reportUnknownVariableType]

from heimdallr_ray.config import Settings
from heimdallr_ray.operations import lock, supervisor

VERIFICATION = "1.2.840.10008.1.1"
ANSWER_S = 5.0


def _echo(settings: Settings, dicom: str) -> str:
    entity = cast(Any, AE)(ae_title="HEIMDALLR_STAT")
    entity.add_requested_context(VERIFICATION)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = ANSWER_S
    address = dicom.partition("@")[2]
    host, _, port = address.rpartition(":")
    association = entity.associate(host, int(port), ae_title=settings.ae_title)
    if not association.is_established:
        return "does not accept an association"
    answer = association.send_c_echo()
    association.release()
    return "answers C-ECHO" if answer and answer.Status == 0 else "association without an answer to C-ECHO"


def collect(settings: Settings) -> dict[str, Any]:
    """Everything that is known about the stack of this data folder, as JSON."""
    holder = lock.read_holder(settings.run_dir)
    if holder is None or not lock.is_held(settings.run_dir):
        return {"state": "down", "data_dir": str(settings.data_dir)}
    report: dict[str, Any] = {"data_dir": str(settings.data_dir), **supervisor.describe(holder)}
    report["listener"] = _echo(settings, holder.dicom)
    token = settings.api_token.get_secret_value()
    try:
        answer = httpx.get(
            f"{holder.server_url}/api/v1/status",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_S,
        )
        report["api"] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        report["api"] = f"no answer: {type(error).__name__}"
    report["memory_mib"] = round(supervisor.stack_memory_mib(holder.pid), 1)
    return report


def flatten(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows for a person."""
    for key, value in report.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(cast(dict[str, Any], value), f"{name}.")
        else:
            yield name, str(value)


def exit_status(report: dict[str, Any]) -> int:
    """0 ready, 3 nothing runs, 1 something else."""
    if report["state"] == "down":
        return 3
    return 0 if report["state"] == "ready" and isinstance(report.get("api"), dict) else 1
