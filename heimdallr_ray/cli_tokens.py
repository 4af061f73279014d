"""`heimdallr tokens`: who may talk to the HTTP interface, and what for."""

from __future__ import annotations

import getpass
import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heimdallr_ray.cli_common import ConfigOption, DataDirOption, JsonOption, failure, out, say, settings_of
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import DatabaseUnusable, HeimdallrError

if TYPE_CHECKING:
    from heimdallr_ray.catalog.database import Database
    from heimdallr_ray.catalog.tables import ApiTokenRow
    from heimdallr_ray.config import Settings

tokens = typer.Typer(
    help="Tokens with names and scopes, for scanners' gateways, PACS, monitoring and people.", no_args_is_help=True
)


def _database(settings: Settings) -> Database:
    """The installation's database, at this version's schema.

    Raises:
        BadSetting, DatabaseUnusable, DatabaseBusy, SchemaMismatch: it cannot be used.
    """
    from heimdallr_ray.catalog.database import Database

    if not settings.database_url and not settings.data_dir.is_dir():
        raise DatabaseUnusable(f"there is no data folder {settings.data_dir}: start the stack once, or name it")
    database = Database(settings.resolved_database_url)
    database.migrate()
    return database


@tokens.command()
def create(
    name: Annotated[str, typer.Argument(help="Of who will hold it; stands in the audit chain. Used once for good.")],
    scope: Annotated[
        list[str], typer.Option(help="read, ingest, metrics or admin; may be given several times, or with commas.")
    ],
    expires: Annotated[str | None, typer.Option(help="Lifetime, such as 12h, 90d, 6w, 1y; otherwise for good.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, once: only its digest is kept."""
    from heimdallr_ray.catalog.api_tokens import create_token
    from heimdallr_ray.security import tokens as form
    from heimdallr_ray.security.audit import Action, Actor, ActorKind, AuditLog

    settings = settings_of(config, data_dir=data_dir)
    now, who = SystemClock().now(), getpass.getuser()
    try:
        wanted = form.encode_scopes(form.parse_scopes(scope))
        named = form.parse_name(name)
        ends = now + form.parse_lifetime(expires) if expires else None
        token = form.mint()
        database, audit = _database(settings), AuditLog.of(settings)
        with database.write() as session:
            create_token(session, named, form.digest(token), wanted, now=now, created_by=f"cli:{who}", expires_at=ends)
            audit.append(
                session,
                Action.TOKEN_CREATED,
                Actor(ActorKind.USER, who),
                now=now,
                detail={"token": named, "scopes": wanted, "expires": ends.isoformat() if ends else None},
            )
    except HeimdallrError as error:
        raise failure(error) from error
    if as_json:
        print(json.dumps({"name": named, "token": token, "scopes": wanted.split(","), "expires": _iso(ends)}))  # noqa: T201
        return
    out.print(token, soft_wrap=True, markup=False)
    say(f"{named}: {wanted}, {_until(ends)}. It is not shown again; send it as `Authorization: Bearer TOKEN`.")


@tokens.command("list")
def list_(config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """The tokens that were made, with scopes, lifetime and last use."""
    from heimdallr_ray.catalog.api_tokens import list_tokens

    settings = settings_of(config, data_dir=data_dir)
    try:
        with _database(settings).read() as session:
            rows = list_tokens(session)
    except HeimdallrError as error:
        raise failure(error) from error
    now = SystemClock().now()
    if as_json:
        print(json.dumps([_facts(row, now) for row in rows]))  # noqa: T201
        return
    if not rows:
        say("no token was made; `heimdallr tokens create NAME --scope ingest` makes one")
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        used = f"last used {row.last_used_at:%Y-%m-%d %H:%M} UTC" if row.last_used_at else "never used"
        words = f"{row.scopes:<24}  {_state(row, now):<8}  {_until(row.expires_at)}  {used}"
        out.print(f"{row.name:<{width}}  {words}", soft_wrap=True, markup=False)


@tokens.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """The token opens nothing from now on, in every running process. Its name is not used again."""
    from heimdallr_ray.catalog.api_tokens import revoke_token
    from heimdallr_ray.security.audit import Action, Actor, ActorKind, AuditLog

    settings = settings_of(config, data_dir=data_dir)
    now = SystemClock().now()
    try:
        database, audit = _database(settings), AuditLog.of(settings)
        with database.write() as session:
            revoked_at = revoke_token(session, name, now=now).revoked_at
            if revoked_at == now:
                actor = Actor(ActorKind.USER, getpass.getuser())
                audit.append(session, Action.TOKEN_REVOKED, actor, now=now, detail={"token": name[:64]})
    except HeimdallrError as error:
        raise failure(error) from error
    before = f" already, since {revoked_at:%Y-%m-%d %H:%M} UTC" if revoked_at is not None and revoked_at != now else ""
    say(f"{name} is revoked{before}")


def _state(row: ApiTokenRow, now: datetime) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "valid"


def _facts(row: ApiTokenRow, now: datetime) -> dict[str, Any]:
    return {
        "name": row.name,
        "scopes": row.scopes.split(","),
        "state": _state(row, now),
        "created_by": row.created_by,
        "created_at": _iso(row.created_at),
        "expires_at": _iso(row.expires_at),
        "revoked_at": _iso(row.revoked_at),
        "last_used_at": _iso(row.last_used_at),
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _until(at: datetime | None) -> str:
    return f"until {at:%Y-%m-%d %H:%M} UTC" if at else "without end"
