"""Labels of a series that has come to rest, made while its study settles: the study's own steps, up to the labels."""

from __future__ import annotations

import logging
import threading

from heimdallr_ray.catalog.ahead import Outcome, Wish, count, labels_of, record_labels, still_wanted
from heimdallr_ray.catalog.choosing import standing_choice
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.dicom.series import Selection
from heimdallr_ray.errors import EngineUnavailable, HeimdallrError, MadeWay
from heimdallr_ray.pipelines import steps
from heimdallr_ray.pipelines.ahead import LabelsAhead
from heimdallr_ray.pipelines.labels import worth_keeping
from heimdallr_ray.pipelines.preparing import Preparing
from heimdallr_ray.pipelines.steps import StudySegmenter
from heimdallr_ray.queue.lease import Lease, LeaseQueue

log = logging.getLogger(__name__)


class Speculator:
    """Runs leases of kind `speculation`. Changes nothing of the study but its history."""

    def __init__(
        self, preparing: Preparing, ahead: LabelsAhead, database: Database, queue: LeaseQueue, clock: Clock
    ) -> None:
        """`preparing` is that of the runner of studies; `ahead` is where it looks for labels."""
        self._preparing = preparing
        self._ahead = ahead
        self._database = database
        self._queue = queue
        self._clock = clock

    def run(self, lease: Lease, segmenter: StudySegmenter, stop: threading.Event) -> Outcome:
        """The labels are kept, or there was no use in making them; in both cases the job is done.

        Args:
            lease: of the job.
            segmenter: an engine, or the deployment.
            stop: set when other work waits.

        Raises:
            MadeWay: `stop` was set before the labels were there.
            StaleLease: the lease was lost, or `stop` was set while the segmenter worked.
            HeimdallrError: it cannot be done now, or not at all.
        """
        began = self._clock.monotonic()
        wish = Wish.of(lease.payload, lease.epoch)
        with self._database.read() as session:
            wanted = still_wanted(session, wish)
            choice = standing_choice(session, wish.study_id)
        if not wanted:
            return self._dropped(lease, "the series grew, or the study was closed")
        _require_idle(stop)
        deskew = self._preparing.takes_tilt_out(choice)
        selection = self._preparing.choose(wish.study_id, wish.epoch, choice)
        if not _alone(selection, wish):
            return self._dropped(lease, "the rules do not choose this series alone")
        _require_idle(stop)
        self._count(Outcome.STARTED)

        def read(locator: str) -> bytes:
            _require_idle(stop)
            return self._preparing.read(locator)

        selection, volume = steps.readable(selection, read)
        inputs = self._preparing.labels_inputs_of(selection, deskew=deskew)
        if volume is None or inputs is None or not _alone(selection, wish):
            return self._dropped(lease, "the series became no volume")
        with self._database.read() as session:
            if labels_of(session, wish.study_id, inputs) is not None:
                return self._dropped(lease, "the labels are there")
        image = steps.prepared(volume, take_tilt_out=deskew)
        _require_idle(stop)
        run = self._preparing.segment(image, segmenter, stop)
        if not worth_keeping(run):
            raise EngineUnavailable("a task failed, or ran out of time or memory: another run may do better")
        document = self._ahead.keep(run, inputs)
        seconds = self._clock.monotonic() - began
        try:
            with self._database.write() as session:
                self._queue.finish(session, lease)
                record_labels(session, lease, wish, inputs, document, seconds, now=self._clock.now())
        except HeimdallrError:
            self._ahead.discard(document)
            raise
        log.info("ahead.made", extra={"study_id": wish.study_id, "job": lease.job_id, "seconds": seconds})
        return Outcome.MADE

    def _count(self, outcome: Outcome) -> None:
        with self._database.write() as session:
            count(session, outcome)

    def _dropped(self, lease: Lease, why: str) -> Outcome:
        with self._database.write() as session:
            self._queue.finish(session, lease)
            count(session, Outcome.DROPPED)
        log.info("ahead.not_needed", extra={"job": lease.job_id, "why": why})
        return Outcome.DROPPED


def _alone(selection: Selection, wish: Wish) -> bool:
    chosen = selection.chosen
    return chosen is not None and str(chosen.uid) == wish.series_uid and not steps.tied(selection)


def _require_idle(stop: threading.Event) -> None:
    if stop.is_set():
        raise MadeWay("other work came before the labels were begun")
