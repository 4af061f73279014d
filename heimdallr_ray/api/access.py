"""Who may call a route. Every route names one of these rules; a test walks all routes.

A rule asks for a scope of a token. Where no token is configured, this machine may do everything without one, and no
other may do anything; what a proxy on this machine passes on was asked elsewhere. Who presents a token is judged by
it, from wherever. Who asked is `request.state.actor` afterwards, for the audit chain.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.config import is_loopback
from heimdallr_ray.errors import Forbidden, Unauthorized
from heimdallr_ray.security import tokens
from heimdallr_ray.security.audit import Actor, ActorKind
from heimdallr_ray.security.grants import Grant, TokenBook
from heimdallr_ray.security.tokens import Scope

_BEARER: Any = Security(HTTPBearer(auto_error=False, description="A token, where one is configured."))
"""For the OpenAPI document; the rules below decide."""
_FORWARDING = frozenset({"forwarded", "via", "x-real-ip"})
"""Headers of a proxy (RFC 7239; RFC 9110, 7.6.3), beside X-Forwarded-For, -Host, -Proto and their like."""


def services_of(request: Request) -> ApiServices:
    """The services that the app was created with."""
    services: ApiServices = request.app.state.services
    return services


def actor_of(request: Request) -> Actor:
    """Who asked, once an access rule let the request in; nobody before."""
    actor: Actor | None = getattr(request.state, "actor", None)
    return actor or Actor(ActorKind.ANONYMOUS, "", _address(request))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _forwarded(request: Request) -> bool:
    """True where a proxy says that it passes the request on: whose it is, the socket's address does not tell."""
    return any(name in _FORWARDING or name.startswith("x-forwarded-") for name in request.headers)


def _open_to(request: Request, services: ApiServices, scope: Scope) -> bool:
    """True where nobody configured a token for this and the request was made on this machine."""
    settings = services.settings
    configured = [settings.api_token, *([settings.upload_token] if scope is Scope.INGEST else [])]
    if any(secret.get_secret_value() for secret in configured):
        return False
    local = request.client is None or is_loopback(request.client.host)
    return local and is_loopback(settings.server_host) and not _forwarded(request)


def _admit(request: Request, scope: Scope) -> None:
    """The request may go on, and its actor is known.

    Raises:
        Unauthorized: no token where one is needed, or none that is valid.
        Forbidden: a valid token without `scope`.
        Retryable: the database does not answer.
    """
    request.state.actor = Actor(ActorKind.ANONYMOUS, "", _address(request))
    request.state.actor = _found(request, scope)


def _found(request: Request, scope: Scope) -> Actor:
    services, address = services_of(request), _address(request)
    grants: list[Grant] = []
    expired: Unauthorized | None = None
    book: TokenBook = request.app.state.tokens
    presented = [tokens.bearer(request.headers.get("authorization"))]
    if scope is Scope.INGEST:
        presented.append(request.headers.get("x-upload-token"))
    for token in presented:
        try:
            grant = book.grant_of(token)
        except Unauthorized as error:
            expired = error
            continue
        if grant is not None:
            grants.append(grant)
    named = next((grant for grant in grants if scope in grant.scopes), None)
    if named is not None:
        return Actor(ActorKind.TOKEN, named.name, address)
    if grants:
        # It is known who asks, so a refusal names them.
        request.state.actor = Actor(ActorKind.TOKEN, grants[0].name, address)
        raise Forbidden(f"the token {grants[0].name} has no scope {scope}")
    if expired is not None:
        raise expired
    if any(presented):
        raise Unauthorized("this token is not known here")
    if _open_to(request, services, scope):
        return Actor(ActorKind.LOCAL, tokens.LOCAL, address)
    raise Unauthorized(f"send a token with the scope {scope} as bearer")


def anyone() -> None:
    """Liveness, pages and documentation: nothing of a patient, nothing to protect."""


def reader(request: Request, _documented: HTTPAuthorizationCredentials | None = _BEARER) -> None:
    """Patient data: scope `read`.

    Raises:
        Unauthorized, Forbidden: as `_admit`.
    """
    _admit(request, Scope.READ)


def uploader(request: Request, _documented: HTTPAuthorizationCredentials | None = _BEARER) -> None:
    """Images: scope `ingest`; its token may also come as X-Upload-Token.

    Raises:
        Unauthorized, Forbidden: as `_admit`.
    """
    _admit(request, Scope.INGEST)


def operator(request: Request, _documented: HTTPAuthorizationCredentials | None = _BEARER) -> None:
    """What becomes of a study: scope `admin`.

    Raises:
        Unauthorized, Forbidden: as `_admit`.
    """
    _admit(request, Scope.ADMIN)


def scraper(request: Request, _documented: HTTPAuthorizationCredentials | None = _BEARER) -> None:
    """The figures of operation: scope `metrics`.

    Raises:
        Unauthorized, Forbidden: as `_admit`.
    """
    _admit(request, Scope.METRICS)


ACCESS_RULES = (anyone, reader, uploader, operator, scraper)
ANYONE: Any = Depends(anyone)
READER: Any = Depends(reader)
UPLOADER: Any = Depends(uploader)
OPERATOR: Any = Depends(operator)
SCRAPER: Any = Depends(scraper)
SERVICES: Any = Depends(services_of)
