"""What the doors tell the audit chain, carried out in a database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from sqlmodel import Session

from heimdallr_ray.catalog.associations import AssociationOpened, record_opened
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.listener.auditing import IntakeAudit, Note
from heimdallr_ray.security.audit import Actor, ActorKind, AuditLog
from heimdallr_ray.security.audit_check import verify
from heimdallr_ray.security.audit_entries import recent
from heimdallr_ray.security.audit_key import AuditKey
from tests.support.clock import FakeClock

KEY = AuditKey(b"k" * 32)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def audit(clock: FakeClock) -> IntakeAudit:
    return IntakeAudit(AuditLog(KEY), clock)


@dataclass
class OpenAssociation:
    """As a door knows it."""

    id: str
    calling_ae: str
    called_ae: str
    address: str
    opened_at: datetime


def carry_note(note: Note | None, session: Session) -> None:
    assert note is not None
    note(session)


def carry_out(database: Database, *notes: Note | None) -> None:
    with database.write() as session:
        for note in notes:
            if note is not None:
                note(session)


def told(database: Database) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Action, outcome, actor and detail of all entries but the first, oldest first."""
    with database.read() as session:
        assert verify(session, [KEY]).intact
        return [
            (row.action, row.outcome, row.actor_name, row.actor_address, json.loads(row.detail))
            for row in reversed(recent(session, 1000))
            if row.action != "audit.key_created"
        ]


def test_an_accepted_association_is_in_the_transaction_of_its_row(
    database: Database, audit: IntakeAudit, clock: FakeClock
) -> None:
    opened = AssociationOpened("a1", Door.DICOM, "CT_1", "HEIMDALLR", "192.0.2.7", clock.now())
    candidate = OpenAssociation("a1", "CT_1", "HEIMDALLR", "192.0.2.7", clock.now())
    with pytest.raises(ZeroDivisionError), database.write() as session:
        record_opened(session, [opened])
        carry_note(audit.association("accepted", candidate), session)
        raise ZeroDivisionError
    assert told(database) == []
    carry_out(database, lambda session: record_opened(session, [opened]), audit.association("accepted", candidate))
    assert told(database) == [
        (
            "association.accepted",
            "success",
            "CT_1",
            "192.0.2.7",
            {"association": "a1", "called_ae": "HEIMDALLR"},
        )
    ]


def test_a_flood_of_refusals_is_one_entry_a_minute_and_its_count(
    database: Database, audit: IntakeAudit, clock: FakeClock
) -> None:
    stranger = OpenAssociation("", "NOBODY\r\n", "HEIMDALLR", "192.0.2.9", clock.now())
    for _ in range(500):
        carry_out(database, audit.association("refused", stranger, "calling_ae"))
    carry_out(database, audit.refused("unauthorized", Actor(ActorKind.ANONYMOUS, "", "192.0.2.9"), door=Door.UPLOAD))
    assert audit.due() == []
    clock.advance(61)
    carry_out(database, *audit.due())
    entries = told(database)
    assert entries == [
        (
            "association.refused",
            "refused",
            "NOBODY\\r\\n",
            "192.0.2.9",
            {"called_ae": "HEIMDALLR", "reason": "calling_ae"},
        ),
        ("upload.refused", "refused", "", "192.0.2.9", {"reason": "unauthorized"}),
        ("association.refused", "refused", "", "192.0.2.9", {"kept_back": 499, "reason": "calling_ae"}),
    ]


def test_an_upload_tells_who_and_how_much(database: Database, audit: IntakeAudit) -> None:
    gateway = Actor(ActorKind.TOKEN, "gateway", "192.0.2.3")
    carry_out(database, audit.taken_in(gateway, Door.UPLOAD, "u1", instances=3, studies=1, size=900))
    assert told(database) == [
        (
            "upload.accepted",
            "success",
            "gateway",
            "192.0.2.3",
            {"bytes": 900, "instances": 3, "intake": "u1", "studies": 1},
        )
    ]


def test_a_closed_epoch_is_a_study_received(database: Database, audit: IntakeAudit, clock: FakeClock) -> None:
    now = clock.now()
    with database.write() as session:
        study = StudyRow(
            study_uid="1.2.3",
            first_received_at=now,
            last_received_at=now,
            n_instances=2,
            calling_ae="CT_1",
            close_code="idle",
        )
        session.add(study)
        session.flush()
        audit.study_received(session, study.id, now)
        audit.study_received(session, "0" * 32, now)
    ((action, outcome, actor, _, detail),) = told(database)
    assert (action, outcome, actor) == ("study.received", "success", "CT_1")
    assert (detail["epoch"], detail["instances"], detail["why"]) == (1, 2, "idle")
    with database.read() as session:
        assert [row.study_id for row in recent(session, 1)] == [study.id]
