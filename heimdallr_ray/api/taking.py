"""One request that stores images: its id, its session, and the row that says when its client began and ended."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress

from fastapi import Request
from sqlmodel import Session

from heimdallr_ray.api.access import actor_of
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.api.told import Story
from heimdallr_ray.catalog.associations import AssociationOpened, record_opened
from heimdallr_ray.catalog.sessions import count_request, end_session, touch_session
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import Rejected, Retryable
from heimdallr_ray.ids import new_id
from heimdallr_ray.listener.auditing import Note
from heimdallr_ray.listener.facts import Accepted

SESSION_HEADER = "X-Upload-Session"
MORE_HEADER = "X-Upload-More"
COUNT_TIMEOUT_S = 1.0
_SESSION = re.compile(r"[0-9a-f]{32}")


class Taking:
    """One request, or one of a session.

    Attributes:
        id: what its instances name as their association.
        actor: who asked.
        address: of the client.
        in_session: the client names a session, so that other requests may belong to the same upload.
        more: the client will send another request of this session; its studies stay open.
        story: what audit chain and figures are told.
    """

    def __init__(self, request: Request, services: ApiServices, door: Door) -> None:
        """The intake that `request` is a part of.

        Raises:
            Rejected: a session that is not 32 hexadecimal digits, or more without a session.
        """
        named = request.headers.get(SESSION_HEADER)
        self.more = request.headers.get(MORE_HEADER, "").strip().lower() == "true"
        if named is not None and not _SESSION.fullmatch(named):
            raise Rejected(f"{SESSION_HEADER} has to be 32 hexadecimal digits, lower case")
        if self.more and named is None:
            raise Rejected(f"{MORE_HEADER} needs {SESSION_HEADER}")
        self.in_session = named is not None
        # Hashed: a client that chooses its session can never name somebody else's association.
        derived = hashlib.sha256(f"upload session\x1f{named}".encode()).hexdigest()[:32]
        self.id = derived if self.in_session else new_id()
        self.actor = actor_of(request)
        self.address = self.actor.address or None
        self.story = Story(services, request, door, self.id)
        self._services = services
        self._door = door
        self._user_agent = request.headers.get("user-agent", "")
        self._opened_at = services.clock.now()
        self._began = services.clock.monotonic()

    @property
    def ms(self) -> int:
        """Since the request began."""
        return round((self._services.clock.monotonic() - self._began) * 1000)

    def begin(self) -> None:
        """A session is open from here on: its studies are not closed while this request comes in.

        Raises:
            Retryable: the database does not answer.
        """
        if self.in_session:
            with self._services.database.write() as session:
                touch_session(session, self._opened())

    def notes(self, items: Sequence[Accepted]) -> Sequence[Note]:
        """What is carried out in the transaction of the rows of `items`."""
        return (self._record, *self.story.notes(items))

    def counted(self, stored: int, duplicates: int, refused: int, size: int) -> None:
        """The intake's row says how much came. For people: a database that is busy is not waited for.

        Args:
            stored: objects that are answered as stored, as of a C-STORE association.
            duplicates: of these, so many were there before.
            refused: objects or files that were not taken.
            size: data set bytes of the stored ones.
        """
        self.story.stored()
        with suppress(Retryable), self._services.database.write(timeout_s=COUNT_TIMEOUT_S) as session:
            count_request(session, self.id, stored=stored, duplicates=duplicates, refused=refused, size=size)

    def _opened(self) -> AssociationOpened:
        return AssociationOpened(
            self.id,
            self._door,
            None,
            None,
            self.address,
            self._opened_at,
            self._user_agent,
            actor_kind=self.actor.kind.value,
            actor_name=self.actor.name,
        )

    def _record(self, session: Session) -> None:
        if self.in_session:
            touch_session(session, self._opened())
        else:
            record_opened(session, [self._opened()])
        if not self.more:
            end_session(session, self.id, self._services.clock.now())
