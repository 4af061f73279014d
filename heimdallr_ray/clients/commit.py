"""Storage commitment as its user: after the images were sent, the peer is asked to promise that it keeps them.

Source: PS3.4 annex J (Push Model), PS3.7 section 10.1.4 (N-ACTION) and 10.1.1 (N-EVENT-REPORT). The peer may report on
the association on which it was asked, which is kept open, or on a new one to a port of ours (`reports`).
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import evt
from pynetdicom.association import Association

from heimdallr_ray.clients.dimse import ANSWER_TIMEOUT_S, Peer, Refusal, associate, end
from heimdallr_ray.clients.reports import address_towards, reports_at
from heimdallr_ray.clients.sent import FileStatus
from heimdallr_ray.config.network import Peer as ReportsTo
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.action import PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_COMMITMENT, TRANSFER_SYNTAXES
from heimdallr_ray.listener.reactor import at_rest

logger = logging.getLogger(__name__)

MAX_REFERENCES = 5000
"""Of one transaction; some archives take no more than some thousands."""
DEFAULT_WAIT_S = 120.0
LOOK_S = 0.2
"""How often is looked whether the peer has ended the association."""
_SUCCESS = 0x0000
_UNKNOWN_TRANSACTION = 0x0110

# PS3.7 annex C.
_STATUS_WORDS: Mapping[int, str] = {
    0x0110: "cannot take the request now",
    0x0112: "does not know the well-known instance",
    0x0115: "finds the request malformed",
    0x0118: "does not know the SOP class",
    0x0123: "does not know the action",
    0x0124: "does not allow it: it may not know where to report to (a heimdallr: setting commitment_peers)",
    0x0213: "has no resources for it",
}
# PS3.3 section C.14.1.1.
_FAILURE_WORDS: Mapping[int, str] = {
    0x0110: "the peer has it and cannot read it, or could not look",
    0x0112: "the peer does not have it",
    0x0119: "the peer has it with another SOP class",
    0x0122: "the peer does not take this SOP class",
    0x0131: "the transaction was used before",
    0x0213: "the peer has no room",
}
Reference = tuple[str, str]
"""SOP class and SOP instance."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Uncommitted:
    """An image that the peer has not promised to keep."""

    path: str
    sop_uid: str
    reason: str


@dataclass(frozen=True)
class Commitment:
    """What the peer has promised. Who deletes an image that is not `committed` may lose it."""

    committed: int
    failures: tuple[Uncommitted, ...]
    """The others, each with why."""

    @property
    def whole(self) -> bool:
        """True where every image that was sent is safe."""
        return not self.failures

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        reasons = dict(Counter(one.reason for one in self.failures).most_common())
        return {"committed": self.committed, "reasons": reasons, "failures": [asdict(one) for one in self.failures]}


class Reports:
    """What peers have reported of our transactions. Safe for several threads."""

    def __init__(self) -> None:
        self._told = threading.Condition()
        self._asked: dict[str, frozenset[Reference]] = {}
        self._answers: dict[str, dict[Reference, int]] = {}

    def expect(self, transaction_uid: str, references: Sequence[Reference]) -> None:
        """A report of this transaction is about `references`."""
        with self._told:
            self._asked[transaction_uid] = frozenset(references)

    def take(self, event: evt.Event) -> tuple[int, None]:
        """The status of an N-EVENT-REPORT; what it says is kept where it is about a transaction of ours."""
        # What cannot be read raises, and pynetdicom answers with 0x0110 in our place.
        information = event.event_information
        transaction = str(information.get("TransactionUID", ""))
        committed = _references(information.get("ReferencedSOPSequence"))
        failed = _references(information.get("FailedSOPSequence"))
        with self._told:
            asked = self._asked.get(transaction)
            if asked is None:
                return _UNKNOWN_TRANSACTION, None
            # What is named in both sequences has failed.
            answers = self._answers.setdefault(transaction, {})
            answers.update({one: _SUCCESS for one in committed if one in asked})
            answers.update({one: reason or _UNKNOWN_TRANSACTION for one, reason in failed.items() if one in asked})
            self._told.notify_all()
        return _SUCCESS, None

    @contextmanager
    def at_port(self, peer: Peer, port: int) -> Generator[int]:
        """Also taken on a port of ours, on the way to `peer` only, by TLS where `peer` has a certificate of ours.

        Raises:
            BadSetting: the port cannot be listened on; a file that TLS needs cannot be used.
        """
        host = address_towards(peer.host, peer.port)
        tls = peer.tls.for_reports() if peer.tls else None
        with reports_at(host, port, peer.calling_ae, self.take, tls) as opened:
            yield opened

    def wait(self, transaction_uid: str, timeout_s: float) -> bool:
        """True once there is a report of the transaction; False where none came within `timeout_s`."""
        with self._told:
            return self._told.wait_for(lambda: transaction_uid in self._answers, timeout_s)

    def of(self, transaction_uid: str) -> dict[Reference, int]:
        """Failure Reason of each reference that was reported, 0 for those that are committed."""
        with self._told:
            return dict(self._answers.get(transaction_uid, {}))


def require_port_for_reports(peer: Peer, told: ReportsTo | None = None) -> None:
    """Returns unless the peer is a heimdallr, which never reports on the association on which it was asked.

    It is known by the Implementation Class UID of its answer (PS3.7 section D.3.3.2). A peer that takes no association
    now is not judged.

    Args:
        peer: who is to be asked.
        told: where the peer reports to us, where its settings are known here and say so.

    Raises:
        BadSetting: it is one; or a file that TLS needs cannot be used.
    """
    tls = peer.tls.context() if peer.tls else None
    association = associate(peer, [(PUSH_MODEL, syntax) for syntax in TRANSFER_SYNTAXES], tls)
    if isinstance(association, Refusal):
        return
    implementation = str(association.acceptor.implementation_class_uid or "")
    end(association)
    if implementation == part10.IMPLEMENTATION_CLASS_UID:
        way = (
            f'Give --commit-port PORT, and name it there: commitment_peers = ["{peer.calling_ae}=OUR_ADDRESS:PORT"]'
            if told is None
            else f"Your settings have {told}: give --commit-port {told.port}"
        )
        raise BadSetting(
            f"{peer.host}:{peer.port} is a heimdallr, which reports on a new association only; nothing was sent. {way}"
        )


def _references(sequence: object) -> dict[Reference, int]:
    items = cast("Sequence[Dataset]", sequence or ())
    return {
        (str(item.get("ReferencedSOPClassUID", "")), str(item.get("ReferencedSOPInstanceUID", ""))): int(
            item.get("FailureReason", 0) or 0
        )
        for item in items
    }


def commit_sent(
    peer: Peer,
    files: Sequence[FileStatus],
    *,
    reports: Reports,
    elsewhere: bool,
    wait_s: float = DEFAULT_WAIT_S,
    on_progress: Progress = lambda done, total: None,
) -> Commitment:
    """The peer was asked for every image that it has acknowledged; each is committed, or is not with a reason.

    Args:
        peer: who has the images.
        files: what became of them when they were sent.
        reports: what is reported, on the association of the request or on another one.
        elsewhere: True: a port of ours is open for reports, so that the end of the association is no end of the wait.
        wait_s: for the report of one transaction, at most MAX_REFERENCES images.
        on_progress: called with images whose fate is known, and images in all.

    Raises:
        BadSetting: a file that TLS needs cannot be used.
    """
    tls = peer.tls.context() if peer.tls else None
    there = [one for one in files if one.acknowledged]
    references = list(dict.fromkeys((one.sop_class_uid, one.sop_uid) for one in there))
    fates: dict[Reference, str] = {}
    for number, batch in enumerate(_batches(references), start=1):
        said = _Transaction(peer, reports, tls, elsewhere, wait_s).ask(batch)
        fates.update(said)
        on_progress(len(fates), len(references))
        logger.info("commit.answered", extra={"transaction": number, "references": len(batch)})
    failures = [
        Uncommitted(one.path, one.sop_uid, reason) for one in there if (reason := fates[one.sop_class_uid, one.sop_uid])
    ]
    return Commitment(len(there) - len(failures), tuple(failures))


def _batches(references: Sequence[Reference]) -> Iterator[Sequence[Reference]]:
    for start in range(0, len(references), MAX_REFERENCES):
        yield references[start : start + MAX_REFERENCES]


class _Transaction:
    """One request and its report."""

    def __init__(
        self, peer: Peer, reports: Reports, tls: ssl.SSLContext | None, elsewhere: bool, wait_s: float
    ) -> None:
        self._peer = peer
        self._reports = reports
        self._tls = tls
        self._elsewhere = elsewhere
        self._wait_s = wait_s
        self._uid = str(generate_uid(prefix=None))
        """Nobody can guess it, so nobody else can report of it."""

    def ask(self, references: Sequence[Reference]) -> dict[Reference, str]:
        """Why each image is not committed, empty where it is."""
        contexts = [(PUSH_MODEL, syntax) for syntax in TRANSFER_SYNTAXES]
        handlers = [(evt.EVT_N_EVENT_REPORT, self._reports.take)]
        association = associate(self._peer, contexts, self._tls, handlers, self._wait_s + ANSWER_TIMEOUT_S)
        if isinstance(association, Refusal):
            offered = association.kind != "contexts"
            words = association.words if offered else "does not offer storage commitment"
            return dict.fromkeys(references, f"not asked for: the peer {words}")
        try:
            why = self._requested(association, references) or self._waited(association)
        finally:
            end(association)
        told = self._reports.of(self._uid)
        silence = why or "the peer's report does not name it"
        return {one: _words(told[one]) if one in told else silence for one in references}

    def _requested(self, association: Association, references: Sequence[Reference]) -> str:
        """Why nothing is to be waited for; empty where the peer has taken the request."""
        self._reports.expect(self._uid, references)
        with at_rest(association, ANSWER_TIMEOUT_S) as resting:
            if not resting:
                return "the peer ended the association before the request"
            try:
                answer, _ = cast(Any, association).send_n_action(
                    _action_information(self._uid, references),
                    REQUEST_COMMITMENT,
                    UID(PUSH_MODEL),
                    UID(PUSH_MODEL_INSTANCE),
                )
            except (RuntimeError, ValueError) as error:
                logger.warning("commit.not_asked", extra={"error": type(error).__name__})
                return "the peer ended the association before the request"
        status = cast("int | None", getattr(answer, "Status", None))
        if status is None:
            return "the peer has not answered the request"
        if status == _SUCCESS or status & 0xF000 == 0xB000:
            return ""
        return f"the peer {_STATUS_WORDS.get(status, 'refuses the request')} (status 0x{status:04X})"

    def _waited(self, association: Association) -> str:
        """Why there is no report; empty where there is one."""
        deadline = time.monotonic() + self._wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._reports.wait(self._uid, min(LOOK_S, left_s)):
                return ""
            if not association.is_established and not self._elsewhere:
                return "the peer ended the association without a report; it may want --commit-port"
        more = "" if self._elsewhere else "; it may want --commit-port"
        return f"no report within {self._wait_s:g} s{more}"


def _action_information(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """PS3.4 table J.3-1."""
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    items: list[Dataset] = []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        items.append(item)
    dataset.ReferencedSOPSequence = items
    return dataset


def _words(reason: int) -> str:
    if reason == _SUCCESS:
        return ""
    return f"{_FAILURE_WORDS.get(reason, 'the peer does not promise to keep it')} (reason 0x{reason:04X})"
