"""What the commands have in common: options, settings, and how they speak to a person."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Settings, load
from heimdallr_ray.errors import HeimdallrError

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)

STAMP_CHARS = 23

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="heimdallr.toml; otherwise HEIMDALLR_CONFIG, otherwise none.")
]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Overrides the data folder.")]
ProfileOption = Annotated[str | None, typer.Option(help="demo or site.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def settings_of(config: Path | None, data_dir: Path | None = None, profile: str | None = None) -> Settings:
    """The settings of a command; it ends where they are wrong."""
    try:
        return load(config_file=config, data_dir=data_dir, profile=profile)
    except HeimdallrError as error:
        raise failure(error) from error


def failure(error: HeimdallrError, status: int = 1) -> typer.Exit:
    """The end of a command, its reason told."""
    # A detail may hold the name of a file, which is no markup.
    err.print(f"[red]{error.code}[/red]: {escape(error.detail)}", markup=True, soft_wrap=True)
    return typer.Exit(status)


def flow(commands: typer.Typer) -> None:
    """The paragraphs of every command's help are wrapped by the window's width, not where the source's lines end."""
    for command in commands.registered_commands:
        written = inspect.cleandoc((command.callback and command.callback.__doc__) or "")
        if written and not command.help:
            command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in written.split("\n\n"))
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            flow(group.typer_instance)


def stamp(at: datetime | None) -> str:
    """A time as every command tells it, in UTC as in the log; STAMP_CHARS long."""
    return f"{'never':<{STAMP_CHARS}}" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def say(message: str) -> None:
    """A line with the time, beside the command's output."""
    err.print(f"[dim]{SystemClock().now():%H:%M:%S} UTC[/dim] {message}", soft_wrap=True)
