"""What holds for every request before a router sees it, and for every response: hosts, origins, headers.

A server on loopback is reachable by any web page that the same person has open. DNS rebinding is answered by the Host
check, cross-site requests by Sec-Fetch-Site and Origin (Fetch Metadata, W3C).
"""

from __future__ import annotations

import ipaddress
import json
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heimdallr_ray.config import Settings, is_loopback
from heimdallr_ray.errors import Forbidden, HeimdallrError

_log = logging.getLogger(__name__)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Scripts from here only, and no WebAssembly. NiiVue draws its letters from a data: font; React sets styles."""

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def host_name(host_header: str) -> str | None:
    """The name in a Host header without its port, lower case; None where it is malformed."""
    try:
        parts = urlsplit(f"//{host_header}")
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def host_allowed(host_header: str, settings: Settings) -> bool:
    """True where the Host header cannot be the work of DNS rebinding.

    Rebinding needs a name that somebody else owns: addresses and localhost are none. Other names are accepted once an
    API token is needed, which a foreign page does not hold.
    """
    name = host_name(host_header)
    if not name:
        return False
    if is_loopback(name) or name == settings.server_host.lower() or settings.api_token.get_secret_value():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(headers: Headers) -> bool:
    """True where an unsafe request was made by our own page, or by a program that is no browser."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def refusal(scope: Scope, settings: Settings) -> HeimdallrError | None:
    """Why this request is not even looked at; None where it may go on."""
    headers = Headers(scope=scope)
    if not host_allowed(headers.get("host", ""), settings):
        return Forbidden("this server does not answer to that host name")
    if scope["method"] not in SAFE_METHODS and not same_origin(headers):
        return Forbidden("requests from other pages are refused")
    return None


class Guard:
    """ASGI middleware: refuses by `refusal`, adds the security headers to every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        error = refusal(scope, self._settings)
        if error is None:
            await self._app(scope, receive, send_guarded)
            return
        client = scope.get("client")
        _log.warning(
            "request.refused",
            extra={
                "status": error.http_status,
                "code": error.code,
                "reason": error.detail,
                "address": client[0] if client else None,
            },
        )
        body = json.dumps({"error": {"code": error.code, "detail": error.detail}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_guarded({"type": "http.response.start", "status": error.http_status, "headers": headers})
        await send_guarded({"type": "http.response.body", "body": body})
