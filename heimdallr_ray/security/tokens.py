"""Bearer tokens: what they look like, what they may be for, and how they are compared. Pure.

A token of ours has 256 random bits, so its plain SHA-256 tells nothing of it and needs no salt. Who presents a token
is found by that digest; the time of the search tells nothing about the token either.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.ids import Sha256

MAX_TOKEN_LENGTH = 1024
"""Longer presented tokens are refused before they are hashed."""
PREFIX = "hdlr_"
"""By which a scanner of secrets knows a token of ours in a file where it should not be."""
API_TOKEN, UPLOAD_TOKEN, LOCAL = "api_token", "upload_token", "local"
RESERVED_NAMES = frozenset({API_TOKEN, UPLOAD_TOKEN, LOCAL, "anonymous", "system"})
MAX_LIFETIME = timedelta(days=3660)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([hdwy])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1), "y": timedelta(days=365)}


class Scope(StrEnum):
    """What a token lets its holder do."""

    READ = "read"
    """See studies, results and files."""
    INGEST = "ingest"
    """Store images."""
    METRICS = "metrics"
    """Read the figures of operation."""
    ADMIN = "admin"
    """Change what becomes of a study: try again, choose a series, close it."""


ALL_SCOPES = frozenset(Scope)


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer ...` header (RFC 6750 section 2.1), or None where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def digest(token: str) -> Sha256:
    """By what a token is known."""
    return Sha256(hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest())


def mint() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(32)


def matches(presented: str | None, accepted: Iterable[str]) -> bool:
    """True where `presented` equals one of the non-empty `accepted` tokens.

    Digests of equal length are compared and every candidate is looked at, so that neither the time nor the number of
    comparisons tells how much of a guess was right.
    """
    if not presented or len(presented) > MAX_TOKEN_LENGTH:
        return False
    presented_digest = digest(presented)
    found = False
    for token in accepted:
        same = hmac.compare_digest(presented_digest, digest(token))
        found = found or (same and bool(token))
    return found


def parse_name(text: str) -> str:
    """A name that a token may have.

    Raises:
        BadSetting: other characters than letters, digits, dot, dash and underscore, too long, or a name of ours.
    """
    if not _NAME.fullmatch(text) or text.lower() in RESERVED_NAMES:
        raise BadSetting(
            "a token's name has 1 to 32 letters, digits, dots, dashes and underscores, and is none of "
            + ", ".join(sorted(RESERVED_NAMES))
        )
    return text


def parse_scopes(words: Iterable[str]) -> frozenset[Scope]:
    """The scopes that are named, at least one.

    Raises:
        BadSetting: a word that is no scope, or none.
    """
    wanted = [word.strip() for text in words for word in text.split(",") if word.strip()]
    unknown = sorted(set(wanted) - set(Scope))
    if unknown or not wanted:
        raise BadSetting(f"a scope is one of {', '.join(sorted(Scope))}" + (f", not {unknown[0]}" if unknown else ""))
    return frozenset(Scope(word) for word in wanted)


def encode_scopes(scopes: Iterable[Scope]) -> str:
    """As a row keeps them."""
    return ",".join(sorted(scopes))


def decode_scopes(text: str) -> frozenset[Scope]:
    """What a row keeps; scopes that this version does not know open nothing."""
    return frozenset(Scope(word) for word in text.split(",") if word in set(Scope))


def parse_lifetime(text: str) -> timedelta:
    """`12h`, `90d`, `6w`, `1y`.

    Raises:
        BadSetting: another form, or more than ten years.
    """
    found = _LIFETIME.fullmatch(text.strip().lower())
    lifetime = int(found[1]) * _UNITS[found[2]] if found else None
    if lifetime is None or lifetime > MAX_LIFETIME:
        raise BadSetting("a lifetime is a number and h, d, w or y, such as 90d; ten years at most")
    return lifetime
