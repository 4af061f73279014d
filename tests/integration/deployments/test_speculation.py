"""Labels made ahead by a replica with the demo weights: what a study takes is what it would have made itself."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.config import load, save_effective
from heimdallr_ray.deployments import remote
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.consumer import StudyConsumer
from heimdallr_ray.deployments.segmenter import Segmenter
from heimdallr_ray.errors import MadeWay
from heimdallr_ray.listener.quiet import SERIES_QUIET_S
from heimdallr_ray.operations.demo_studies import write_demo_study
from heimdallr_ray.queue.engine_calls import EngineCalls, Ticket
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun
from tests.support.clock import EPOCH
from tests.support.intake import wait_for
from tests.support.speculation import Site

pytestmark = pytest.mark.timeout(600)
WAIT_S = 120.0


class Response:
    """As Serve's, of a call that runs in a thread."""

    def __init__(self, answer: Future[SegmentationRun]) -> None:
        self._answer = answer

    def result(self, *, timeout_s: float) -> SegmentationRun:
        return self._answer.result(timeout_s)

    def cancel(self) -> None:
        """A call that runs is not ended by it."""


class Handle:
    """A replica behind threads; keeps who asked, and what came of it."""

    def __init__(self, replica: Any) -> None:
        self._replica, self._pool = replica, ThreadPoolExecutor(2)
        self.tickets: list[Ticket] = []
        self.answers: list[Future[SegmentationRun]] = []
        self.run = self

    def remote(self, request: SegmentationRequest, ticket: Ticket, until: float) -> Response:
        # Another object than the caller's, as after the object store.
        volume = dataclasses.replace(request.volume, array=request.volume.array.copy())
        self.tickets.append(ticket)
        self.answers.append(
            self._pool.submit(self._replica.run, dataclasses.replace(request, volume=volume), ticket, until)
        )
        return Response(self.answers[-1])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def args(data_dir: Path) -> Iterator[AppArgs]:
    settings = load({}, data_dir=data_dir, profile="demo", device="cpu", torch_threads=2, speculate=True)
    settings.run_dir.mkdir(parents=True)
    file = settings.run_dir / "settings.json"
    save_effective(settings, file)
    Database(settings.resolved_database_url).migrate()
    yield AppArgs(build="test", settings_file=str(file))


@pytest.fixture(scope="module")
def replica(args: AppArgs) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "TOTALSEG_HOME_DIR",
            "TOTALSEG_WEIGHTS_PATH",
            "nnUNet_raw",
            "nnUNet_preprocessed",
            "nnUNet_results",
        ):
            patch.setenv(name, "")
        patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
        patch.setattr(ray, "put", lambda request: request)
        yield cast(Any, Segmenter).func_or_class(args)


@pytest.fixture(scope="module")
def handle(replica: Any) -> Handle:
    return Handle(replica)


@pytest.fixture
def database(args: AppArgs) -> Iterator[Database]:
    made = Database(args.settings().resolved_database_url)
    yield made
    made.close()


def demo(folder: Path, run_id: str) -> tuple[str, list[bytes]]:
    """The demo's torso, with its localizer; the same voxels under other UIDs for each `run_id`."""
    study = write_demo_study("chest-abdomen", folder / run_id, EPOCH.replace(tzinfo=None), run_id)
    return str(study.study_uid), [path.read_bytes() for path in sorted(study.folder.rglob("*.dcm"))]


@pytest.mark.slow
def test_a_consumer_takes_the_labels_that_it_made_ahead_and_they_are_those_of_a_plain_run(
    args: AppArgs, handle: Handle, database: Database, data_dir: Path, tmp_path: Path
) -> None:
    consumer = cast(Any, StudyConsumer).func_or_class(args, handle)
    try:
        uid, images = demo(tmp_path, "ahead")
        site = Site(database, data_dir, study_uid=uid)
        site.arrive(images)
        site.scan_for(int(SERIES_QUIET_S) + 2)
        assert site.study().state == "settling"
        (row,) = wait_for(site.rows, WAIT_S, "labels made ahead")
        site.settle()
        wait_for(lambda: site.study().state == "done", WAIT_S, "the study")
        ours = site.document()
        assert (ours["labels_made_ahead"]["job_id"], ours["synthetic"]) == (row.job_id, True)
        assert [ticket.ahead for ticket in handle.tickets] == [True]

        uid, images = demo(tmp_path, "plain")
        plain = Site(database, data_dir, study_uid=uid, speculate=False)
        plain.arrive(images)
        plain.settle()
        wait_for(lambda: plain.study().state == "done", WAIT_S, "the other study")
        theirs = plain.document()
        assert (theirs["labels_made_ahead"], [ticket.ahead for ticket in handle.tickets]) == (None, [True, False])
    finally:
        consumer.stop()
    labels = {name: row.sha256 for name, row in site.artifacts().items() if row.kind == "label_map"}
    assert len(labels) >= 2
    # By digest of the files: the same grid, structures, model and voxels.
    assert labels == {name: row.sha256 for name, row in plain.artifacts().items() if row.kind == "label_map"}
    values = [{one["id"]: one["value"] for one in document["measurements"]} for document in (ours, theirs)]
    assert values[0] == values[1] and any(value is not None for value in values[0].values())
    assert ours["models"] == theirs["models"] and ours["skipped_tasks"] == theirs["skipped_tasks"]


def test_a_replica_ends_what_was_made_ahead_before_the_next_tile_once_other_work_waits(
    handle: Handle, database: Database, data_dir: Path, tmp_path: Path
) -> None:
    uid, images = demo(tmp_path, "gives-way")
    site = Site(database, data_dir, study_uid=uid)
    ledger = remote.Ledger(database, site.queue, EngineCalls(database, site.clock))
    site.segmenter_of = remote.RemoteSegmenter(cast(Any, handle), ledger).for_job
    site.arrive(images)
    site.scan_for(int(SERIES_QUIET_S) + 2)
    before = len(handle.answers)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(site.make_ahead)
        wait_for(lambda: len(handle.answers) > before, WAIT_S, "the call")
        site.other_work()
        with pytest.raises(MadeWay):
            handle.answers[-1].result(WAIT_S)
        assert working.result(WAIT_S)
    assert (site.jobs()[0].state, site.rows()) == ("queued", [])
    assert site.study().state == "settling"


def test_a_consumer_of_a_site_that_makes_nothing_ahead_has_no_such_worker(
    args: AppArgs, handle: Handle, tmp_path: Path
) -> None:
    settings = args.settings().model_copy(update={"speculate": False, "data_dir": tmp_path / "off"})
    settings.run_dir.mkdir(parents=True)
    file = settings.run_dir / "settings.json"
    save_effective(settings, file)
    Database(settings.resolved_database_url).migrate()
    consumer = cast(Any, StudyConsumer).func_or_class(AppArgs(build="test", settings_file=str(file)), handle)
    try:
        assert consumer.working()
        assert not [thread.name for thread in threading.enumerate() if thread.name == "idle-worker"]
    finally:
        consumer.stop()
