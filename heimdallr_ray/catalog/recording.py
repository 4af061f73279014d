"""From durable bytes to rows: instances, their series and their study, in one transaction, as often as it is asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import String, insert, update
from sqlmodel import Session, SQLModel, col, select

from heimdallr_ray.catalog.aliases import with_standing_uids
from heimdallr_ray.catalog.associations import count_duplicates, note_resends
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import cancel_jobs
from heimdallr_ray.catalog.priority import higher_order
from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts, StudyFacts
from heimdallr_ray.catalog.states import TRANSITIONS, Door, StudyState
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.catalog.transitions import lock_study_uid, locked_study, record_state, transition
from heimdallr_ray.ids import new_id

OPEN = frozenset({StudyState.RECEIVING, StudyState.SETTLING})
"""States in which images are expected."""
_CHUNK = 500
"""Values per IN list: below SQLite's 999 of old builds."""
MAX_COMPARED = 8
"""Objects of one SOP Instance UID with which another one is compared; who sends more of them has conflicts."""

SameDataSet = Callable[[str, str], bool]
"""Whether the files of two digests differ in nothing but what they say of themselves before their data set."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class RecordOutcome:
    """What one call of `record_instances` changed."""

    stored: int
    """Rows that are new."""
    duplicates: int
    """Same study, SOP UID and data set as a row that exists: acknowledged, no second row."""
    study_ids: tuple[str, ...]
    """Studies with a new row or a duplicate, sorted."""
    replayed: int = 0
    """Of a replay after a crash: spool names that have a row, and duplicates, which were read back from the spool."""
    conflicts: int = 0
    """New rows whose SOP UID exists with other bytes."""
    reopened: tuple[str, ...] = ()
    """Studies that were closed and opened their next epoch."""


@dataclass(frozen=True)
class _StudyOutcome:
    study_id: str
    stored: int
    duplicates: int
    replayed: int
    conflicts: int
    reopened: bool
    again: Counter[str]
    """Duplicates that came by DICOM, by association."""


def record_instances(
    session: Session,
    instances: Sequence[ReceivedInstance],
    now: datetime,
    same_data_set: SameDataSet | None = None,
) -> RecordOutcome:
    """All instances have their row exactly once, and their studies and series know them.

    An image for a closed study opens the next epoch: its waiting or running job is cancelled (the worker finds its
    lease stale) and the study is receiving again. A duplicate reopens nothing. Doing it twice changes nothing: an image
    is known by its spool name, and a duplicate, which has no row, is counted only where it comes straight from a door.
    Objects without Study Instance UID that came before by another association are duplicates too (`aliases`).

    `same_data_set` is asked of objects whose study has their SOP Instance UID under another digest alone: the UIDs of a
    C-STORE request or of file meta information make another file of the same data set. Without it they are conflicts.
    """
    known = _known_spool_names(session, [item.spool_name for item in instances])
    new: list[ReceivedInstance] = []
    for item in instances:
        if item.spool_name not in known:
            known.add(item.spool_name)
            new.append(item)
    by_study: defaultdict[str, list[ReceivedInstance]] = defaultdict(list)
    for item in with_standing_uids(session, new, now):
        by_study[item.study_uid].append(item)
    # Sorted: two recorders that meet in several studies lock them in the same order.
    outcomes = [_record_study(session, uid, by_study[uid], now, same_data_set) for uid in sorted(by_study)]
    count_duplicates(session, sum((item.again for item in outcomes), Counter[str]()))
    return RecordOutcome(
        stored=sum(item.stored for item in outcomes),
        duplicates=sum(item.duplicates for item in outcomes),
        study_ids=tuple(sorted(item.study_id for item in outcomes)),
        replayed=len(instances) - len(new) + sum(item.replayed for item in outcomes),
        conflicts=sum(item.conflicts for item in outcomes),
        reopened=tuple(sorted(item.study_id for item in outcomes if item.reopened)),
    )


def _record_study(
    session: Session,
    study_uid: str,
    received: Sequence[ReceivedInstance],
    now: datetime,
    same_data_set: SameDataSet | None,
) -> _StudyOutcome:
    lock_study_uid(session, study_uid)
    study = session.exec(select(StudyRow).where(StudyRow.study_uid == study_uid)).one_or_none()
    fresh, known = _fresh_and_known(session, study, received, same_data_set)
    counted = [item for item in known if not item.replayed]
    duplicates, replayed = len(counted), len(known) - len(counted)
    again = _by_association(counted)
    reopened = False
    if study is None:
        study = _new_study(session, received[0], now)
    elif not fresh:
        # Of one that is replayed the time of its arrival counts: each replay would lengthen the wait otherwise.
        _note_activity(session, study, max([now] if counted else [item.received_at for item in known]))
        _note_resends(session, study, known)
        return _StudyOutcome(study.id, 0, duplicates, replayed, 0, reopened=False, again=again)
    else:
        study, reopened = _reopen_if_closed(session, study, received[0].door.value, now)
    _note_resends(session, study, known)
    conflicts = _store(session, study, fresh)
    _grow(study, fresh, now)
    session.add(study)
    session.flush()
    record_event(
        session,
        "study.images",
        now=now,
        actor=received[0].door.value,
        study_id=study.id,
        payload={
            "stored": len(fresh),
            "duplicates": duplicates,
            "n_instances": study.n_instances,
            "epoch": study.epoch,
        },
    )
    return _StudyOutcome(study.id, len(fresh), duplicates, replayed, conflicts, reopened, again)


def _by_association(items: Sequence[ReceivedInstance]) -> Counter[str]:
    """How many came by each association. The HTTP doors count by request themselves."""
    return Counter(item.association_id for item in items if item.door is Door.DICOM and item.association_id)


def _fresh_and_known(
    session: Session,
    study: StudyRow | None,
    received: Sequence[ReceivedInstance],
    same_data_set: SameDataSet | None,
) -> tuple[list[ReceivedInstance], list[ReceivedInstance]]:
    """Those that the study does not have yet, and the duplicates."""
    seen: set[tuple[str, str]] = set()
    held: defaultdict[str, list[str]] = defaultdict(list)
    if study is not None:
        for uids in _chunks([item.sop_uid for item in received]):
            statement = select(InstanceRow.sop_uid, InstanceRow.blob_sha256).where(
                InstanceRow.study_id == study.id, col(InstanceRow.sop_uid).in_(uids)
            )
            for sop_uid, sha256 in session.exec(statement).all():
                seen.add((sop_uid, sha256))
                held[sop_uid].append(sha256)
    fresh: list[ReceivedInstance] = []
    known: list[ReceivedInstance] = []
    for item in received:
        key = sop_uid, sha256 = str(item.sop_uid), str(item.blob_sha256)
        there = held[sop_uid]
        if key in seen or (
            there and same_data_set and any(same_data_set(sha256, other) for other in there[:MAX_COMPARED])
        ):
            known.append(item)
        else:
            fresh.append(item)
            there.append(sha256)
            seen.add(key)
    return fresh, known


def _new_study(session: Session, first: ReceivedInstance, now: datetime) -> StudyRow:
    study = StudyRow(
        study_uid=str(first.study_uid),
        uid_generated=first.study_uid_generated,
        first_received_at=first.received_at,
        last_received_at=max(first.received_at, now),
        door=first.door.value,
        calling_ae=_bounded(StudyRow, "calling_ae", first.calling_ae),
    )
    session.add(study)
    session.flush()
    record_state(session, study, None, now=now, actor=first.door.value)
    return study


def _note_activity(session: Session, study: StudyRow, at: datetime) -> None:
    if StudyState(study.state) in OPEN:
        study.last_received_at = max(study.last_received_at, at)
        session.add(study)


def _note_resends(session: Session, study: StudyRow, known: Sequence[ReceivedInstance]) -> None:
    if StudyState(study.state) in OPEN:
        note_resends(session, study.id, study.epoch, (item.association_id for item in known if item.association_id))


def _reopen_if_closed(session: Session, study: StudyRow, actor: str, now: datetime) -> tuple[StudyRow, bool]:
    state = StudyState(study.state)
    closed = state not in OPEN and StudyState.RECEIVING in TRANSITIONS[state]
    if closed:
        # Jobs before the study: the order in which a claim and a commit lock them.
        cancel_jobs(session, study.id, now=now, actor=actor, reason="a late image opened the next epoch")
    study = locked_study(session, study.id)
    if closed or state is StudyState.SETTLING:
        # What was planned, or was the end of the epoch before, is true no more.
        study.closes_at = study.close_code = study.close_reason = study.last_transfer = None
        session.add(study)
    if closed:
        study.epoch += 1
        study.manifest_sha256 = None
        study.closed_at = None
        transition(
            session, study.id, StudyState.RECEIVING, now=now, actor=actor, reason="a late image opened the next epoch"
        )
    elif state is StudyState.SETTLING:
        transition(session, study.id, StudyState.RECEIVING, now=now, actor=actor)
    return study, closed


def _store(session: Session, study: StudyRow, fresh: Sequence[ReceivedInstance]) -> int:
    """The new rows, inserted together; returns how many of them share their SOP UID with other bytes."""
    series = _series_rows(session, study, fresh)
    holders: defaultdict[str, set[str]] = defaultdict(set)
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for uids in _chunks(sorted({str(item.sop_uid) for item in fresh})):
        statement = select(InstanceRow.sop_uid, InstanceRow.id, InstanceRow.blob_sha256).where(
            col(InstanceRow.sop_uid).in_(uids)
        )
        for sop_uid, row_id, sha256 in session.exec(statement).all():
            holders[sop_uid].add(row_id)
            digests[sop_uid].add(sha256)
    conflicts = 0
    for item in fresh:
        seen = digests[str(item.sop_uid)]
        conflicts += bool(seen - {str(item.blob_sha256)})
        seen.add(str(item.blob_sha256))
    contested = {uid for uid, seen in digests.items() if len(seen) > 1}
    for row_ids in _chunks(sorted(row_id for uid in contested for row_id in holders.get(uid, ()))):
        session.exec(update(InstanceRow).where(col(InstanceRow.id).in_(row_ids)).values(sop_uid_conflict=True))
    rows = [
        _instance_values(study, series[str(item.series_uid)], item, conflict=str(item.sop_uid) in contested)
        for item in fresh
    ]
    session.connection().execute(insert(cast(Any, InstanceRow).__table__), rows)
    return conflicts


def _instance_values(
    study: StudyRow, series: SeriesRow, item: ReceivedInstance, *, conflict: bool
) -> dict[str, object]:
    return {
        "id": new_id(),
        "study_id": study.id,
        "series_id": series.id,
        "sop_uid": str(item.sop_uid),
        "sop_class_uid": _bounded(InstanceRow, "sop_class_uid", item.sop_class_uid) or "",
        "transfer_syntax_uid": _bounded(InstanceRow, "transfer_syntax_uid", item.transfer_syntax_uid) or "",
        "blob_sha256": str(item.blob_sha256),
        "size": item.size,
        "spool_name": item.spool_name,
        "epoch": study.epoch,
        "received_at": item.received_at,
        "door": item.door.value,
        "association_id": _bounded(InstanceRow, "association_id", item.association_id),
        "calling_ae": _bounded(InstanceRow, "calling_ae", item.calling_ae),
        "address": _bounded(InstanceRow, "address", item.address),
        "sop_uid_conflict": conflict,
        "durable": item.durable,
    }


def _series_rows(session: Session, study: StudyRow, fresh: Sequence[ReceivedInstance]) -> dict[str, SeriesRow]:
    rows: dict[str, SeriesRow] = {}
    for uids in _chunks(sorted({str(item.series_uid) for item in fresh})):
        statement = select(SeriesRow).where(SeriesRow.study_id == study.id, col(SeriesRow.series_uid).in_(uids))
        rows.update({row.series_uid: row for row in session.exec(statement).all()})
    filled: set[tuple[str, SeriesFacts]] = set()
    for item in fresh:
        uid = str(item.series_uid)
        if uid not in rows:
            rows[uid] = SeriesRow(study_id=study.id, series_uid=uid)
            session.add(rows[uid])
        if (uid, item.series) not in filled:
            filled.add((uid, item.series))
            _fill(rows[uid], item.series)
    for uid, count in Counter(str(item.series_uid) for item in fresh).items():
        rows[uid].n_instances += count
    session.flush()
    return rows


def _grow(study: StudyRow, fresh: Sequence[ReceivedInstance], now: datetime) -> None:
    study.n_instances += len(fresh)
    study.n_bytes += sum(item.size for item in fresh)
    modalities = {part for part in (study.modalities or "").split(",") if part}
    study.first_received_at = min(study.first_received_at, *(item.received_at for item in fresh))
    study.synthetic = study.synthetic or any(item.synthetic for item in fresh)
    # In the order of arrival, and each set of facts once: the images of a series repeat theirs.
    for facts in dict.fromkeys(item.study for item in fresh):
        _fill(study, facts)
        order = _bounded(StudyRow, "ordered_priority", facts.ordered_priority)
        study.ordered_priority = higher_order(study.ordered_priority, order)
    for modality in dict.fromkeys(item.series.modality for item in fresh):
        name = _bounded(SeriesRow, "modality", modality)
        if name:
            modalities.add(name.replace(",", ""))
    # The time of recording, not of arrival: after a replay the sender gets the whole idle time to come back.
    study.last_received_at = max(study.last_received_at, now, *(item.received_at for item in fresh))
    study.modalities = _bounded(StudyRow, "modalities", ",".join(sorted(modalities)))


def _fill(row: StudyRow | SeriesRow, facts: StudyFacts | SeriesFacts) -> None:
    """Facts that the row does not have yet are taken over; the first value stands."""
    for field in fields(facts):
        value = getattr(facts, field.name)
        if value is not None and getattr(row, field.name) is None:
            setattr(row, field.name, _bounded(type(row), field.name, value) if isinstance(value, str) else value)


@cache
def _limit(table_name: str, column: str) -> int | None:
    kind = cast("dict[str, Any]", SQLModel.metadata.tables[table_name].c)[column].type
    return cast(String, kind).length


def _bounded(table: type[SQLModel], column: str, value: str | None) -> str | None:
    """`value` as the column can hold it: PostgreSQL refuses NUL, both databases refuse lone surrogates."""
    if value is None:
        return None
    limit = _limit(str(cast(Any, table).__tablename__), column)
    if value.isascii() and "\0" not in value:
        return value[:limit] or None
    storable = value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    return storable[:limit] or None


def _known_spool_names(session: Session, names: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for chunk in _chunks(names):
        known.update(session.exec(select(InstanceRow.spool_name).where(col(InstanceRow.spool_name).in_(chunk))).all())
    return known


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
