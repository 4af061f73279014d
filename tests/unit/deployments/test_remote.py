"""The wait for the Segmenter ends in time, every error has its type, and a death counts for who was inside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from ray.exceptions import ActorDiedError, ObjectStoreFullError, RayActorError, RayTaskError

from heimdallr_ray.catalog.ahead import AHEAD_JOB, Wish, wish_for
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.deployments import remote
from heimdallr_ray.errors import EmptyImage, EngineKilled, EngineUnavailable, HeimdallrError, StaleLease
from heimdallr_ray.queue.engine_calls import EngineCalls, EngineId, Ticket
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.owners import owner_name
from heimdallr_ray.segmentation.engine import SegmentationRequest
from tests.support.clock import FakeClock

REQUEST = cast(SegmentationRequest, "a request")
Answer = Callable[[float], Any]


class Response:
    """One call's answer; `result` may be asked again after a timeout, as Serve's may."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.cancelled = False
        self.asked: list[float] = []

    def result(self, *, timeout_s: float) -> Any:
        self.asked.append(timeout_s)
        return self._answer(timeout_s)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle whose calls are answered in turn, the last answer again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.responses: list[Response] = []
        self.tickets: list[Ticket | None] = []
        self.moments: list[float] = []
        self.run = self

    def remote(self, reference: object, ticket: Ticket | None, until: float) -> Response:
        assert reference == ("ref", REQUEST)
        self.moments.append(until)
        self.tickets.append(ticket)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.responses.append(Response(answer))
        return self.responses[-1]


def never(timeout_s: float) -> Any:
    time.sleep(timeout_s)
    raise TimeoutError


def raising(error: BaseException) -> Answer:
    def answer(_: float) -> Any:
        raise error

    return answer


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "a traceback", cause).as_instanceof_cause()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "POLL_S", 0.02)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    monkeypatch.setattr(ray, "put", lambda request: ("ref", request))


def call(handle: Handle, lost: threading.Event | None = None) -> Any:
    return remote.RemoteSegmenter(cast(Any, handle)).run(REQUEST, lost=lost)


def test_an_answer_that_takes_several_polls_comes() -> None:
    polls: list[float] = []

    def third(timeout_s: float) -> Any:
        polls.append(timeout_s)
        if len(polls) < 3:
            raise TimeoutError
        return "labels"

    handle = Handle(third)
    assert call(handle) == "labels"
    assert len(handle.responses) == 1


def test_a_lost_lease_ends_the_wait_and_cancels_the_request() -> None:
    handle, lost = Handle(never), threading.Event()
    threading.Timer(0.1, lost.set).start()
    with pytest.raises(StaleLease):
        call(handle, lost)
    assert [response.cancelled for response in handle.responses] == [True]


def test_a_lost_lease_ends_the_pause_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 3600.0)
    handle, lost = Handle(raising(RayActorError())), threading.Event()
    lost.set()
    with pytest.raises(StaleLease):
        call(handle, lost)
    assert len(handle.responses) == 1


def test_no_answer_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CALL_TIMEOUT_S", 0.1)
    handle = Handle(never)
    with pytest.raises(EngineUnavailable, match="no answer"):
        call(handle)
    assert handle.responses[0].cancelled


def test_every_call_of_a_study_says_until_when_it_is_waited_for() -> None:
    handle, began = Handle(raising(RayActorError()), lambda _: "labels"), time.time()
    assert call(handle) == "labels"
    assert handle.moments == pytest.approx([began + remote.CALL_TIMEOUT_S] * 2, abs=5.0)


def test_a_volume_that_does_not_fit_into_the_object_store_may_be_tried_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise ObjectStoreFullError

    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(EngineUnavailable, match="ObjectStoreFullError"):
        call(Handle(never))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(EmptyImage("flat"), EmptyImage), (TimeoutError("the engine's own"), RayTaskError), (ValueError("x"), ValueError)],
)
def test_an_error_of_the_engine_keeps_its_type(raised: Exception, expected: type[Exception]) -> None:
    handle = Handle(raising(task_error(raised)))
    with pytest.raises(expected) as caught:
        call(handle)
    assert len(handle.responses) == 1
    assert not isinstance(caught.value, HeimdallrError) or caught.value.detail == str(raised)


def test_a_replica_that_dies_once_is_asked_again_and_twice_is_an_error() -> None:
    assert call(Handle(raising(RayActorError()), lambda _: "labels")) == "labels"
    with pytest.raises(EngineUnavailable, match="no answer of the replica"):
        call(Handle(raising(RayActorError())))


class Site:
    """One running job on a real catalog, an engine's name, and whether its machine is up."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database, self.clock = Database(f"sqlite:///{folder / 'catalog.sqlite'}"), FakeClock()
        self.database.migrate()
        self.queue, self.calls = LeaseQueue(self.database, self.clock, 20.0), EngineCalls(self.database, self.clock)
        self.machine_is_up = True
        monkeypatch.setattr(remote, "GRACE_S", 0.01)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "node", "Alive": self.machine_is_up}])
        self.lease = self.job("a")

    def job(self, name: str) -> Lease:
        with self.database.write() as session:
            self.queue.enqueue(session, "study", name, payload={"manifest_sha256": name})
        lease = self.queue.claim("worker", ["study"])
        assert lease is not None
        return lease

    def segmenter(self, handle: Handle, lease: Lease | None = None) -> remote.RemoteSegmenter:
        ledger = remote.Ledger(self.database, self.queue, self.calls)
        return remote.RemoteSegmenter(cast(Any, handle), ledger).for_job(lease or self.lease)

    def dying(self, handle: Handle, *, inside: bool = True, error: Exception | None = None, name: str = "") -> Answer:
        """The replica signs the study in, where it was `inside`, and dies."""
        replica = name or f"elsewhere/1/{len(handle.responses)}"

        def answer(_: float) -> Any:
            ticket = handle.tickets[-1]
            assert ticket is not None
            if inside:
                self.calls.enter(ticket, EngineId(f"{replica}{len(handle.tickets)}", "node", "identity"))
            raise error or ActorDiedError()

        return answer


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path, monkeypatch)
    yield made
    made.database.close()


def test_the_second_death_under_a_study_sets_it_aside(site: Site) -> None:
    handle = Handle()
    handle.answers = [site.dying(handle)]
    with pytest.raises(EngineKilled, match="died 2 times"):
        site.segmenter(handle).run(REQUEST)
    assert len({ticket.call_id for ticket in handle.tickets if ticket is not None}) == len(handle.tickets) == 2


def test_deaths_are_counted_over_all_attempts(site: Site) -> None:
    handle = Handle()
    handle.answers = [site.dying(handle), raising(task_error(EngineUnavailable("gone")))]
    with pytest.raises(EngineUnavailable):
        site.segmenter(handle).run(REQUEST)
    with site.database.write() as session:
        site.queue.fail(session, site.lease, "engine_unavailable", "gone", retry=True)
    second = site.queue.claim("worker", ["study"])
    assert second is not None and second.attempt == 2
    again = Handle()
    again.answers = [site.dying(again)]
    with pytest.raises(EngineKilled):
        site.segmenter(again, second).run(REQUEST)
    assert len(again.tickets) == 1


def test_a_replica_that_dies_while_the_study_waits_costs_it_nothing(site: Site) -> None:
    handle = Handle()
    handle.answers = [*[site.dying(handle, inside=False)] * 4, lambda _: "labels"]
    assert site.segmenter(handle).run(REQUEST) == cast(Any, "labels")
    assert site.calls.must_be_alone(cast(Ticket, handle.tickets[-1]), EngineId("r", "node", "identity")) is False


def test_a_machine_that_dies_is_no_death_of_a_study(site: Site) -> None:
    handle = Handle()
    handle.answers = [*[site.dying(handle)] * 3, lambda _: "labels"]
    site.machine_is_up = False
    assert site.segmenter(handle).run(REQUEST) == cast(Any, "labels")


def test_an_error_of_a_replica_that_lives_is_no_death(site: Site) -> None:
    handle = Handle()
    handle.answers = [site.dying(handle, error=RayActorError(), name=f"{owner_name()}/")]
    with pytest.raises(EngineUnavailable):
        site.segmenter(handle).run(REQUEST)
    assert len(handle.tickets) == remote.FAILURES


def test_a_lease_that_is_lost_with_the_replica_counts_nothing(site: Site) -> None:
    handle, lost = Handle(), threading.Event()
    handle.answers = [site.dying(handle)]
    lost.set()
    with pytest.raises(StaleLease):
        site.segmenter(handle).run(REQUEST, lost=lost)
    ticket = cast(Ticket, handle.tickets[0])
    assert not site.calls.must_be_alone(ticket, EngineId("r", "node", "identity"))


def test_a_lease_that_somebody_else_holds_counts_nothing(site: Site) -> None:
    handle = Handle()
    dying = site.dying(handle)

    def overtaken(timeout_s: float) -> Any:
        try:
            dying(timeout_s)
        finally:
            site.clock.advance(21)
            assert site.queue.claim("another", ["study"]) is not None

    handle.answers = [overtaken]
    with pytest.raises(StaleLease):
        site.segmenter(handle).run(REQUEST)


def test_an_engine_that_dies_under_work_that_nobody_waits_for_is_not_tried_with_it_again(site: Site) -> None:
    with site.database.write() as session:
        wish_for(session, Wish("study", 1, "1.2.3", 20), now=site.clock.now())
    lease = site.queue.claim("worker", [AHEAD_JOB])
    assert lease is not None
    handle = Handle()
    handle.answers = [site.dying(handle)]
    with pytest.raises(EngineKilled, match="died once"):
        site.segmenter(handle, lease).run(REQUEST)
    (ticket,) = handle.tickets
    assert ticket is not None and ticket.ahead
