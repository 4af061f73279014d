"""The chain, wired once: bytes, series, volume, label maps, measurements, urgency, evidence, documents.

Live work (`pipelines/study.py`) and reprocessing call the same functions; each is values in, values out, with reading
and segmenting passed in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from heimdallr_ray.dicom import regions
from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.copies import without_cut_copies
from heimdallr_ray.dicom.deskew import Deskew, deskew
from heimdallr_ray.dicom.fallback import convert, convert_first, fallback_can_read
from heimdallr_ray.dicom.phase import Phase
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import (
    IndexedInstance,
    Override,
    Purpose,
    Selection,
    SeriesDecision,
    SeriesRules,
    break_tie,
    group,
    select,
)
from heimdallr_ray.errors import EngineKilled, HeimdallrError, ModalityNotSupported, NoUsableSeries, Retryable
from heimdallr_ray.ids import Uid
from heimdallr_ray.metrics.catalogue import CATALOGUE, Metric, asked_for, measure_all
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.result import Measurement
from heimdallr_ray.pipelines import documents
from heimdallr_ray.render.nifti import display_label_map_nifti, display_volume_nifti, label_map_nifti
from heimdallr_ray.render.pictures import key_images
from heimdallr_ray.segmentation.asked import extras
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun
from heimdallr_ray.segmentation.phase import PhaseModel
from heimdallr_ray.segmentation.planner import Extra, Need, Wanted, wanted_for
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TOTAL_FAST, task_spec
from heimdallr_ray.triage.urgency import Assessment, assess
from heimdallr_ray.volume import LabelMap, Volume, require_same_grid

_log = logging.getLogger(__name__)

NO_IMAGES = frozenset(
    {"", "SR", "PR", "KO", "SEG", "REG", "FID", "RWV", "DOC", "PLAN", "AU", "RTSTRUCT", "RTPLAN", "RTRECORD", "OT"}
)
"""Modalities (PS3.3 section C.7.3.1.1.1) of objects about images; no model would be missing for them."""
TIE_TASKS = (FIRST_PASS, TOTAL_FAST)
"""What is segmented of each finalist: the anatomy for the medians, and what every run looks at first, to be kept."""
STEPS = ("select", "prepare", "segment", "measure", "triage", "render", "commit")


class StudySegmenter(Protocol):
    """Segments one study: a resident engine in this process, or the Segmenter deployment."""

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        """The segmentations of one study; may end early with StaleLease once `lost` is set."""
        ...


@dataclass(frozen=True)
class StoredInstance:
    """One instance of the catalog: its series there, and where its bytes are."""

    series_uid: Uid
    study_uid: Uid
    sop_uid: Uid
    locator: str
    sha256: str = ""
    """Digest of the object, equal wherever it was taken in."""


@dataclass(frozen=True)
class Prepared:
    """The image of a study.

    Attributes:
        volume: what is measured and drawn and what labels lie on: the slices as they were scanned, or the regular grid
            of unevenly spaced ones.
        way: to the upright grid that models are given where a tilt is taken out, and back; None: they get `volume`.
        earlier: what was segmented of `for_models` before, on its grid.
    """

    volume: Volume
    way: Deskew | None = None
    earlier: SegmentationRun | None = None

    @property
    def for_models(self) -> Volume:
        """The image that models are given."""
        return self.volume if self.way is None else self.way.upright


@dataclass(frozen=True)
class Artifact:
    """One file of a result."""

    name: str
    kind: str
    media_type: str
    content: bytes
    meta: Mapping[str, object]


def choose_series(
    instances: Iterable[StoredInstance],
    path_of: Callable[[str], Path],
    *,
    purpose: Purpose = "volume",
    rules: SeriesRules | None = None,
    override: Override | None = None,
) -> Selection:
    """The series to measure and the written reason for each other one; headers only, no pixel is decoded.

    Of several objects under one SOP Instance UID those that were cut off are left out where a whole one is there.

    Args:
        instances: of one study.
        path_of: where the bytes of a locator lie.
        purpose: what the volume is for.
        rules: the package's own where None.
        override: a person's choice, which is followed where its series is a volume.

    Raises:
        HeimdallrError: an instance that was accepted cannot be read any more.
    """
    indexed: list[IndexedInstance] = []
    for instance in instances:
        path = path_of(instance.locator)
        header = read_header(path)
        # Blank identifiers were derived once, at the door; the catalog's are the ones that count.
        header = replace(header, study_uid=instance.study_uid, series_uid=instance.series_uid, sop_uid=instance.sop_uid)
        indexed.append(IndexedInstance(header, instance.locator, path.stat().st_size, instance.sha256))
    whole = without_cut_copies(indexed, lambda locator: path_of(locator).read_bytes())
    return select(group(whole), purpose, rules=rules, override=override, fallback=fallback_can_read)


def require_readable(selection: Selection, modalities: Collection[str], readable: Collection[str] | None) -> None:
    """Nothing happens where a series was chosen, or where a model could read one of the study's images.

    Advice on series helps nobody whose images no model here reads, so that is said first.

    Args:
        selection: of the study.
        modalities: of its series.
        readable: modalities that the installed models read; None: not known here.

    Raises:
        ModalityNotSupported: names the modalities.
    """
    images = sorted(set(modalities) - NO_IMAGES)
    if selection.chosen is None and readable is not None and images and not set(images) & set(readable):
        raise ModalityNotSupported(f"no model that reads {' or '.join(images)} is installed here")


def require_chosen(decisions: Sequence[SeriesDecision]) -> NoUsableSeries:
    """The error that says why no series can be measured: each sentence once, with how many it is of."""
    said: dict[str, list[str]] = {}
    for decision in decisions:
        said.setdefault(f"{decision.code}: {decision.reason}", []).append(str(decision.series_uid))
    reasons = "; ".join(f"{words}{_counted(uids)}" for words, uids in said.items())
    return NoUsableSeries(reasons or "the study holds no image series")


def _counted(series_uids: Sequence[str]) -> str:
    several = len(set(series_uids))
    if several > 1:
        return f" ({several} series)"
    return "" if len(series_uids) == 1 else f" ({len(series_uids)} parts of one series)"


def prepare(selection: Selection, read_bytes: Callable[[str], bytes]) -> Volume:
    """The chosen series as a volume; unevenly spaced slices as one that is flagged and whose volumes are not counted.

    Flags `region_not_measured` name what only other series of the study show.

    Raises:
        NoUsableSeries: none was chosen.
        NotAVolume: it cannot be assembled exactly, nor converted without a doubt; names the rule.
    """
    if selection.chosen is None:
        raise require_chosen(selection.decisions)
    if selection.fallback_code:
        return _marked(selection, convert(selection.chosen, read_bytes, selection.fallback_code))
    return _marked(selection, assemble(selection.chosen, read_bytes, resample=True))


def _marked(selection: Selection, volume: Volume) -> Volume:
    beyond = regions.flags(regions.unmeasured_regions(selection))
    return replace(volume, flags=(*volume.flags, *beyond)) if beyond else volume


def readable(selection: Selection, read_bytes: Callable[[str], bytes]) -> tuple[Selection, Volume | None]:
    """The volume of the chosen series, and the selection as it stands then.

    What the converter was to read and cannot is refused like any other series, by its code, and the next such series
    is tried; the volume is None where none is left.

    Raises:
        As `prepare`.
    """
    if selection.fallback_code:
        selection, volume = convert_first(selection, read_bytes)
        return selection, None if volume is None else _marked(selection, volume)
    return selection, prepare(selection, read_bytes)


def prepared(volume: Volume, *, take_tilt_out: bool) -> Prepared:
    """The image as models are to get it; without a tilt, or where that is not asked for, as it is.

    Where it is, values are still measured on the pixels as they were scanned, inside labels that were brought back to
    them; flag `deskewed`.

    Raises:
        NotAVolume: `bad_geometry`: too oblique a stack, see `deskew`.
    """
    if not take_tilt_out or not any(flag.startswith("tilt:") for flag in volume.flags):
        return Prepared(volume)
    upright, way = deskew(volume)
    return Prepared(replace(volume, flags=upright.flags), way)


def wanted(modality: str, metrics: Sequence[Metric] = CATALOGUE, further: Sequence[Extra] = ()) -> tuple[Wanted, ...]:
    """What the measurements and the site ask of a segmenter, given an image of this modality."""
    return wanted_for(modality, [Need(one.name, one.needs) for one in metrics if one.modality == modality], further)


def ever_wanted(measurements: Collection[str], segmentations: Collection[str]) -> tuple[Wanted, ...]:
    """What a site may ask of a segmenter for any image: for numbers, for labels, and to settle a tie.

    Args:
        measurements: quantities that the site names; empty: all.
        segmentations: further tasks that it names.

    Raises:
        BadSetting: there is no such quantity, or task.
    """
    metrics, further = asked_for(measurements), extras(segmentations)
    return (*TIE_TASKS, *(one for modality in ("CT", "MR") for one in wanted(modality, metrics, further)))


def tied(selection: Selection) -> bool:
    """True where only the contrast phase model could say which series is to be measured."""
    finalists = selection.finalists
    return len(finalists) >= 2 and all(one.series.header.modality == "CT" for one in finalists)


def settle_tie(
    selection: Selection,
    read_bytes: Callable[[str], bytes],
    segmenter: StudySegmenter,
    model: PhaseModel,
    lost: threading.Event | None = None,
    *,
    take_tilt_out: bool = False,
) -> tuple[Selection, Prepared | None]:
    """The selection after the contrast phase model has read its finalists; as it is where there is no tie.

    Each finalist is assembled and coarsely segmented, one after the other. What keeps one of them from being read
    keeps the model from deciding, and the order of the rules stands. `take_tilt_out` as in `prepared`.

    Returns:
        The selection; and the image of the chosen finalist with what was segmented of it, None where it was not read.

    Raises:
        StaleLease: `lost` was set meanwhile.
        Retryable: no segmenter answers now.
        EngineKilled: segmenters died under this study.
    """
    finalists = selection.finalists
    if not tied(selection):
        return selection, None
    read = [
        _phase_of(
            replace(selection, chosen=one.series), read_bytes, segmenter, model, lost, take_tilt_out=take_tilt_out
        )
        for one in finalists
    ]
    settled = break_tie(selection, [phase for phase, _ in read])
    images = [image for one, (_, image) in zip(finalists, read, strict=True) if one.series is settled.chosen]
    return settled, images[0]


def _phase_of(
    selection: Selection,
    read_bytes: Callable[[str], bytes],
    segmenter: StudySegmenter,
    model: PhaseModel,
    lost: threading.Event | None,
    *,
    take_tilt_out: bool,
) -> tuple[Phase | None, Prepared | None]:
    image = None
    try:
        image = prepared(prepare(selection, read_bytes), take_tilt_out=take_tilt_out)
        run = segmenter.run(SegmentationRequest(image.for_models, TIE_TASKS), lost=lost)
        image, run = replace(image, earlier=run), _brought_back(run, image)
        made = run.segmentations.get(TOTAL_FAST)
        reading = None if made is None else model.read(image.volume, made.label_map)
    except (Retryable, EngineKilled):
        raise
    except HeimdallrError as error:
        _log.warning("phase.not_read", extra={"code": error.code})
        return None, image
    decided = None if reading is None else reading.decided
    if reading is not None:
        extra = {"seconds": reading.seconds, "phase": str(reading.phase), "decided": decided is not None}
        _log.info("phase.read", extra=extra)
    return (None if decided is None else Phase(decided.family)), image


def segment(
    image: Prepared,
    segmenter: StudySegmenter,
    lost: threading.Event | None = None,
    metrics: Sequence[Metric] = CATALOGUE,
    further: Sequence[Extra] = (),
) -> SegmentationRun:
    """Label maps by task, each on the grid of `image.volume`.

    Args:
        image: what is segmented.
        segmenter: runs what the measurements need and the image, the licences and the weights allow.
        lost: set when the study is to be given up.
        metrics: the measurements that are asked for.
        further: the segmentations that are asked for beside them.

    Raises:
        StaleLease: `lost` was set meanwhile.
        GeometryMismatch: the engine gave labels on another grid.
    """
    given = image.for_models
    request = SegmentationRequest(given, wanted(given.source.modality, metrics, further), image.earlier)
    run = segmenter.run(request, lost=lost)
    return _brought_back(run, image)


def _brought_back(run: SegmentationRun, image: Prepared) -> SegmentationRun:
    """The run with its labels on the grid of `image.volume`.

    Raises:
        GeometryMismatch: they are not on the grid of what the models were given.
    """
    made = run.segmentations
    for one in made.values():
        require_same_grid(image.for_models, one.label_map)
    if image.way is None:
        return run
    back = {task: replace(one, label_map=image.way.back(one.label_map)) for task, one in made.items()}
    return replace(run, segmentations=back)


def label_maps(run: SegmentationRun) -> dict[str, LabelMap]:
    """What numbers are made from, by TotalSegmentator's own task name: `total` whatever its resolution."""
    return {made.model.task: made.label_map for name, made in run.segmentations.items() if name not in run.plan.extra}


def shown_label_maps(run: SegmentationRun) -> dict[str, LabelMap]:
    """`label_maps`, and those that the site asked for beside them; of one name, these are told apart by resolution."""
    shown = label_maps(run)
    for made in (run.segmentations[name] for name in run.plan.extra):
        model = made.model
        spacing = "native" if model.spacing_mm is None else f"{model.spacing_mm:g}mm"
        shown[f"{model.task}_{spacing}" if model.task in shown else model.task] = made.label_map
    return shown


def measure(volume: Volume, run: SegmentationRun, metrics: tuple[Metric, ...] = CATALOGUE) -> tuple[Measurement, ...]:
    """Every measurement that is asked for, each with a value or the reason why it has none."""
    # Backwards: of several rows for one label map the preferred one, which was looked at first, says why.
    left_out = {task_spec(one.task).upstream_task: one for one in reversed(run.plan.left_out)}
    context = MetricContext(
        volume,
        label_maps(run),
        not_run={task: str(one.code) for task, one in left_out.items()},
        not_run_because={task: one.detail for task, one in left_out.items()},
    )
    return measure_all(context, metrics)


def triage(measurements: Sequence[Measurement]) -> Assessment:
    """Findings and urgency by the rules; a failed measurement lowers nothing."""
    return assess(measurements)


def is_synthetic(volume: Volume, run: SegmentationRun) -> bool:
    """True where images or weights are synthetic: then everything made from them is."""
    return volume.source.synthetic or any(made.model.synthetic for made in run.segmentations.values())


def draw(volume: Volume, run: SegmentationRun, measurements: Sequence[Measurement]) -> list[Artifact]:
    """Pictures and volumes for the reader."""
    synthetic = is_synthetic(volume, run)
    made = [
        Artifact(picture.name, picture.kind, "image/png", picture.png, picture.meta)
        for picture in key_images(volume, label_maps(run), measurements, synthetic=synthetic)
    ]
    shared = {"source_manifest_sha256": volume.source.manifest_sha256, "synthetic": synthetic}
    made.append(Artifact("display.nii.gz", "display_volume", "application/gzip", display_volume_nifti(volume), shared))
    for task, label_map in shown_label_maps(run).items():
        meta = {
            **shared,
            "task": task,
            "labels": {str(value): name for value, name in label_map.labels.items()},
            **{key: value for key, value in asdict(label_map.model).items() if key not in ("task", "synthetic")},
        }
        made.append(
            Artifact(f"labels-{task}.nii.gz", "label_map", "application/gzip", label_map_nifti(label_map), meta)
        )
        small = display_label_map_nifti(label_map)
        made.append(Artifact(f"display-labels-{task}.nii.gz", "display_label_map", "application/gzip", small, meta))
    return made


def json_artifact(name: str, kind: str, document: Mapping[str, object]) -> Artifact:
    """A JSON document as a file, in canonical form."""
    return Artifact(name, kind, "application/json", documents.to_bytes(document), {})
