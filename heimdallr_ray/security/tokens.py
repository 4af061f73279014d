"""Bearer tokens for machines, and for people until they can sign in: compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

MAX_TOKEN_LENGTH = 1024
"""Longer presented tokens are refused before they are hashed."""


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer ...` header (RFC 6750 section 2.1), or None where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def matches(presented: str | None, accepted: Iterable[str]) -> bool:
    """True where `presented` equals one of the non-empty `accepted` tokens.

    Digests of equal length are compared and every candidate is looked at, so that neither the time nor the number of
    comparisons tells how much of a guess was right.
    """
    if not presented or len(presented) > MAX_TOKEN_LENGTH:
        return False
    digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
    found = False
    for token in accepted:
        same = hmac.compare_digest(digest, hashlib.sha256(token.encode("utf-8")).digest())
        found = found or (same and bool(token))
    return found
