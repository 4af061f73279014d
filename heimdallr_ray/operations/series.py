"""`heimdallr series`: the choice of series, rule by rule, of a study in the catalog or of a folder of DICOM files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from heimdallr_ray.catalog.choosing import SeriesChosen, standing_choice
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.studies import instances_of, series_rows_of, study_by_uid
from heimdallr_ray.clients.files import candidates
from heimdallr_ray.config import Settings
from heimdallr_ray.dicom.fallback import fallback_can_read
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.regions import unmeasured_regions
from heimdallr_ray.dicom.series import (
    IndexedInstance,
    Purpose,
    Selection,
    Series,
    SeriesDecision,
    SeriesRules,
    group,
    select,
)
from heimdallr_ray.errors import EmptyInput, NotFound, Rejected
from heimdallr_ray.ids import Sha256, Uid
from heimdallr_ray.listener.part10 import DICOMDIR_CLASS
from heimdallr_ray.operations.recorded import Recorded, RecordedSeries, recorded_study
from heimdallr_ray.pipelines import describe, steps
from heimdallr_ray.pipelines.steps import StoredInstance
from heimdallr_ray.storage.blobs import LocalBlobStore

BLANK: Final = "(blank)"
_SHOWN: Final = 60
_LEGEND: Final = (
    "*: measured. Series that may be measured are compared by their scores, from the top; at the first that differs "
    "the lowest wins"
)


@dataclass(frozen=True)
class Explained:
    """The choice for one study, and what a person asked for, if anything."""

    study_uid: str
    selection: Selection
    asked: SeriesChosen | None = None


@dataclass(frozen=True)
class FolderExplained:
    """The choices for the studies of a folder, and how many files hold no DICOM object."""

    studies: tuple[Explained, ...]
    skipped: int


def explain_folder(folder: Path, rules: SeriesRules, purpose: Purpose = "volume") -> FolderExplained:
    """What would be chosen of the DICOM files at or below `folder`; headers only, nothing is stored.

    Raises:
        EmptyInput: no file is a DICOM object.
    """
    studies: dict[str, list[IndexedInstance]] = defaultdict(list)
    skipped = 0
    for path in candidates(folder):
        try:
            header = read_header(path)
            size = path.stat().st_size
        except (Rejected, OSError):
            skipped += 1
            continue
        if header.sop_class_uid == DICOMDIR_CLASS:
            # A DICOMDIR (PS3.10 section 8) lists files; it is no object of a study.
            skipped += 1
            continue
        studies[header.study_uid or BLANK].append(IndexedInstance(header, str(path), size))
    if not studies:
        raise EmptyInput(f"{folder.name}: no DICOM object in {skipped} files")
    made = [
        Explained(uid, select(group(studies[uid]), purpose, rules=rules, fallback=fallback_can_read))
        for uid in sorted(studies)
    ]
    return FolderExplained(tuple(made), skipped)


def catalog_of(settings: Settings) -> Database:
    """The catalog that is there; none is made.

    Raises:
        NotFound: the data folder holds none.
    """
    path = settings.data_dir / "catalog.sqlite"
    if settings.resolved_database_url == f"sqlite:///{path}" and not path.exists():
        raise NotFound(f"{settings.data_dir} holds no catalog: another --data-dir, or a stack that never ran")
    return Database(settings.resolved_database_url)


def recorded(settings: Settings, study_uid: Uid) -> Recorded | None:
    """The choice that the study's last run made; None where none has been made yet.

    Raises:
        NotFound: there is no such study, or no catalog.
    """
    database = catalog_of(settings)
    try:
        return recorded_study(database, study_uid)
    finally:
        database.close()


def explain_study(settings: Settings, study_uid: Uid, rules: SeriesRules, purpose: Purpose = "volume") -> Explained:
    """What today's rules choose of a study in the catalog, a person's standing choice included; nothing is changed.

    The contrast phase model is not asked; a tie stays open.

    Raises:
        NotFound: there is no such study, or no catalog.
        HeimdallrError: an image cannot be read any more.
    """
    database = catalog_of(settings)
    blobs = LocalBlobStore(settings.blob_dir)
    try:
        with database.read() as session:
            study = study_by_uid(session, study_uid)
            if study is None:
                raise NotFound("there is no such study")
            uids = {row.id: Uid(row.series_uid) for row in series_rows_of(session, study.id)}
            choice = standing_choice(session, study.id)
            stored = [
                StoredInstance(
                    series_uid=uids[row.series_id],
                    study_uid=study_uid,
                    sop_uid=Uid(row.sop_uid),
                    locator=row.blob_sha256,
                    sha256=row.blob_sha256,
                )
                for row in instances_of(session, study.id)
            ]
    finally:
        database.close()
    selection = steps.choose_series(
        stored,
        lambda locator: blobs.path(Sha256.parse(locator)),
        purpose=purpose,
        rules=rules,
        override=describe.override_of(choice),
    )
    return Explained(study_uid, selection, choice)


def as_json(explained: Explained) -> dict[str, Any]:
    """The choice for a program."""
    return {
        "study_uid": explained.study_uid,
        "recorded": False,
        **describe.selection_facts(explained.selection, explained.asked),
        "series": [
            {
                "series_uid": str(series.uid),
                "series_number": series.header.series_number,
                "modality": series.modality,
                "description": series.header.series_description,
                **describe.explained(decision),
            }
            for series, decision in _pairs(explained)
        ],
    }


def recorded_json(one: Recorded) -> dict[str, Any]:
    """The recorded choice for a program: the keys of `as_json`, as far as they are recorded."""
    chosen, asked = one.chosen, one.asked
    return {
        "study_uid": one.study_uid,
        "recorded": True,
        "rules": one.rules,
        "chosen_by": None if chosen is None else chosen.decision.get("chosen_by"),
        "asked": None if asked is None else asdict(asked),
        "flags": [] if chosen is None else list(chosen.flags),
        "unjudged": list(one.unjudged),
        "series": [
            {
                "series_uid": series.series_uid,
                "series_number": series.series_number,
                "modality": series.modality,
                "description": series.description,
                **series.decision,
            }
            for series in one.series
        ],
    }


def recorded_lines(one: Recorded) -> Iterator[str]:
    """The recorded choice for a person, in the form of `lines`."""
    yield f"study {one.study_uid}"
    yield "as its last run decided and recorded; --again: what today's rules choose"
    if one.rules is not None:
        yield "rules {rules_id} version {version} ({sha256:.12}), purpose {purpose}".format(**one.rules)
    yield from _asked(
        one.asked, {row.series_uid: _name(row.series_uid, row.series_number, row.description) for row in one.series}
    )
    if not one.followed:
        yield "that choice has not been worked on yet: this is the run before it"
    if one.chosen is not None and one.chosen.flags:
        yield f"flags of the image: {', '.join(one.chosen.flags)}"
    for uid in one.unjudged:
        yield f"not judged yet: {uid}"
    yield _LEGEND
    for series in sorted(one.series, key=lambda series: not series.decision.get("accepted")):
        yield ""
        yield from _table(series)


def _name(series_uid: str, number: int | None, description: str) -> str:
    return f"{'' if number is None else f'No. {number} '}{description or BLANK} ({series_uid})"


def _asked(asked: SeriesChosen | None, names: Mapping[str, str]) -> Iterator[str]:
    if asked is not None and asked.series_uid is not None:
        part = "" if asked.part is None else f", part {asked.part}"
        named = names.get(asked.series_uid, asked.series_uid)
        yield f"a person chose {named}{part}: {asked.chosen_by}, {asked.chosen_at}: {asked.reason}"
    if asked is not None and asked.deskew is not None:
        wish = "taken out" if asked.deskew else "left in"
        who, when, why = asked.of_tilt
        yield f"a tilt is to be {wish}: {who}, {when}: {why}"


def lines(explained: Explained) -> Iterator[str]:
    """The choice for a person: one table per series, one line per rule."""
    selection = explained.selection
    yield f"study {explained.study_uid}"
    if selection.rules is not None:
        ref = asdict(selection.rules)
        yield "rules {rules_id} version {version} ({sha256:.12}), purpose {purpose}".format(**ref)
    headers = {str(one.uid): one.header for one in selection.series}
    yield from _asked(
        explained.asked,
        {uid: _name(uid, one.series_number, one.series_description) for uid, one in headers.items()},
    )
    for part in unmeasured_regions(selection):
        reach = "" if part.outside_mm is None else f", {part.outside_mm:g} mm beyond the measured series"
        yield f"not measured: {part.region}, shown by {part.series_uid}{reach}"
    yield _LEGEND
    for series, decision in sorted(_pairs(explained), key=lambda pair: not pair[1].accepted):
        yield ""
        shown = RecordedSeries(
            str(series.uid),
            series.header.series_number,
            series.modality,
            series.header.series_description,
            series.parts,
            describe.explained(decision),
        )
        yield from _table(shown)
    if len(selection.finalists) > 1:
        yield ""
        yield "the contrast phase model is asked between:"
        for one in selection.finalists:
            yield f"  {one.series.uid} {one.series.header.series_description}: {one.header_phase.phase} by the headers"


def _pairs(explained: Explained) -> list[tuple[Series, SeriesDecision]]:
    return list(zip(explained.selection.series, explained.selection.decisions, strict=True))


def _table(series: RecordedSeries) -> Iterator[str]:
    decision = series.decision
    number = "-" if series.series_number is None else str(series.series_number)
    part = f", part {decision['part']}" if series.parts > 1 else ""
    yield f"{'*' if decision['accepted'] else ' '} No. {number}  {series.modality}  {series.description or BLANK}"
    count = decision["instances"]
    yield f"  {series.series_uid}{part}, {count} object{'' if count == 1 else 's'}"
    yield f"  {decision['code']}: {decision['reason']}"
    told = decision["lines"]
    width = max(len(line["rule"]) for line in (*told, {"rule": "rule"}))
    if told:
        yield f"    {'rule':<{width}}  {'value':<{_SHOWN}}  {'effect':<9}  score"
    for line in told:
        value = line["value"] if len(line["value"]) <= _SHOWN else f"{line['value'][: _SHOWN - 3]}..."
        score = "" if line["score"] is None else f"{line['score']:g}"
        yield f"    {line['rule']:<{width}}  {value:<{_SHOWN}}  {line['effect']:<9}  {score}".rstrip()
