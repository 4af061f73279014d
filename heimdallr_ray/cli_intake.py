"""`heimdallr intake`: what is coming in, for the person who operates it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from heimdallr_ray.cli_common import (
    STAMP_CHARS,
    ConfigOption,
    DataDirOption,
    JsonOption,
    failure,
    out,
    settings_of,
    stamp,
)
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import HeimdallrError

if TYPE_CHECKING:
    from heimdallr_ray.api.intake import IntakeView

intake = typer.Typer(help="What is coming in: associations, senders, studies on their way.", no_args_is_help=True)


@intake.callback()
def group() -> None:
    """What is coming in: associations, senders, studies on their way."""


@intake.command()
def status(config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Ports, open associations, senders, studies that settle, spool, disk, refusals, commitment.

    Reads the database and the data folder, so it answers whether the stack runs or not. Exit status 0: images can be
    taken in over DICOM. 3: no listener runs. 1: one that runs is not well, or the disk is too full.
    """
    # The view is the one of GET /api/v1/intake: one document, whoever asks.
    from heimdallr_ray.api.intake import view_of
    from heimdallr_ray.catalog.database import Database
    from heimdallr_ray.listener.overview import overview

    settings = settings_of(config, data_dir=data_dir)
    try:
        database = Database(settings.resolved_database_url)
        try:
            view = view_of(overview(settings, database, SystemClock().now()))
        finally:
            database.close()
    except HeimdallrError as error:
        raise failure(error) from error
    if as_json:
        print(json.dumps(view.model_dump(mode="json")))  # noqa: T201
    else:
        for line in lines(view):
            # What a sender wrote is no markup.
            out.print(line, soft_wrap=True, markup=False)
    raise typer.Exit(exit_status(view))


def exit_status(view: IntakeView) -> int:
    """0: open and well; 3: no listener; 1: something else."""
    listeners = [one for one in view.processes if one.name.startswith("listener")]
    if not listeners:
        return 3
    well = all(one.healthy and not one.trouble and not one.draining for one in listeners)
    return 0 if well and view.disk.level != "refuse" else 1


def lines(view: IntakeView) -> Iterator[str]:
    """What a person reads."""
    yield from _processes(view)
    disk = view.disk
    yield (
        f"disk          {disk.used_percent:.0f} % used, {disk.free_bytes >> 20} MiB free: {disk.level} "
        f"(warns at {disk.warn_percent:g} %, refuses at {disk.refuse_percent:g} % "
        f"or below {disk.min_free_bytes >> 20} MiB)"
    )
    oldest = "" if view.spool.oldest_s is None else f", the oldest {age(view.spool.oldest_s)} old"
    yield f"spool         {view.spool.depth} acknowledged and not yet in the catalog{oldest}"
    if view.spool.quarantined:
        yield f"quarantine    {view.spool.quarantined} acknowledged that cannot become rows: spool/quarantine says why"
    shared = view.uid_conflicts
    if shared.images:
        yield (
            f"UID conflicts {_number(shared.uids, 'SOP Instance UID')} with images of different bytes, "
            f"{_number(shared.images, 'image')} under {'it' if shared.uids == 1 else 'them'} in all; every one is kept"
        )
        for one in shared.studies:
            yield f"  {_number(one.uids, 'such UID')} in study {one.study_uid}"
        if shared.n_studies > len(shared.studies):
            yield f"  and in {shared.n_studies - len(shared.studies)} studies more"
    told = ", ".join(f"{about} {number}" for about, number in view.refused_last_hour.items())
    yield f"refused       {told or 'nothing'} ({_counted_since(view)})"
    commitment = view.commitment
    waiting = f"{commitment.waiting} waiting"
    if commitment.oldest_asked_at is not None:
        waiting += f" since {stamp(commitment.oldest_asked_at)}, {commitment.failing} with a failed report"
    yield f"commitment    {waiting}, {commitment.given_up} given up"
    yield f"audit chain   {view.audit_entries} entries"
    yield from _associations(view)
    yield from _studies(view)
    yield from _senders(view)


def _counted_since(view: IntakeView) -> str:
    """Of how long the refusals are: processes count for themselves, from their own start."""
    since = min((one.started_at for one in view.processes), default=None)
    if since is None:
        return "of running processes, of which there is none; what was before is in the log and `heimdallr audit list`"
    if view.at - since >= timedelta(hours=1):
        return "last hour"
    return f"since the start at {stamp(since)}; what was before is in the log and `heimdallr audit list`"


def _processes(view: IntakeView) -> Iterator[str]:
    if not any(one.name.startswith("listener") for one in view.processes):
        yield "DICOM         no listener runs on this data folder"
    for one in view.processes:
        state = "draining" if one.draining else "well" if one.healthy and not one.trouble else "NOT WELL"
        state += f" ({one.trouble})" if one.trouble else ""
        port = f"port {one.port}" if one.port else "no port" if one.name.startswith("listener") else "HTTP"
        stored = ", ".join(f"{number} by {door}" for door, number in one.stored.items() if number) or "none"
        yield (
            f"{one.name:<13} {port}, {state}, {one.open_associations} open, "
            f"stored since {stamp(one.started_at)}: {stored}"
        )


def _associations(view: IntakeView) -> Iterator[str]:
    if not view.associations:
        yield "no association is open"
        return
    yield f"{'open now':<18} {'address':<24} {'since':<{STAMP_CHARS}} {'stored':>8} {'refused':>8}"
    for one in view.associations:
        yield (
            f"{_shown(one.calling_ae):<18} {_shown(one.address):<24} {stamp(one.opened_at)} "
            f"{one.stored:>8} {one.refused:>8}"
        )


def _studies(view: IntakeView) -> Iterator[str]:
    number = view.receiving + view.settling
    if not number:
        yield "no study is being received"
        return
    yield f"{view.receiving} receiving, {view.settling} settling"
    yield f"{'study':<64} {'state':<10} {'images':>7} {'last image':>12} {'closes in':>10}  sender"
    for one in view.studies:
        quiet = age((view.at - one.last_received_at).total_seconds())
        due = "-" if one.closes_at is None else age((one.closes_at - view.at).total_seconds())
        sender = _shown(one.calling_ae) if one.calling_ae else one.door
        yield f"{one.study_uid:<64} {one.state:<10} {one.instances:>7} {quiet + ' ago':>12} {due:>10}  {sender}"
        if one.close_reason:
            yield f"  {one.close_reason}"
    if number > len(view.studies):
        yield f"and {number - len(view.studies)} more"


def _senders(view: IntakeView) -> Iterator[str]:
    if not view.senders:
        yield "no sender was seen in the last 30 days"
        return
    yield "senders of the last 30 days (images: answered as stored; known: of these, there before; refused: one by one)"
    header = ("sender", "door", "address", "last seen", "last image", "images", "known", "refused", "ended", "unclean")
    yield "{:<16} {:<6} {:<24} {:<23} {:<23} {:>8} {:>8} {:>8} {:>6} {:>8}".format(*header)
    for one in view.senders:
        yield (
            f"{_shown(one.calling_ae) or '-':<16} {one.door:<6} {_shown(one.address):<24} "
            f"{stamp(one.last_opened_at)} {stamp(one.last_stored_at)} {one.stored:>8} {one.duplicates:>8} "
            f"{one.refused:>8} {one.associations - one.open:>6} {one.unclean:>8}"
        )


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shown(said: str | None) -> str:
    """What a sender wrote, on one line of a terminal."""
    return "".join(one if one.isprintable() else "?" for one in said or "")


def age(seconds: float) -> str:
    """A duration, as coarse as it is long."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
