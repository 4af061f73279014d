"""Objects without Study Instance UID that come again: they belong to the study that has them, and what comes with them.

Their study's UID is derived from the association or upload, so that by another one they come under another UID. An
instance belongs to one study (PS3.3 A.1.2), and what came together belongs together: so the derived UIDs of the second
coming stand for those of the first, also for images that had not come before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple, TypeVar

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.received import ReceivedInstance
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow, UidAliasRow
from heimdallr_ray.catalog.transitions import lock_study_uid
from heimdallr_ray.ids import Uid

_CHUNK = 400
"""Objects of one question, with two values each: below SQLite's 999 of old builds."""
_LOCK = "without Study Instance UID"
"""No UID: the lock under which objects without one are given to a study."""

Item = TypeVar("Item")
_Key = tuple[str, str]
"""SOP Instance UID and digest of an object."""


class _Held(NamedTuple):
    """Where an object is: the UIDs of study and series as the catalog has them."""

    study_uid: str
    series_uid: str


def standing_uid(session: Session, study_uid: str) -> str:
    """The UID of the study that `study_uid` stands for; itself where it stands for no other."""
    alias = session.get(UidAliasRow, study_uid)
    return study_uid if alias is None else alias.stands_for


def standing_uids(session: Session, uids: AbstractSet[str]) -> frozenset[str]:
    """What those of `uids` stand for that stand for others."""
    return frozenset(_aliases(session, sorted(uids)).values())


def with_standing_uids(
    session: Session, received: Sequence[ReceivedInstance], now: datetime
) -> Sequence[ReceivedInstance]:
    """`received`, where objects without Study Instance UID name the study that they belong to.

    That is the study that has one of those that came with them, byte for byte; the one that came first where several
    have. A study of its own that a part of them has made already stays one. Nobody else decides this until the
    transaction ends: on PostgreSQL two associations with the same objects would make two studies.

    Args:
        session: Of `Database.write()`; no study is locked in it yet.
        received: of any studies.
        now: UTC.
    """
    blank = [item for item in received if item.study_uid_generated]
    if not blank:
        return received
    lock_study_uid(session, _LOCK)
    held = _holders(session, blank)
    studies = sorted({str(item.study_uid) for item in blank})
    known = _aliases(session, sorted({*studies, *(str(item.series_uid) for item in blank)}))
    alias = {**{uid: uid for uid in _existing(session, studies)}, **known}
    groups: dict[str, list[ReceivedInstance]] = {}
    for item in blank:
        groups.setdefault(str(item.study_uid), []).append(item)
    for uid, group in groups.items():
        where = [held.get(_key(item)) for item in group]
        target = alias.setdefault(uid, next((one.study_uid for one in where if one is not None), uid))
        for item, one in zip(group, where, strict=True):
            series_uid = str(item.series_uid)
            if one is not None and one.study_uid == target and one.series_uid != series_uid:
                alias.setdefault(series_uid, one.series_uid)
        for item in group:
            held.setdefault(_key(item), _Held(target, alias.get(str(item.series_uid), str(item.series_uid))))
    for uid, stands_for in alias.items():
        if uid not in known and uid != stands_for:
            session.add(UidAliasRow(uid=uid, stands_for=stands_for, at=now))
    return [_renamed(item, alias) if item.study_uid_generated else item for item in received]


def _renamed(item: ReceivedInstance, alias: dict[str, str]) -> ReceivedInstance:
    study_uid, series_uid = str(item.study_uid), str(item.series_uid)
    return replace(
        item,
        study_uid=Uid(alias.get(study_uid, study_uid)),
        series_uid=Uid(alias.get(series_uid, series_uid)),
    )


def _key(item: ReceivedInstance) -> _Key:
    return str(item.sop_uid), str(item.blob_sha256)


def _holders(session: Session, items: Sequence[ReceivedInstance]) -> dict[_Key, _Held]:
    """Of objects that a study without UID of its own has: which one, the first that had it."""
    found: dict[_Key, _Held] = {}
    keys = sorted({_key(item) for item in items})
    for chunk in _chunks(keys):
        statement = (
            select(InstanceRow.sop_uid, InstanceRow.blob_sha256, StudyRow.study_uid, SeriesRow.series_uid)
            .join(StudyRow, col(StudyRow.id) == InstanceRow.study_id)
            .join(SeriesRow, col(SeriesRow.id) == InstanceRow.series_id)
            .where(
                col(InstanceRow.sop_uid).in_([sop_uid for sop_uid, _ in chunk]),
                col(InstanceRow.blob_sha256).in_([sha256 for _, sha256 in chunk]),
                col(StudyRow.uid_generated).is_(True),
            )
            .order_by(col(StudyRow.first_received_at), col(StudyRow.id))
        )
        for sop_uid, sha256, study_uid, series_uid in session.exec(statement).all():
            found.setdefault((sop_uid, sha256), _Held(study_uid, series_uid))
    return found


def _existing(session: Session, uids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for chunk in _chunks(uids):
        found.update(session.exec(select(StudyRow.study_uid).where(col(StudyRow.study_uid).in_(chunk))).all())
    return found


def _aliases(session: Session, uids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for chunk in _chunks(uids):
        statement = select(UidAliasRow.uid, UidAliasRow.stands_for).where(col(UidAliasRow.uid).in_(chunk))
        found.update(session.exec(statement).all())
    return found


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
