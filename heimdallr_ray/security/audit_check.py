"""Whether the audit chain is whole: every entry as it was written, none missing, none added, none exchanged.

What it finds and what it cannot: an entry that was changed, deleted, added or moved by somebody without the key is
found, wherever it stands. A tail that was cut is found by the sealed head, unless rows and head were put back together
to an earlier state; that is found by an anchor (a number of entries and the MAC of the last one) that was kept
elsewhere. Whoever holds the key can write whatever verifies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.tables import AuditHeadRow, AuditRow
from heimdallr_ray.errors import BadIdentifier
from heimdallr_ray.security.audit import GENESIS, Action, Tip, mac_of, seal_of
from heimdallr_ray.security.audit_key import AuditKey

PAGE = 1000
"""Entries in memory at once."""
MAX_FINDINGS = 20
_UNREAD = ""
_BEFORE_ALL = -(2**63)
_ANCHOR = re.compile(r"(0|[1-9][0-9]{0,18}):([0-9a-f]{64})")


@dataclass(frozen=True)
class Anchor:
    """What the chain is known to have been: its first `entries` entries ended with `mac`."""

    entries: int
    mac: str

    @classmethod
    def parse(cls, said: str) -> Anchor:
        """The anchor in `ENTRIES:MAC`.

        Raises:
            BadIdentifier: it has another form.
        """
        found = _ANCHOR.fullmatch(said.strip())
        if found is None:
            raise BadIdentifier("an anchor is ENTRIES:MAC, as `heimdallr audit head` prints it")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.entries}:{self.mac}"


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold. `entry` is where; None where it is about the whole chain."""

    entry: int | None
    code: str
    words: str


@dataclass(frozen=True)
class Verdict:
    """What a look at the whole chain found."""

    entries: int
    """That were read."""
    tip: Anchor
    """Of the last entry that was read."""
    first_at: datetime | None
    last_at: datetime | None
    findings: tuple[Finding, ...]
    """In the order of the chain, at most MAX_FINDINGS."""
    more: int
    """Findings beyond these."""

    @property
    def intact(self) -> bool:
        """True where nothing was found."""
        return not self.findings


@dataclass
class _Walk:
    keys: Mapping[str, AuditKey]
    anchors: Mapping[int, str]
    tip: Tip
    started: bool
    entries: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    findings: list[Finding] = field(default_factory=list[Finding])
    more: int = 0
    strangers: set[str] = field(default_factory=set[str])

    def find(self, entry: int | None, code: str, words: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(entry, code, words))
        else:
            self.more += 1

    def visit(self, row: AuditRow) -> None:
        """The next row in the order of ids."""
        expected = self.tip.entries + 1
        if not self.started:
            # The first entry of a part: what it names as the one before it is taken as given.
            self.started, expected, self.tip = True, row.id, Tip(row.id - 1, row.prev_mac, "")
        if row.id < expected:
            self.find(row.id, "added", "an entry with a number that was never given")
        elif row.id > expected:
            gone = f"entry {expected}" if row.id == expected + 1 else f"entries {expected} to {row.id - 1}"
            self.find(expected, "missing", f"{gone} missing: deleted")
        self._weigh(row, follows=row.id == expected)
        if self.anchors.get(row.id, row.mac) != row.mac:
            self.find(row.id, "anchor", "not the entry that an anchor names: the chain was written anew up to here")
        self.entries += 1
        self.first_at, self.last_at = self.first_at or row.at, row.at
        self.tip = Tip(row.id, row.mac, row.key_id)

    def _weigh(self, row: AuditRow, *, follows: bool) -> None:
        key = self.keys.get(row.key_id)
        if key is None:
            if row.key_id not in self.strangers:
                self.strangers.add(row.key_id)
                self.find(
                    row.id, "other_key", f"written with another key ({row.key_id[:16]}): give that one with --key-file"
                )
        elif not _genuine(key, row):
            self.find(row.id, "changed", "the entry is not as it was written, or was written without the key")
            return
        if follows and self.tip.mac not in (row.prev_mac, _UNREAD):
            self.find(row.id, "broken_link", "the entry before it is not the one that it was written behind")
        if key is not None and row.action == Action.HEAD_MISMATCH.value:
            self.find(row.id, "head_mismatch", "rows and head did not fit together when this entry was written")

    def pass_over(self, entry: int) -> None:
        """A row whose columns cannot be read as what they are."""
        self.find(entry, "changed", "the entry is not as it was written: its time cannot be read")
        self.entries += 1
        self.started, self.tip = True, Tip(entry, _UNREAD, "")

    def close(self, head: AuditHeadRow | None) -> None:
        """After the last row."""
        last = self.tip
        for entries in sorted(self.anchors):
            if entries > last.entries:
                self.find(None, "cut", f"an anchor knows {entries} entries, {last.entries} are there: the end was cut")
        if head is None:
            if last.entries:
                self.find(None, "head_missing", "the row that says how long the chain is was deleted")
            return
        told = Tip(head.entries, head.mac, head.key_id)
        key = self.keys.get(told.key_id)
        if key is not None and head.seal != seal_of(key, told):
            self.find(None, "head_changed", "the row that says how long the chain is was changed")
        elif told.entries > last.entries:
            gone = told.entries - last.entries
            self.find(last.entries + 1, "cut", f"the end of the chain is missing: {gone} deleted")
        elif told.entries < last.entries:
            self.find(told.entries + 1, "added", "entries behind the end that the head knows")
        elif last.mac not in (told.mac, _UNREAD):
            self.find(last.entries, "head_changed", "the last entry is not the one that the head knows")


def _genuine(key: AuditKey, row: AuditRow) -> bool:
    try:
        return mac_of(key, row) == row.mac
    except (TypeError, ValueError):
        # SQLite keeps values of any type in any column; what we wrote has the right ones.
        return False


def verify(session: Session, keys: Iterable[AuditKey], *, anchors: Iterable[Anchor] = (), first: int = 1) -> Verdict:
    """The whole chain is read, page by page, and every entry is held against its MAC, its neighbours and the anchors.

    Args:
        session: Of `Database.read()`: one snapshot, so that entries that are written meanwhile do not disturb.
        keys: The installation's key, and older ones where it was changed.
        anchors: States of the chain that were kept elsewhere.
        first: Number of the first entry to look at; those before it are taken as given.
    """
    known = {key.id: key for key in keys}
    pinned = {anchor.entries: anchor.mac for anchor in anchors if anchor.entries >= first}
    walk = _Walk(known, pinned, Tip(0, GENESIS), started=first <= 1)
    after = _BEFORE_ALL if first <= 1 else first - 1
    for row in _rows(session, walk, after):
        walk.visit(row)
    walk.close(session.exec(select(AuditHeadRow)).first())
    tip = Anchor(walk.tip.entries, walk.tip.mac)
    return Verdict(walk.entries, tip, walk.first_at, walk.last_at, tuple(walk.findings), walk.more)


def _rows(session: Session, walk: _Walk, after: int) -> Iterator[AuditRow]:
    while True:
        ids = session.exec(
            select(AuditRow.id).where(col(AuditRow.id) > after).order_by(col(AuditRow.id)).limit(PAGE)
        ).all()
        if not ids:
            return
        yield from _page(session, walk, ids)
        after = ids[-1]


def _page(session: Session, walk: _Walk, ids: Iterable[int]) -> Iterator[AuditRow]:
    wanted = list(ids)
    statement = select(AuditRow).where(col(AuditRow.id).between(wanted[0], wanted[-1])).order_by(col(AuditRow.id))
    try:
        yield from session.exec(statement).all()
    except ValueError:
        # A time that is none. One by one, to name the entry that has it.
        for one in wanted:
            try:
                yield session.exec(select(AuditRow).where(AuditRow.id == one)).one()
            except ValueError:
                walk.pass_over(one)
