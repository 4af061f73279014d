"""`heimdallr audit`: what the audit chain says, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from heimdallr_ray.cli_common import ConfigOption, DataDirOption, JsonOption, err, failure, out, settings_of, stamp
from heimdallr_ray.errors import BadSetting, HeimdallrError, NotFound

if TYPE_CHECKING:
    from sqlmodel import Session

    from heimdallr_ray.catalog.tables import AuditRow
    from heimdallr_ray.config import Settings
    from heimdallr_ray.security.audit_check import Anchor, Verdict
    from heimdallr_ray.security.audit_key import AuditKey

audit = typer.Typer(help="The audit chain: who did what, and whether it is whole.", no_args_is_help=True)

KeyOption = Annotated[
    list[Path] | None,
    typer.Option("--key-file", help="An older key, for entries that were written with it; may be given again."),
]
AnchorOption = Annotated[
    list[str] | None,
    typer.Option("--anchor", help="ENTRIES:MAC as `audit head` printed it at another time; may be given again."),
]


@audit.command()
def verify(
    key_file: KeyOption = None,
    anchor: AnchorOption = None,
    first: Annotated[
        int, typer.Option("--from", min=1, help="First entry to look at; those before it are taken as given.")
    ] = 1,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the whole chain and hold every entry against its MAC and its neighbours.

    Exit status 0: the chain is whole. 1: it is not, or could not be read; says where and why.
    """
    from heimdallr_ray.security import audit_check
    from heimdallr_ray.security.audit_anchor import read_anchor

    settings = settings_of(config, data_dir=data_dir)
    try:
        keys = _keys(settings, key_file or [])
        anchors = [audit_check.Anchor.parse(one) for one in anchor or []]
        kept = read_anchor(settings.data_dir)
        with _reading(settings) as session:
            verdict = audit_check.verify(
                session, keys, anchors=[*anchors, *([kept] if kept is not None else [])], first=first
            )
    except HeimdallrError as error:
        raise failure(error) from error
    if as_json:
        print(json.dumps(_verdict_json(verdict)))  # noqa: T201
    else:
        _print_verdict(verdict, kept)
    raise typer.Exit(0 if verdict.intact else 1)


@audit.command()
def head(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Print the present end of the chain as ENTRIES:MAC, to be kept where nobody who writes the database can reach."""
    from heimdallr_ray.security import audit_entries

    settings = settings_of(config, data_dir=data_dir)
    try:
        with _reading(settings) as session:
            found = audit_entries.head(session)
    except HeimdallrError as error:
        raise failure(error) from error
    if found is None:
        raise failure(NotFound("the chain has no entry yet"))
    out.print(f"{found.entries}:{found.mac}", soft_wrap=True, markup=False)


@audit.command(name="list")
def list_entries(
    last: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many entries.")] = 50,
    actor: Annotated[str | None, typer.Option(help="Only of this AE title, token, user or address.")] = None,
    study: Annotated[str | None, typer.Option(help="Only of this StudyInstanceUID.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this action, or those that begin with it (`upload.`).")
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the last entries, the newest last. Nothing is verified: `audit verify` does that."""
    from heimdallr_ray.catalog.studies import study_by_uid
    from heimdallr_ray.ids import Uid
    from heimdallr_ray.security.audit_entries import recent

    settings = settings_of(config, data_dir=data_dir)
    try:
        _require_known(action)
        with _reading(settings) as session:
            study_id = None
            if study is not None:
                found = study_by_uid(session, Uid.parse(study))
                if found is None:
                    raise NotFound("there is no such study")
                study_id = found.id
            rows = list(reversed(recent(session, last, actor=actor, study_id=study_id, action=action)))
    except HeimdallrError as error:
        raise failure(error) from error
    if as_json:
        print(json.dumps([_row_json(row) for row in rows]))  # noqa: T201
        return
    for row in rows:
        who = " ".join(part for part in (row.actor_kind, row.actor_name or _unnamed(row), row.actor_address) if part)
        facts = " ".join(f"{name}={value}" for name, value in _facts(row).items() if value is not None)
        named = "" if row.study_id is None else f"study={row.study_id} "
        line = f"{row.id:>8}  {stamp(row.at)}  {row.action:<28} {row.outcome:<8} {who}  {named}{facts}"
        out.print(line.rstrip(), soft_wrap=True, markup=False)


def _require_known(action: str | None) -> None:
    """Returns unless no action has or begins with this name.

    Raises:
        BadSetting: none does; names those there are.
    """
    from heimdallr_ray.security.audit import Action

    known = [one.value for one in Action]
    if action is not None and not any(one.startswith(action) for one in known):
        raise BadSetting(f"there is no action {action}, and none begins with it; there are {', '.join(known)}")


def _unnamed(row: AuditRow) -> str:
    """An address must not read as a name: a connection may end before its peer has told one."""
    from heimdallr_ray.security.audit import ActorKind

    return "(no AE title told)" if row.actor_kind == ActorKind.AE.value else ""


def _keys(settings: Settings, older: list[Path]) -> list[AuditKey]:
    from heimdallr_ray.security.audit_key import read_key

    found: list[AuditKey] = []
    for path in (settings.resolved_audit_key_file, *older):
        try:
            found.append(read_key(path))
        except FileNotFoundError as error:
            raise BadSetting(
                f"there is no audit key {path.name} in {path.parent}: set audit_key_file, or bring back its copy"
            ) from error
    return found


@contextmanager
def _reading(settings: Settings) -> Generator[Session]:
    from heimdallr_ray.catalog.database import Database

    database = Database(settings.resolved_database_url)
    try:
        with database.read() as session:
            yield session
    finally:
        database.close()


def _facts(row: AuditRow) -> dict[str, Any]:
    try:
        found = json.loads(row.detail)
    except (TypeError, ValueError):
        found = None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {"detail": str(row.detail)}


def _row_json(row: AuditRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": row.at.isoformat(),
        "action": row.action,
        "outcome": row.outcome,
        "actor": {"kind": row.actor_kind, "name": row.actor_name, "address": row.actor_address},
        "study_id": row.study_id,
        "detail": _facts(row),
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    first = verdict.findings[0] if verdict.findings else None
    return {
        "intact": verdict.intact,
        "entries": verdict.entries,
        "head": str(verdict.tip),
        "first_at": None if verdict.first_at is None else verdict.first_at.isoformat(),
        "last_at": None if verdict.last_at is None else verdict.last_at.isoformat(),
        "first_bad": None if first is None else first.entry,
        "findings": [{"entry": one.entry, "code": one.code, "words": one.words} for one in verdict.findings],
        "more": verdict.more,
    }


def _print_verdict(verdict: Verdict, kept: Anchor | None) -> None:
    for one in verdict.findings:
        where = "the chain" if one.entry is None else f"entry {one.entry}"
        err.print(f"{where}: {one.code}: {one.words}", soft_wrap=True, markup=False)
    if verdict.more:
        err.print(f"and {verdict.more} more", soft_wrap=True, markup=False)
    if not verdict.intact:
        err.print("the audit chain is NOT whole", soft_wrap=True, markup=False)
        return
    held = "" if kept is None else f", held against the anchor at {kept.entries}"
    out.print(f"the audit chain is whole: {verdict.entries} entries{held}", soft_wrap=True, markup=False)
    if verdict.entries:
        out.print(f"{stamp(verdict.first_at)} to {stamp(verdict.last_at)}", soft_wrap=True)
        out.print(f"head {verdict.tip}", soft_wrap=True, markup=False)
