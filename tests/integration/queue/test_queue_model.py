"""The queue against a small model of itself: whatever happens in whichever order, a stale fence changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import JobRow
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from tests.support.clock import FakeClock
from tests.support.databases import MakeUrl

LEASE_S = 20.0
MAX_ATTEMPTS = 6
MAX_LOST = 4
ACTIONS = ("renew", "step", "release", "retry", "finish", "kill")
WORKERS = ("w0", "w1", "w2")


@dataclass
class Model:
    """What a job should be."""

    priority: int
    run_at: float
    state: str = "queued"
    fence: int = 0
    attempt: int = 0
    lost: int = 0
    lease_until: float = 0.0
    effects: int = 0
    held: list[Lease] = field(default_factory=list)

    def ready(self, now: float) -> bool:
        if self.state == "queued":
            return self.run_at <= now
        return self.state == "running" and self.lease_until <= now and self.lost + 1 < MAX_LOST

    def poisonous(self, now: float) -> bool:
        return self.state == "running" and self.lease_until <= now and self.lost + 1 >= MAX_LOST


def machine(url: MakeUrl) -> type[RuleBasedStateMachine]:
    """The state machine over fresh databases of one dialect."""

    class QueueMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.clock = FakeClock()
            self.database = Database(url())
            self.queue = LeaseQueue(self.database, self.clock, LEASE_S, database_time=False, max_lost=MAX_LOST)
            self.jobs: dict[str, Model] = {}

        def teardown(self) -> None:
            self.database.close()

        @property
        def now(self) -> float:
            return self.clock.monotonic()

        def _leases(self) -> list[tuple[Model, Lease]]:
            return [(job, lease) for job in self.jobs.values() for lease in job.held]

        @rule(priority=st.sampled_from([0, 1, 3, 9]), delay=st.sampled_from([0.0, 0.0, 15.0]))
        @precondition(lambda self: len(self.jobs) < 5)
        def enqueue(self, priority: int, delay: float) -> None:
            key = f"j{len(self.jobs)}"
            with self.database.write() as session:
                self.queue.enqueue(session, "x", key, priority=priority, max_attempts=MAX_ATTEMPTS, delay_s=delay)
            self.jobs[key] = Model(priority, self.now + delay)

        @rule(seconds=st.sampled_from([0.5, 7.0, LEASE_S]))
        def wait(self, seconds: float) -> None:
            """A worker that was killed or stopped is one that just does not come back."""
            self.clock.advance(seconds)

        @rule(owner=st.sampled_from(WORKERS))
        def claim(self, owner: str) -> None:
            self._claim(owner)

        def _claim(self, owner: str) -> None:
            ready = {key: job for key, job in self.jobs.items() if job.ready(self.now)}
            poisonous = [job for job in self.jobs.values() if job.poisonous(self.now)]
            lease = self.queue.claim(owner, ["x"])
            for job in poisonous:
                job.state, job.lost = "dead", job.lost + 1
            if not ready:
                assert lease is None
                return
            assert lease is not None
            best = min(ready, key=lambda key: (ready[key].priority, ready[key].run_at, key))
            job = ready[best]
            if job.state == "running":
                job.lost += 1
            else:
                job.attempt += 1
            assert (lease.key, lease.fence, lease.attempt, lease.lost) == (best, job.fence + 1, job.attempt, job.lost)
            job.state, job.fence = "running", lease.fence
            job.lease_until = self.now + LEASE_S
            job.held.append(lease)

        @rule(data=st.data(), what=st.sampled_from(ACTIONS))
        @precondition(lambda self: any(job.held for job in self.jobs.values()))
        def act(self, data: st.DataObject, what: str) -> None:
            """Any lease ever given, however old, tries something."""
            self._attempt(what, *data.draw(st.sampled_from(self._leases())))

        @rule(data=st.data(), what=st.sampled_from(ACTIONS))
        @precondition(lambda self: bool(self._overtaken()))
        def act_late(self, data: st.DataObject, what: str) -> None:
            """A holder tries something while its successor is at work."""
            self._attempt(what, *data.draw(st.sampled_from(self._overtaken())))

        @rule(owner=st.sampled_from(WORKERS))
        @precondition(lambda self: any(job.state == "running" for job in self.jobs.values()))
        def overtake(self, owner: str) -> None:
            """All leases run out, somebody takes the best job."""
            self.clock.advance(LEASE_S)
            self._claim(owner)

        def _overtaken(self) -> list[tuple[Model, Lease]]:
            return [(job, lease) for job, lease in self._leases() if job.state == "running" and lease.fence < job.fence]

        def _attempt(self, what: str, job: Model, lease: Lease) -> None:
            current = job.state == "running" and lease.fence == job.fence
            try:
                self._do(what, lease)
            except StaleLease:
                assert not current
                return
            assert current
            self._expect(what, job)

        def _do(self, what: str, lease: Lease) -> None:
            if what == "renew":
                self.queue.renew(lease)
                return
            with self.database.write() as session:
                if what == "finish":
                    self.queue.finish(session, lease)
                elif what in ("retry", "kill"):
                    self.queue.fail(session, lease, "code", "detail", retry=what == "retry", delay_s=3)
                elif what == "release":
                    self.queue.release(session, lease)
                else:
                    self.queue.record_step(session, lease, "s", "h", {"fence": lease.fence}, 0.1)

        def _expect(self, what: str, job: Model) -> None:
            if what == "renew":
                job.lease_until = self.now + LEASE_S
            elif what == "finish":
                job.state, job.effects = "done", job.effects + 1
            elif what == "kill" or (what == "retry" and job.attempt >= MAX_ATTEMPTS):
                job.state = "dead"
            elif what == "retry":
                job.state, job.run_at = "queued", self.now + 3
            elif what == "release":
                job.state, job.attempt = "queued", job.attempt - 1

        @invariant()
        def rows_are_as_the_model_says(self) -> None:
            with self.database.read() as session:
                rows = {row.key: row for row in session.exec(select(JobRow)).all()}
            found = {
                key: (row.state, row.fence, row.attempt, row.lost, row.owner is not None) for key, row in rows.items()
            }
            wanted = {
                key: (job.state, job.fence, job.attempt, job.lost, job.state == "running")
                for key, job in self.jobs.items()
            }
            assert found == wanted
            assert all(job.effects <= 1 for job in self.jobs.values())

    return QueueMachine


@pytest.mark.timeout(600)
def test_the_queue_behaves_like_its_model(make_url: MakeUrl, dialect: str) -> None:
    examples = 40 if dialect == "sqlite" else 12
    run_state_machine_as_test(
        machine(make_url),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # forty steps can be read; shrinking them takes minutes
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
