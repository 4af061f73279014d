"""Labels that were made ahead of their study: kept, found again by their inputs, and removed at their age."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from heimdallr_ray.catalog.ahead import KEPT_S, labels_of, mark_used, outdated, remove
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError, StaleLease
from heimdallr_ray.pipelines.labels import LabelsDocument, blobs_in, decode, encode
from heimdallr_ray.pipelines.steps import Prepared
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.segmentation.engine import SegmentationRun
from heimdallr_ray.storage.blobs import LocalBlobStore
from heimdallr_ray.volume import require_same_grid

log = logging.getLogger(__name__)

MAX_ROUNDS = 1000


@dataclass(frozen=True)
class MadeAhead:
    """Labels that were there before the study's own run came to them.

    Attributes:
        row_id: of the row.
        run: the labels, on the grid of the image.
        made_at: when they were made.
        job_id: by which job.
        inputs_sha256: of everything that decided them.
        seconds: that it took, from the claim to the blobs.
        forward_s: of these, inside the networks.
    """

    row_id: str
    run: SegmentationRun
    made_at: datetime
    job_id: int
    inputs_sha256: str
    seconds: float
    forward_s: float

    def facts(self) -> dict[str, Any]:
        """What the result says of them, as JSON."""
        return {
            "made_at": self.made_at.isoformat(),
            "job_id": self.job_id,
            "inputs_sha256": self.inputs_sha256,
            "seconds": round(self.seconds, 3),
            "forward_seconds": round(self.forward_s, 3),
        }


class LabelsAhead:
    """The labels that are kept. Holds no state of its own; safe to use from several threads and processes."""

    def __init__(self, database: Database, blobs: LocalBlobStore, clock: Clock) -> None:
        """`clock` dates what is made, used and removed."""
        self._database = database
        self._blobs = blobs
        self._clock = clock

    def keep(self, run: SegmentationRun, inputs_sha256: str) -> Mapping[str, Any]:
        """The label maps are durable blobs; returns the document that names them.

        Raises:
            StorageFull, StorageFailed: no room, or the operating system refused.
        """
        document = encode(run, inputs_sha256, lambda content: str(self._blobs.put(content).sha256))
        return document.model_dump(mode="json")

    def discard(self, document: Mapping[str, Any]) -> None:
        """What `keep` stored is gone as far as the disk allows; no row names it."""
        try:
            self._blobs.remove(blobs_in(document))
        except HeimdallrError as error:
            log.warning("ahead.not_removed", extra={"code": error.code})

    def find(self, study_id: str, inputs_sha256: str | None, image: Prepared) -> MadeAhead | None:
        """What was made of exactly these inputs, on the grid of `image`; None where there is nothing.

        Whatever is wrong with it, the study is segmented as if it were not there.
        """
        if inputs_sha256 is None:
            return None
        try:
            with self._database.read() as session:
                row = labels_of(session, study_id, inputs_sha256)
            if row is None:
                return None
            document = LabelsDocument.of(row.document)
            run = decode(document, inputs_sha256, self._blobs.read)
            for made in run.segmentations.values():
                require_same_grid(image.volume, made.label_map)
        except HeimdallrError as error:
            log.warning("ahead.not_usable", extra={"study_id": study_id, "code": error.code})
            return None
        return MadeAhead(row.id, run, row.made_at, row.job_id, inputs_sha256, row.seconds, document.forward_s)

    def take(self, queue: LeaseQueue, lease: Lease, found: MadeAhead) -> None:
        """The history says that the study took them.

        Raises:
            StaleLease: the lease was lost.
        """
        try:
            with self._database.write() as session:
                queue.hold(session, lease)
                mark_used(session, lease, found.row_id, now=self._clock.now())
        except StaleLease:
            raise
        except HeimdallrError as error:
            # The labels are right all the same; the result names their job.
            log.warning("ahead.not_marked", extra={"job": lease.job_id, "code": error.code})

    def forget_all(self) -> None:
        """No labels are kept, for a site that makes none ahead; what cannot be removed now is at the next start."""
        try:
            for _ in range(MAX_ROUNDS):
                if not self.remove_outdated(kept_s=0.0):
                    return
        except HeimdallrError as error:
            log.warning("ahead.not_removed", extra={"code": error.code})

    def remove_outdated(self, kept_s: float = KEPT_S) -> int:
        """Labels of the age of `kept_s` are gone, at most `MAX_REMOVED` of them; returns how many.

        Raises:
            HeimdallrError: database or disk refused; the next call goes on.
        """
        with self._database.read() as session:
            rows = outdated(session, self._clock.now(), kept_s)
        for row in rows:
            # Blobs first: a row without them is found to be of no use, blobs without a row would stay for ever.
            self._blobs.remove(blobs_in(row.document))
            with self._database.write() as session:
                remove(session, row.id)
        return len(rows)
