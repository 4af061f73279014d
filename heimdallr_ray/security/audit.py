"""The one audit chain: who did what, when, to which study; each entry carries an HMAC over itself and the one before.

An entry is written in the transaction of the change that it tells of: both are there, or neither is. Entries get their
numbers last, under a lock that is held until the commit, so that several processes and threads write one chain without
a fork. No patient data: a study is named by the catalog's own id, free text of people and senders is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import cast

from sqlalchemy import text
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.lastly import before_commit
from heimdallr_ray.catalog.tables import AuditHeadRow, AuditRow
from heimdallr_ray.config import Settings
from heimdallr_ray.security.audit_key import AuditKey, ensure_key

_ORDER_LOCK = 0x4865_696D_6402
_PENDING = "heimdallr_pending_audit"
_HEAD_ID = 1
GENESIS = "0" * 64
"""What the first entry names as the MAC before it."""
MAX_TEXT = 64
MAX_VALUE = 200
MAX_FACTS = 16

Fact = str | int | bool | None
"""What may stand in an entry's detail: codes, counts and our own ids."""


class Action(StrEnum):
    """What an entry is about. The words are kept for good: old chains are read by them."""

    ASSOCIATION_ACCEPTED = "association.accepted"
    ASSOCIATION_REFUSED = "association.refused"
    STUDY_RECEIVED = "study.received"
    UPLOAD_ACCEPTED = "upload.accepted"
    UPLOAD_REFUSED = "upload.refused"
    STOW_ACCEPTED = "stow.accepted"
    STOW_REFUSED = "stow.refused"
    COMMITMENT_ASKED = "commitment.asked"
    COMMITMENT_ANSWERED = "commitment.answered"
    STUDY_COMPLETED = "study.completed_by_operator"
    STUDY_RETRIED = "study.retried"
    SERIES_CHOSEN = "series.chosen"
    TOKEN_CREATED = "token.created"  # noqa: S105 - a word, not a secret
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - a word, not a secret
    KEY_CREATED = "audit.key_created"
    ENTRIES_DROPPED = "audit.entries_dropped"
    HEAD_MISMATCH = "audit.head_mismatch"


class Outcome(StrEnum):
    """How it ended."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILED = "failed"


class ActorKind(StrEnum):
    """What an actor's name is a name of."""

    AE = "ae"
    """A calling AE title: what the peer says of itself, proven by nothing but its address or certificate."""
    TOKEN = "token"  # noqa: S105 - a word, not a secret
    """A bearer token, by its name."""
    LOCAL = "local"
    """Somebody on this machine, where no token is configured."""
    USER = "user"
    """An account of the operating system, at the command line."""
    ANONYMOUS = "anonymous"
    """A request without a valid token."""
    SYSTEM = "system"
    """A part of this installation."""


@dataclass(frozen=True)
class Actor:
    """Who did it, and from which address."""

    kind: ActorKind
    name: str
    address: str = ""

    @classmethod
    def ae(cls, calling_ae: str | None, address: str | None) -> Actor:
        """The sender of a DICOM association."""
        return cls(ActorKind.AE, calling_ae or "", address or "")

    @classmethod
    def system(cls, part: str) -> Actor:
        """A part of this installation."""
        return cls(ActorKind.SYSTEM, part)


@dataclass(frozen=True)
class Entry:
    """What the caller tells; the chain adds number, key and MAC."""

    at: datetime
    action: Action
    outcome: Outcome
    actor: Actor
    study_id: str | None
    detail: str


@dataclass(frozen=True)
class Tip:
    """The end of the chain: entries written, MAC and key of the last one."""

    entries: int = 0
    mac: str = GENESIS
    key_id: str = ""


class AuditLog:
    """Appends with one key. Keeps nothing but the key; any number of objects, threads and processes write one chain."""

    def __init__(self, key: AuditKey) -> None:
        self._key = key

    @classmethod
    def of(cls, settings: Settings) -> AuditLog:
        """With the installation's key, which is made where there is none.

        Raises:
            BadSetting: the key file is no key, or others can read it.
            StorageFailed: it can be neither read nor made.
        """
        return cls(ensure_key(settings.resolved_audit_key_file))

    def append(
        self,
        session: Session,
        action: Action,
        actor: Actor,
        *,
        now: datetime,
        outcome: Outcome = Outcome.SUCCESS,
        study_id: str | None = None,
        detail: Mapping[str, Fact] | None = None,
    ) -> None:
        """The entry will be the chain's last when the session's transaction is committed, and nothing where it is not.

        Args:
            session: Of `Database.write()`.
            action: What happened.
            actor: Who did it; names are cut to 64 characters, control characters are written as escapes.
            now: UTC.
            outcome: How it ended.
            study_id: `study.id`, never a UID.
            detail: Codes, counts and our own ids; no patient data, no text of senders or people.

        Raises:
            ValueError: the detail is too large, or `now` is naive.
            RuntimeError: the session is none of `Database.write()`.
        """
        if now.tzinfo is None:
            raise ValueError("naive datetime")
        entry = Entry(now.astimezone(UTC), action, outcome, actor, study_id, encode_detail(detail or {}))
        mine = f"{_PENDING}.{self._key.id}"
        waiting = cast("list[Entry]", session.info.setdefault(mine, []))
        if not waiting:
            before_commit(session, partial(self._write, pending=mine))
        waiting.append(entry)

    def _write(self, session: Session, pending: str) -> None:
        entries = cast("list[Entry]", session.info.pop(pending, []))
        if session.get_bind().dialect.name == "postgresql":
            session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ORDER_LOCK})
        head = session.exec(select(AuditHeadRow).where(AuditHeadRow.id == _HEAD_ID)).one_or_none()
        last = session.exec(select(AuditRow).order_by(col(AuditRow.id).desc()).limit(1)).one_or_none()
        tip, own = continued(self._key, head, last, entries[0].at)
        for entry in (*own, *entries):
            row = sealed(self._key, tip, entry)
            session.add(row)
            tip = Tip(row.id, row.mac, row.key_id)
        head = head or AuditHeadRow(id=_HEAD_ID, entries=0, mac="", key_id="", seal="")
        head.entries, head.mac, head.key_id = tip.entries, tip.mac, tip.key_id
        head.seal = seal_of(self._key, tip)
        session.add(head)
        session.flush()


def continued(
    key: AuditKey, head: AuditHeadRow | None, last: AuditRow | None, now: datetime
) -> tuple[Tip, list[Entry]]:
    """Where the chain goes on, and what has to be told of that: a new key, or a head that does not fit its chain.

    A head that does not fit is no reason to refuse images: the chain goes on behind whichever is longer, so that the
    gap stays visible for good, and says what was found.
    """
    found = Tip() if last is None else Tip(last.id, last.mac, last.key_id)
    tip, own = found, list[Entry]()
    if head is None:
        fits = last is None
    else:
        told = Tip(head.entries, head.mac, head.key_id)
        genuine = told.key_id != key.id or head.seal == seal_of(key, told)
        fits = genuine and told == found
        if genuine and told.entries > found.entries:
            tip = told
    if not fits:
        facts: dict[str, Fact] = {"head": None if head is None else head.entries, "last": found.entries}
        own.append(_own(now, Action.HEAD_MISMATCH, Outcome.FAILED, facts))
    if tip.key_id != key.id:
        own.append(_own(now, Action.KEY_CREATED, Outcome.SUCCESS, {"key": key.id, "before": tip.key_id or None}))
    return tip, own


def _own(now: datetime, action: Action, outcome: Outcome, facts: Mapping[str, Fact]) -> Entry:
    return Entry(now, action, outcome, Actor.system("audit"), None, encode_detail(facts))


def sealed(key: AuditKey, tip: Tip, entry: Entry) -> AuditRow:
    """The row of `entry` behind `tip`, with its MAC."""
    row = AuditRow(
        id=tip.entries + 1,
        at=entry.at,
        action=entry.action.value,
        outcome=entry.outcome.value,
        actor_kind=entry.actor.kind.value,
        actor_name=clean(entry.actor.name, MAX_TEXT),
        actor_address=clean(entry.actor.address, MAX_TEXT),
        study_id=entry.study_id,
        detail=entry.detail,
        key_id=key.id,
        prev_mac=tip.mac,
        mac="",
    )
    row.mac = mac_of(key, row)
    return row


def mac_of(key: AuditKey, row: AuditRow) -> str:
    """HMAC over every column of `row` but its own MAC, the one before included."""
    fields = [
        "heimdallr-audit-1",
        row.id,
        row.at.astimezone(UTC).isoformat(timespec="microseconds"),
        row.action,
        row.outcome,
        row.actor_kind,
        row.actor_name,
        row.actor_address,
        row.study_id,
        row.detail,
        row.key_id,
        row.prev_mac,
    ]
    return key.mac(json.dumps(fields, separators=(",", ":")).encode("ascii"))


def seal_of(key: AuditKey, tip: Tip) -> str:
    """HMAC that says: the chain has this many entries and ends with this MAC."""
    fields = ["heimdallr-audit-head-1", tip.entries, tip.mac, tip.key_id]
    return key.mac(json.dumps(fields, separators=(",", ":")).encode("ascii"))


def encode_detail(facts: Mapping[str, Fact]) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII; texts are bounded.

    Raises:
        ValueError: more than 16 facts.
    """
    if len(facts) > MAX_FACTS:
        raise ValueError(f"more than {MAX_FACTS} facts")
    values = {name: clean(value, MAX_VALUE) if isinstance(value, str) else value for name, value in facts.items()}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def clean(said: str, limit: int) -> str:
    """`said` within `limit` characters, with escapes for what is not printable ASCII: it comes from outside."""
    return "".join(one if _plain(one) else one.encode("unicode_escape").decode("ascii") for one in said[:limit])[:limit]


def _plain(one: str) -> bool:
    return " " <= one <= "~" and one != "\\"
