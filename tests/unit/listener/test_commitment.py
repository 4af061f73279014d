"""Requests for commitment as bytes: what is read, and with which status the rest is refused."""

from __future__ import annotations

import time
from itertools import product
from random import Random

import pytest
from pynetdicom.dsutils import encode

from heimdallr_ray.catalog.commitment_leases import backoff_s
from heimdallr_ray.catalog.commitments import Failure, Reference, references_sha256
from heimdallr_ray.errors import CommitmentRefused
from heimdallr_ray.listener.action import ActionStatus
from heimdallr_ray.listener.commitment import MAX_REFERENCES, STATUS_MEANINGS, parse_request
from heimdallr_ray.listener.commitment_report import (
    FAILURE_MEANINGS,
    EventType,
    FailureReason,
    Report,
    event_information,
)
from tests.support.commitment import (
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    explicit,
    implicit,
    reference,
    request,
    request_dataset,
    uid,
)
from tests.support.memory import growth

TRANSACTION = "1.2.826.0.1.3680043.9.9.16.900"
PAIRS = [(CT, "1.2.3.1"), (MR, "1.2.3.22"), (CT, "1.2.3.333")]


def status_of(dataset: bytes, syntax: str = IMPLICIT) -> int:
    with pytest.raises(CommitmentRefused) as refused:
        parse_request(dataset, syntax)
    return refused.value.status


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_request_is_read_in_both_transfer_syntaxes_and_both_kinds_of_length(syntax: str, undefined: bool) -> None:
    dataset = request_dataset(TRANSACTION, PAIRS)
    dataset.RetrieveAETitle = "ARCHIVE"
    dataset.StorageMediaFileSetID = "DISK1"
    dataset["ReferencedSOPSequence"].is_undefined_length = undefined
    for item in dataset.ReferencedSOPSequence:
        item.is_undefined_length_sequence_item = undefined
    content = encode(dataset, syntax == IMPLICIT, True)
    assert content is not None
    assert parse_request(content, syntax) == (TRANSACTION, tuple(Reference(*pair) for pair in PAIRS))


def test_the_bytes_of_these_tests_are_what_pydicom_writes() -> None:
    assert request(TRANSACTION, PAIRS) == encode(request_dataset(TRANSACTION, PAIRS), True, True)


def test_a_reference_that_is_repeated_counts_once_and_the_order_stays() -> None:
    _, found = parse_request(request(TRANSACTION, [*PAIRS, PAIRS[0]]), IMPLICIT)
    assert found == tuple(Reference(*pair) for pair in PAIRS)


NO_TRANSACTION = implicit(0x00081199, reference("1.2.3"))
WRONG = {
    "empty": (b"", ActionStatus.INVALID_ARGUMENT),
    "no transaction": (NO_TRANSACTION, ActionStatus.INVALID_ARGUMENT),
    "blank transaction": (implicit(0x00081195, b"") + NO_TRANSACTION, ActionStatus.INVALID_ARGUMENT),
    "text as transaction": (implicit(0x00081195, b"../../etc ") + NO_TRANSACTION, ActionStatus.INVALID_ARGUMENT),
    "long transaction": (implicit(0x00081195, b"1." * 40) + NO_TRANSACTION, ActionStatus.INVALID_ARGUMENT),
    "no sequence": (implicit(0x00081195, uid(TRANSACTION)), ActionStatus.INVALID_ARGUMENT),
    "empty sequence": (request(TRANSACTION, []), ActionStatus.INVALID_ARGUMENT),
    "empty item": (
        implicit(0x00081195, uid(TRANSACTION)) + implicit(0x00081199, implicit(0xFFFEE000, b"")),
        ActionStatus.INVALID_ARGUMENT,
    ),
    "item without class": (
        implicit(0x00081195, uid(TRANSACTION))
        + implicit(0x00081199, implicit(0xFFFEE000, implicit(0x00081155, uid("1.2.3")))),
        ActionStatus.INVALID_ARGUMENT,
    ),
    "text as instance": (request(TRANSACTION, [(CT, "1.2;$(id)")]), ActionStatus.INVALID_ARGUMENT),
    "something else than items": (
        implicit(0x00081195, uid(TRANSACTION)) + implicit(0x00081199, implicit(0x00081150, uid(CT))),
        ActionStatus.MISTYPED_ARGUMENT,
    ),
    "cut": (request(TRANSACTION, PAIRS)[:-5], ActionStatus.MISTYPED_ARGUMENT),
    "noise": (bytes(range(255, -1, -1)) * 4, ActionStatus.INVALID_ARGUMENT),
    "length of 4 GiB": (
        implicit(0x00081195, uid(TRANSACTION)) + implicit(0x00081199, b"", 0xFFFFFFF0),
        ActionStatus.MISTYPED_ARGUMENT,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_absent_or_malformed_is_refused_with_its_status(name: str) -> None:
    content, expected = WRONG[name]
    assert status_of(content) == expected


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [(0x00081195, b"US", b"\1\0"), (0x00081195, b"SQ", b""), (0x00081199, b"LO", b"x "), (0x00081199, b"OB", b"xx")],
)
def test_another_value_representation_is_a_mistyped_argument(tag: int, vr: bytes, value: bytes) -> None:
    item = explicit(0x00081150, b"UI", uid(CT)) + explicit(0x00081155, b"UI", uid("1.2.3"))
    elements = {
        0x00081195: explicit(0x00081195, b"UI", uid(TRANSACTION)),
        0x00081199: explicit(0x00081199, b"SQ", implicit(0xFFFEE000, item)),
    }
    assert parse_request(b"".join(elements.values()), EXPLICIT)[0] == TRANSACTION
    elements[tag] = explicit(tag, vr, value)
    assert status_of(b"".join(elements.values()), EXPLICIT) == ActionStatus.MISTYPED_ARGUMENT


def test_a_transfer_syntax_that_is_not_ours_is_refused() -> None:
    assert status_of(request(TRANSACTION, PAIRS), "1.2.840.10008.1.2.1.99") == ActionStatus.MISTYPED_ARGUMENT


def test_as_many_references_as_are_allowed_and_one_more() -> None:
    pairs = [(CT, f"1.2.3.{number}") for number in range(MAX_REFERENCES + 1)]
    assert len(parse_request(request(TRANSACTION, pairs[:-1]), IMPLICIT)[1]) == MAX_REFERENCES
    assert status_of(request(TRANSACTION, pairs)) == ActionStatus.RESOURCE_LIMITATION


def hostile(name: str) -> bytes:
    head = implicit(0x00081195, uid(TRANSACTION))
    undefined = 0xFFFFFFFF
    if name == "10,000 nested sequences":
        opened = b"".join(
            implicit(0x00081199, b"", undefined) + implicit(0xFFFEE000, b"", undefined) for _ in range(10_000)
        )
        return head + opened
    if name == "10,000 nested in an item":
        opened = b"".join(
            implicit(0x00081140, b"", undefined) + implicit(0xFFFEE000, b"", undefined) for _ in range(10_000)
        )
        return head + implicit(0x00081199, b"", undefined) + implicit(0xFFFEE000, b"", undefined) + opened
    if name == "1,000,000 empty items":
        return head + implicit(0x00081199, implicit(0xFFFEE000, b"") * 1_000_000)
    if name == "1,000,000 empty items, undefined length":
        return head + implicit(0x00081199, b"", undefined) + implicit(0xFFFEE000, b"") * 1_000_000
    if name == "1,000,000 empty elements":
        return implicit(0x00080008, b"") * 1_000_000 + head
    assert name == "9 MiB"
    return head + implicit(0x00081199, reference("1.2.3") * 1) + implicit(0x00090010, b"x" * (9 << 20))


@pytest.mark.parametrize(
    "name",
    [
        "10,000 nested sequences",
        "10,000 nested in an item",
        "1,000,000 empty items",
        "1,000,000 empty items, undefined length",
        "1,000,000 empty elements",
        "9 MiB",
    ],
)
def test_hostile_requests_end_soon_and_cost_little(name: str) -> None:
    content = hostile(name)
    started = time.process_time()
    with growth() as grown:
        assert status_of(content) in (ActionStatus.RESOURCE_LIMITATION, ActionStatus.INVALID_ARGUMENT)
    assert time.process_time() - started < 2.0
    assert grown.kib < 64 << 10


def test_mutated_requests_are_read_or_refused_and_nothing_else() -> None:
    """Flips, cuts, insertions and edits of lengths in 4,000 requests, of both transfer syntaxes."""
    random = Random(16)
    seeds: list[tuple[bytes, str]] = []
    for syntax, undefined in product((IMPLICIT, EXPLICIT), (False, True)):
        dataset = request_dataset(TRANSACTION, PAIRS)
        dataset["ReferencedSOPSequence"].is_undefined_length = undefined
        for item in dataset.ReferencedSOPSequence:
            item.is_undefined_length_sequence_item = undefined
        seeds.append((encode(dataset, syntax == IMPLICIT, True) or b"", syntax))
    read = 0
    for _ in range(1000):
        for seed, syntax in seeds:
            content = bytearray(seed)
            for _ in range(random.randint(1, 4)):
                at = random.randrange(len(content))
                kind = random.randrange(4)
                if kind == 0:
                    content[at] ^= 1 << random.randrange(8)
                elif kind == 1:
                    content[at : at + 4] = random.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xfe\xff\x00\xe0"))
                elif kind == 2:
                    del content[at : at + random.randint(1, 9)]
                else:
                    content[at:at] = random.randbytes(random.randint(1, 9))
                content = content or bytearray(b"\0")
            try:
                transaction, references = parse_request(bytes(content), syntax)
            except CommitmentRefused as refused:
                assert refused.status in set(ActionStatus) - {ActionStatus.SUCCESS}
            else:
                read += 1
                assert transaction.strip("0123456789.") == "" and references
    assert 0 < read < 2000


def test_every_status_and_every_reason_has_a_meaning() -> None:
    assert set(STATUS_MEANINGS) == set(ActionStatus) and set(FAILURE_MEANINGS) == set(FailureReason)


def test_a_report_names_every_reference_once() -> None:
    references = tuple(Reference(*pair) for pair in PAIRS)
    whole = event_information(Report(TRANSACTION, references, ()))
    assert "FailedSOPSequence" not in whole and len(whole.ReferencedSOPSequence) == 3
    assert Report(TRANSACTION, references, ()).event_type is EventType.ALL_COMMITTED
    report = Report(TRANSACTION, references, (Failure(1, 0x0112),))
    part = event_information(report)
    assert report.event_type is EventType.FAILURES_EXIST
    assert [item.ReferencedSOPInstanceUID for item in part.ReferencedSOPSequence] == ["1.2.3.1", "1.2.3.333"]
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in part.FailedSOPSequence] == [
        ("1.2.3.22", 0x0112)
    ]
    none = event_information(Report(TRANSACTION, references[:1], (Failure(0, 0x0110),)))
    assert "ReferencedSOPSequence" not in none and encode(none, True, True)


def test_waits_double_from_five_seconds_to_an_hour() -> None:
    waits = [backoff_s(attempt) for attempt in range(1, 13)]
    assert waits[:4] == [5, 10, 20, 40] and waits[-1] == backoff_s(10_000) == 3600


def test_the_digest_depends_on_references_and_their_order() -> None:
    references = [Reference(*pair) for pair in PAIRS]
    assert references_sha256(references) == references_sha256(tuple(references))
    assert references_sha256(references) != references_sha256(references[::-1])
