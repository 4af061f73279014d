"""`heimdallr send` and `heimdallr upload`: images to this or another machine, with progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from heimdallr_ray.cli_common import ConfigOption, JsonOption, err, failure, out, settings_of
from heimdallr_ray.errors import HeimdallrError, NotReady


def send(
    folder: Annotated[Path, typer.Argument(exists=True, help="Folder (or file) with DICOM objects.")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: HEIMDALLR_DICOM_PORT.")] = None,
    called: Annotated[str | None, typer.Option(help="Called AE title; default: HEIMDALLR_AE_TITLE.")] = None,
    calling: Annotated[str, typer.Option(help="Calling AE title.")] = "HEIMDALLR_SCU",
    associations: Annotated[int, typer.Option(min=1, max=16, help="Associations at once.")] = 1,
    tls: Annotated[bool, typer.Option("--tls", help="Secure the connection (TLS 1.2 or 1.3).")] = False,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Our certificate (PEM), where the peer asks for one.", exists=True)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM, no passphrase).", exists=True)] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Authority of the peer's certificate (PEM); default: the system's.", exists=True)
    ] = None,
    tls_name: Annotated[str | None, typer.Option(help="Name in the peer's certificate; default: the host.")] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Ask the peer to promise that it keeps the images, and wait for its word.")
    ] = False,
    commit_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port of ours that the peer reports to, as it is set there; implies --commit."
        ),
    ] = None,
    commit_wait: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait for its word.")] = 120.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every DICOM object below a folder by C-STORE, with progress. One of the TLS options implies --tls.

    With --commit the exit status is 0 only where the peer has promised to keep every image (storage commitment). Some
    peers give their word on the same association, others, heimdallr among them, on a new one to --commit-port.

    Port and called AE title, where no option names them, are those of the settings: the file of --config or
    HEIMDALLR_CONFIG, and variables HEIMDALLR_...; a stack that was started with other ones needs them here too. The
    data folder decides nothing, so there is no --data-dir.
    """
    from heimdallr_ray.clients import reports as reports_of
    from heimdallr_ray.clients import wording
    from heimdallr_ray.clients.aftermath import Fate, Server
    from heimdallr_ray.clients.commit import Reports, commit_sent, require_port_for_reports
    from heimdallr_ray.clients.dimse import Peer, Tls
    from heimdallr_ray.clients.send import send_folder
    from heimdallr_ray.operations.application import server_url

    logging.getLogger("heimdallr_ray.clients").addHandler(logging.NullHandler())
    settings = settings_of(config)
    port = port or settings.dicom_port
    base = wording.local_base(host, port, settings.dicom_host, settings.dicom_port, server_url(settings))
    secured = tls or any((tls_certificate, tls_key, tls_ca, tls_name))
    told = settings.peers.get(calling.strip()) if base else None
    server = Server(base, settings.api_token.get_secret_value() or None)
    before = server.tally()
    done = files = 0
    secure = Tls(tls_certificate, tls_key, tls_ca, tls_name) if secured else None
    peer = Peer(host, port, called or settings.ae_title, calling, secure)
    promised, reports = None, Reports()
    with ExitStack() as ends, _bar() as bar:
        task = bar.add_task("sending", total=None)

        def on_progress(answered: int, total: int) -> None:
            nonlocal done, files
            done, files = answered, total
            bar.update(task, description=f"sending {answered} of {total} images")

        try:
            if commit_port is not None:
                # Before the first image: who cannot listen need not send.
                ends.enter_context(reports.at_port(peer, commit_port))
                if told is not None and told.port != commit_port:
                    err.print(wording.of_reports_elsewhere(told, commit_port), soft_wrap=True, markup=False)
            elif commit:
                require_port_for_reports(peer, told)
            report = send_folder(
                folder,
                host=host,
                port=port,
                called_ae=peer.called_ae,
                calling_ae=calling,
                associations=associations,
                tls=secure,
                on_progress=on_progress,
                on_bytes=lambda done, total: bar.update(task, completed=done, total=total),
                explain=lambda refusal: wording.rule_behind(
                    refusal,
                    settings if base else None,
                    secured=secured,
                    certified=tls_certificate is not None,
                    address=reports_of.address_seen_by(host, port),
                    here=wording.on_this_machine(host, settings.dicom_host),
                ),
            )
            if commit or commit_port is not None:
                bar.update(task, description="waiting for the commitment")
                promised = commit_sent(
                    peer, report.files, reports=reports, elsewhere=commit_port is not None, wait_s=commit_wait
                )
        except KeyboardInterrupt:
            bar.stop()
            wanted = commit or commit_port is not None
            raise _interrupted(wording.of_interrupted_send(done, files, promise=wanted)) from None
        except HeimdallrError as error:
            raise failure(error) from error
    known: int | None = None
    fates: tuple[Fate, ...] = ()
    stopped = False
    try:
        known = server.known_of(before, report.sent)
        fates = server.fates(report.study_uids)
    except KeyboardInterrupt:
        # What was sent is there: only the server's word about it was not waited for.
        stopped = True
    values = {**report.as_json(), "already_there": known, "studies": [asdict(fate) for fate in fates]}
    lines = list(wording.of_send(report, base, known, fates))
    if promised is not None:
        values["commitment"] = promised.as_json()
        lines += wording.of_commitment(promised)
    _report(values, lines, as_json)
    if stopped:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(0 if not report.failed and (promised is None or promised.whole) else 1)


def upload(
    source: Annotated[
        Path, typer.Argument(exists=True, help="ZIP archive, DICOM file, or folder; in requests of at most 64 MiB.")
    ],
    url: Annotated[str | None, typer.Option(help="Default: the server of the settings.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a ZIP archive, a DICOM file or a folder of them over HTTP, with progress.

    What broke off goes on by the same command: the server is asked which images it has, and the others are sent.

    Token, and address where --url does not name it, are those of the settings: the file of --config or
    HEIMDALLR_CONFIG, and variables HEIMDALLR_...; a stack that was started with other ones needs them here too. The
    data folder decides nothing, so there is no --data-dir.
    """
    from httpx import TransportError

    from heimdallr_ray.clients import wording
    from heimdallr_ray.clients.aftermath import Fate, Server
    from heimdallr_ray.clients.upload import upload_zip
    from heimdallr_ray.operations.application import server_url

    settings = settings_of(config)
    url = url or server_url(settings)
    token = settings.upload_token.get_secret_value() or settings.api_token.get_secret_value()
    with _bar() as bar:
        task = bar.add_task("uploading", total=None)
        stored = images = on_its_way = 0

        def on_flight(sent: int) -> None:
            nonlocal on_its_way
            on_its_way = sent

        def on_stored(there: int, total: int) -> None:
            nonlocal stored, images
            stored, images = there, total

        try:
            outcome = upload_zip(
                source,
                url=url,
                token=token or None,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                on_stored=on_stored,
                on_flight=on_flight,
            )
        except KeyboardInterrupt:
            bar.stop()
            raise _interrupted(wording.of_interrupted_upload(stored, images, on_its_way)) from None
        except NotReady as error:
            # A server that says why it does not take them now is up.
            silent = isinstance(error.__cause__, TransportError)
            asked = "; is the stack up? `heimdallr status` tells" if silent else ""
            raise failure(NotReady(f"{error.detail}{asked}")) from error
        except HeimdallrError as error:
            raise failure(error) from error
    base = wording.page_base(url)
    fates: tuple[Fate, ...] = ()
    stopped = False
    try:
        fates = Server(base, settings.api_token.get_secret_value() or None).fates(outcome.study_uids)
    except KeyboardInterrupt:
        # As in `send`.
        stopped = True
    values = {**outcome.as_json(), "studies": [asdict(fate) for fate in fates]}
    _report(values, wording.of_upload(outcome, base, fates), as_json)
    if stopped:
        raise typer.Exit(INTERRUPTED)


INTERRUPTED = 130
"""As shells tell of a program that Ctrl-C ended: 128 + SIGINT."""


def _interrupted(words: str) -> typer.Exit:
    err.print(words, soft_wrap=True, markup=False)
    return typer.Exit(INTERRUPTED)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
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
