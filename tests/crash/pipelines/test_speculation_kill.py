"""A process is killed while it makes labels ahead: the study is as if it had never begun."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.listener.quiet import SERIES_QUIET_S
from heimdallr_ray.queue.owners import is_dead_here
from tests.support.speculation import LEASE_S, SLICES, Site, speculate_until_killed

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("noticed", ["at_once", "by_its_lease"])
@pytest.mark.parametrize("point", ["prepare", "segment", "keep"])
def test_a_kill_leaves_nothing_wrong(database: Database, folder: Path, point: str, noticed: str) -> None:
    site = Site(database, folder)
    site.arrive(SLICES[:24])
    site.scan_for(int(SERIES_QUIET_S) + 2)
    before = site.untouched()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.support.speculation"])
    ours, theirs = processes.Pipe()
    url = database.engine.url.render_as_string(hide_password=False)
    arguments = (url, str(folder), site.clock.now(), point, theirs)
    worker = processes.Process(target=speculate_until_killed, args=arguments, daemon=True)
    worker.start()
    assert ours.poll(120) and ours.recv() == point
    (job,) = site.jobs()
    assert job.state == "running" and not site.make_ahead()
    worker.kill()
    worker.join(30)
    assert not worker.is_alive()

    if noticed == "at_once":
        with database.write() as session:
            assert site.queue.release_dead_owners(session, is_dead_here) == 1
    else:
        assert not site.make_ahead()
        site.clock.advance(LEASE_S)
    assert not site.make_ahead()
    (job,) = site.jobs()
    assert (job.state, job.lost, job.error_code) == ("dead", 1, "worker_lost")
    assert site.counts() == {"started": 1, "failed": 1}
    assert site.untouched() == before
    assert (site.rows(), site.told()) == ([], [])
    site.settle()
    assert site.work()["labels_made_ahead"] is None
    assert site.thresholds.runs == 1
