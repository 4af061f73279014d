"""Who is connected now, and the decisions that both backends share: admit, refuse, answer. Every refusal has its line.

Nothing here is the truth about an image: that is on the disk. What is told of associations goes to the catalog behind
the committer.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from sqlmodel import Session

from heimdallr_ray.catalog.associations import AssociationClosed, AssociationOpened, record_closed, record_opened
from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.ids import NewId, new_id
from heimdallr_ray.listener.action import Action, ActionStatus
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.committer import Note
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.gate import GateRules, Refusal
from heimdallr_ray.listener.receive import Receiver

logger = logging.getLogger(__name__)


class Figures(Protocol):
    """Who counts for the operator's figures."""

    def stored(self, door: Door, n_bytes: int, seconds: float) -> None:
        """An image was answered Success after `seconds` since its request."""
        ...

    def refused(self, reason: str) -> None:
        """An image, an association or a connection was refused, or cut off."""
        ...

    def association_opened(self) -> None:
        """One more is open."""
        ...

    def association_closed(self, how: How) -> None:
        """One fewer is open."""
        ...


OURS = "stopping"
"""Why a connection was cut that did nothing wrong."""
AuditAssociation = Callable[[str, OpenAssociation, str], Note | None]
"""What goes into the audit chain of an association that was `accepted` or `refused` for a reason; None: nothing."""


class Tally:
    """Counts by name; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """`name` has happened `amount` times more."""
        with self._lock:
            self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """All counts."""
        with self._lock:
            return dict(self._counts)


class Registry:
    """Open associations of one process. Safe for several threads."""

    def __init__(
        self,
        rules: GateRules,
        receiver: Receiver,
        clock: Clock,
        *,
        make_id: NewId = new_id,
        figures: Figures | None = None,
        audit: AuditAssociation | None = None,
    ) -> None:
        self.rules = rules
        self.receiver = receiver
        self.clock = clock
        self.tally = Tally()
        self._make_id = make_id
        self._figures = figures
        self._audit = audit
        self._lock = threading.Lock()
        self._open: dict[str, OpenAssociation] = {}

    def open_associations(self) -> tuple[OpenAssociation, ...]:
        """Associations that are open now."""
        with self._lock:
            return tuple(self._open.values())

    def busy_study_uids(self) -> frozenset[str]:
        """Studies to which an association has sent that is still open."""
        with self._lock:
            return frozenset(uid for known in self._open.values() for uid in tuple(known.study_uids))

    # Associations ----------------------------------------------------------------------------------------------------

    def request(self, called_ae: str, calling_ae: str, address: str, implementation: str) -> OpenAssociation | Refusal:
        """The association is open from now on, or the reason why it is refused, which was logged and counted."""
        candidate = OpenAssociation(
            self._make_id(),
            calling_ae[:16],
            called_ae[:16],
            address,
            self.clock.now(),
            self.clock.monotonic(),
            implementation[:64],
        )
        # Asked outside the lock: a file system that hangs keeps no other process's associations out.
        has_room = self._has_room()
        with self._lock:
            refusal = self.rules.refusal(called_ae, calling_ae, len(self._open), has_room=has_room)
            if refusal is None:
                self._open[candidate.id] = candidate
        if refusal is not None:
            self._refused(candidate, refusal)
            return refusal
        self.tally.add("associations")
        if self._figures:
            self._figures.association_opened()
        logger.info(
            "association.opened",
            extra={"association": candidate.id, "address": address, "calling_ae": candidate.calling_ae},
        )
        opened = AssociationOpened(
            candidate.id,
            Door.DICOM,
            candidate.calling_ae or None,
            candidate.called_ae or None,
            address,
            candidate.opened_at,
            candidate.implementation,
        )
        audit = self._audit("accepted", candidate, "") if self._audit else None

        def tell(session: Session) -> None:
            record_opened(session, [opened])
            if audit is not None:
                audit(session)

        # One note, because what happens and its place in the audit chain are one transaction.
        self.receiver.note(tell)
        return candidate

    def reject(self, refusal: Refusal, called_ae: str, calling_ae: str, address: str) -> None:
        """The association is refused for a reason of the protocol; logged, counted and audited."""
        candidate = OpenAssociation(
            "", calling_ae[:16], called_ae[:16], address, self.clock.now(), self.clock.monotonic()
        )
        self._refused(candidate, refusal)

    def _refused(self, candidate: OpenAssociation, refusal: Refusal) -> None:
        self.count_refusal(f"rejected.{refusal.reason}")
        logger.warning(
            "association.rejected",
            extra={
                "reason": refusal.reason,
                "address": candidate.address,
                "calling_ae": candidate.calling_ae,
                "called_ae": candidate.called_ae,
            },
        )
        self._note_audit("refused", candidate, refusal.reason)

    def refuse_connection(self, reason: str, address: str) -> None:
        """A connection was closed before anything was asked; logged, counted and audited."""
        self.count_refusal(f"refused.{reason}")
        logger.warning("connection.refused", extra={"reason": reason, "address": address})
        candidate = OpenAssociation("", "", "", address, self.clock.now(), self.clock.monotonic())
        self._note_audit("refused", candidate, reason)

    def cut(self, reason: str, address: str, opened: OpenAssociation | None) -> None:
        """A connection was ended because its peer broke a bound; logged, counted and audited."""
        self.count_refusal(f"cut.{reason}")
        logger.warning(
            "connection.cut",
            extra={"reason": reason, "address": address, "association": opened.id if opened else None},
        )
        if reason != OURS:
            whose = opened or OpenAssociation("", "", "", address, self.clock.now(), self.clock.monotonic())
            self._note_audit("refused", whose, reason)

    def count_refusal(self, reason: str) -> None:
        """`reason` has happened once more."""
        self.tally.add(reason)
        if self._figures:
            self._figures.refused(reason)

    def _note_audit(self, what: str, candidate: OpenAssociation, reason: str) -> None:
        note = self._audit(what, candidate, reason) if self._audit else None
        if note is not None:
            self.receiver.note(note)

    def close(self, opened: OpenAssociation, how: How, reason: str = "") -> None:
        """The association has ended. Doing it again changes nothing."""
        with self._lock:
            if opened.id not in self._open:
                return
        ended = AssociationClosed(
            opened.id,
            self.clock.now(),
            how,
            stored=opened.stored,
            refused=opened.refused,
            n_bytes=opened.n_bytes,
            reason=reason,
        )
        # Noted before it counts as closed: a study that closes meanwhile sees either an open association or its end.
        self.receiver.note(lambda session: record_closed(session, [ended]))
        with self._lock:
            if self._open.pop(opened.id, None) is None:
                return
        self.receiver.spool.end_intake(opened.id)
        if self._figures:
            self._figures.association_closed(how)
        logger.info(
            "association.closed",
            extra={
                "association": opened.id,
                "how": how.value,
                "reason": reason,
                "stored": opened.stored,
                "refused": opened.refused,
                "seconds": round(self.clock.monotonic() - opened.opened_s, 3),
            },
        )

    def _has_room(self) -> bool:
        try:
            self.receiver.spool.require_room()
        except HeimdallrError:
            return False
        return True

    # Objects ---------------------------------------------------------------------------------------------------------

    def stored(self, opened: OpenAssociation, accepted: Accepted, seconds: float) -> None:
        """The object is stored, and its sender has heard Success or hears it now; it counts, and will be a row."""
        opened.count(str(accepted.identity.study_uid), accepted.entry.size)
        self.receiver.enqueue(accepted)
        self.tally.add("stored")
        self.tally.add("bytes", accepted.entry.size)
        if self._figures:
            self._figures.stored(Door.DICOM, accepted.entry.size, seconds)

    def store_refused(self, opened: OpenAssociation, error: HeimdallrError) -> int:
        """The status that the sender hears; logged and counted."""
        self.object_refused(opened, error.code, error.detail, error.dimse_status)
        return error.dimse_status

    def object_refused(self, opened: OpenAssociation, code: str, reason: str, status: int) -> None:
        """An object was refused; logged and counted."""
        opened.refused += 1
        self.count_refusal(f"store.{code}")
        logger.warning(
            "store.refused",
            extra={
                "association": opened.id,
                "address": opened.address,
                "calling_ae": opened.calling_ae,
                "code": code,
                "reason": reason,
                "status": f"0x{status:04X}",
            },
        )

    # Storage commitment ----------------------------------------------------------------------------------------------

    def ask(
        self, desk: CommitmentDesk, opened: OpenAssociation, dataset: bytes, transfer_syntax: str, action: Action
    ) -> int:
        """The status of the N-ACTION response; counted."""
        status = desk.ask(dataset, transfer_syntax, opened.calling_ae, opened.address or None, opened.id, action)
        self.tally.add("commitment.asked" if status == ActionStatus.SUCCESS else "commitment.refused")
        return status
