"""A person names the series of a study that is to be measured, or how it is to be prepared, or leaves it to the rules.

The choice travels in the payload of the job. It stands until a person makes another one: a retry and a new epoch of the
same study follow it too. Which series and what about a tilt are two wishes: one is changed without the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final, cast

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import STUDY_JOB
from heimdallr_ray.catalog.tables import JobRow, SeriesRow, StudyRow
from heimdallr_ray.errors import NotAVolume, NotFound, NoTilt

PAYLOAD_KEY: Final = "series"
MAX_REASON: Final = 500
MAX_NAME: Final = 64


@dataclass(frozen=True)
class SeriesChosen:
    """A person's choice.

    Attributes:
        series_uid: Series Instance UID; None: the rules choose.
        part: of a series that was split; None: the best of its parts.
        chosen_by: who chose the series; where none is named, who asked for `deskew`.
        chosen_at: when, ISO 8601, UTC.
        reason: why, in the person's words.
        deskew: whether a tilt is taken out of the images before models run; None: as the site's setting says.
        deskew_by: who asked for that, where it was another wish than that of the series; None: `chosen_by`.
        deskew_at: when.
        deskew_reason: why.
    """

    series_uid: str | None
    part: int | None
    chosen_by: str
    chosen_at: str
    reason: str
    deskew: bool | None = None
    deskew_by: str | None = None
    deskew_at: str | None = None
    deskew_reason: str | None = None

    @property
    def of_tilt(self) -> tuple[str, str, str]:
        """Who asked for `deskew`, when and why."""
        if self.deskew_by is None:
            return self.chosen_by, self.chosen_at, self.reason
        return self.deskew_by, self.deskew_at or self.chosen_at, self.deskew_reason or ""


def next_choice(before: SeriesChosen | None, wish: SeriesChosen, *, keep_series: bool) -> SeriesChosen | None:
    """What stands after a person's wish.

    A wish about the tilt alone keeps the series of `before` with who chose it, unless `keep_series` is False. A tilt
    that is wished as before keeps who asked for it.

    Returns:
        None where rules and settings decide everything.
    """
    if wish.series_uid is None and wish.deskew is None:
        return None
    who, when, why = wish.of_tilt
    if wish.series_uid is None and keep_series and before is not None and before.series_uid is not None:
        return replace(before, deskew=wish.deskew, deskew_by=who, deskew_at=when, deskew_reason=why)
    if wish.series_uid is not None and wish.deskew is not None and before is not None and before.deskew == wish.deskew:
        who, when, why = before.of_tilt
        return replace(wish, deskew_by=who, deskew_at=when, deskew_reason=why)
    return wish


def chosen_in(payload: Mapping[str, Any]) -> SeriesChosen | None:
    """The choice that a job carries, or None."""
    kept = payload.get(PAYLOAD_KEY)
    return SeriesChosen(**cast("dict[str, Any]", kept)) if isinstance(kept, dict) else None


def standing_choice(session: Session, study_id: str) -> SeriesChosen | None:
    """The choice that the study's newest job carries, or None."""
    statement = (
        select(JobRow)
        .where(JobRow.study_id == study_id, JobRow.kind == STUDY_JOB)
        .order_by(col(JobRow.id).desc())
        .limit(1)
    )
    newest = session.exec(statement).one_or_none()
    return None if newest is None else chosen_in(newest.payload)


def job_payload(manifest_sha256: str | None, choice: SeriesChosen | None) -> dict[str, Any]:
    """What a study's job carries."""
    payload: dict[str, Any] = {"manifest_sha256": manifest_sha256}
    if choice is not None:
        payload[PAYLOAD_KEY] = asdict(choice)
    return payload


def require_choosable(session: Session, study: StudyRow, series_uid: str, part: int | None) -> None:
    """Nothing happens where the series may be chosen, as far as the catalog knows.

    Raises:
        NotFound: the study has no such series, or the series no such part.
        NotAVolume: the last selection found that it is no volume; names the rule.
    """
    row = session.exec(
        select(SeriesRow).where(SeriesRow.study_id == study.id, SeriesRow.series_uid == series_uid)
    ).one_or_none()
    if row is None:
        raise NotFound("the study has no such series")
    parts = _parts_of(row)
    named = [one for one in parts if part is None or one.get("part") == part]
    if parts and not named:
        raise NotFound("the series has no such part")
    if named and not any(one.get("can_be_chosen") for one in named):
        code = str(named[0].get("code"))
        raise NotAVolume(code, f"{code}: {named[0].get('reason')}")


def require_tilt(session: Session, study: StudyRow, choice: SeriesChosen) -> None:
    """Nothing happens where the series that `choice` leads to may be tilted, as far as the catalog knows.

    Raises:
        NoTilt: the last selection found that it has no tilt.
    """
    wanted = choice.series_uid
    of_study = select(SeriesRow).where(SeriesRow.study_id == study.id)
    rows = session.exec(of_study).all()
    for row in rows:
        parts = [one for one in _parts_of(row) if choice.part is None or one.get("part") == choice.part]
        if wanted is None:
            # What the rules choose is known where they chose: a series that a person forced says nothing of it.
            parts = [one for one in parts if one.get("accepted") and one.get("chosen_by") == "rules"]
        elif row.series_uid != wanted:
            continue
        able = [one for one in parts if one.get("can_be_chosen", True)]
        flags = cast("list[str]", (row.geometry or {}).get("flags", []))
        if any(flag.startswith("tilt:") for flag in flags):
            continue
        if able and all(_known_upright(one) for one in able):
            raise NoTilt(f"{series_name(row)} has no tilt of the gantry that could be taken out or left in")


def _parts_of(row: SeriesRow) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", (row.selection or {}).get("parts", []))


def _known_upright(part: Mapping[str, Any]) -> bool:
    told = [line for line in part.get("lines", []) if line.get("rule") == "geometry" and line.get("effect") == "passed"]
    return bool(told) and not any("tilt:" in str(line.get("value")) for line in told)


def series_name(row: SeriesRow) -> str:
    """A series as a person knows it, its UID last."""
    number = "" if row.series_number is None else f"No. {row.series_number} "
    return f"{number}{row.series_description or 'series without a description'} ({row.series_uid})"


def choice_lines(rows: Iterable[SeriesRow], before: SeriesChosen | None, choice: SeriesChosen | None) -> Iterator[str]:
    """What is chosen now, by whom, and what it was before: one line on the series, one on the tilt."""
    names = {row.series_uid: series_name(row) for row in rows}
    series_before, series = _series_words(names, before), _series_words(names, choice)
    yield f"series: {series} " + ("(unchanged)" if series == series_before else f"(before: {series_before})")
    tilt_before, tilt = _tilt_words(before), _tilt_words(choice)
    yield f"tilt: {tilt} " + ("(unchanged)" if tilt == tilt_before else f"(before: {tilt_before})")


def _series_words(names: Mapping[str, str], choice: SeriesChosen | None) -> str:
    if choice is None or choice.series_uid is None:
        return "as the rules choose"
    part = "" if choice.part is None else f", part {choice.part}"
    named = names.get(choice.series_uid, choice.series_uid)
    return f"{named}{part}, chosen by {choice.chosen_by}, {choice.chosen_at}: {choice.reason}"


def _tilt_words(choice: SeriesChosen | None) -> str:
    if choice is None or choice.deskew is None:
        return "as the site's setting says"
    who, when, why = choice.of_tilt
    return f"{'taken out' if choice.deskew else 'left in'}, asked for by {who}, {when}: {why}"


def record_choice(
    session: Session,
    study: StudyRow,
    before: SeriesChosen | None,
    choice: SeriesChosen | None,
    *,
    now: datetime,
    actor: str,
    reason: str,
) -> None:
    """The history says who chose which series, and why; or that the rules choose again."""
    record_event(
        session,
        "study.series",
        now=now,
        actor=actor,
        study_id=study.id,
        old=_words(before),
        new=_words(choice),
        reason=reason,
        payload={"epoch": study.epoch, "choice": None if choice is None else asdict(choice)},
    )


def _words(choice: SeriesChosen | None) -> str:
    series = "rules" if choice is None or choice.series_uid is None else choice.series_uid
    if choice is None or choice.deskew is None:
        return series
    return f"{series}, {'deskewed' if choice.deskew else 'not deskewed'}"
