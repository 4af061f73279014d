"""What a server on this machine says of its idle time; the sender's own settings may not be the server's."""

from __future__ import annotations

from typing import Any, cast

import httpx

STATUS_PATH = "/api/v1/status"
TIMEOUT_S = 3.0


def idle_seconds(base: str | None, token: str | None = None, timeout_s: float = TIMEOUT_S) -> float | None:
    """After how many seconds without a new image the server at `base` starts the analysis.

    None where there is no address, or where it does not answer in time with a number: it is a courtesy, nothing more.
    """
    if base is None:
        return None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    told: object = None
    try:
        # The environment's proxies are for the internet, not for this machine.
        with httpx.Client(timeout=timeout_s, trust_env=False) as client:
            answer = client.get(base.rstrip("/") + STATUS_PATH, headers=headers)
        if answer.status_code == 200:
            status = cast("dict[str, Any]", answer.json())
            # We end properly; an older server has one time for all.
            told = status.get("settle_after_release_seconds", status.get("idle_seconds"))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):
        told = None
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else None
