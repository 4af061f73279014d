"""What the doors tell the audit chain: who was let in, who was not, and that a study was received.

A door hands on notes, which whoever writes the catalog carries out in a transaction: an accepted association in the one
of its row. Refusals have no change to go with; they are told at most once a minute for each address and reason, with
the number of those between, so that a flood of them costs the chain next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from sqlmodel import Session

from heimdallr_ray.catalog.associations import last_sender
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.clock import Clock
from heimdallr_ray.security.audit import Action, Actor, ActorKind, AuditLog, Fact, Outcome
from heimdallr_ray.security.floodgate import FloodGate

Note = Callable[[Session], None]
"""Carried out in a transaction of `Database.write()`."""

_REFUSED = {
    Door.DICOM: Action.ASSOCIATION_REFUSED,
    Door.UPLOAD: Action.UPLOAD_REFUSED,
    Door.STOW: Action.STOW_REFUSED,
}
_ACCEPTED = {
    Door.DICOM: Action.ASSOCIATION_ACCEPTED,
    Door.UPLOAD: Action.UPLOAD_ACCEPTED,
    Door.STOW: Action.STOW_ACCEPTED,
}


class Candidate(Protocol):
    """What is known of an association when it is accepted or refused."""

    @property
    def id(self) -> str:
        """Ours; what instances name."""
        ...

    @property
    def calling_ae(self) -> str:
        """As the peer says."""
        ...

    @property
    def called_ae(self) -> str:
        """As the peer says."""
        ...

    @property
    def address(self) -> str:
        """Of the peer."""
        ...

    @property
    def opened_at(self) -> datetime:
        """When it was decided."""
        ...


class IntakeAudit:
    """The audit notes of one process. Safe for several threads; makes notes, and writes nothing itself."""

    def __init__(self, log: AuditLog, clock: Clock, gate: FloodGate | None = None) -> None:
        self._log = log
        self._clock = clock
        self._gate = gate or FloodGate()
        self._lock = threading.Lock()

    def association(self, what: str, candidate: Candidate, reason: str = "") -> Note | None:
        """An association was `accepted`, to be carried out with its row; or it or its connection was `refused`."""
        actor = Actor.ae(candidate.calling_ae, candidate.address)
        if what != "accepted":
            return self.refused(reason, actor, called_ae=candidate.called_ae)
        facts: dict[str, Fact] = {"association": candidate.id, "called_ae": candidate.called_ae}
        return self._note(Action.ASSOCIATION_ACCEPTED, actor, candidate.opened_at, Outcome.SUCCESS, facts)

    def refused(
        self, reason: str, actor: Actor, *, door: Door = Door.DICOM, called_ae: str | None = None
    ) -> Note | None:
        """Somebody was not let in; None where the same was told less than a minute ago, and is counted.

        Args:
            reason: a code of ours, never text of a peer.
            actor: who, as far as is known: `Actor.ae(calling_ae, address)`, or with an empty name before it is said.
            door: which one.
            called_ae: as the peer wrote it.
        """
        with self._lock:
            kept_back = self._gate.admit(actor.address, f"{door.value}:{reason}", self._clock.monotonic())
        if kept_back is None:
            return None
        facts: dict[str, Fact] = {"reason": reason}
        if called_ae:
            facts["called_ae"] = called_ae
        if kept_back:
            facts["kept_back"] = kept_back
        return self._note(_REFUSED[door], actor, self._clock.now(), Outcome.REFUSED, facts)

    def due(self) -> list[Note]:
        """What was kept back and is to be told now, because the flood is over; to be asked every few seconds."""
        with self._lock:
            found = self._gate.due(self._clock.monotonic())
        return [self._kept_back(address, about, count) for address, about, count in found]

    def _kept_back(self, address: str, about: str, count: int) -> Note:
        door, _, reason = about.rpartition(":")
        # Without a door: refusals of more addresses than are remembered one by one.
        action = _REFUSED[Door(door)] if door else Action.ASSOCIATION_REFUSED
        facts: dict[str, Fact] = {"reason": reason, "kept_back": count}
        return self._note(action, Actor(ActorKind.ANONYMOUS, "", address), self._clock.now(), Outcome.REFUSED, facts)

    def taken_in(self, actor: Actor, door: Door, intake_id: str, *, instances: int, studies: int, size: int) -> Note:
        """An upload or a STOW request was stored; to be carried out with its rows."""
        facts: dict[str, Fact] = {"intake": intake_id, "instances": instances, "studies": studies, "bytes": size}
        return self._note(_ACCEPTED[door], actor, self._clock.now(), Outcome.SUCCESS, facts)

    def dropped(self, count: int) -> Note:
        """So many notes, entries of this chain among them, were dropped while the catalog could not be written."""
        facts: dict[str, Fact] = {"count": count}
        actor = Actor.system("intake")
        return self._note(Action.ENTRIES_DROPPED, actor, self._clock.now(), Outcome.FAILED, facts)

    def study_received(self, session: Session, study_id: str, now: datetime) -> None:
        """An epoch of a study was closed, in the session's transaction; the row says why."""
        study = session.get(StudyRow, study_id)
        if study is None:
            return
        sender = last_sender(session, study.id, study.epoch)
        # Who sent this epoch; the study's own row tells who sent its first image.
        door = study.door if sender is None or sender.door is None else sender.door
        facts: dict[str, Fact] = {
            "epoch": study.epoch,
            "instances": study.n_instances,
            "door": door,
            "intake": None if sender is None else sender.id,
            "why": study.close_code,
        }
        actor = Actor.system("completion")
        if sender is not None and sender.actor_kind:
            actor = Actor(ActorKind(sender.actor_kind), sender.actor_name or "", sender.address or "")
        elif door == Door.DICOM.value:
            actor = Actor.ae(study.calling_ae, None) if sender is None else Actor.ae(sender.calling_ae, sender.address)
        self._log.append(session, Action.STUDY_RECEIVED, actor, now=now, study_id=study_id, detail=facts)

    def _note(self, action: Action, actor: Actor, now: datetime, outcome: Outcome, facts: dict[str, Fact]) -> Note:
        def write(session: Session) -> None:
            self._log.append(session, action, actor, now=now, outcome=outcome, detail=facts)

        return write
