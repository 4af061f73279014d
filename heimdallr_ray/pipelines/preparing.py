"""From a study in the catalog to the image that is segmented, wired once for whoever runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heimdallr_ray.catalog.choosing import SeriesChosen
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.studies import instances_of, require_study, series_rows_of
from heimdallr_ray.dicom.series import Selection, SeriesRules
from heimdallr_ray.ids import Sha256, Uid
from heimdallr_ray.metrics.catalogue import Metric
from heimdallr_ray.pipelines import describe, steps
from heimdallr_ray.pipelines.inputs import Surroundings, inputs_sha256, labels_sha256
from heimdallr_ray.pipelines.steps import Prepared, StoredInstance, StudySegmenter
from heimdallr_ray.segmentation.engine import SegmentationRun
from heimdallr_ray.segmentation.planner import Extra
from heimdallr_ray.storage.blobs import LocalBlobStore


@dataclass(frozen=True)
class Preparing:
    """What a site's settings make of any study until its labels are there.

    Attributes:
        database: of the catalog.
        blobs: where the images are.
        build: of the package.
        rules: that choose the series; None: the package's own.
        metrics: the measurements that are asked for.
        further: the segmentations that are asked for beside them.
        deskew: the site wants a tilt taken out.
        engine: the weights and settings that labels depend on, as one text; None: not known, so no inputs are compared.
        asked: measurements and segmentations by the names that the site gives them.
    """

    database: Database
    blobs: LocalBlobStore
    build: str
    rules: SeriesRules | None
    metrics: tuple[Metric, ...]
    further: Sequence[Extra]
    deskew: bool
    engine: Callable[[], str] | None
    asked: tuple[tuple[str, ...], tuple[str, ...]]

    def choose(self, study_id: str, epoch: int, choice: SeriesChosen | None) -> Selection:
        """The series that rules or a person choose of the images of all epochs until `epoch`.

        Raises:
            HeimdallrError: as `steps.choose_series`.
        """
        override = describe.override_of(choice)
        return steps.choose_series(self.instances(study_id, epoch), self.path_of, rules=self.rules, override=override)

    def takes_tilt_out(self, choice: SeriesChosen | None) -> bool:
        """Whether a tilt is taken out of this study's image."""
        return describe.deskew_wanted(choice, self.deskew)

    def segment(self, image: Prepared, segmenter: StudySegmenter, lost: threading.Event) -> SegmentationRun:
        """Label maps on the grid of the image.

        Raises:
            HeimdallrError: as `steps.segment`.
        """
        return steps.segment(image, segmenter, lost, self.metrics, self.further)

    def inputs_of(self, selection: Selection, choice: SeriesChosen | None, *, deskew: bool) -> str | None:
        """Digest of everything that the result will be made from; None where that is not known."""
        around = self._surroundings()
        return None if around is None else inputs_sha256(selection, choice, around, deskew=deskew)

    def labels_inputs_of(self, selection: Selection, *, deskew: bool) -> str | None:
        """Digest of everything that decides the labels of the chosen series; None where that is not known."""
        around = self._surroundings()
        return None if around is None else labels_sha256(selection, around, deskew=deskew)

    def instances(self, study_id: str, epoch: int) -> list[StoredInstance]:
        """The study's images of all epochs until `epoch`."""
        with self.database.read() as session:
            study = require_study(session, study_id)
            series_uids = {row.id: Uid(row.series_uid) for row in series_rows_of(session, study_id)}
            return [
                StoredInstance(
                    series_uid=series_uids[row.series_id],
                    study_uid=Uid(study.study_uid),
                    sop_uid=Uid(row.sop_uid),
                    locator=row.blob_sha256,
                    sha256=row.blob_sha256,
                )
                for row in instances_of(session, study_id, epoch)
            ]

    def path_of(self, locator: str) -> Path:
        """The file of an image."""
        return self.blobs.path(Sha256.parse(locator))

    def read(self, locator: str) -> bytes:
        """The bytes of an image."""
        return self.path_of(locator).read_bytes()

    def _surroundings(self) -> Surroundings | None:
        return None if self.engine is None else Surroundings(self.build, self.engine(), *self.asked)
