"""Who presents a token, and what it lets them do: those of the settings by value, the others from the database.

The database is asked for each request, so that a token that was revoked opens nothing a moment later, in all replicas.
"""

from __future__ import annotations

import hmac
import logging
from contextlib import suppress
from dataclasses import dataclass

from heimdallr_ray.catalog.api_tokens import USE_EVERY, find_token, note_use
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import Retryable, Unauthorized
from heimdallr_ray.security.tokens import (
    ALL_SCOPES,
    API_TOKEN,
    MAX_TOKEN_LENGTH,
    UPLOAD_TOKEN,
    Scope,
    decode_scopes,
    digest,
    matches,
)

_log = logging.getLogger(__name__)
NOTE_TIMEOUT_S = 0.2
"""The last use of a token is not worth a longer wait for the database."""


@dataclass(frozen=True)
class Grant:
    """A token that is valid now, by its name."""

    name: str
    scopes: frozenset[Scope]


class TokenBook:
    """Knows the tokens of an installation."""

    def __init__(self, settings: Settings, database: Database, clock: Clock) -> None:
        """Nothing is read before the first question."""
        api_token = settings.api_token.get_secret_value()
        upload_token = settings.upload_token.get_secret_value()
        self._fixed = [
            (api_token, Grant(API_TOKEN, ALL_SCOPES)),
            (upload_token, Grant(UPLOAD_TOKEN, frozenset({Scope.INGEST}))),
        ]
        self._database = database
        self._clock = clock

    def grant_of(self, presented: str | None) -> Grant | None:
        """What `presented` opens; None where it is no token of this installation.

        Raises:
            Unauthorized: it was one; it has expired or was revoked.
            Retryable: the database does not answer.
        """
        if not presented or len(presented) > MAX_TOKEN_LENGTH:
            return None
        fixed = [grant for token, grant in self._fixed if matches(presented, (token,))]
        if fixed:
            return fixed[0]
        sha256, now = digest(presented), self._clock.now()
        with self._database.read() as session:
            row = find_token(session, sha256)
        if row is None or not hmac.compare_digest(row.sha256, sha256):
            return None
        if row.revoked_at is not None:
            raise Unauthorized(f"the token {row.name} was revoked")
        if row.expires_at is not None and row.expires_at <= now:
            raise Unauthorized(f"the token {row.name} has expired")
        if row.last_used_at is None or row.last_used_at < now - USE_EVERY:
            with suppress(Retryable), self._database.write(timeout_s=NOTE_TIMEOUT_S) as session:
                note_use(session, sha256, now=now)
        return Grant(row.name, decode_scopes(row.scopes))
