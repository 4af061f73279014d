"""Composition root and the `heimdallr` command."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import heimdallr_ray
from heimdallr_ray.cli_audit import audit
from heimdallr_ray.cli_common import ConfigOption, DataDirOption, JsonOption, err, failure, out, say, settings_of
from heimdallr_ray.cli_models import models
from heimdallr_ray.cli_series import series
from heimdallr_ray.cli_tokens import tokens
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import HeimdallrError, NotReady, WeightsMissing, WeightsTampered

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
    """Check ports and listeners, disk, database, weights, GPU, versions and the Ray token; say how to mend each."""
    from heimdallr_ray.operations.doctor import examine

    findings = examine(settings_of(config, data_dir=data_dir, profile=profile))
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings]))  # noqa: T201
    else:
        marks = {"ok": "[green]ok  [/green]", "note": "[yellow]NOTE[/yellow]", "mend": "[red]MEND[/red]"}
        for finding in findings:
            mark = marks[finding.level]
            out.print(f"{mark} {finding.name}: {finding.detail}", soft_wrap=True)
            if finding.mend:
                out.print(f"     -> {finding.mend}", soft_wrap=True)
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


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(exists=True, help="Folder (or file) with DICOM objects.")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: HEIMDALLR_DICOM_PORT.")] = None,
    called: Annotated[str | None, typer.Option(help="Called AE title; default: HEIMDALLR_AE_TITLE.")] = None,
    calling: Annotated[str, typer.Option(help="Calling AE title.")] = "HEIMDALLR_SCU",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every DICOM object below a folder by C-STORE, with progress."""
    from heimdallr_ray.clients import wording
    from heimdallr_ray.clients.idle import idle_seconds
    from heimdallr_ray.clients.send import send_folder
    from heimdallr_ray.operations.application import server_url

    logging.getLogger("heimdallr_ray.clients").addHandler(logging.NullHandler())
    settings = settings_of(config)
    port = port or settings.dicom_port
    base = wording.local_base(host, port, settings.dicom_host, settings.dicom_port, server_url(settings))
    with _bar("images") as bar:
        task = bar.add_task("sending", total=None)
        try:
            report = send_folder(
                folder,
                host=host,
                port=port,
                called_ae=called or settings.ae_title,
                calling_ae=calling,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except NotReady as error:
            raise failure(NotReady(f"{error.detail}; is the listener up? `heimdallr status` tells")) from error
        except HeimdallrError as error:
            raise failure(error) from error
    api_token = settings.api_token.get_secret_value() or None
    _report(report.as_json(), wording.of_send(report, base, idle_seconds(base, api_token)), as_json)
    raise typer.Exit(0 if not report.failed else 1)


@app.command()
def upload(
    source: Annotated[
        Path, typer.Argument(exists=True, help="ZIP archive; or a DICOM file or a folder, which is zipped on the way.")
    ],
    url: Annotated[str | None, typer.Option(help="Default: the server of the settings.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a ZIP archive, a DICOM file or a folder of them over HTTP, with progress."""
    from heimdallr_ray.clients import wording
    from heimdallr_ray.clients.idle import idle_seconds
    from heimdallr_ray.clients.upload import upload_zip
    from heimdallr_ray.operations.application import server_url

    settings = settings_of(config)
    url = url or server_url(settings)
    token = settings.upload_token.get_secret_value() or settings.api_token.get_secret_value()
    with _bar("bytes") as bar:
        task = bar.add_task("uploading", total=None)
        try:
            outcome = upload_zip(
                source,
                url=url,
                token=token or None,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except NotReady as error:
            raise failure(NotReady(f"{error.detail}; is the stack up? `heimdallr status` tells")) from error
        except HeimdallrError as error:
            raise failure(error) from error
    base, api_token = wording.page_base(url), settings.api_token.get_secret_value() or None
    _report(outcome.as_json(), wording.of_upload(outcome, base, idle_seconds(base, api_token)), as_json)


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

    settings = settings_of(config, data_dir=data_dir)
    try:
        uid = Uid.parse(study_uid)
        database = Database(settings.resolved_database_url)
        with database.write() as session:
            retry_study(
                session,
                uid,
                now=SystemClock().now(),
                max_attempts=settings.max_attempts,
                actor=f"cli:{getpass.getuser()}",
            )
    except HeimdallrError as error:
        raise failure(error) from error
    say("queued")


def _bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
        console=err,
        # A bar in a log is noise, and an empty one after an error is a riddle.
        disable=not err.is_terminal,
    )  # fmt: skip


def _report(values: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))  # noqa: T201
    else:
        for line in lines:
            # Names of files are no markup.
            out.print(line, soft_wrap=True, markup=False)


def main() -> None:
    """Entry point of the `heimdallr` command."""
    try:
        app()
    except HeimdallrError as error:
        failure(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
