"""`heimdallr send` and `heimdallr upload`: images to this or another machine, with progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
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
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every DICOM object below a folder by C-STORE, with progress. One of the TLS options implies --tls."""
    from heimdallr_ray.clients import wording
    from heimdallr_ray.clients.dimse import Tls
    from heimdallr_ray.clients.idle import idle_seconds
    from heimdallr_ray.clients.send import send_folder
    from heimdallr_ray.operations.application import server_url

    logging.getLogger("heimdallr_ray.clients").addHandler(logging.NullHandler())
    settings = settings_of(config)
    port = port or settings.dicom_port
    base = wording.local_base(host, port, settings.dicom_host, settings.dicom_port, server_url(settings))
    secured = tls or any((tls_certificate, tls_key, tls_ca, tls_name))
    with _bar() as bar:
        task = bar.add_task("sending", total=None)
        try:
            report = send_folder(
                folder,
                host=host,
                port=port,
                called_ae=called or settings.ae_title,
                calling_ae=calling,
                associations=associations,
                tls=Tls(tls_certificate, tls_key, tls_ca, tls_name) if secured else None,
                on_progress=lambda done, total: bar.update(task, description=f"sending {done} of {total} images"),
                on_bytes=lambda done, total: bar.update(task, completed=done, total=total),
                explain=lambda refusal: wording.local_rule(refusal, settings) if base else "",
            )
        except NotReady as error:
            raise failure(NotReady(f"{error.detail}; is the listener up? `heimdallr status` tells")) from error
        except HeimdallrError as error:
            raise failure(error) from error
    api_token = settings.api_token.get_secret_value() or None
    _report(report.as_json(), wording.of_send(report, base, idle_seconds(base, api_token)), as_json)
    raise typer.Exit(0 if not report.failed else 1)


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
    """
    from heimdallr_ray.clients import wording
    from heimdallr_ray.clients.idle import idle_seconds
    from heimdallr_ray.clients.upload import upload_zip
    from heimdallr_ray.operations.application import server_url

    settings = settings_of(config)
    url = url or server_url(settings)
    token = settings.upload_token.get_secret_value() or settings.api_token.get_secret_value()
    with _bar() as bar:
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
