"""The chain, run durably for one study under a lease: each step shown and timed, the result committed once."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from heimdallr_ray.catalog.choosing import chosen_in
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import (
    NewArtifact,
    commit_result,
    keep_result,
    record_selection,
    standing_result,
)
from heimdallr_ray.catalog.states import StudyState, Urgency
from heimdallr_ray.catalog.studies import require_study, series_rows_of, set_step, transition
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.clock import Clock
from heimdallr_ray.dicom.series import Selection, SeriesRules
from heimdallr_ray.errors import HeimdallrError, ModalityNotSupported, NoUsableSeries, StaleLease
from heimdallr_ray.metrics.catalogue import asked_for
from heimdallr_ray.metrics.result import Measurement
from heimdallr_ray.pipelines import describe, documents, steps
from heimdallr_ray.pipelines.ahead import LabelsAhead, MadeAhead
from heimdallr_ray.pipelines.inputs import contenders
from heimdallr_ray.pipelines.preparing import Preparing
from heimdallr_ray.pipelines.steps import Artifact, Prepared, StudySegmenter
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.segmentation.asked import extras
from heimdallr_ray.segmentation.engine import SegmentationRun
from heimdallr_ray.segmentation.phase import PhaseModel
from heimdallr_ray.storage.blobs import LocalBlobStore
from heimdallr_ray.triage.urgency import Assessment
from heimdallr_ray.volume import Volume

NOT_APPLICABLE = (NoUsableSeries, ModalityNotSupported)
"""Nothing is wrong with us or the files: there is just nothing here that we measure."""


@dataclass(frozen=True)
class _Kept:
    """A study of which nothing has changed that its standing result was made from."""

    selection: Selection
    result_id: str


@dataclass(frozen=True)
class _Made:
    """Everything that the chain made of one study."""

    inputs_sha256: str | None
    selection: Selection
    volume: Volume
    run: SegmentationRun
    ahead: MadeAhead | None
    measurements: Sequence[Measurement]
    assessment: Assessment


class StudyRunner:
    """Runs leases of kind `study`."""

    def __init__(
        self,
        database: Database,
        blobs: LocalBlobStore,
        queue: LeaseQueue,
        segmenter: StudySegmenter,
        clock: Clock,
        build: str,
        rules: SeriesRules | None = None,
        readable: Callable[[], Collection[str] | None] = lambda: None,
        measurements: Collection[str] = (),
        *,
        segmentations: Collection[str] = (),
        deskew: bool = False,
        engine: Callable[[], str] | None = None,
        ahead: LabelsAhead | None = None,
    ) -> None:
        """`segmenter` is a resident engine or the deployment; `build` goes into the provenance.

        `rules` choose the series; None: the package's own. `readable`: modalities that installed models read, None
        where that is not known here. `measurements`: quantities that the site asks for; empty: all. `segmentations`:
        further tasks, of which the site wants the labels. `deskew`: a tilt is taken out before models run, unless a
        person decided otherwise for the study. `engine`: the weights and settings that labels depend on, as one text,
        by which a result is known to stand for late images too; None: every epoch is run. `ahead`: labels that were
        made while studies settled; None: nothing is taken from there.

        Raises:
            BadSetting: a name among `measurements` or `segmentations` is none.
        """
        self._database = database
        self._blobs = blobs
        self._queue = queue
        self._segmenter = segmenter
        self._clock = clock
        self._build = build
        self._readable = readable
        self._metrics = asked_for(measurements)
        self._ahead = ahead
        self._phases = PhaseModel()
        self.preparing = Preparing(
            database,
            blobs,
            build,
            rules,
            self._metrics,
            extras(segmentations),
            deskew,
            engine,
            (tuple(measurements), tuple(segmentations)),
        )

    def with_segmenter(self, segmenter: StudySegmenter) -> StudyRunner:
        """The same runner, which asks another segmenter; what it keeps between studies is shared."""
        other = copy.copy(self)
        other._segmenter = segmenter
        return other

    def run(self, lease: Lease, lost: threading.Event) -> None:
        """The study is `done` with one result, or `not_applicable` with its reason.

        A result of an earlier epoch stands where all that it was made from is the same: then nothing is run.

        Raises:
            StaleLease: the lease was lost on the way; nothing was committed.
            HeimdallrError: the study cannot be done now, or not at all; the caller records which.
        """
        seconds: dict[str, float] = {}
        study = self._load(lease)
        try:
            made = self._chain(lease, lost, study, seconds)
        except NOT_APPLICABLE as error:
            self._not_applicable(lease, error)
            return
        with self._step(lease, lost, "commit", seconds):
            if isinstance(made, _Kept):
                self._keep(lease, made)
            else:
                self._commit(lease, study, *made, seconds)

    def _load(self, lease: Lease) -> StudyRow:
        if lease.study_id is None:
            raise StaleLease("the job belongs to no study")
        with self._database.read() as session:
            return require_study(session, lease.study_id)

    def _chain(
        self, lease: Lease, lost: threading.Event, study: StudyRow, seconds: dict[str, float]
    ) -> tuple[_Made, list[Artifact]] | _Kept:
        with self._step(lease, lost, "select", seconds):
            choice = chosen_in(lease.payload)
            deskew = self.preparing.takes_tilt_out(choice)
            selection = self.preparing.choose(study.id, lease.epoch, choice)
            inputs = self.preparing.inputs_of(selection, choice, deskew=deskew)
            kept, image = self._kept(lease, study, selection, inputs), None
            if kept is None:
                self._record_choices(lease, study, selection, None)
                steps.require_readable(selection, self._modalities(study), self._readable())
                selection, image = steps.settle_tie(
                    selection, self._read, self._segmenter, self._phases, lost, take_tilt_out=deskew
                )
        if kept is not None:
            return kept
        with self._step(lease, lost, "prepare", seconds):
            if image is None:
                selection, found = steps.readable(selection, self._read)
                if found is None:
                    self._record_choices(lease, study, selection, None)
                    raise steps.require_chosen(selection.decisions)
                image = steps.prepared(found, take_tilt_out=deskew)
            volume = image.volume
            self._record_choices(lease, study, selection, volume)
        with self._step(lease, lost, "segment", seconds):
            ahead = self._made_ahead(lease, study, selection, image, deskew=deskew)
            run = ahead.run if ahead else self.preparing.segment(image, self._segmenter, lost)
        seconds["forward"] = run.timings.forward_s
        with self._step(lease, lost, "measure", seconds):
            measurements = steps.measure(volume, run, self._metrics)
        with self._step(lease, lost, "triage", seconds):
            assessment = steps.triage(measurements)
        with self._step(lease, lost, "render", seconds):
            artifacts = steps.draw(volume, run, measurements)
        return _Made(inputs, selection, volume, run, ahead, measurements, assessment), artifacts

    def _made_ahead(
        self, lease: Lease, study: StudyRow, selection: Selection, image: Prepared, *, deskew: bool
    ) -> MadeAhead | None:
        # What a tie was settled with belongs to the run already.
        if self._ahead is None or image.earlier is not None:
            return None
        found = self._ahead.find(study.id, self.preparing.labels_inputs_of(selection, deskew=deskew), image)
        if found is not None:
            self._ahead.take(self._queue, lease, found)
        return found

    def _kept(self, lease: Lease, study: StudyRow, selection: Selection, inputs: str | None) -> _Kept | None:
        with self._database.read() as session:
            standing = standing_result(session, study.id, lease.epoch, inputs)
        return None if standing is None else _Kept(selection, standing.id)

    def _keep(self, lease: Lease, kept: _Kept) -> None:
        # What the result says of its own series stands in their rows: geometry, and who won a tie.
        measured = {str(one.uid) for one in contenders(kept.selection)}
        choices = [one for one in describe.series_choices(kept.selection, None) if one.series_uid not in measured]
        with self._database.write() as session:
            keep_result(session, lease, kept.result_id, now=self._clock.now(), selection=choices)

    @contextmanager
    def _step(self, lease: Lease, lost: threading.Event, name: str, seconds: dict[str, float]) -> Generator[None]:
        if lost.is_set():
            raise StaleLease(f"lease lost before step {name}")
        assert lease.study_id is not None  # noqa: S101
        with self._database.write() as session:
            self._queue.hold(session, lease)
            set_step(session, lease.study_id, name, self._clock.now(), lease.owner)
        began = self._clock.monotonic()
        yield
        seconds[name] = self._clock.monotonic() - began
        if name != "commit":
            with self._database.write() as session:
                self._queue.record_step(session, lease, name, self._input_hash(lease), {}, seconds[name])

    def _input_hash(self, lease: Lease) -> str:
        # The fence: a takeover measures its own seconds under the attempt of the holder that was lost.
        parts = (str(lease.payload.get("manifest_sha256", "")), self._build, str(lease.fence))
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def _modalities(self, study: StudyRow) -> set[str]:
        with self._database.read() as session:
            return {row.modality or "" for row in series_rows_of(session, study.id)}

    def _read(self, locator: str) -> bytes:
        return self.preparing.read(locator)

    def _record_choices(self, lease: Lease, study: StudyRow, selection: Selection, volume: Volume | None) -> None:
        with self._database.write() as session:
            self._queue.hold(session, lease)
            record_selection(session, study.id, describe.series_choices(selection, volume))

    def _not_applicable(self, lease: Lease, error: HeimdallrError) -> None:
        assert lease.study_id is not None  # noqa: S101
        with self._database.write() as session:
            self._queue.finish(session, lease)
            transition(
                session,
                lease.study_id,
                StudyState.NOT_APPLICABLE,
                now=self._clock.now(),
                actor=lease.owner,
                reason_code=error.code,
                reason=error.detail,
            )

    def _commit(
        self, lease: Lease, study: StudyRow, made: _Made, artifacts: list[Artifact], seconds: dict[str, float]
    ) -> None:
        manifest = str(lease.payload.get("manifest_sha256", ""))
        with self._database.read() as session:
            rows = series_rows_of(session, study.id)
        facts = describe.study_facts(study, rows, made.volume, lease.epoch, manifest)
        decisions = describe.series_decisions(made.selection, rows)
        synthetic = steps.is_synthetic(made.volume, made.run)
        results = documents.results_document(
            study=facts,
            measurements=made.measurements,
            assessment=made.assessment,
            series=decisions,
            models=[one.model for one in made.run.segmentations.values()],
            skipped_tasks=describe.skipped_tasks(made.run),
            memory_steps=describe.memory_steps(made.run),
            stage_seconds={name: round(value, 3) for name, value in seconds.items()},
            software_version=self._build,
            synthetic=synthetic,
            volume_facts=describe.volume_facts(made.volume),
            selection_facts=describe.selection_facts(made.selection, chosen_in(lease.payload)),
            labels_made_ahead=made.ahead.facts() if made.ahead else None,
        )
        artifacts = [
            steps.json_artifact(
                "id.json",
                "id",
                documents.id_document(facts, decisions, software_version=self._build, synthetic=synthetic),
            ),
            steps.json_artifact("results.json", "results", results),
            steps.json_artifact(
                "resultados.json",
                "resultados",
                documents.resultados_document(
                    made.measurements,
                    documents.body_regions_of(made.measurements),
                    made.volume.source.modality,
                    synthetic=synthetic,
                ),
            ),
            *artifacts,
        ]
        stored = [self._store(artifact) for artifact in artifacts]
        urgency = made.assessment.urgency
        with self._database.write() as session:
            commit_result(
                session,
                lease,
                results,
                stored,
                None if urgency is None else Urgency(urgency.value),
                now=self._clock.now(),
                urgency_reason=made.assessment.reason,
                synthetic=synthetic,
                inputs_sha256=made.inputs_sha256,
            )

    def _store(self, artifact: Artifact) -> NewArtifact:
        reference = self._blobs.put(artifact.content)
        return NewArtifact(
            name=artifact.name,
            kind=artifact.kind,
            media_type=artifact.media_type,
            sha256=reference.sha256,
            size=reference.size,
            meta=dict(artifact.meta),
        )
