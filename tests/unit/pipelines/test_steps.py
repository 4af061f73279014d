"""The identity of what was measured does not tell when, or by which door, it came."""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from heimdallr_ray.dicom.series import Selection, SeriesDecision
from heimdallr_ray.errors import EmptyImage, EngineUnavailable, HeimdallrError, NotAVolume, WeightsMissing
from heimdallr_ray.ids import Uid
from heimdallr_ray.metrics.catalogue import asked_for
from heimdallr_ray.metrics.result import Status
from heimdallr_ray.pipelines.describe import failure_words, selection_facts, series_choices
from heimdallr_ray.pipelines.steps import (
    TIE_TASKS,
    Prepared,
    StoredInstance,
    choose_series,
    draw,
    label_maps,
    measure,
    prepare,
    require_chosen,
    segment,
    settle_tie,
    shown_label_maps,
    wanted,
)
from heimdallr_ray.segmentation.asked import extras
from heimdallr_ray.segmentation.engine import Segmentation, SegmentationRequest, SegmentationRun, Timings
from heimdallr_ray.segmentation.phase import PhaseFeatures, PhaseModel, PhaseReading, phase_at
from heimdallr_ray.segmentation.planner import DEFAULT_WANTED, MR_WANTED, Plan, plan
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, TASKS, TOTAL_FAST
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource
from tests.support.dicom import ct_datasets, ct_study, pixels, set_pixels, to_bytes
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
                sha256=hashlib.sha256(dataset_bytes(content)).hexdigest(),
            )
        )
    assert not {one.locator for one in stored} & {one.sha256 for one in stored}
    volume = prepare(choose_series(stored, lambda name: folder / name), lambda name: (folder / name).read_bytes())
    return volume.source.manifest_sha256


def test_the_same_study_taken_in_again_has_the_same_manifest(tmp_path: Path) -> None:
    first = _manifest(tmp_path / "a", "MONDAY")
    assert _manifest(tmp_path / "b", "TUESDAY") == first
    assert _manifest(tmp_path / "c", "MONDAY", brighter=True) != first


def test_a_study_of_which_an_image_came_cut_and_then_whole_is_measured_as_if_it_had_come_once(tmp_path: Path) -> None:
    stored: list[StoredInstance] = []

    def add(name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with io.BytesIO(content) as file:
            read = dcmread(file, stop_before_pixels=True)
        uids = (Uid(read.SeriesInstanceUID), Uid(read.StudyInstanceUID), Uid(read.SOPInstanceUID))
        stored.append(StoredInstance(*uids, locator=name, sha256=hashlib.sha256(content).hexdigest()))

    contents = [to_bytes(dataset) for dataset in ct_datasets(24)]
    for number, content in enumerate(contents):
        add(f"whole{number}", content)
    whole = choose_series(stored, lambda name: tmp_path / name)
    add("cut", contents[7][:-1000])
    volume = prepare(choose_series(stored, lambda name: tmp_path / name), lambda name: (tmp_path / name).read_bytes())
    expected = prepare(whole, lambda name: (tmp_path / name).read_bytes())
    assert np.array_equal(volume.array, expected.array)
    assert volume.source.manifest_sha256 == expected.source.manifest_sha256
    del stored[7]
    alone = choose_series(stored, lambda name: tmp_path / name)
    assert alone.chosen is None
    assert {decision.code for decision in alone.decisions} == {"truncated"}


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
    assert wanted("MR") == MR_WANTED


def test_what_a_site_asks_for_beside_its_measurements_is_run_but_needed_by_none() -> None:
    made = plan(WHOLE_BODY, "CT", TASKS, TASKS, wanted("CT", asked_for(("liver_volume",)), extras(("body", "total"))))
    assert (made.run, made.extra) == ((TOTAL_FAST, "body", "total"), ("body", "total"))


def in_half(task: str, model_id: str, spacing_mm: float | None, *, upper: bool) -> Segmentation:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[10:] = 5 if upper else 0
    model = ModelRef("total", model_id, "0" * 64, synthetic=True, spacing_mm=spacing_mm)
    return Segmentation(task, LabelMap(labels, np.diag([5.0, 5.0, 5.0, 1.0]), {5: "liver"}, model), Timings())


def test_numbers_are_not_made_from_what_was_only_to_be_seen() -> None:
    needed, seen = (
        in_half(TOTAL_FAST, "totalsegmentator/297", 3.0, upper=True),
        in_half("total", "totalsegmentator/291", 1.5, upper=False),
    )
    native = in_half("total_fastest", "other", None, upper=False)
    made = {"total": seen, TOTAL_FAST: needed, "total_fastest": native}
    run = SegmentationRun(made, Plan(tuple(made), (), ("total", "total_fastest")), {}, Timings())
    assert label_maps(run) == {"total": needed.label_map}
    assert shown_label_maps(run) == {
        "total": needed.label_map,
        "total_1.5mm": seen.label_map,
        "total_native": native.label_map,
    }
    image = Volume(np.zeros((20, 20, 20), np.int16), np.diag([5.0, 5.0, 5.0, 1.0]), VolumeSource("CT"))
    attenuation = next(one for one in measure(image, run) if one.id == "liver_attenuation")
    assert attenuation.provenance.model_id == "totalsegmentator/297"
    assert attenuation.status is Status.OK
    alone = replace(run, segmentations={"total": seen}, plan=Plan(("total",), (), ("total",)))
    assert label_maps(alone) == {}
    assert shown_label_maps(alone) == {"total": seen.label_map}
    assert {one.value for one in measure(image, alone)} == {None}


def test_every_label_map_is_kept_with_its_models_identity() -> None:
    needed = in_half(TOTAL_FAST, "totalsegmentator/297", 3.0, upper=True)
    seen = in_half("total", "totalsegmentator/291", 1.5, upper=True)
    run = SegmentationRun({TOTAL_FAST: needed, "total": seen}, Plan((), (), ("total",)), {}, Timings())
    image = Volume(np.zeros((20, 20, 20), np.int16), np.diag([5.0, 5.0, 5.0, 1.0]), VolumeSource("CT"))
    kept = {one.name: one for one in draw(image, run, ())}
    assert {"labels-total.nii.gz", "labels-total_1.5mm.nii.gz", "display-labels-total_1.5mm.nii.gz"} <= set(kept)
    meta = kept["display-labels-total_1.5mm.nii.gz"].meta
    assert (meta["task"], meta["model_id"], meta["spacing_mm"]) == ("total_1.5mm", "totalsegmentator/291", 1.5)
    assert (meta["weights_sha256"], meta["backend"], meta["synthetic"]) == ("0" * 64, "resident", True)


class Segmenter:
    """Labels two organs in whatever it is given, or fails with the errors it was told of, one for each call."""

    def __init__(self, *errors: HeimdallrError | None) -> None:
        self.errors = list(errors)
        self.wanted: list[tuple[object, ...]] = []
        self.requests: list[SegmentationRequest] = []
        self.runs: list[SegmentationRun] = []

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        self.wanted.append(request.wanted)
        self.requests.append(request)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        volume = request.volume
        labels = np.zeros(volume.array.shape, np.uint8)
        labels[:4], labels[4:8] = 5, 52
        model = ModelRef("total", "totalsegmentator/297", "0" * 64, synthetic=True)
        names = {5: "liver", 52: "aorta"}
        made = LabelMap(labels, volume.affine_ras, names, model, volume.source.manifest_sha256)
        self.runs.append(
            SegmentationRun(
                {TOTAL_FAST: Segmentation(TOTAL_FAST, made, Timings())}, Plan((TOTAL_FAST,), ()), {}, Timings()
            )
        )
        return self.runs[-1]


class Readings(PhaseModel):
    """Says what it was told to, of one image after the other."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.seconds = list(seconds)

    def predict(self, features: PhaseFeatures) -> PhaseReading:
        seconds = self.seconds.pop(0)
        return PhaseReading(seconds, (seconds,), *phase_at(seconds))


class Tied:
    """Two series of one study after contrast; no header tells their phases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored: list[StoredInstance] = []
        for number, name in enumerate(("one", "two"), start=1):
            contents = ct_study(
                24,
                seed=name,
                StudyInstanceUID=str(Uid.derived("study")),
                ContrastBolusAgent="Iomeron",
                SeriesDescription=name,
                SeriesNumber=number,
            )
            for content in contents:
                read = dcmread(io.BytesIO(content), stop_before_pixels=True)
                digest = hashlib.sha256(content).hexdigest()
                (folder / digest).write_bytes(content)
                stored.append(
                    StoredInstance(
                        Uid(read.SeriesInstanceUID), Uid(read.StudyInstanceUID), Uid(read.SOPInstanceUID), digest
                    )
                )
        self.selection = choose_series(stored, lambda name: folder / name)
        self.read: list[str] = []
        self.image: Prepared | None = None

    def bytes_of(self, name: str) -> bytes:
        self.read.append(name)
        return (self.folder / name).read_bytes()

    def settled(self, segmenter: Segmenter, model: PhaseModel) -> tuple[str, list[tuple[str, str]]]:
        """The chosen series, and value and effect of each line of the phase model."""
        found, self.image = settle_tie(self.selection, self.bytes_of, segmenter, model)
        assert found.chosen is not None
        lines = [
            (line.value, line.effect)
            for decision in found.decisions
            for line in decision.lines
            if line.rule == "phase_model"
        ]
        return found.chosen.header.series_description, lines


def test_a_tie_of_finalists_goes_to_the_phase_that_the_model_reads(tmp_path: Path) -> None:
    tied, segmenter = Tied(tmp_path), Segmenter()
    assert len(tied.selection.finalists) == 2
    assert tied.settled(segmenter, Readings(40.0, 70.0)) == (
        "two",
        [("arterial", "prefers"), ("portal_venous", "prefers")],
    )
    assert segmenter.wanted == [TIE_TASKS, TIE_TASKS]


@pytest.mark.parametrize(("seconds", "winner"), [((40.0, 70.0), 1), ((70.0, 40.0), 0)])
def test_what_the_tie_made_of_the_winner_is_kept_and_nothing_is_read_twice(
    tmp_path: Path, seconds: tuple[float, ...], winner: int
) -> None:
    tied, segmenter = Tied(tmp_path), Segmenter()
    chosen, _ = tied.settled(segmenter, Readings(*seconds))
    assert chosen == ("one", "two")[winner]
    assert tied.image is not None
    segment(tied.image, segmenter)
    study = segmenter.requests[2]
    assert study.volume is segmenter.requests[winner].volume
    assert study.volume.source.series_uid == tied.selection.finalists[winner].series.uid
    assert study.earlier is segmenter.runs[winner]
    assert len(tied.read) == len(set(tied.read)) == 48


def test_of_a_winner_that_was_not_read_only_the_image_is_kept(tmp_path: Path) -> None:
    tied, segmenter = Tied(tmp_path), Segmenter(EmptyImage("nothing in it"))
    assert tied.settled(segmenter, Readings(70.0))[0] == "one"
    assert tied.image is not None
    assert tied.image.earlier is None
    assert tied.image.volume.source.series_uid == tied.selection.finalists[0].series.uid


@pytest.mark.parametrize(
    ("errors", "seconds", "effects"),
    [
        ((), (70.0, 2.0), ["prefers", "disagrees"]),
        ((), (120.0, 70.0), ["tie", "prefers"]),
        ((EmptyImage("nothing in it"),), (70.0,), ["tie", "prefers"]),
        ((None, WeightsMissing("none")), (40.0,), ["prefers", "tie"]),
    ],
    ids=["headers contradict", "not decided", "no anatomy", "no model"],
)
def test_what_cannot_be_read_or_is_contradicted_leaves_the_order_of_the_rules(
    tmp_path: Path, errors: tuple[HeimdallrError | None, ...], seconds: tuple[float, ...], effects: list[str]
) -> None:
    chosen, lines = Tied(tmp_path).settled(Segmenter(*errors), Readings(*seconds))
    assert chosen == "one"
    assert [effect for _, effect in lines] == effects


def test_a_segmenter_that_does_not_answer_now_ends_the_attempt(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable):
        Tied(tmp_path).settled(Segmenter(EngineUnavailable("gone")), Readings())


def test_without_a_tie_no_model_is_asked(tmp_path: Path) -> None:
    segmenter = Segmenter()
    tied = Tied(tmp_path)
    alone = replace(tied.selection, finalists=tied.selection.finalists[:1])
    assert settle_tie(alone, lambda name: b"", segmenter, Readings()) == (alone, None)
    assert segmenter.wanted == []


def test_the_image_says_what_only_another_series_shows(tmp_path: Path) -> None:
    stored: list[StoredInstance] = []
    for name, n in (("Head", 12), ("Abdomen", 24)):
        uid = str(Uid.derived("study"))
        for content in ct_study(n, seed=name, spacing_mm=3.0, StudyInstanceUID=uid, SeriesDescription=name):
            read = dcmread(io.BytesIO(content), stop_before_pixels=True)
            digest = hashlib.sha256(content).hexdigest()
            (tmp_path / digest).write_bytes(content)
            uids = Uid(read.SeriesInstanceUID), Uid(read.StudyInstanceUID), Uid(read.SOPInstanceUID)
            stored.append(StoredInstance(*uids, digest))
    selection = choose_series(stored, lambda name: tmp_path / name)
    assert selection.chosen is not None
    assert selection.chosen.header.series_description == "Abdomen"
    volume = prepare(selection, lambda name: (tmp_path / name).read_bytes())
    assert volume.flags[-1] == "region_not_measured:head"
    (told,) = selection_facts(selection)["not_measured"]
    assert (told["region"], told["outside_mm"]) == ("head", None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotAVolume("no_pixels", "2 of 9"), "no_pixels: The objects hold no image. (2 of 9)"),
        (NotAVolume("no_pixels"), "no_pixels: The objects hold no image."),
        (NotAVolume("of_tomorrow", "2 of 9"), "of_tomorrow: 2 of 9"),
        (NotAVolume("of_tomorrow"), "of_tomorrow"),
        (EmptyImage("zeros"), "zeros"),
    ],
)
def test_a_failed_study_names_the_rule_that_its_slices_broke(error: HeimdallrError, words: str) -> None:
    assert failure_words(error) == words


def refused(uid: str, reason: str, part: int = 0, code: str = "four_d") -> SeriesDecision:
    return SeriesDecision(Uid.parse(uid), part, False, code, reason, instances=15 + part)


def test_each_sentence_of_a_refused_study_is_said_once_with_the_series_that_it_is_of() -> None:
    phases = [refused("1.2.3", "one of 3 phases", part) for part in range(3)]
    two = [refused(uid, "no frame says where it lies", code="multiframe_without_groups") for uid in ("1.2.4", "1.2.5")]
    error = require_chosen([*phases, *two, refused("1.2.6", "2 slices", code="too_few_slices")])
    assert error.detail == (
        "four_d: one of 3 phases (3 parts of one series); "
        "multiframe_without_groups: no frame says where it lies (2 series); too_few_slices: 2 slices"
    )


def test_each_sentence_of_a_split_series_is_said_once_with_its_parts() -> None:
    parts = [refused("1.2.3", "one of 3 phases", part) for part in range(3)]
    (row,) = series_choices(Selection(None, tuple(parts), ()), None)
    assert row.reason == "one of 3 phases (3 parts)"
    scout = [refused("1.2.3", "planning image", 3, "localizer"), refused("1.2.3", "planning image", 4, "localizer")]
    (row,) = series_choices(Selection(None, (*parts, *scout), ()), None)
    assert row.reason == "planning image (2 parts); 3 parts: four_d: one of 3 phases"
