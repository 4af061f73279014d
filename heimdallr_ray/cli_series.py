"""`heimdallr series`: why a series is measured, and another choice."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heimdallr_ray.cli_common import ConfigOption, DataDirOption, JsonOption, failure, out, say, settings_of
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.dicom.rules import Purpose
from heimdallr_ray.errors import HeimdallrError, NotFound

if TYPE_CHECKING:
    from heimdallr_ray.operations.recorded import Recorded

series = typer.Typer(help="Which series of a study is measured, and why.", no_args_is_help=True)


@series.command()
def explain(
    study: Annotated[str, typer.Argument(help="StudyInstanceUID in the catalog, or a folder of DICOM files.")],
    purpose: Annotated[
        Purpose, typer.Option(help="What the volume is for; studies are measured on `volume`.")
    ] = "volume",
    again: Annotated[
        bool, typer.Option("--again", help="What today's rules choose, not what the study's last run recorded.")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every rule for every series: what it looked at, what it said. Exit status 3 where no series can be measured.

    Of a study in the catalog that is what its last run recorded; of a folder, of a study that has not run, for another
    purpose and with --again it is worked out from the headers.
    """
    from heimdallr_ray.dicom.rules import load_rules
    from heimdallr_ray.ids import Uid
    from heimdallr_ray.operations import series as choice

    settings = settings_of(config, data_dir=data_dir)
    try:
        rules = load_rules(settings.series_rules)
        if Path(study).exists():
            found = choice.explain_folder(Path(study), rules, purpose)
            studies, skipped = found.studies, found.skipped
        else:
            uid = Uid.parse_or_none(study)
            if uid is None:
                raise NotFound(f"{study}: no such file or folder, and no StudyInstanceUID")
            recorded = None if again or purpose != "volume" else choice.recorded(settings, uid)
            if recorded is not None:
                _show_recorded(recorded, as_json=as_json)
                raise typer.Exit(0 if recorded.chosen is not None else 3)
            studies, skipped = (choice.explain_study(settings, uid, rules, purpose),), 0
    except HeimdallrError as error:
        raise failure(error) from error
    if as_json:
        document = {"studies": [choice.as_json(one) for one in studies], "skipped_files": skipped}
        print(json.dumps(document))  # noqa: T201
    else:
        for one in studies:
            for line in choice.lines(one):
                # What a sender wrote is no markup.
                out.print(line, soft_wrap=True, markup=False)
        if skipped:
            say(f"{skipped} file{'' if skipped == 1 else 's'} without a DICOM object")
    raise typer.Exit(0 if all(one.selection.chosen is not None for one in studies) else 3)


def _show_recorded(recorded: Recorded, *, as_json: bool) -> None:
    from heimdallr_ray.operations import series as choice

    if as_json:
        print(json.dumps({"studies": [choice.recorded_json(recorded)], "skipped_files": 0}))  # noqa: T201
        return
    for line in choice.recorded_lines(recorded):
        out.print(line, soft_wrap=True, markup=False)


@series.command()
def choose(
    study_uid: Annotated[str, typer.Argument(help="StudyInstanceUID of a study that has ended.")],
    series_uid: Annotated[
        str | None,
        typer.Argument(help="SeriesInstanceUID to measure; left out: the rules choose again, but see --deskew."),
    ] = None,
    deskew: Annotated[
        bool | None,
        typer.Option(
            help="Take a tilt of the gantry out before models run, or not; neither: as the site is set. "
            "Without SERIES_UID a series that a person chose earlier stays chosen."
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Why; needed, kept in the history and the results.", show_default=False)
    ] = "",
    part: Annotated[int | None, typer.Option(min=0, help="Of a series that was split: see `series explain`.")] = None,
    by_rules: Annotated[
        bool, typer.Option("--by-rules", help="With --deskew or --no-deskew: the rules choose the series again.")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Measure another series, or without its tilt; the study is queued anew, whether the stack runs or not.

    Its results stand till then. What is chosen now, by whom, and what changed is printed.

    heimdallr series choose STUDY_UID SERIES_UID --reason "motion in the other one"

    heimdallr series choose STUDY_UID --deskew --reason "the head lies askew"

    heimdallr series choose STUDY_UID --reason "as the rules say"
    """
    from heimdallr_ray.catalog.choosing import choice_lines
    from heimdallr_ray.catalog.database import Database
    from heimdallr_ray.catalog.retrying import choose_series
    from heimdallr_ray.catalog.studies import series_rows_of
    from heimdallr_ray.ids import Uid
    from heimdallr_ray.security.audit import AuditLog
    from heimdallr_ray.security.audited import at_the_command_line, series_chosen

    settings = settings_of(config, data_dir=data_dir)
    if not reason.strip():
        raise typer.BadParameter(
            'say why, with --reason "...": it is kept in the history and the results', param_hint="--reason"
        )
    if by_rules and series_uid is not None:
        raise typer.BadParameter("either the rules choose or SERIES_UID is measured", param_hint="--by-rules")
    user = getpass.getuser()
    try:
        uid = Uid.parse(study_uid)
        wanted = None if series_uid is None else Uid.parse(series_uid)
        database, audit, now = Database(settings.resolved_database_url), AuditLog.of(settings), SystemClock().now()
        try:
            with database.write() as session:
                made = choose_series(
                    session,
                    uid,
                    wanted,
                    part,
                    deskew=deskew,
                    keep_series=not by_rules,
                    reason=reason,
                    chosen_by=user,
                    now=now,
                    max_attempts=settings.max_attempts,
                    actor=f"cli:{user}",
                )
                series_chosen(audit, session, made, user, at_the_command_line(), now)
                study_id = made.job.study_id
                rows = [] if study_id is None else series_rows_of(session, study_id)
                told = list(choice_lines(rows, made.before, made.choice))
        finally:
            database.close()
    except HeimdallrError as error:
        raise failure(error) from error
    say("queued")
    for line in told:
        out.print(line, soft_wrap=True, markup=False)
