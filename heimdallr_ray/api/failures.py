"""One JSON shape for every error: {"error": {"code", "detail"}}."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from heimdallr_ray.api import told
from heimdallr_ray.api.guard import SAFE_METHODS
from heimdallr_ray.errors import Broken, HeimdallrError, NoResult, Retryable

_log = logging.getLogger(__name__)
RETRY_AFTER_S = 5
UnknownPage = Callable[[Request], Response | None]
"""What a browser is shown at an address where nothing is; None where the JSON shape is the answer."""


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="Stable; see docs.")
    detail: str = Field(description="For a person; no patient data.")


class ErrorResponse(BaseModel):
    """The body of every response with a status of 400 and above."""

    error: ErrorBody


class NoResultBody(ErrorBody):
    """Why a study has no result."""

    code: str = Field(description="`no_result`: it ended without one. `not_ready`: it has none yet, ask again.")
    state: str | None = Field(None, description="Of the study, with `no_result`.")
    reason_code: str | None = Field(None, description="Why, with `no_result`; /api/v1/reasons has the sentence.")
    reason: str | None = Field(None, description="The same for a person, with `no_result`.")


class NoResultResponse(BaseModel):
    """The body of a 409 where a result was asked for."""

    error: NoResultBody


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route: these statuses carry an ErrorResponse."""
    return {status: {"model": ErrorResponse} for status in statuses}


def error_response(
    status: int,
    code: str,
    detail: str,
    headers: dict[str, str] | None = None,
    facts: Mapping[str, str | None] = MappingProxyType({}),
) -> JSONResponse:
    """A response in the one shape; `facts` stand beside code and detail."""
    return JSONResponse({"error": {"code": code, "detail": detail, **facts}}, status_code=status, headers=headers)


async def _heimdallr(request: Request, error: Exception, unknown_page: UnknownPage) -> Response:
    if not isinstance(error, HeimdallrError):
        raise error
    if error.http_status == 404:
        page = await asyncio.to_thread(unknown_page, request)
        if page is not None:
            return page
    headers: dict[str, str] = {}
    if error.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="heimdallr"'
    if isinstance(error, Retryable) and error.http_status >= 500:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, Broken):
        _log.error("request.failed", exc_info=error, extra={"code": error.code, "route": _route(request)})
    elif request.method not in SAFE_METHODS or error.http_status in (401, 403):
        _log_refusal(request, error.http_status, error.code, error.detail)
    facts: dict[str, str | None] = {}
    if isinstance(error, NoResult):
        facts = {"state": error.state, "reason_code": error.reason_code, "reason": error.reason}
    response = error_response(error.http_status, error.code, error.detail, headers, facts)
    response.background = told.refusal(request, _route(request), error)
    return response


def _log_refusal(request: Request, status: int, code: str, reason: str) -> None:
    _log.warning(
        "request.refused",
        extra={
            "code": code,
            "reason": reason,
            "status": status,
            "route": _route(request),
            "address": request.client.host if request.client else None,
        },
    )


def _route(request: Request) -> str:
    """The route's template, which carries no identifier of a study."""
    return str(getattr(request.scope.get("route"), "path", "unknown"))


async def _validation(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    problems = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:10])
    if request.method not in SAFE_METHODS:
        # Names of fields may be the client's own words, and stay out of the log.
        _log_refusal(request, 422, "invalid_request", f"{len(error.errors())} invalid values")
    return error_response(422, "invalid_request", problems)


async def _http(request: Request, error: Exception, unknown_page: UnknownPage) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        page = await asyncio.to_thread(unknown_page, request)
        if page is not None:
            return page
    codes = {404: "not_found", 405: "method_not_allowed"}
    headers = dict(error.headers or {})
    return error_response(error.status_code, codes.get(error.status_code, "http_error"), str(error.detail), headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours: logged by the server with its traceback, answered without any of it."""
    return error_response(500, "internal_error", "unexpected error; it has been logged")


def install(app: FastAPI, unknown_page: UnknownPage = lambda request: None) -> None:
    """From now on `app` answers every error in the one shape, but a browser at an unknown address by `unknown_page`."""

    async def heimdallr(request: Request, error: Exception) -> Response:
        return await _heimdallr(request, error, unknown_page)

    async def http(request: Request, error: Exception) -> Response:
        return await _http(request, error, unknown_page)

    app.add_exception_handler(HeimdallrError, heimdallr)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, _unexpected)
