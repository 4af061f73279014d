"""Composition root and the `heimdallr` command."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import heimdallr_ray
from heimdallr_ray.cli_audit import audit
from heimdallr_ray.cli_clients import send, upload
from heimdallr_ray.cli_common import ConfigOption, DataDirOption, JsonOption, failure, flow, out, say, settings_of
from heimdallr_ray.cli_intake import intake
from heimdallr_ray.cli_models import models
from heimdallr_ray.cli_series import series
from heimdallr_ray.cli_tokens import tokens
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import HeimdallrError, WeightsMissing, WeightsTampered

app = typer.Typer(
    name="heimdallr",
    help="A radiology pipeline on Ray: DICOM in, TotalSegmentator, measurements, triage, worklist. "
    "Decision support, not diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(models, name="models")
app.add_typer(series, name="series")
app.add_typer(audit, name="audit")
app.add_typer(intake, name="intake")
app.add_typer(tokens, name="tokens")
DOWN_S = 20.0


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """A radiology pipeline on Ray."""
    if version:
        out.print(f"heimdallr {heimdallr_ray.__version__}")
        raise typer.Exit(0)


@app.command()
def up(config: ConfigOption = None, data_dir: DataDirOption = None, profile: Annotated[
        str | None, typer.Option(help="demo or site.")] = None) -> None:  # fmt: skip
    """Start everything and stay in the foreground: Ray head, DICOM listener, Serve application. Ctrl-C stops it."""
    from heimdallr_ray.dicom.rules import load_rules
    from heimdallr_ray.operations import application, doctor, lock, mending, neighbours, supervisor

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    try:
        load_rules(settings.series_rules)
    except HeimdallrError as error:
        raise failure(error) from error

    def progress(message: str) -> None:
        say(message)
        lock.note_step(settings.run_dir, message)
        if message.startswith("failed") and (WeightsMissing.code in message or WeightsTampered.code in message):
            say(f"the weights folder of profile {settings.profile}: {doctor.weights_dir_of(settings)}")
            say(f"-> {mending.hint(settings, hashed=WeightsTampered.code in message)}")
        elif message.startswith("failed") and "is taken by" in message:
            for name, other in neighbours.on_our_ports(settings):
                say(f"{name} is held by {other.words}: {other.mend}")
        if message == "ready":
            say(f"pages and API  {application.server_url(settings)}" if settings.server_port else "ready")
            say(f"DICOM          {settings.ae_title}@{settings.dicom_host}:{settings.dicom_port}")

    exit_status = supervisor.run(settings, SystemClock(), progress)
    if exit_status == 0:
        say("stopped")
    raise typer.Exit(exit_status)


@app.command()
def down(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    drain: Annotated[
        bool, typer.Option(help="Take no new images and finish queued and running studies first.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Longest wait for --drain, in seconds.")] = 3600.0,
) -> None:
    """Stop the stack of a data folder. Running work is abandoned and leased anew by the next start, or drained."""
    from heimdallr_ray.operations import lock, processes, rayhead

    settings = settings_of(config, data_dir=data_dir)
    holder = lock.read_holder(settings.run_dir)
    if not lock.is_held(settings.run_dir) or holder is None:
        orphans = processes.remembered(rayhead.places(settings).processes_file)
        if orphans:
            say(f"the supervisor is gone; ending the {len(orphans)} processes that it left")
            raise typer.Exit(1 if processes.end(orphans, term_s=0, kill_s=10) else 0)
        say(f"nothing runs on {settings.data_dir}")
        raise typer.Exit(0)
    try:
        os.kill(holder.pid, signal.SIGUSR1 if drain else signal.SIGTERM)
    except ProcessLookupError as error:
        say(f"pid {holder.pid} has just ended")
        raise typer.Exit(0) from error
    deadline = time.monotonic() + (timeout if drain else DOWN_S)
    while lock.is_held(settings.run_dir):
        if time.monotonic() > deadline:
            say(f"pid {holder.pid} is still there; `heimdallr down` without --drain stops it at once")
            raise typer.Exit(1)
        time.sleep(0.1)
    say("stopped")


@app.command()
def status(config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """What runs on a data folder and what it is doing. Exit status 0 when ready, 3 when nothing runs, 1 otherwise."""
    from heimdallr_ray.operations import status as status_of

    settings = settings_of(config, data_dir=data_dir)
    report = status_of.collect(settings)
    if as_json:
        print(json.dumps(report))  # noqa: T201
    else:
        rows = list(status_of.flatten(report))
        width = max(len(key) for key, _ in rows)
        for key, value in rows:
            out.print(f"{key:<{width}}  {value}", soft_wrap=True, markup=False)
    raise typer.Exit(status_of.exit_status(report))


@app.command()
def doctor(config: ConfigOption = None, data_dir: DataDirOption = None, profile: Annotated[
        str | None, typer.Option(help="demo or site.")] = None, as_json: JsonOption = False) -> None:  # fmt: skip
    """Check ports, who may send, disk, database, weights, GPU, versions and the Ray token; say how to mend each."""
    from heimdallr_ray.operations.doctor import examine

    findings = examine(settings_of(config, data_dir=data_dir, profile=profile))
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings]))  # noqa: T201
    else:
        marks = {"ok": "[green]ok  [/green]", "note": "[yellow]NOTE[/yellow]", "mend": "[red]MEND[/red]"}
        for finding in findings:
            mark = marks[finding.level]
            out.print(f"{mark} {escape(finding.name)}: {escape(finding.detail)}", soft_wrap=True)
            if finding.mend:
                out.print(f"     -> {escape(finding.mend)}", soft_wrap=True)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="Stop when both studies are done.")] = False,
    as_json: JsonOption = False,
    keep: Annotated[Path | None, typer.Option(help="Work in this folder and leave it there.")] = None,
) -> None:
    """Two synthetic CT studies travel the whole road, with demo weights.

    Works in a temporary folder that is removed at the end; --keep FOLDER works there and keeps it. The data folder of
    the settings (HEIMDALLR_DATA_DIR) is not used.
    """
    from heimdallr_ray.operations import demo as demo_run

    exit_status, document = demo_run.run(SystemClock(), say, once=once, keep=keep)
    if as_json:
        print(json.dumps(document))  # noqa: T201
    raise typer.Exit(exit_status)


app.command()(send)
app.command()(upload)


@app.command()
def retry(
    study_uid: Annotated[str, typer.Argument(help="StudyInstanceUID of a failed, not applicable or cancelled study.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Queue a study again, with all its attempts; whether the stack runs or not."""
    import getpass

    from heimdallr_ray.catalog.database import Database
    from heimdallr_ray.catalog.retrying import retry_study
    from heimdallr_ray.ids import Uid
    from heimdallr_ray.security.audit import AuditLog
    from heimdallr_ray.security.audited import at_the_command_line, study_retried

    settings = settings_of(config, data_dir=data_dir)
    try:
        uid = Uid.parse(study_uid)
        database, audit, now = Database(settings.resolved_database_url), AuditLog.of(settings), SystemClock().now()
        with database.write() as session:
            job = retry_study(
                session, uid, now=now, max_attempts=settings.max_attempts, actor=f"cli:{getpass.getuser()}"
            )
            study_retried(audit, session, job, at_the_command_line(), now)
    except HeimdallrError as error:
        raise failure(error) from error
    say("queued")


@app.command()
def complete(
    study_uid: Annotated[str, typer.Argument(help="StudyInstanceUID of a study that is receiving or settling.")],
    reason: Annotated[str, typer.Option(help="Why; needed, kept in the history.", show_default=False)] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say that a study is complete: it is closed as it stands and analysed, whoever may still be sending to it.

    heimdallr complete STUDY_UID --reason "the scanner was switched off"
    """
    import getpass

    from sqlmodel import Session

    from heimdallr_ray.catalog.closing import complete_study
    from heimdallr_ray.catalog.database import Database
    from heimdallr_ray.ids import Uid
    from heimdallr_ray.listener.receive import Receiver
    from heimdallr_ray.security.audit import AuditLog
    from heimdallr_ray.security.audited import at_the_command_line, study_completed
    from heimdallr_ray.storage.blobs import LocalBlobStore

    if not reason.strip():
        raise typer.BadParameter('say why, with --reason "...": it is kept in the history', param_hint="--reason")
    settings = settings_of(config, data_dir=data_dir)
    user = getpass.getuser()
    try:
        uid = Uid.parse(study_uid)
        database, audit, now = Database(settings.resolved_database_url), AuditLog.of(settings), SystemClock().now()

        def close(session: Session) -> int:
            study = complete_study(
                session,
                uid,
                reason=reason,
                by=user,
                now=now,
                max_attempts=settings.max_attempts,
                actor=f"cli:{user}"[:64],
            )
            study_completed(audit, session, study.id, user, at_the_command_line(), now)
            return study.n_instances

        receiver = Receiver(settings, database, LocalBlobStore(settings.blob_dir), SystemClock())
        n_images = receiver.close_hard(uid, close)
        receiver.spool.close()
    except HeimdallrError as error:
        raise failure(error) from error
    say(f"queued with {n_images} image{'' if n_images == 1 else 's'}")


flow(app)


def main() -> None:
    """Entry point of the `heimdallr` command."""
    try:
        app()
    except HeimdallrError as error:
        failure(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
