"""What a receiving process tells of accepted objects is what the listener hears."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from heimdallr_ray.catalog.received import SeriesFacts, StudyFacts
from heimdallr_ray.ids import Sha256, Uid
from heimdallr_ray.listener.association import MAX_UID_TEXT, OpenAssociation
from heimdallr_ray.listener.facts import Accepted, Identity
from heimdallr_ray.listener.wire.messages import ROWS_PER_MESSAGE, Stored, decode_stored, encode_stored
from heimdallr_ray.listener.writer import SpoolEntry

READY = Path("spool/ready")
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def opened(name: str) -> OpenAssociation:
    return OpenAssociation(name, "SENDER", "HEIMDALLR", "127.0.0.1", NOW, 1.0)


def accepted(association: OpenAssociation, number: int, study: StudyFacts, series: SeriesFacts) -> Accepted:
    arrival = association.arrival(NOW, "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}")
    entry = SpoolEntry(f"{association.id}.{number}", READY, f"{number}.dcm", arrival, Sha256(f"{number:064x}"), number)
    identity = Identity(Uid("1.2"), False, Uid("1.2.4"), Uid(f"1.2.3.{number}"), "1.2.840", False, study, series)
    return Accepted(entry, identity, durable=bool(number % 2))


def heard(stored: list[Stored], *associations: OpenAssociation) -> list[tuple[OpenAssociation, Accepted, float]]:
    known = {association.id: association for association in associations}
    told = [json.loads(json.dumps(message)) for message in encode_stored(stored)]
    return [found for message in told for found in decode_stored(message, known, READY)]


def test_objects_of_several_series_and_associations_come_as_they_were() -> None:
    first, second = opened("a"), opened("b")
    ct, mr = SeriesFacts(modality="CT", series_number=3), SeriesFacts(modality="MR")
    stored: list[Stored] = []
    for number in range(2 * ROWS_PER_MESSAGE + 5):
        association = (first, second)[number % 2]
        study = StudyFacts(patient_id=f"P{number % 3}", n_expected=7)
        stored.append((association.id, accepted(association, number, study, (ct, mr)[number % 5 == 0]), 0.25))
    assert [item for _, item, _ in heard(stored, first, second)] == [item for _, item, _ in stored]
    assert [(at.id, seconds) for at, _, seconds in heard(stored, first, second)] == [
        (name, 0.25) for name, _, _ in stored
    ]


def test_what_a_series_shares_is_told_once() -> None:
    association = opened("a")
    study, series = StudyFacts(patient_name="Doe^Jane"), SeriesFacts(modality="CT")
    stored: list[Stored] = [("a", accepted(association, number, study, series), 0.1) for number in range(300)]
    (message,) = encode_stored(stored)
    assert json.dumps(message).count("Doe^Jane") == 1


def test_objects_of_an_association_that_has_ended_are_left_out() -> None:
    association = opened("a")
    stored: list[Stored] = [("a", accepted(association, 1, StudyFacts(), SeriesFacts()), 0.1)]
    assert heard(stored) == []


def test_what_is_remembered_of_a_long_uid_is_short_and_still_no_uid() -> None:
    arrival = opened("a").arrival(NOW, "1.2.840.10008.1.2.1", "1." * 8000, "2" * 16_000)
    for text in (arrival.sop_class_uid, arrival.sop_instance_uid):
        assert len(text) == MAX_UID_TEXT
        assert Uid.parse_or_none(text) is None
