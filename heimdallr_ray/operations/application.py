"""The Serve application on a running Ray head: deployed from serve_config.yaml, asked whether it is ready."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, cast

import httpx
import yaml

import heimdallr_ray
from heimdallr_ray import errors
from heimdallr_ray.api.services import WELL
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import NotReady

ANSWER_S = 5.0
DISK = "disk"
"""The check of the disk: where it fails all works but the doors, which open again by themselves."""
SERVE_LOGGER = "ray.serve"
_OURS: Final = re.compile(r"\bheimdallr_ray\.errors\.(\w+)")
OPEN_STATES = ("receiving", "settling", "queued", "running")


def serve_config_path() -> Path:
    """serve_config.yaml: beside the package in a checkout, inside it in a wheel."""
    packaged = Path(heimdallr_ray.__file__).parent / "deployments" / "serve_config.yaml"
    return packaged if packaged.exists() else Path(heimdallr_ray.__file__).parents[1] / "serve_config.yaml"


def server_url(settings: Settings) -> str:
    """Where a browser on this machine finds the pages."""
    host = settings.server_host if settings.server_host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server_port}"


def authorization(settings: Settings) -> dict[str, str]:
    """The header with the API token, where one is set."""
    token = settings.api_token.get_secret_value()
    return {"Authorization": f"Bearer {token}"} if token else {}


def get(settings: Settings, path: str) -> httpx.Response:
    """The API's answer to GET `path`, with our token and past any proxy of the site.

    Raises:
        httpx.HTTPError: no answer within ANSWER_S.
    """
    with httpx.Client(trust_env=False, timeout=ANSWER_S, headers=authorization(settings)) as client:
        return client.get(f"{server_url(settings)}{path}")


def last_line(message: str) -> str:
    """The last line of a message that may be a traceback: the error itself, one of ours by its code."""
    lines = [line for line in message.splitlines() if line.strip()]
    return _OURS.sub(_code, lines[-1].strip()) if lines else "no reason given"


def _code(found: re.Match[str]) -> str:
    kind = getattr(errors, found[1], None)
    return str(kind.code) if isinstance(kind, type) and issubclass(kind, errors.HeimdallrError) else found[0]


def deploy(settings: Settings, effective: Path, build: str) -> None:
    """Serve runs with this installation's address, and starts on the application; `missing` tells when it is ready.

    Raises:
        NotReady: Serve itself did not start.
    """
    from ray.serve._private import api
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(serve_config_path().read_text(encoding="utf-8"))
    values["http_options"].update(host=settings.server_host, port=settings.server_port)
    values["logging_config"].update(logs_dir=str(settings.log_dir / "serve"), log_level=settings.log_level)
    values["applications"][0]["args"] = {"build": build, "settings_file": str(effective)}
    if settings.device == "cuda":
        for deployment in values["applications"][0]["deployments"]:
            if deployment["name"] == "Segmenter":
                deployment["ray_actor_options"]["num_gpus"] = 1
    config = ServeDeploySchema.model_validate(values)
    # Serve's own words on its start ("Started Serve in namespace ...") would stand between ours; its warnings stay.
    if settings.log_level != "DEBUG":
        logging.getLogger(SERVE_LOGGER).setLevel(logging.WARNING)
    try:
        # What `serve run` itself calls; there is no public call that takes HTTP options and a config file's content.
        client = cast(Any, api).serve_start(
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            global_logging_config=config.logging_config,
        )
        client.deploy_apps(config)
    except Exception as error:
        raise NotReady(f"Serve did not start: {str(error).splitlines()[0]}") from error


def missing(settings: Settings) -> str:
    """What is not ready yet, in words; empty when everything answers.

    Raises:
        NotReady: it will not become ready; says why.
    """
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
        return "; ".join(pending) or f"the application is {application.status.value}"
    try:
        answer = get(settings, "/api/v1/ready")
    except httpx.HTTPError as error:
        return f"HTTP does not answer: {type(error).__name__}"
    return "" if answer.status_code == 200 else failing(answer, {DISK})


def failing(answer: httpx.Response, spared: Collection[str]) -> str:
    """What the answer to GET /api/v1/ready says does not work, in words; see `unwell`."""
    try:
        return unwell(cast("dict[str, Any]", answer.json()), spared)
    except (ValueError, KeyError, TypeError):
        return f"/api/v1/ready answers {answer.status_code} without a readiness document"


def unwell(body: Mapping[str, Any], spared: Collection[str]) -> str:
    """What the document of /api/v1/ready tells of trouble, but for the checks and components of `spared`."""
    checks = cast("list[dict[str, Any]]", body["checks"])
    components = cast("dict[str, str]", body["components"])
    found = [f"{one['name']}: {one['detail']}" for one in checks if not one["ok"] and one["name"] not in spared]
    troubled = sorted(name for name, word in components.items() if word not in WELL and name not in spared)
    return "; ".join(found + [f"{name}: {components[name]}" for name in troubled])


def unfinished(settings: Settings) -> int | None:
    """Studies that are not in a terminal state; None where the API does not answer."""
    try:
        states = cast(dict[str, int], get(settings, "/api/v1/status").json()["studies"])
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    return sum(states.get(state, 0) for state in OPEN_STATES)
