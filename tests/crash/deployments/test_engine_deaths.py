"""Real processes that real studies kill with SIGKILL: who is convicted, who runs alone, who is cleared."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import ray

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments import remote
from heimdallr_ray.errors import EngineKilled
from heimdallr_ray.queue.engine_calls import EngineCalls
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from tests.support.engine_processes import NODE, Handle, Work

LEASE_S = 600.0
WAIT_S = 120.0
pytestmark = pytest.mark.timeout(300)


class Site:
    """A queue, its consumer's threads, and engines that may be killed."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'catalog.sqlite'}"
        self.database, clock = Database(url), SystemClock()
        self.database.migrate()
        self.queue, self.handle = LeaseQueue(self.database, clock, LEASE_S), Handle(url)
        ledger = remote.Ledger(self.database, self.queue, EngineCalls(self.database, clock))
        self._segmenter = remote.RemoteSegmenter(cast(Any, self.handle), ledger)
        self._pool = ThreadPoolExecutor(8)

    def run(self, name: str, work: Work) -> Future[Any]:
        """The study is with a thread of the consumer."""
        return self._pool.submit(self._segmenter.for_job(self._lease(name)).run, cast(Any, work))

    def _lease(self, name: str) -> Lease:
        with self.database.write() as session:
            self.queue.enqueue(session, "study", name, payload={"manifest_sha256": name})
        lease = self.queue.claim("consumer", ["study"])
        assert lease is not None
        return lease

    def close(self) -> None:
        self.handle.end()
        self._pool.shutdown(cancel_futures=True)
        self.database.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(ray, "put", lambda request: request)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": NODE, "Alive": True}])
    monkeypatch.setattr(remote, "GRACE_S", 0.2)
    monkeypatch.setattr(remote, "PAUSE_S", 0.1)
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_killer_ends_after_two_engines_and_the_next_study_is_served(site: Site) -> None:
    killer = site.run("killer", Work(kills=True))
    with pytest.raises(EngineKilled, match="died 2 times"):
        killer.result(WAIT_S)
    assert site.run("next", Work()).result(WAIT_S)
    assert len(site.handle.engines) == 3


def test_who_is_beside_a_killer_is_done_and_the_killer_alone_is_convicted(site: Site) -> None:
    killer, beside = site.run("killer", Work(kills=True, beside=2)), site.run("beside", Work())
    waiting = [site.run(f"waiting-{number}", Work()) for number in range(3)]
    with pytest.raises(EngineKilled, match="died 2 times"):
        killer.result(WAIT_S)
    assert beside.result(WAIT_S)
    assert all(one.result(WAIT_S) for one in waiting)
    # The shared death, and the killer's own.
    assert len([engine for engine in site.handle.engines if not engine.process.is_alive()]) == 2


@pytest.mark.slow
def test_two_killers_are_both_convicted_and_everybody_else_is_done(site: Site) -> None:
    killers = [site.run(f"killer-{number}", Work(kills=True)) for number in range(2)]
    others = [site.run(f"other-{number}", Work()) for number in range(4)]
    for one in killers:
        with pytest.raises(EngineKilled):
            one.result(WAIT_S)
    assert all(one.result(WAIT_S) for one in others)


def test_an_engine_that_somebody_kills_costs_its_studies_one_more_run(site: Site) -> None:
    first = site.run("warm", Work())
    assert first.result(WAIT_S)
    studies = [site.run(f"study-{number}", Work()) for number in range(3)]
    site.handle.engines[0].process.kill()
    assert all(one.result(WAIT_S) for one in studies)
