"""Every SOP class and transfer syntax of docs/conformance.md is negotiated with a listener that runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
from pydicom.uid import UID
from pynetdicom import AE, build_context

from tests.support.commitment import ask, request_dataset
from tests.support.intake import Intake
from tools.conformance_page import OUTPUT, table_of

TEXT = OUTPUT.read_text(encoding="utf-8")
STORAGE = [row[1].strip("`") for row in table_of(TEXT, "storage")]
SYNTAXES = [row[1].strip("`") for row in table_of(TEXT, "syntaxes")]
NUMBERS = dict(row[:2] for row in table_of(TEXT, "associations"))
PRIVATE = "1.3.6.1.4.1.99999.5.1"
UNKNOWN_STANDARD = "1.2.840.10008.5.1.4.1.1.999.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
BATCH = 128

Pair = tuple[str, str]


def services() -> Iterator[Pair]:
    """SOP class and transfer syntax of each service that is no storage."""
    for _, sop_class, role, syntaxes in table_of(TEXT, "services"):
        if sop_class and role == "SCP":
            yield from ((sop_class.strip("`"), part.split("`")[1]) for part in syntaxes.split(", "))


def negotiate(port: int, pairs: Sequence[Pair]) -> dict[Pair, str]:
    """What the listener answers to contexts of one transfer syntax each: the syntax it accepts, or ""."""
    found: dict[Pair, str] = {}
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        contexts = [build_context(UID(sop_class), [UID(syntax)]) for sop_class, syntax in batch]
        association = cast(Any, AE("ASKER")).associate("127.0.0.1", port, contexts=contexts, ae_title="HEIMDALLR")
        assert association.is_established
        accepted = {(context.context_id - 1) // 2: context for context in association.accepted_contexts}
        for number, pair in enumerate(batch):
            context = accepted.get(number)
            found[pair] = "" if context is None else str(context.transfer_syntax[0])
            assert context is None or str(context.abstract_syntax) == pair[0]
        told = association.acceptor
        assert str(told.implementation_class_uid) == NUMBERS["Implementation Class UID"].strip("`")
        assert told.implementation_version_name == NUMBERS["Implementation Version Name"].strip("`")
        assert told.maximum_length == int(NUMBERS["Maximum Length Received"])
        association.release()
    return found


def test_the_page_lists_what_a_hospital_sends() -> None:
    assert len(STORAGE) > 100 and {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"} <= set(STORAGE)
    assert {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"} <= set(SYNTAXES) and len(list(services())) == 5


def test_everything_on_the_page_is_accepted(tmp_path: Path) -> None:
    pairs = [*services(), *product([*STORAGE, PRIVATE, UNKNOWN_STANDARD], SYNTAXES)]
    with Intake(tmp_path / "data").listening() as service:
        found = negotiate(service.scp.port, pairs)
        assert [pair for pair in pairs if found[pair] != pair[1]] == []
        not_ours = [(FIND, "1.2.840.10008.1.2"), (STORAGE[0], "1.2.3.4"), ("1.2.840.10008.1.1", SYNTAXES[-1])]
        refused = negotiate(service.scp.port, [*not_ours, pairs[0]])
    assert [refused[pair] for pair in not_ours] == ["", "", ""] and refused[pairs[0]]


def test_the_reference_backend_accepts_every_class_and_every_syntax(tmp_path: Path) -> None:
    pairs = [*services(), *((sop_class, SYNTAXES[0]) for sop_class in STORAGE), *product(STORAGE[:1], SYNTAXES)]
    with Intake(tmp_path / "data", dicom_backend="pynetdicom").listening() as service:
        found = negotiate(service.scp.port, pairs)
    assert [pair for pair in pairs if found[pair] != pair[1]] == []


@pytest.mark.parametrize("backend", ["wire", "pynetdicom"])
def test_n_action_is_answered_by_both_backends(tmp_path: Path, backend: str) -> None:
    pairs = [("1.2.840.10008.5.1.4.1.1.2", "1.2.3")]
    peers = {"commitment_peers": ["SENDER=127.0.0.1:1"], "dicom_backend": backend}
    with Intake(tmp_path / "data", **peers).listening() as service:
        assert ask(service.scp.port, request_dataset("1.2.9", pairs)) == 0x0000
        assert ask(service.scp.port, request_dataset("1.2.9", pairs), calling="OTHER") == 0x0124
        assert ask(service.scp.port, request_dataset("1.2.9", []), action_type=7) == 0x0123
