"""`heimdallr series`: the choice of series, rule by rule, of a study in the catalog or of a folder of DICOM files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
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
from heimdallr_ray.pipelines import describe, steps
from heimdallr_ray.pipelines.steps import StoredInstance
from heimdallr_ray.storage.blobs import LocalBlobStore

BLANK: Final = "(blank)"
_SHOWN: Final = 60


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


def explain_study(settings: Settings, study_uid: Uid, rules: SeriesRules, purpose: Purpose = "volume") -> Explained:
    """What is chosen of a study in the catalog, a person's standing choice included; nothing is changed.

    Raises:
        NotFound: there is no such study.
        HeimdallrError: an image cannot be read any more.
    """
    database = Database(settings.resolved_database_url)
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
                    dataset_sha256=row.dataset_sha256,
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


def lines(explained: Explained) -> Iterator[str]:
    """The choice for a person: one table per series, one line per rule."""
    selection = explained.selection
    yield f"study {explained.study_uid}"
    if selection.rules is not None:
        ref = asdict(selection.rules)
        yield "rules {rules_id} version {version} ({sha256:.12}), purpose {purpose}".format(**ref)
    if selection.override is not None:
        one = selection.override
        yield f"a person chose {one.series_uid}: {one.chosen_by}, {one.chosen_at}: {one.reason}"
    if explained.asked is not None and explained.asked.deskew is not None:
        asked, wish = explained.asked, "taken out" if explained.asked.deskew else "left in"
        yield f"a tilt is to be {wish}: {asked.chosen_by}, {asked.chosen_at}: {asked.reason}"
    for part in unmeasured_regions(selection):
        reach = "" if part.outside_mm is None else f", {part.outside_mm:g} mm beyond the measured series"
        yield f"not measured: {part.region}, shown by {part.series_uid}{reach}"
    for series, decision in sorted(_pairs(explained), key=lambda pair: not pair[1].accepted):
        yield ""
        yield from _table(series, decision)
    if len(selection.finalists) > 1:
        yield ""
        yield "the contrast phase model is asked between:"
        for one in selection.finalists:
            yield f"  {one.series.uid} {one.series.header.series_description}: {one.header_phase.phase} by the headers"


def _pairs(explained: Explained) -> list[tuple[Series, SeriesDecision]]:
    return list(zip(explained.selection.series, explained.selection.decisions, strict=True))


def _table(series: Series, decision: SeriesDecision) -> Iterator[str]:
    header = series.header
    number = "-" if header.series_number is None else str(header.series_number)
    part = f", part {series.part}" if series.parts > 1 else ""
    yield f"{'*' if decision.accepted else ' '} No. {number}  {series.modality}  {header.series_description or BLANK}"
    yield f"  {series.uid}{part}, {len(series.instances)} objects"
    yield f"  {decision.code}: {decision.reason}"
    width = max((len(line.rule) for line in decision.lines), default=0)
    for line in decision.lines:
        value = line.value if len(line.value) <= _SHOWN else f"{line.value[: _SHOWN - 3]}..."
        score = "" if line.score is None else f"{line.score:g}"
        yield f"    {line.rule:<{width}}  {value:<{_SHOWN}}  {line.effect:<9}  {score}".rstrip()
