"""The identity of what was measured does not tell when, or by which door, it came."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from pydicom import dcmread

from heimdallr_ray.ids import Uid
from heimdallr_ray.metrics.catalogue import asked_for
from heimdallr_ray.pipelines.steps import StoredInstance, choose_series, prepare, wanted
from heimdallr_ray.segmentation.planner import DEFAULT_WANTED, plan
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, TASKS, TOTAL_FAST, TOTAL_MR_FAST
from tests.support.dicom import ct_datasets, pixels, set_pixels, to_bytes
from tests.support.intake import dataset_bytes


def _manifest(folder: Path, arrival: str, *, brighter: bool = False) -> str:
    """Manifest of a study taken in at `arrival`, which is noted in the file meta information of each blob."""
    folder.mkdir()
    stored: list[StoredInstance] = []
    for dataset in ct_datasets(24):
        if brighter:
            set_pixels(dataset, pixels(dataset) + 1)
        with io.BytesIO(to_bytes(dataset)) as file:
            read = dcmread(file)
        read.file_meta.ImplementationVersionName = arrival
        with io.BytesIO() as file:
            read.save_as(file, enforce_file_format=True)
            content = file.getvalue()
        name = hashlib.sha256(content).hexdigest()
        (folder / name).write_bytes(content)
        stored.append(
            StoredInstance(
                series_uid=Uid(read.SeriesInstanceUID),
                study_uid=Uid(read.StudyInstanceUID),
                sop_uid=Uid(read.SOPInstanceUID),
                locator=name,
                dataset_sha256=hashlib.sha256(dataset_bytes(content)).hexdigest(),
            )
        )
    assert not {one.locator for one in stored} & {one.dataset_sha256 for one in stored}
    volume = prepare(choose_series(stored, lambda name: folder / name), lambda name: (folder / name).read_bytes())
    return volume.source.manifest_sha256


def test_the_same_study_taken_in_again_has_the_same_manifest(tmp_path: Path) -> None:
    first = _manifest(tmp_path / "a", "MONDAY")
    assert _manifest(tmp_path / "b", "TUESDAY") == first
    assert _manifest(tmp_path / "c", "MONDAY", brighter=True) != first


WHOLE_BODY = {"brain": 1300.0, "liver": 1500.0, "vertebrae_L3": 50.0}


def test_all_measurements_need_what_a_study_is_offered() -> None:
    made = plan(WHOLE_BODY, "CT", TASKS, TASKS, wanted("CT"))
    assert made == plan(WHOLE_BODY, "CT", TASKS, TASKS, DEFAULT_WANTED)


def test_only_what_the_measurements_asked_for_need_is_run() -> None:
    def run(*names: str) -> tuple[str, ...]:
        return plan(WHOLE_BODY, "CT", TASKS, TASKS, wanted("CT", asked_for(names))).run

    assert run("liver_volume") == (TOTAL_FAST,)
    assert run("intracranial_hemorrhage_volume") == (TOTAL_FAST, CEREBRAL_BLEED)


def test_no_measurement_reads_mr_so_its_anatomy_is_asked_for() -> None:
    assert wanted("MR") == (TOTAL_MR_FAST,)
