"""Who may call a route. Every route names one of these three; a test walks all routes."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.config import is_loopback
from heimdallr_ray.errors import Unauthorized
from heimdallr_ray.security import tokens

_BEARER: Any = Security(HTTPBearer(auto_error=False, description="The API token, where one is configured."))
"""For the OpenAPI document; the rules below decide."""


def services_of(request: Request) -> ApiServices:
    """The services that the app was created with."""
    services: ApiServices = request.app.state.services
    return services


def _open_to(request: Request, services: ApiServices) -> bool:
    """True where nobody configured a token and the request comes from this machine."""
    local = request.client is None or is_loopback(request.client.host)
    return local and is_loopback(services.settings.server_host)


def anyone() -> None:
    """Liveness, pages and documentation: nothing of a patient, nothing to protect."""


def reader(request: Request, _documented: HTTPAuthorizationCredentials | None = _BEARER) -> None:
    """Patient data: the API token, or this machine where none is configured.

    Raises:
        Unauthorized: no token, a wrong one, or another machine although no token is configured.
    """
    services = services_of(request)
    api_token = services.settings.api_token.get_secret_value()
    if not api_token:
        if _open_to(request, services):
            return
        raise Unauthorized("no token is configured: only this machine may ask")
    if not tokens.matches(tokens.bearer(request.headers.get("authorization")), (api_token,)):
        raise Unauthorized("send the API token as bearer")


def uploader(request: Request, _documented: HTTPAuthorizationCredentials | None = _BEARER) -> None:
    """Uploads: the API token or the upload token, the latter also as X-Upload-Token.

    Raises:
        Unauthorized: a token is configured and neither was sent, or another machine although none is configured.
    """
    services = services_of(request)
    accepted = [
        secret.get_secret_value()
        for secret in (services.settings.api_token, services.settings.upload_token)
        if secret.get_secret_value()
    ]
    if not accepted:
        if _open_to(request, services):
            return
        raise Unauthorized("no token is configured: only this machine may upload")
    presented = (tokens.bearer(request.headers.get("authorization")), request.headers.get("x-upload-token"))
    if not any(tokens.matches(token, accepted) for token in presented):
        raise Unauthorized("send the upload token as bearer or X-Upload-Token")


ACCESS_RULES = (anyone, reader, uploader)
ANYONE: Any = Depends(anyone)
READER: Any = Depends(reader)
UPLOADER: Any = Depends(uploader)
SERVICES: Any = Depends(services_of)
