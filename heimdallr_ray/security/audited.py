"""Audit entries about what people decide of a study; written in the transaction of the decision, by API and command."""

from __future__ import annotations

import getpass
from datetime import datetime

from sqlmodel import Session

from heimdallr_ray.catalog.retrying import ChoiceMade
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.security.audit import Action, Actor, ActorKind, AuditLog, Fact


def at_the_command_line() -> Actor:
    """The account that runs a command."""
    return Actor(ActorKind.USER, getpass.getuser())


def study_retried(log: AuditLog, session: Session, job: JobRow, actor: Actor, now: datetime) -> None:
    """Somebody had a study worked on again, with `job`."""
    log.append(session, Action.STUDY_RETRIED, actor, now=now, study_id=job.study_id, detail={"epoch": job.epoch})


def series_chosen(
    log: AuditLog, session: Session, made: ChoiceMade, chosen_by: str, actor: Actor, now: datetime
) -> None:
    """Somebody chose what is measured of a study. `chosen_by` is the name that was given; the reason is left out."""
    choice = made.choice
    log.append(
        session,
        Action.SERIES_CHOSEN,
        actor,
        now=now,
        study_id=made.job.study_id,
        detail={
            "epoch": made.job.epoch,
            "chosen_by": chosen_by.strip(),
            "by_rules": choice is None or choice.series_uid is None,
            "part": None if choice is None else choice.part,
            "deskew": None if choice is None else choice.deskew,
        },
    )


def study_completed(log: AuditLog, session: Session, study_id: str, named: str, actor: Actor, now: datetime) -> None:
    """Somebody said that a study is complete, which closed its epoch. `named` is the name that was given."""
    study = session.get(StudyRow, study_id)
    facts: dict[str, Fact] = {"named": named.strip()}
    if study is not None:
        facts |= {"epoch": study.epoch, "instances": study.n_instances, "transfer": study.last_transfer}
    log.append(session, Action.STUDY_COMPLETED, actor, now=now, study_id=study_id, detail=facts)
