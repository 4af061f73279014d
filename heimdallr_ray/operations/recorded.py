"""The choice of series that a study's last run made and wrote down, for `heimdallr series explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from heimdallr_ray.catalog.choosing import SeriesChosen, standing_choice
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.studies import series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import SeriesRow
from heimdallr_ray.errors import NotFound
from heimdallr_ray.ids import Uid


@dataclass(frozen=True)
class RecordedSeries:
    """One series (or part of one) and what the run said of it, as `pipelines.describe.explained` writes it."""

    series_uid: str
    series_number: int | None
    modality: str
    description: str
    parts: int
    decision: Mapping[str, Any]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What the last run that judged the study's series decided; what the phase model settled is in it.

    Attributes:
        rules: id, version, sha256 and purpose of the rules that decided.
        unjudged: series that came after that run.
        asked: what a person asked for since or before, of the newest job.
    """

    study_uid: str
    rules: Mapping[str, Any] | None
    series: tuple[RecordedSeries, ...]
    unjudged: tuple[str, ...]
    asked: SeriesChosen | None

    @property
    def followed(self) -> bool:
        """False where a person has named another series since."""
        wanted = None if self.asked is None else self.asked.series_uid
        chosen = self.chosen
        return wanted is None or (chosen is not None and chosen.series_uid == wanted)

    @property
    def chosen(self) -> RecordedSeries | None:
        """The measured one."""
        return next((one for one in self.series if one.decision.get("accepted")), None)


def recorded_study(database: Database, study_uid: Uid) -> Recorded | None:
    """The choice as it was recorded; None where no run has judged the study's series yet.

    Raises:
        NotFound: there is no such study.
    """
    with database.read() as session:
        study = study_by_uid(session, study_uid)
        if study is None:
            raise NotFound("there is no such study")
        rows = series_rows_of(session, study.id)
        judged = [row for row in rows if row.selection is not None]
        if not judged:
            return None
        rules = next((row.selection.get("rules") for row in judged if row.selection is not None), None)
        return Recorded(
            study_uid=study_uid,
            rules=cast("Mapping[str, Any] | None", rules),
            series=tuple(part for row in judged for part in _parts(row)),
            unjudged=tuple(row.series_uid for row in rows if row.selection is None),
            asked=standing_choice(session, study.id),
        )


def _parts(row: SeriesRow) -> Iterator[RecordedSeries]:
    parts = cast("list[dict[str, Any]]", (row.selection or {}).get("parts", []))
    flags = cast("list[str]", (row.geometry or {}).get("flags", []))
    for part in parts:
        yield RecordedSeries(
            row.series_uid,
            row.series_number,
            row.modality or "",
            row.series_description or "",
            len(parts),
            part,
            tuple(flags) if part.get("accepted") else (),
        )
