"""The wait for the Segmenter ends when the lease is lost, in time, and every error has its type."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import ray
from ray.exceptions import ObjectStoreFullError, RayActorError, RayTaskError

from heimdallr_ray.deployments import remote
from heimdallr_ray.errors import EmptyImage, EngineUnavailable, HeimdallrError, StaleLease
from heimdallr_ray.segmentation.engine import SegmentationRequest

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
        self._answers = list(answers)
        self.responses: list[Response] = []
        self.run = self

    def remote(self, reference: object) -> Response:
        assert reference == ("ref", REQUEST)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
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
    with pytest.raises(EngineUnavailable, match="died 2 times"):
        call(Handle(raising(RayActorError())))
