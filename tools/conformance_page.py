"""Writes the tables of docs/conformance.md from the package; `--check` compares. A test does both, live and on paper.

The words around them are written by hand: what stands between `<!-- NAME: ... -->` and `<!-- /NAME -->` is replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from pydicom.uid import UID
from pynetdicom.sop_class import _STORAGE_CLASSES

from heimdallr_ray.catalog.commitment_leases import BACKOFF_FIRST_S, BACKOFF_LAST_S
from heimdallr_ray.clients import commit, dimse, send, sent
from heimdallr_ray.clients import reports as report_port
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import HeimdallrError, NotDicom, StorageFailed, StorageFull, TooLarge, TruncatedObject
from heimdallr_ray.listener import commitment, commitment_report, commitment_worker, contexts, gate, part10
from heimdallr_ray.listener.commitment_check import MISSING_GRACE_S
from heimdallr_ray.listener.wire import association, command, negotiate
from heimdallr_ray.listener.wire.tls import CIPHERS

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "conformance.md"
STORE_ERRORS: tuple[type[HeimdallrError], ...] = (NotDicom, TruncatedObject, TooLarge, StorageFull, StorageFailed)
"""What may refuse an object at C-STORE."""


def services() -> str:
    """Abstract syntaxes that are no storage, with roles and transfer syntaxes."""
    verification = _names(contexts.VERIFICATION_SYNTAXES)
    commitments = _names(contexts.COMMITMENT_SYNTAXES)
    rows = [
        (UID(contexts.VERIFICATION).name, f"`{contexts.VERIFICATION}`", "SCP", verification),
        ("all of 4.2.1.2 and 4.2.1.3", "", "SCP", "all of 4.2.1.4"),
        ("the class of each file", "", "SCU (`heimdallr send`)", "the file's own"),
        (UID(commitment.PUSH_MODEL).name, f"`{commitment.PUSH_MODEL}`", "SCP", commitments),
        (UID(commitment.PUSH_MODEL).name, f"`{commitment.PUSH_MODEL}`", "SCU (`heimdallr send --commit`)", commitments),
    ]
    return _table(("SOP class", "UID", "role", "transfer syntaxes"), rows)


def storage() -> str:
    """Storage SOP classes that are known by name."""
    rows = [(_name(uid), f"`{uid}`") for uid in sorted(contexts._STORAGE, key=_number)]
    return _table(("SOP class", "UID"), rows)


def syntaxes() -> str:
    """Transfer syntaxes of storage."""
    rows = [
        (UID(uid).name, f"`{uid}`", "only where nothing else is offered" if uid in contexts.DEFLATED else "")
        for uid in sorted(contexts.TRANSFER_SYNTAXES, key=_number)
    ]
    return _table(("transfer syntax", "UID", "accepted"), rows)


def associations() -> str:
    """Numbers of associations that we accept and of those that we open."""
    defaults = Settings.model_fields
    rows = [
        ("Application Context Name", f"`{negotiate.APPLICATION_CONTEXT}`"),
        ("Implementation Class UID", f"`{part10.IMPLEMENTATION_CLASS_UID}`"),
        ("Implementation Version Name", f"`{part10.IMPLEMENTATION_VERSION}`"),
        ("Maximum Length Received", f"{gate.MAX_PDU_BYTES}"),
        ("longest A-ASSOCIATE-RQ", f"{gate.PRE_ACCEPT_PDU_BYTES} bytes"),
        ("associations at once", f"{defaults['max_associations'].default} (`max_associations`)"),
        (
            "connections of one address at once",
            f"{defaults['max_associations_per_address'].default} (`max_associations_per_address`)",
        ),
        ("operations at once in one association", "1; no asynchronous operations window"),
        ("until the whole A-ASSOCIATE-RQ", f"{gate.ASSOCIATE_TIMEOUT_S:g} s from the connection"),
        ("silence between two messages", f"{gate.NETWORK_TIMEOUT_S:g} s"),
        (
            "a message that has begun",
            f"{gate.MESSAGE_GRACE_S:g} s, and 1 s more for each {gate.MIN_BYTES_PER_S} bytes of it that came",
        ),
        ("largest data set of C-STORE", f"{defaults['max_instance_mib'].default} MiB (`max_instance_mib`)"),
        ("largest data set of N-ACTION", f"{commitment.MAX_REQUEST_BYTES >> 20} MiB"),
    ]
    return _table(("", "value"), rows)


def rejections() -> str:
    """A-ASSOCIATE-RJ that we send."""
    rules = gate.GateRules("US", frozenset({"THEM"}), (), 1, 1)
    cases = (
        (rules.refusal("OTHER", "THEM", 0, has_room=True), "the called AE title is not `ae_title`"),
        (rules.refusal("US", "OTHER", 0, has_room=True), "the calling AE title is not in `allowed_calling_aes`"),
        (rules.refusal("US", "THEM", 1, has_room=True), "`max_associations` are open"),
        (rules.refusal("US", "THEM", 0, has_room=False), "no room on the disk; again when there is"),
        (association._UNSUPPORTED_CONTEXT_NAME, "another application context"),
        (association._UNSUPPORTED_VERSION, "another protocol version"),
    )
    rows = [
        (str(found.result), str(found.source), str(found.diagnostic), f"`{found.reason}`", words)
        for found, words in cases
        if found is not None
    ]
    return _table(("result", "source", "reason", "in the log", "when"), rows)


def store_statuses() -> str:
    """Statuses of C-STORE and of what we do not know."""
    by_status: dict[int, list[str]] = {}
    for error in STORE_ERRORS:
        words = (error.__doc__ or "").splitlines()[0].rstrip(".")
        by_status.setdefault(error.dimse_status, []).append(f"{words} (`{error.code}`)")
    rows = [(f"0x{association.SUCCESS:04X}", "the object is stored as `durability` says (4.2.1.5)")]
    rows += [(f"0x{status:04X}", "; ".join(words)) for status, words in sorted(by_status.items())]
    rows += [
        (f"0x{association.SOP_CLASS_NOT_SUPPORTED:04X}", "a C-STORE on a context that is no storage class"),
        (f"0x{command.UNRECOGNIZED_OPERATION:04X}", "an operation that is none of C-ECHO, C-STORE and N-ACTION"),
        (f"0x{HeimdallrError.dimse_status:04X}", "a failure of ours; the log has it"),
    ]
    return _table(("status", "meaning"), rows)


def action_statuses() -> str:
    """Statuses of N-ACTION."""
    rows = [(f"0x{status:04X}", words) for status, words in commitment.STATUS_MEANINGS.items()]
    return _table(("status", "meaning"), rows)


def failure_reasons() -> str:
    """Failure Reason of references that are not committed."""
    rows = [(f"0x{reason:04X}", words) for reason, words in commitment_report.FAILURE_MEANINGS.items()]
    return _table(("Failure Reason (0008,1197)", "meaning"), rows)


def reports() -> str:
    """Numbers of the reports of storage commitment."""
    told, worker = commitment_report, commitment_worker
    bounds = (told.CONNECT_TIMEOUT_S, told.ASSOCIATE_TIMEOUT_S, told.ANSWER_TIMEOUT_S, told.RELEASE_TIMEOUT_S)
    rows = [
        ("first attempt", f"{commitment.REPORT_DELAY_S:g} s after the N-ACTION response, or later"),
        ("an instance that is not in the catalog yet is waited for", f"{MISSING_GRACE_S:g} s"),
        ("connection, association, answer, release", ", ".join(f"{value:g} s" for value in bounds)),
        ("wait after a failure", f"{BACKOFF_FIRST_S:g} s, doubled each time, to {BACKOFF_LAST_S:g} s"),
        ("given up after", f"{Settings.model_fields['commitment_days'].default:g} days (`commitment_days`)"),
        ("given up after so many answers with a failure status", str(worker.MAX_REFUSALS)),
        ("instances are read again if the last time is longer ago than", f"{worker.RECHECK_S:g} s"),
        ("most references of one request", str(commitment.MAX_REFERENCES)),
    ]
    return _table(("", "value"), rows)


def sending() -> str:
    """Numbers of `heimdallr send`."""
    rows = [
        (
            "presentation contexts",
            f"one for each SOP class and transfer syntax of the files, at most {send.MAX_CONTEXTS}",
        ),
        ("associations at once", f"1 to {send.MAX_ASSOCIATIONS} (`--associations`)"),
        ("Maximum Length Received", str(dimse.MAX_PDU_BYTES)),
        ("connection and association", f"{dimse.CONNECT_TIMEOUT_S:g} s each"),
        ("answer to a C-STORE", f"{dimse.ANSWER_TIMEOUT_S:g} s"),
        ("association that breaks", f"tried again, {send.DEFAULT_ATTEMPTS} times in a row without progress"),
        ("commitment: references of one request", f"at most {commit.MAX_REFERENCES}"),
        ("commitment: wait for a report", f"{commit.DEFAULT_WAIT_S:g} s for each request (`--commit-wait`)"),
        ("commitment: size of a report on a port of ours", f"at most {report_port.MAX_REPORT_BYTES >> 20} MiB"),
    ]
    return _table(("", "value"), rows)


def sent_statuses() -> str:
    """What `heimdallr send` makes of a peer's status."""
    rows = [("0x0000, 0xBxxx", "the peer has the object")]
    for status in (0x0122, 0x0124, 0xA700, 0xA900, 0xC000):
        words = sent.reason_of(status).partition(" (")[0]
        mask = {0xA7: "0xA7xx", 0xA9: "0xA9xx", 0xC0: "0xCxxx"}.get(status >> 8, f"0x{status:04X}")
        rows.append((mask, f"{words}; told, not sent again"))
    rows.append(("any other", f"{sent.reason_of(0x0001).partition(' (')[0]}; told, not sent again"))
    return _table(("status", "what is done"), rows)


def tls() -> str:
    """The secure transport."""
    rows = [
        ("versions", "TLS 1.2 and 1.3"),
        ("cipher suites of TLS 1.2", f"`{CIPHERS}`"),
        ("peers of the listener", "must show a certificate that `dicom_tls_ca` has signed"),
        ("peers of reports and of `heimdallr send`", "certificate and name are checked; ours is shown where it is set"),
    ]
    return _table(("", "value"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "services": services,
    "storage": storage,
    "syntaxes": syntaxes,
    "associations": associations,
    "rejections": rejections,
    "store_statuses": store_statuses,
    "action_statuses": action_statuses,
    "failure_reasons": failure_reasons,
    "reports": reports,
    "sending": sending,
    "sent_statuses": sent_statuses,
    "tls": tls,
}


def page(text: str) -> str:
    """`text` with its tables made anew.

    Raises:
        ValueError: it has no place for one of them.
    """
    for name, make in TABLES.items():
        found = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not found.search(text):
            raise ValueError(f"no place for the table {name}")
        made = make()
        text = found.sub(lambda match, made=made: f"{match[1]}\n{made}\n\n{match[2]}", text)
    return text


def table_of(text: str, name: str) -> list[list[str]]:
    """The rows of the table `name` in `text`, without its header."""
    found = re.search(rf"<!-- {name}:[^>]*-->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no place for the table {name}")
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def _names(uids: Sequence[str]) -> str:
    return ", ".join(f"{UID(uid).name} (`{uid}`)" for uid in uids)


def _name(uid: str) -> str:
    """As PS3.6 calls it; from pynetdicom's keyword where pydicom's dictionary is older than the class."""
    if UID(uid).name != uid:
        return UID(uid).name
    keyword = next(name for name, known in cast("dict[str, str]", _STORAGE_CLASSES).items() if known == uid)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword)


def _number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with `--check` say whether it is what the package does."""
    text = OUTPUT.read_text(encoding="utf-8")
    made = page(text)
    if "--check" in arguments:
        if made != text:
            print(f"{OUTPUT.relative_to(ROOT)} is not what the package does: run `make docs`")
        return int(made != text)
    OUTPUT.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
