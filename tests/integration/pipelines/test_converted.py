"""A study that only the converter may read: measured where it reads it, else without a result and by its own reason."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.studies import series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import SeriesRow, StudyRow
from heimdallr_ray.errors import DecoderUnavailable
from heimdallr_ray.ids import Uid
from tests.integration.pipelines.test_study import Site
from tests.support.dicom import to_bytes
from tests.support.mosaics import mosaic_dataset


def mosaic(number: int, shift_mm: float) -> bytes:
    tiles = np.random.default_rng(4).integers(0, 4000, (7, 12, 16)).astype(np.uint16)
    axial = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    made = mosaic_dataset(tiles, (-40.0, -33.0, 12.5), *axial, protocol_shift_mm=shift_mm)
    made.SeriesInstanceUID, made.SeriesNumber = str(Uid.derived("mosaic", str(number))), number
    made.SOPInstanceUID = str(Uid.derived("object", str(number)))
    return to_bytes(made)


class Mosaics(Site):
    """A study of mosaics; of each the shift between its protocol and its slices, in mm."""

    def __init__(self, database: Database, folder: Path, *shifts_mm: float) -> None:
        self._shifts_mm = shifts_mm
        super().__init__(database, folder)

    def _batch(self) -> list[bytes]:
        return [mosaic(number, shift) for number, shift in enumerate(self._shifts_mm, start=1)]

    def end(self) -> tuple[StudyRow, list[SeriesRow]]:
        self.runner.run(self.claim(), threading.Event())
        with self.database.read() as session:
            study = study_by_uid(session, self.study_uid)
            assert study is not None
            rows = series_rows_of(session, study.id)
        return study, sorted(rows, key=lambda row: row.series_uid != str(Uid.derived("mosaic", "1")))


def test_a_series_that_the_converter_refuses_leaves_the_study_not_applicable_by_that_name(
    database: Database, folder: Path
) -> None:
    study, (row,) = Mosaics(database, folder, 0.5).end()
    assert (study.state, study.reason_code) == ("not_applicable", "no_usable_series")
    assert (study.reason or "").startswith("converter_disagrees: ")
    assert (row.chosen, row.reject_code) == (False, "converter_disagrees")
    assert row.selection is not None
    assert row.selection["parts"][0]["lines"][-1]["rule"] == "converter"


def test_the_next_series_is_measured_in_its_place(database: Database, folder: Path) -> None:
    site = Mosaics(database, folder, 0.5, 0.0)
    study, rows = site.end()
    assert study.state == "done"
    assert [(row.chosen, row.reject_code) for row in rows] == [(False, "converter_disagrees"), (True, None)]


def test_without_the_converter_the_attempt_ends_and_says_so(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Mosaics(database, folder, 0.0)
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    with pytest.raises(DecoderUnavailable, match="dcm2niix is not installed"):
        site.runner.run(site.claim(), threading.Event())
